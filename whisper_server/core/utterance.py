"""One utterance of a live session, from its first sample to its final transcript."""

from collections import deque
from dataclasses import dataclass, field, replace

from whisper_server.core.agreement import reconcile
from whisper_server.core.errors import WhisperServerError
from whisper_server.core.finals import Piece, PieceJoiner, confidence
from whisper_server.core.partials import Partials
from whisper_server.core.stream_events import DecodeTiming, FinalTranscript, TranscriptFailed
from whisper_server.core.types import SAMPLE_RATE, Segment


@dataclass(slots=True, eq=False)
class Utterance:
    """What is known of an utterance. Positions are samples of the session.

    Attributes:
        id: of its events.
        start: where its audio starts.
        partials: its partial transcripts.
        opened_s: when it was opened, by the driver's clock.
        piece_start: where the audio starts that is in no piece yet.
        speech_start: where its speech starts.
        speech_stop: where its speech ends.
        joins_previous: the next piece begins before the cut that ended the piece before.
        pieces: not settled yet, in order of their audio.
        speculative: a piece that ends at a pause; it counts if the pause ends the utterance.
        stop: where its audio ends, once it is committed.
        committed_s: when that was.
        segments: of the settled pieces.
        language: of the first piece with text.
        language_probability: how sure that is.
        timing: of the settled pieces.
        error: of a piece that failed.
    """

    id: str
    start: int
    partials: Partials
    opened_s: float
    piece_start: int
    speech_start: int
    speech_stop: int
    joins_previous: bool = False
    pieces: deque[Piece] = field(default_factory=deque)
    speculative: Piece | None = None
    stop: int | None = None
    committed_s: float = 0.0
    segments: list[Segment] = field(default_factory=list)
    language: str | None = None
    language_probability: float = 0.0
    timing: DecodeTiming = field(default_factory=DecodeTiming)
    error: WhisperServerError | None = None

    @property
    def is_finished(self) -> bool:
        """Whether its transcript is known."""
        return self.stop is not None and not self.pieces

    def settle(self, joiner: PieceJoiner) -> None:
        """Take the results of its pieces up to the first that is not decoded."""
        while self.pieces and self.pieces[0].is_done:
            piece = self.pieces.popleft()
            self.error = self.error or piece.error
            segments = joiner.join(piece)
            self.segments += segments
            if piece.decoded is not None and (self.language is None or not self.segments):
                self.language = piece.decoded.language
                self.language_probability = piece.decoded.language_probability
            self.timing = replace(
                piece.timing,
                buffer_wait_s=piece.buffer_wait_s,
                inference_s=self.timing.inference_s + piece.timing.inference_s,
                waited_for_speech_end_s=max(0.0, self.committed_s - piece.done_s),
            )

    def outcome(self, given_language: str | None) -> FinalTranscript | TranscriptFailed:
        """The last event of a finished utterance."""
        stop = self.start if self.stop is None else self.stop
        duration_s = (stop - self.start) / SAMPLE_RATE
        if self.error is not None:
            return TranscriptFailed(self.id, self.error, duration_s)
        text = "".join(segment.text for segment in self.segments).strip()
        stable = self.partials.stable_text
        continuation, replaced = reconcile(stable, text)
        is_given = self.language is None and given_language is not None
        return FinalTranscript(
            utterance_id=self.id,
            text=text,
            segments=tuple(self.segments),
            language=given_language if is_given else self.language,
            language_probability=1.0 if is_given else self.language_probability,
            confidence=confidence(self.segments),
            audio_start_s=self.start / SAMPLE_RATE,
            audio_duration_s=duration_s,
            speech_end_s=self.speech_stop / SAMPLE_RATE,
            stable_text=stable,
            continuation=continuation,
            replaced=replaced,
            timing=self.timing,
        )
