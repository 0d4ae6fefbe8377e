"""The states of a live session, what may happen in each, and what it asks its driver for.

`TRANSITIONS` is all there is: what it does not list is illegal. `docs/streaming.md` has it as a diagram.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from whisper_server.core.errors import WhisperServerError
from whisper_server.core.stream_events import DecodeTiming, StreamEvent, StreamOptions
from whisper_server.core.types import Decoded, Pcm16, Samples, Window


class State(Enum):
    """Where a session is.

    LISTENING: no utterance is open. SPEAKING: one is. PAUSED: one is, and there is silence. DRAINING: no more
    audio comes, and finals are being made. ENDED: nothing happens any more.
    """

    LISTENING = "listening"
    SPEAKING = "speaking"
    PAUSED = "paused"
    DRAINING = "draining"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, eq=False)
class AudioReceived:
    """More audio, 16 kHz; any number of samples."""

    pcm: Pcm16


@dataclass(frozen=True, slots=True, eq=False)
class SpeechJudged:
    """The voice detector's probabilities of the next blocks of the audio received.

    Attributes:
        probabilities: of each block.
        sharing: how many streams in which somebody speaks share one worker of the engine, at least 1.
        is_congested: many finals wait for the engine: nothing is to be decoded that may be thrown away.
    """

    probabilities: Samples
    sharing: float = 1.0
    is_congested: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class DecodeDone:
    """What a decode gave, and how long it took."""

    job: int
    decoded: Decoded
    timing: DecodeTiming = field(default_factory=DecodeTiming)


@dataclass(frozen=True, slots=True)
class DecodeFailed:
    """A decode gave nothing."""

    job: int
    error: WhisperServerError


@dataclass(frozen=True, slots=True)
class CommitAsked:
    """The client ends the utterance here."""


@dataclass(frozen=True, slots=True)
class ClearAsked:
    """The client drops what is not committed."""


@dataclass(frozen=True, slots=True)
class OptionsChanged:
    """The client wants other options from here on."""

    options: StreamOptions


@dataclass(frozen=True, slots=True)
class EndAsked:
    """The client sends no more audio."""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """The client wants nothing more, or has left."""


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """The session cannot go on."""

    error: WhisperServerError


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened, but it is later now."""


SessionEvent: TypeAlias = (
    AudioReceived
    | SpeechJudged
    | DecodeDone
    | DecodeFailed
    | CommitAsked
    | ClearAsked
    | OptionsChanged
    | EndAsked
    | CancelAsked
    | SessionFailed
    | TimePassed
)


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the client."""

    event: StreamEvent


@dataclass(frozen=True, slots=True, eq=False)
class StartDecode:
    """Decode a window, and bring the result as DecodeDone or DecodeFailed.

    Attributes:
        job: its number.
        window: what to decode.
        is_final: for a final, which goes before partials.
        buffer_wait_s: how long its audio was gathered.
    """

    job: int
    window: Window
    is_final: bool
    buffer_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CancelDecode:
    """A decode is of no use any more; its result is not wanted."""

    job: int


Effect: TypeAlias = Emit | StartDecode | CancelDecode


class Outbox:
    """Gathers what a session asks for while it takes one event."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._jobs = 0

    def emit(self, event: StreamEvent) -> None:
        """Tell the client."""
        self._effects.append(Emit(event))

    def decode(self, window: Window, *, is_final: bool, buffer_wait_s: float = 0.0) -> int:
        """Have a window decoded.

        Returns:
            The number of the job.
        """
        self._jobs += 1
        self._effects.append(StartDecode(self._jobs, window, is_final, buffer_wait_s))
        return self._jobs

    def cancel(self, job: int) -> None:
        """The job is of no use any more."""
        self._effects.append(CancelDecode(job))

    def take(self) -> list[Effect]:
        """All of it, in order; the box is empty then."""
        effects, self._effects = self._effects, []
        return effects


class Transition(NamedTuple):
    """What the session does at an event, by the name of its method, and where it may be afterwards."""

    action: str
    to: frozenset[State]


def _to(action: str, *states: State) -> Transition:
    return Transition(action, frozenset(states))


_L, _S, _P, _D, _E = State.LISTENING, State.SPEAKING, State.PAUSED, State.DRAINING, State.ENDED

_ALWAYS: Mapping[type, Transition] = {
    CancelAsked: _to("cancel", _E),
    SessionFailed: _to("fail", _E),
}

TRANSITIONS: Mapping[State, Mapping[type, Transition]] = MappingProxyType(
    {
        _L: {
            AudioReceived: _to("receive", _L, _S),
            SpeechJudged: _to("listen", _L, _S, _P, _D, _E),
            DecodeDone: _to("take_result", _L),
            DecodeFailed: _to("take_failure", _L),
            CommitAsked: _to("commit", _L),
            ClearAsked: _to("clear", _L),
            OptionsChanged: _to("change_options", _L),
            EndAsked: _to("end", _D, _E),
            TimePassed: _to("check_time", _L, _D, _E),
            **_ALWAYS,
        },
        _S: {
            AudioReceived: _to("receive", _S),
            SpeechJudged: _to("listen", _S, _P, _L, _D, _E),
            DecodeDone: _to("take_result", _S),
            DecodeFailed: _to("take_failure", _S),
            CommitAsked: _to("commit", _L),
            ClearAsked: _to("clear", _L),
            OptionsChanged: _to("change_options", _S, _L),
            EndAsked: _to("end", _D, _E),
            TimePassed: _to("check_time", _S, _D, _E),
            **_ALWAYS,
        },
        _P: {
            AudioReceived: _to("receive", _P),
            SpeechJudged: _to("listen", _P, _S, _L, _D, _E),
            DecodeDone: _to("take_result", _P),
            DecodeFailed: _to("take_failure", _P),
            CommitAsked: _to("commit", _L),
            ClearAsked: _to("clear", _L),
            OptionsChanged: _to("change_options", _P, _L),
            EndAsked: _to("end", _D, _E),
            TimePassed: _to("check_time", _P, _D, _E),
            **_ALWAYS,
        },
        _D: {
            DecodeDone: _to("take_result", _D, _E),
            DecodeFailed: _to("take_failure", _D, _E),
            EndAsked: _to("ignore", _D),
            TimePassed: _to("ignore", _D),
            **_ALWAYS,
        },
        _E: {
            DecodeDone: _to("ignore", _E),
            DecodeFailed: _to("ignore", _E),
            EndAsked: _to("ignore", _E),
            CancelAsked: _to("ignore", _E),
            SessionFailed: _to("ignore", _E),
            TimePassed: _to("ignore", _E),
        },
    }
)
"""By state and event."""
