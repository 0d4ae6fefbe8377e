"""One session of a load test: what its driver notes while it runs, and the record that comes of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

Clock = Callable[[], float]
"""Seconds that never go back."""


class Status(StrEnum):
    """How a session went."""

    OK = "ok"
    WRONG_TEXT = "wrong_text"
    FAILED = "failed"


class SessionFailedError(Exception):
    """A session that cannot go on.

    Attributes:
        code: the server's own, such as ERR1008; or one of this command's, in capitals.
        message: for the user, on one line.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class DecodeTimes:
    """Where the server's time went, summed over all decodes of a session. None is what it does not tell.

    Attributes:
        buffer_wait_s: gathering audio before a decode was asked for.
        queue_wait_s: waiting for the model.
        inference_s: in the model.
        response_emit_s: handing results to the client.
        total_s: the sum, as the server tells it.
        count: how many decodes.
    """

    buffer_wait_s: float | None = None
    queue_wait_s: float | None = None
    inference_s: float | None = None
    response_emit_s: float | None = None
    total_s: float | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session that is over. Times are seconds on the client's clock; None where there was no such moment.

    Attributes:
        channel: from 1.
        iteration: from 1.
        session_id: the server's or the client's name for it.
        status: how it went.
        error_code: of the first failure; empty where there was none.
        error_message: likewise.
        audio_s: audio that the server took, where it tells; else the length of the recording.
        wall_s: from asking for the session to its end.
        first_partial_s: from the beginning of the audio to the first partial.
        first_final_s: likewise to the first final.
        final_after_last_chunk_s: from sending the last audio to the last final; 0 where that came before.
        partials: how many.
        finals: how many.
        decode: the server's own times.
        text: all finals.
    """

    channel: int
    iteration: int
    session_id: str
    status: Status
    error_code: str
    error_message: str
    audio_s: float
    wall_s: float
    first_partial_s: float | None
    first_final_s: float | None
    final_after_last_chunk_s: float | None
    partials: int
    finals: int
    decode: DecodeTimes
    text: str

    @property
    def rtf(self) -> float | None:
        """Wall seconds per second of audio; None where there was no audio."""
        return self.wall_s / self.audio_s if self.audio_s else None


class SessionTrace:
    """What a driver notes of the session that it runs. It begins when it is made.

    Args:
        session_id: for the session, where the client may choose; drivers set the attribute where not.
        clock: tells the time.

    Attributes:
        session_id: of the session.
        audio_s: audio that the server took; None until it tells.
        decode: the server's own times, which the driver fills in.
    """

    def __init__(self, session_id: str, clock: Clock = time.perf_counter) -> None:
        self.session_id = session_id
        self.audio_s: float | None = None
        self.decode = DecodeTimes()
        self._clock = clock
        self._begin_s = clock()
        self._audio_begin_s: float | None = None
        self._audio_end_s: float | None = None
        self._first_partial_s: float | None = None
        self._first_final_s: float | None = None
        self._last_final_s: float | None = None
        self._partials = 0
        self._texts: list[str] = []
        self._error: tuple[str, str] | None = None

    def begin_audio(self) -> None:
        """The first audio is spoken, or sent at once."""
        self._audio_begin_s = self._clock()

    def end_audio(self) -> None:
        """The last audio was sent."""
        self._audio_end_s = self._clock()

    def note_partial(self) -> None:
        """A partial came."""
        self._partials += 1
        if self._first_partial_s is None:
            self._first_partial_s = self._clock()

    def note_final(self, text: str) -> None:
        """A final came; its text may be empty."""
        self._last_final_s = self._clock()
        if self._first_final_s is None:
            self._first_final_s = self._last_final_s
        self._texts.append(text.strip())

    def fail(self, code: str, message: str) -> None:
        """Something went wrong; of several failures the first counts."""
        if self._error is None:
            self._error = (code, " ".join(message.split()))

    def finish(
        self, *, channel: int, iteration: int, audio_s: float, is_right: Callable[[str], bool]
    ) -> SessionRecord:
        """The session is over.

        Args:
            channel: its number.
            iteration: its number in the channel.
            audio_s: length of the recording.
            is_right: whether a text is what was to be heard.
        """
        text = " ".join(filter(None, self._texts))
        code, message = self._error or ("", "")
        status = Status.OK if is_right(text) else Status.WRONG_TEXT
        return SessionRecord(
            channel=channel,
            iteration=iteration,
            session_id=self.session_id,
            status=Status.FAILED if self._error else status,
            error_code=code,
            error_message=message,
            audio_s=audio_s if self.audio_s is None else self.audio_s,
            wall_s=self._clock() - self._begin_s,
            first_partial_s=_between(self._audio_begin_s, self._first_partial_s),
            first_final_s=_between(self._audio_begin_s, self._first_final_s),
            final_after_last_chunk_s=_between(self._audio_end_s, self._last_final_s),
            partials=self._partials,
            finals=len(self._texts),
            decode=self.decode,
            text=text,
        )


def _between(begin_s: float | None, end_s: float | None) -> float | None:
    return None if begin_s is None or end_s is None else max(0.0, end_s - begin_s)
