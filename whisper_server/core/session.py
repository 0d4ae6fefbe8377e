"""One live session: audio and results in, decodes to make and things to tell out.

It is pure: no threads, no clock, no model. It counts samples; `now_s` serves time-outs, the interval of
partials, and the measures that go with transcripts. So the same audio gives the same finals however it is
cut.
"""

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from whisper_server.core.endpointing import Endpointer, VoiceMark, VoiceSign
from whisper_server.core.errors import (
    EmptyCommitError,
    SessionEndedError,
    SessionTimeoutError,
    WhisperServerError,
)
from whisper_server.core.sample_buffer import SampleBuffer
from whisper_server.core.session_states import (
    TRANSITIONS,
    AudioReceived,
    CancelAsked,
    ClearAsked,
    CommitAsked,
    DecodeDone,
    DecodeFailed,
    Effect,
    EndAsked,
    OptionsChanged,
    Outbox,
    SessionEvent,
    SessionFailed,
    SpeechJudged,
    State,
    TimePassed,
)
from whisper_server.core.stream_events import (
    MIN_COMMIT_MS,
    BufferCleared,
    Endpointing,
    EndReason,
    SessionEnded,
    SpeechTimedOut,
    StreamOptions,
)
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.core.utterances import Utterances
from whisper_server.core.voice_activity import BLOCK_SAMPLES

_LEAST_COMMIT = MIN_COMMIT_MS * SAMPLE_RATE // 1000

_NOT_YET = 1 << 62
"""Where the speech starts of an utterance that is open before anybody speaks."""

_REFUSED = {
    AudioReceived: "audio",
    SpeechJudged: "audio",
    CommitAsked: "commit",
    ClearAsked: "clear",
    OptionsChanged: "options",
}


