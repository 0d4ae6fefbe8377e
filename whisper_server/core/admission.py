"""Who may come in, and when the others are to come back: rules and measures, without threads or clocks."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from whisper_server.core.scheduling import Caller, Priority

MAX_RETRY_AFTER_S = 600.0
"""Nobody is told to stay away longer: by then the estimate is worth nothing."""

_MIN_RETRY_AFTER_S = 1.0
_HALF_LIFE_S = 60.0
"""Computing after which what was measured before counts half."""

_STAY_SMOOTHING = 0.2
"""Weight of the newest stay in the moving average."""

_FIRST_STAY_S = 1.0


class Refusal(StrEnum):
    """Why a request was turned away."""

    DRAINING = "draining"
    REQUESTS = "requests"
    BUFFERED_AUDIO = "buffered_audio"
    ESTIMATED_WAIT = "estimated_wait"
    CLIENT_REQUESTS = "client_requests"
    CLIENT_BUFFERED_AUDIO = "client_buffered_audio"


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What all requests together may use.

    Attributes:
        max_requests: inside at once, whatever they do.
        max_buffered_audio_s: decoded audio in memory, seconds.
        max_estimated_wait_s: the work before a new request may take so long.
    """

    max_requests: int
    max_buffered_audio_s: float = math.inf
    max_estimated_wait_s: float = math.inf


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What the requests of one client may use.

    Attributes:
        weight: its share of the computing, beside one of weight 1.
        rank: before (-1) or after (1) others of the same priority.
        max_requests: inside at once; None leaves it to the limits of all.
        max_buffered_audio_s: decoded audio in memory, seconds; None as above.
    """

    weight: float = 1.0
    rank: int = 0
    max_requests: int | None = None
    max_buffered_audio_s: float | None = None


@dataclass(slots=True, eq=False)
class Holding:
    """What one request inside holds, and how far its work has come.

    Attributes:
        caller: for whom.
        priority: of its windows.
        audio_s: decoded recordings in memory, seconds.
        decoding_s: decoded so far of a recording that is not decoded whole, seconds.
        work_s: seconds of it that are for a model.
        done_s: seconds of these that are done.
    """

    caller: Caller
    priority: Priority = Priority.SHORT_FILE
    audio_s: float = 0.0
    decoding_s: float = 0.0
    work_s: float = 0.0
    done_s: float = 0.0

    @property
    def turn(self) -> tuple[Priority, int]:
        """When it is served: smaller first."""
        return self.priority, self.caller.rank

    @property
    def held_s(self) -> float:
        """Decoded audio in memory, seconds."""
        return self.audio_s + self.decoding_s

    @property
    def remaining_s(self) -> float:
        """Seconds of audio that are still to be done."""
        return max(0.0, self.work_s - self.done_s)


@dataclass(slots=True)
class AdmissionCounters:
    """What became of requests since the start.

    Attributes:
        admitted: came in.
        refused: were turned away, by reason; some of them after their audio was decoded.
        cancelled: were called off by their client.
        deadline_exceeded: took longer than they might.
        cut: were unfinished when the server stopped.
    """

    admitted: int = 0
    refused: dict[Refusal, int] = field(default_factory=lambda: dict.fromkeys(Refusal, 0))
    cancelled: int = 0
    deadline_exceeded: int = 0
    cut: int = 0


class ComputeMeter:
    """Measures how many seconds of computing a second of audio takes (RTF).

    Those at work share the lanes evenly: while n are, each has min(n, lanes) / n of a lane. The time of a
    lane that a piece of work had is set against the audio it got done. So idle time does not count, many at
    once do not make each of them look slow, and what a batch saves shows.

    Args:
        lanes: how many requests really compute at once.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._at_work = 0
        self._share_s = 0.0
        self._share_at_s = 0.0
        self._audio_s = 0.0
        self._compute_s = 0.0

    @property
    def rtf(self) -> float | None:
        """Compute seconds per second of audio; None before anything was measured."""
        return self._compute_s / self._audio_s if self._audio_s else None

    def begin(self, now_s: float) -> None:
        """One more is at work."""
        self.share_s(now_s)
        self._at_work += 1

    def end(self, now_s: float) -> None:
        """One less is at work."""
        self.share_s(now_s)
        self._at_work -= 1

    def share_s(self, now_s: float) -> float:
        """The time of a lane that one who is at work all along has had; only differences mean something.

        Source: virtual time of processor sharing (Parekh and Gallager, 1993).
        """
        if self._at_work:
            share = min(self._at_work, self._lanes) / self._at_work
            self._share_s += (now_s - self._share_at_s) * share
        self._share_at_s = now_s
        return self._share_s

    def note(self, audio_s: float, compute_s: float) -> None:
        """So much audio took so much of one lane."""
        fading = 0.5 ** (compute_s / _HALF_LIFE_S)
        self._audio_s = self._audio_s * fading + audio_s
        self._compute_s = self._compute_s * fading + compute_s

    def wait_s(self, audio_s: float) -> float:
        """How long the lanes together take for so much audio; 0 before anything was measured."""
        return audio_s * (self.rtf or 0.0) / self._lanes

    def finish_times_s(self, remaining_s: Sequence[float]) -> list[float]:
        """When each of these amounts of audio is done, seconds from now, if they share the lanes evenly."""
        rtf = self.rtf or 0.0
        times_s = [0.0] * len(remaining_s)
        now_s = done_s = 0.0
        by_length = sorted(range(len(remaining_s)), key=remaining_s.__getitem__)
        for rank, index in enumerate(by_length):
            at_work = len(by_length) - rank
            now_s += (remaining_s[index] - done_s) * rtf * at_work / min(at_work, self._lanes)
            done_s = remaining_s[index]
            times_s[index] = now_s
        return times_s


class StayMeter:
    """Measures how long requests stay, for as long as nothing better is known."""

    def __init__(self) -> None:
        self._mean_s = _FIRST_STAY_S

    def note(self, stay_s: float) -> None:
        """One has left."""
        self._mean_s += _STAY_SMOOTHING * (stay_s - self._mean_s)

    def until_one_leaves_s(self, ages_s: Sequence[float]) -> float:
        """How long it takes until one of these leaves, who have been here so long."""
        mean_age_s = sum(ages_s) / len(ages_s)
        return max(self._mean_s, mean_age_s) / len(ages_s)


def audio_before_s(others: Collection[Holding], newcomer: Holding) -> float:
    """How much audio is done before the turn of a newcomer, seconds.

    All that is more urgent; and of its own priority and rank what its client has there already, with what
    the others get done meanwhile by their weights, since clients share a priority fairly.
    """
    caller, turn = newcomer.caller, newcomer.turn
    urgent_s = sum(one.remaining_s for one in others if one.turn < turn)
    equals = [one for one in others if one.turn == turn and one.remaining_s]
    own_s = sum(one.remaining_s for one in equals if one.caller.client == caller.client)
    weights = {one.caller.client: one.caller.weight for one in equals} | {caller.client: caller.weight}
    fair_s = own_s * sum(weights.values()) / caller.weight
    return urgent_s + min(fair_s, sum(one.remaining_s for one in equals))


def retry_after_s(wait_s: float) -> float:
    """What a client is told that should wait so long: whole seconds, at least one and not beyond all use."""
    return float(math.ceil(min(max(wait_s, _MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)))
