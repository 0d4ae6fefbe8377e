"""The utterances of a live session: opened, cut, committed, and told in order when their text is known."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from whisper_server.core.endpointing import EARLY_SILENCE_SAMPLES, Endpointer
from whisper_server.core.errors import WhisperServerError
from whisper_server.core.finals import Piece, PieceJoiner, confidence, final_window
from whisper_server.core.partials import Partials, interval_s
from whisper_server.core.sample_buffer import SampleBuffer
from whisper_server.core.session_states import DecodeDone, Outbox
from whisper_server.core.stream_events import (
    Endpointing,
    FinalTranscript,
    SpeechStarted,
    SpeechStopped,
    StreamOptions,
    UtteranceCommitted,
)
from whisper_server.core.types import MAX_WINDOW_S, SAMPLE_RATE
from whisper_server.core.utterance import Utterance

_LONGEST_PIECE = MAX_WINDOW_S * SAMPLE_RATE
_MOST_OVERLAP = 4
"""The overlap at a cut is at most this fraction of what is cut."""


class Utterances:
    """At most one is open; those before it wait for their text. Positions are samples of the session.

    Args:
        options: in effect.
        buffer: the session's audio.
        endpointer: which has listened to it.
        outbox: for decodes and events.
        new_id: makes utterance ids.
        times_words: the engines can place words; without that nothing overlaps at cuts.
    """

    def __init__(
        self,
        options: StreamOptions,
        buffer: SampleBuffer,
        endpointer: Endpointer,
        outbox: Outbox,
        *,
        new_id: Callable[[], str],
        times_words: bool,
    ) -> None:
        self._buffer = buffer
        self._endpointer = endpointer
        self._outbox = outbox
        self._new_id = new_id
        self._times_words = times_words
        self._joiner = PieceJoiner()
        self._unsettled: deque[Utterance] = deque()
        self._previous_id: str | None = None
        self._last_cost_s = 0.0
        self._language: str | None = None
        self.options = options
        self.configure(options)
        self.now_s = 0.0
        self.sharing = 1.0
        """Streams per worker."""
        self.is_congested = False
        """Many finals wait for the engine."""
        self.open: Utterance | None = None
        self.committed = 0
        """How many were committed."""
        self.committed_to = 0
        """What is before was committed or cleared."""
        self._given_to = 0  # what is before was given to a final, or never will be

    @property
    def is_manual(self) -> bool:
        """Whether commits alone end utterances."""
        return self.options.endpointing is Endpointing.MANUAL

    @property
    def are_settled(self) -> bool:
        """Whether everything is told that will be."""
        return not self._unsettled

    @property
    def pending_pieces(self) -> int:
        """Finals that are being made."""
        return sum(len(utterance.pieces) for utterance in self._unsettled)

    @property
    def held_bytes(self) -> int:
        """Memory of the audio given to decodes."""
        if not self._unsettled:
            return 0
        pieces = (piece for utterance in self._unsettled for piece in utterance.pieces)
        return sum(piece.window.samples.nbytes for piece in pieces if not piece.is_done)

    @property
    def needed_from(self) -> int:
        """Where the audio starts that is still needed."""
        if self.open is not None:
            if not self.options.partials:
                return self.open.piece_start
            longest = int(self.options.max_partial_window_s * SAMPLE_RATE)
            for_partials = max(self.open.partials.needed_from, self._buffer.end - longest)
            return min(self.open.piece_start, for_partials)
        candidate = self._endpointer.candidate
        return self.padded(self._endpointer.heard if candidate is None else candidate)

    def configure(self, options: StreamOptions) -> None:
        """Take new options."""
        if self._language is None or options.language != self.options.language:
            self._language = options.language
        if len(set(options.languages)) == 1:
            self._language = options.languages[0]
        self.options = options

    def padded(self, speech_start: int) -> int:
        """Where the audio of an utterance starts whose speech starts there."""
        padding = self.options.voice.prefix_padding_ms * SAMPLE_RATE // 1000
        return max(self._given_to, speech_start - padding)

    def begin(
        self, start: int, *, speech_start: int, since: int | None = None, is_spoken: bool = True
    ) -> Utterance:
        """Open an utterance.

        Args:
            start: where its audio starts.
            speech_start: where its speech starts.
            since: words before this belong to the utterance before; None takes all.
            is_spoken: somebody speaks; else nothing of it is decoded so far.
        """
        id_ = self._new_id()
        first = start if since is None else since
        partials = Partials(id_, start, since=first, now_s=self.now_s, times_words=self._times_words)
        utterance = Utterance(id_, start, partials, self.now_s, start, speech_start, speech_start)
        if not is_spoken:
            utterance.piece_start = speech_start
        elif self._tells_voice:
            self._outbox.emit(SpeechStarted(id_, speech_start / SAMPLE_RATE, start / SAMPLE_RATE))
        self.open = utterance
        self._unsettled.append(utterance)
        return utterance

    def begin_candidate(self) -> bool:
        """Open an utterance of speech that was too short so far: no more will come."""
        candidate = self._endpointer.candidate
        if candidate is None or self._endpointer.last_speech <= self._given_to:
            return False
        self.begin(self.padded(candidate), speech_start=max(candidate, self._given_to))
        return True

    def commit(self, stop: int, *, is_asked: bool = False) -> None:
        """End the open utterance; its audio ends at `stop`, whatever the client sends after it."""
        utterance = self.open
        if utterance is None:
            return
        end = self._add_last_piece(utterance, stop)
        self._given_to = stop if is_asked else end
        self._commit(utterance, stop)

    def commit_full(self, at: int) -> None:
        """Commit an utterance of full length; if somebody speaks, the next one begins."""
        utterance = self.open
        if utterance is None:
            return
        if self._endpointer.silence_start is not None:
            self.commit(at)
            self._endpointer.forget()
            return
        overlap = self._overlap(at - utterance.start)
        self._add_last_piece(utterance, at, overlap=overlap)
        self._commit(utterance, at)
        self._given_to = at - overlap
        self._endpointer.cut(at)
        following = self.begin(at - overlap, speech_start=at, since=at - overlap // 2)
        following.joins_previous = overlap > 0

    def cut(self, at: int) -> None:
        """Have the audio of the open utterance decoded up to `at`; the utterance goes on."""
        utterance = self.open
        if utterance is None:
            return
        speaks = self._endpointer.silence_start is None and self._endpointer.last_speech >= at
        overlap = self._overlap(_LONGEST_PIECE) if speaks else 0
        self._add_last_piece(utterance, at, overlap=overlap)
        utterance.piece_start = at - overlap
        utterance.joins_previous = overlap > 0

    def check_length(self) -> None:
        """Cut the open utterance where it has become too long."""
        utterance, heard = self.open, self._endpointer.heard
        if utterance is None:
            return
        longest_s = None if self.is_manual else self.options.max_utterance_s
        longest = None if longest_s is None else int(longest_s * SAMPLE_RATE)
        if longest is not None and heard - utterance.start >= longest:
            self.commit_full(utterance.start + longest)
        elif heard - utterance.piece_start >= _LONGEST_PIECE:
            self.cut(utterance.piece_start + _LONGEST_PIECE)

    def drop(self) -> None:
        """Forget the open utterance and all that was begun for it."""
        utterance = self.open
        if utterance is None:
            return
        self.drop_speculative()
        self._cancel_partial(utterance)
        self._cancel_pieces(utterance)
        self._unsettled.remove(utterance)
        self.open = None

    def drop_all(self) -> None:
        """Forget everything that is not told."""
        self.drop()
        for utterance in self._unsettled:
            self._cancel_pieces(utterance)
        self._unsettled.clear()

    def clear(self) -> None:
        """Forget the open utterance and the audio received."""
        self.drop()
        self.committed_to = self._given_to = self._buffer.end

    @property
    def has_speech(self) -> bool:
        """Whether there is speech in the open utterance, decoded already or not."""
        utterance = self.open
        return utterance is not None and bool(
            utterance.pieces or utterance.segments or self._is_speech_left(utterance)
        )

    def speculate(self) -> None:
        """Begin the final of the open utterance at a pause."""
        utterance = self.open
        if utterance is None or not self._is_speech_left(utterance):
            return
        if self._speculates:
            self.drop_speculative()
            utterance.speculative = self._new_piece(utterance, self._speech_stop(self._endpointer.heard))
        elif utterance.partials.text:
            self._endpointer.judge_text(utterance.partials.text)

    def drop_speculative(self) -> None:
        """The pause is over: the speculative final is of no use."""
        if self.open is None:
            return
        piece, self.open.speculative = self.open.speculative, None
        if piece is not None and not piece.is_done:
            self._outbox.cancel(piece.job)

    def ask_for_partial(self) -> None:
        """Have the open utterance decoded as it is, if that is due."""
        utterance, options = self.open, self.options
        if utterance is None or not options.partials:
            return
        if self._speculates and self._endpointer.silence_start is not None:
            return  # a call cannot be interrupted: the final that is about to begin would share the processor
        last_speech = self._endpointer.last_speech
        if utterance.partials.is_due(self._buffer.end, last_speech, self.now_s, self._interval_s):
            window = utterance.partials.window(self._buffer, options, self._language, self.now_s)
            utterance.partials.job = self._outbox.decode(
                window, is_final=False, buffer_wait_s=utterance.partials.wait_s
            )

    def take_result(self, event: DecodeDone) -> None:
        """A decode is done; what can be told is told."""
        utterance = self.open
        if utterance is not None and event.job == utterance.partials.job:
            self._last_cost_s = event.timing.inference_s
            partial = utterance.partials.take(event.decoded, event.timing)
            if partial is not None:
                self._outbox.emit(partial)
            return
        piece = self._piece(event.job)
        if piece is None or self._is_in_other_language(piece, event):
            return
        piece.decoded, piece.timing, piece.done_s = event.decoded, event.timing, self.now_s
        if utterance is not None and piece is utterance.speculative:
            self._judge_speculative(utterance, event)
        self.settle()

    def take_failure(self, job: int, error: WhisperServerError) -> None:
        """A decode failed. A failed partial costs nothing: the next one may do better."""
        if self.open is not None and job == self.open.partials.job:
            self.open.partials.job = None
            return
        piece = self._piece(job)
        if piece is not None:
            piece.error, piece.done_s = error, self.now_s
            self.settle()

    def settle(self) -> None:
        """Tell the finals that are known, in the order of their utterances."""
        while self._unsettled:
            utterance = self._unsettled[0]
            utterance.settle(self._joiner)
            if not utterance.is_finished:
                return
            self._unsettled.popleft()
            outcome = utterance.outcome(self.options.language)
            if isinstance(outcome, FinalTranscript) and outcome.text and self.options.keep_language:
                self._language = self._language or outcome.language
            self._outbox.emit(outcome)

    @property
    def _tells_voice(self) -> bool:
        return not self.is_manual and self.options.voice.enabled

    @property
    def _interval_s(self) -> float:
        return interval_s(self.options, self._last_cost_s, self.sharing)

    @property
    def _speculates(self) -> bool:
        """Whether a pause begins a final that may be thrown away; eagerness needs its text in any case."""
        options = self.options
        return options.speculative_finals and (options.eagerness is not None or not self.is_congested)

    def _is_speech_left(self, utterance: Utterance) -> bool:
        return self._endpointer.last_speech > utterance.piece_start

    def _speech_stop(self, stop: int) -> int:
        """Where to stop decoding audio that ends at `stop`: soon after its last speech."""
        return min(stop, self._endpointer.last_speech + EARLY_SILENCE_SAMPLES)

    def _overlap(self, length: int) -> int:
        """Samples decoded on both sides of a cut of a stretch so long."""
        if not self._times_words:
            return 0
        return min(self.options.overlap_ms * SAMPLE_RATE // 1000, length // _MOST_OVERLAP)

    def _commit(self, utterance: Utterance, stop: int) -> None:
        self._cancel_partial(utterance)
        utterance.stop, utterance.committed_s = stop, self.now_s
        utterance.speech_stop = max(utterance.start, min(stop, self._endpointer.last_speech))
        if self._tells_voice and self.has_speech:
            speech_stop_s = utterance.speech_stop / SAMPLE_RATE
            self._outbox.emit(SpeechStopped(utterance.id, speech_stop_s, stop / SAMPLE_RATE))
        start_s, stop_s = utterance.start / SAMPLE_RATE, stop / SAMPLE_RATE
        self._outbox.emit(UtteranceCommitted(utterance.id, self._previous_id, start_s, stop_s))
        self._previous_id = utterance.id
        self.committed += 1
        self.committed_to = stop
        self.open = None

    def _add_last_piece(self, utterance: Utterance, stop: int, *, overlap: int = 0) -> int:
        """Have the rest of the utterance decoded up to `stop`.

        Returns:
            Where the audio ends that is decoded.
        """
        if not self._is_speech_left(utterance):
            self.drop_speculative()
            return stop
        end = self._speech_stop(stop)
        ready = utterance.speculative
        if ready is not None and ready.stop == end and ready.options is self.options:
            utterance.speculative = None
            utterance.pieces.append(ready)
            return end
        self.drop_speculative()
        utterance.pieces.append(self._new_piece(utterance, end, overlap=overlap))
        return end

    def _new_piece(self, utterance: Utterance, stop: int, *, overlap: int = 0) -> Piece:
        start, options = utterance.piece_start, self.options
        is_joined = utterance.joins_previous or overlap > 0
        window = final_window(
            self._buffer.read(start, stop),
            options,
            self._language,
            times_words=self._times_words and (options.word_timestamps or is_joined),
        )
        wait_s = self.now_s - utterance.opened_s
        return Piece(
            job=self._outbox.decode(window, is_final=True, buffer_wait_s=wait_s),
            start=start,
            stop=stop,
            window=window,
            options=options,
            speech_start=min(max(start, utterance.speech_start), stop),
            speech_stop=max(start, min(stop, self._endpointer.last_speech)),
            joins_previous=utterance.joins_previous,
            take_until_s=(stop - overlap / 2) / SAMPLE_RATE if overlap else None,
            buffer_wait_s=wait_s,
        )

    def _judge_speculative(self, utterance: Utterance, event: DecodeDone) -> None:
        """What the text up to a pause tells: whether it is a sentence, and what the words are."""
        segments = event.decoded.segments
        text = "".join(segment.text for segment in segments).strip()
        self._endpointer.judge_text(text)
        is_whole = not utterance.pieces and not utterance.segments
        if self.options.partials and is_whole:
            partial = utterance.partials.take_final(
                text, confidence(segments), event.decoded.language, event.timing
            )
            if partial is not None:
                self._outbox.emit(partial)

    def _is_in_other_language(self, piece: Piece, event: DecodeDone) -> bool:
        """Decode a piece again that was taken for a language the client does not expect."""
        allowed = piece.options.languages
        if not allowed or piece.window.language is not None or event.decoded.language in allowed:
            return False
        likeliest = max(allowed, key=allowed.count)
        piece.window = replace(piece.window, language=likeliest)
        piece.job = self._outbox.decode(piece.window, is_final=True)
        return True

    def _piece(self, job: int) -> Piece | None:
        pieces = [piece for utterance in self._unsettled for piece in utterance.pieces]
        if self.open is not None and self.open.speculative is not None:
            pieces.append(self.open.speculative)
        return next((piece for piece in pieces if piece.job == job), None)

    def _cancel_partial(self, utterance: Utterance) -> None:
        if utterance.partials.job is not None:
            self._outbox.cancel(utterance.partials.job)
            utterance.partials.job = None

    def _cancel_pieces(self, utterance: Utterance) -> None:
        for piece in utterance.pieces:
            if not piece.is_done:
                self._outbox.cancel(piece.job)