class Session:
    """The state machine of one session; see `session_states.TRANSITIONS`. Not thread-safe.

    Args:
        options: what the client asks for.
        new_utterance_id: makes ids.
        now_s: the driver's time, seconds.
        times_words: the engines can place words; without that nothing overlaps at cuts.
    """

    def __init__(
        self,
        options: StreamOptions,
        *,
        new_utterance_id: Callable[[], str],
        now_s: float,
        times_words: bool = True,
    ) -> None:
        self._state = State.LISTENING
        self._outbox = Outbox()
        self._buffer = SampleBuffer()
        self._endpointer = Endpointer(options.voice, options.eagerness)
        self._utterances = Utterances(
            options,
            self._buffer,
            self._endpointer,
            self._outbox,
            new_id=new_utterance_id,
            times_words=times_words,
        )
        self._last_audio_s = now_s
        self._is_paused = False
        self._has_timed_out_of_silence = False
        self._end_reason = EndReason.COMPLETED
        self._end_error: WhisperServerError | None = None

    @property
    def state(self) -> State:
        """Where it is."""
        return self._state

    @property
    def options(self) -> StreamOptions:
        """In effect."""
        return self._utterances.options

    @property
    def is_speaking(self) -> bool:
        """Whether an utterance is open."""
        return self._state in (State.SPEAKING, State.PAUSED)

    @property
    def patience(self) -> int:
        """Blocks of audio that may come before it has to know whether somebody speaks."""
        return self._endpointer.patience

    @property
    def received(self) -> int:
        """Samples received."""
        return self._buffer.end

    @property
    def pending_finals(self) -> int:
        """Finals that are being made."""
        return self._utterances.pending_pieces

    @property
    def held_bytes(self) -> int:
        """Memory of the audio it holds."""
        return self._buffer.held_bytes + self._utterances.held_bytes

    @property
    def idle_deadline_s(self) -> float | None:
        """When it ends if no audio comes, by the driver's time; TimePassed makes it look."""
        limit_s = self.options.idle_timeout_s
        return None if limit_s is None else self._last_audio_s + limit_s

    def handle(self, event: SessionEvent, now_s: float) -> list[Effect]:
        """Take an event.

        Args:
            event: what happened.
            now_s: the driver's time, seconds; it never goes back.

        Returns:
            What to do now, in order.

        Raises:
            SessionEndedError: the event is illegal in this state; the message names it.
            EmptyCommitError: there is nothing to commit; nothing has changed.
        """
        transition = TRANSITIONS[self._state].get(type(event))
        if transition is None:
            self._refuse(event)
        self._utterances.now_s = now_s
        getattr(self, f"_{transition.action}")(event)
        self._find_state()
        if self._state not in transition.to:
            raise AssertionError(f"The table has no way from {transition.action} to {self._state.name}.")
        return self._outbox.take()

    def _refuse(self, event: SessionEvent) -> NoReturn:
        what = _REFUSED.get(type(event), "event")
        raise SessionEndedError(f"The session is {self._state.value} and takes no {what}.")

    def _find_state(self) -> None:
        if self._state is State.ENDED:
            return
        if self._state is State.DRAINING:
            if self._utterances.are_settled:
                self._finish()
        elif self._utterances.open is None:
            self._state = State.LISTENING
        else:
            self._state = State.PAUSED if self._is_paused else State.SPEAKING

    # The actions of the table.

    def _receive(self, event: AudioReceived) -> None:
        self._last_audio_s = self._utterances.now_s
        if self._utterances.is_manual and self._utterances.open is None and len(event.pcm):
            self._begin(self._buffer.end, speech_start=_NOT_YET)
        self._buffer.append(event.pcm)

    def _listen(self, event: SpeechJudged) -> None:
        self._utterances.sharing, self._utterances.is_congested = event.sharing, event.is_congested
        for probability in event.probabilities:
            for mark in self._endpointer.feed(self._above_floor(float(probability))):
                self._follow(mark)
            if self._state is State.DRAINING:
                return
            self._utterances.check_length()
            self._check_silence()
        self._utterances.settle()
        self._ask_for_partial()
        self._buffer.drop_before(min(self._utterances.needed_from, self._endpointer.heard))

    def _take_result(self, event: DecodeDone) -> None:
        self._utterances.take_result(event)
        self._ask_for_partial()

    def _take_failure(self, event: DecodeFailed) -> None:
        self._utterances.take_failure(event.job, event.error)

    def _commit(self, _: CommitAsked) -> None:
        received, utterances = self._buffer.end, self._utterances
        audio = received - (utterances.committed_to if utterances.open is None else utterances.open.start)
        if audio < _LEAST_COMMIT:
            raise EmptyCommitError(
                f"There is nothing to commit: at least {MIN_COMMIT_MS} ms of audio are needed, and "
                f"{1000 * audio // SAMPLE_RATE} ms came since the last commit."
            )
        if utterances.open is None and not utterances.begin_candidate():
            utterances.begin(utterances.committed_to, speech_start=received, is_spoken=False)
        utterances.commit(received, is_asked=True)
        self._endpointer.restart(received)
        utterances.settle()

    def _clear(self, _: ClearAsked) -> None:
        self._utterances.clear()
        self._endpointer.restart(self._buffer.end)
        self._has_timed_out_of_silence = False
        self._outbox.emit(BufferCleared())
        self._utterances.settle()

    def _change_options(self, event: OptionsChanged) -> None:
        self._utterances.configure(event.options)
        self._endpointer.configure(event.options)
        if not self._utterances.is_manual and not self._endpointer.is_begun:
            # An utterance that only a commit could end: no silence will come to end it.
            self._commit_or_drop()
            self._utterances.settle()

    def _end(self, _: EndAsked) -> None:
        self._drain(EndReason.COMPLETED)

    def _check_time(self, _: TimePassed) -> None:
        limit_s = self.options.idle_timeout_s
        if limit_s is not None and self._utterances.now_s - self._last_audio_s >= limit_s:
            self._end_error = SessionTimeoutError(f"No audio came for {limit_s:g} s.")
            self._drain(EndReason.TIMEOUT)

    def _cancel(self, _: CancelAsked) -> None:
        self._abandon(EndReason.CANCELLED)

    def _fail(self, event: SessionFailed) -> None:
        self._end_error = event.error
        self._abandon(EndReason.ERROR)

    def _ignore(self, _: SessionEvent) -> None:
        """Nothing is to be done."""

    # Speech and silence.

    def _begin(self, start: int, *, speech_start: int) -> None:
        self._utterances.begin(start, speech_start=speech_start)
        self._is_paused = self._has_timed_out_of_silence = False

    def _follow(self, mark: VoiceMark) -> None:
        utterances = self._utterances
        if utterances.open is None:
            if mark.sign is VoiceSign.BEGUN:
                self._begin(utterances.padded(mark.at), speech_start=mark.at)
        elif mark.sign in (VoiceSign.BEGUN, VoiceSign.RESUMED):
            self._is_paused = False
            utterances.open.speech_start = min(utterances.open.speech_start, mark.at)
            utterances.drop_speculative()
        elif mark.sign is VoiceSign.PAUSED:
            self._is_paused = True
            utterances.speculate()
        elif not utterances.is_manual:
            utterances.commit(mark.heard)
            if self.options.endpointing is Endpointing.AUTO_END:
                self._drain(EndReason.COMPLETED)

    def _above_floor(self, probability: float) -> float:
        """The probability of the next block, or 0 where it is too quiet to be meant."""
        floor_dbfs = self.options.voice.rms_floor_dbfs
        if floor_dbfs is None or probability < self.options.voice.silence_threshold:
            return probability
        start = self._endpointer.heard
        block = self._buffer.read(start, start + BLOCK_SAMPLES)
        rms = float(np.sqrt(np.mean(np.square(block), dtype=np.float64))) if len(block) else 0.0
        return probability if rms >= 10 ** (floor_dbfs / 20) else 0.0

    def _check_silence(self) -> None:
        limit_s, utterances = self.options.silence_timeout_s, self._utterances
        is_quiet = utterances.open is None and self._endpointer.candidate is None
        if limit_s is None or self._has_timed_out_of_silence or not is_quiet:
            return
        start, heard = utterances.committed_to, self._endpointer.heard
        if heard - start < limit_s * SAMPLE_RATE:
            return
        utterance = utterances.begin(start, speech_start=heard, is_spoken=False)
        self._outbox.emit(SpeechTimedOut(utterance.id, start / SAMPLE_RATE, heard / SAMPLE_RATE))
        utterances.commit(heard)
        self._has_timed_out_of_silence = True

    def _ask_for_partial(self) -> None:
        if not self._is_paused:
            self._utterances.ask_for_partial()

    # The end.

    def _drain(self, reason: EndReason) -> None:
        """Commit what was spoken, and take no more."""
        self._end_reason = reason
        if self._utterances.open is None:
            self._utterances.begin_candidate()
        self._commit_or_drop()
        self._state = State.DRAINING
        self._utterances.settle()

    def _commit_or_drop(self) -> None:
        if self._utterances.has_speech:
            self._utterances.commit(self._buffer.end)
        else:
            self._utterances.drop()

    def _abandon(self, reason: EndReason) -> None:
        self._end_reason = reason
        self._utterances.drop_all()
        self._finish()

    def _finish(self) -> None:
        self._state = State.ENDED
        total_s = self._buffer.end / SAMPLE_RATE
        self._buffer.drop_before(self._buffer.end)
        committed = self._utterances.committed
        self._outbox.emit(SessionEnded(self._end_reason, total_s, committed, self._end_error))
