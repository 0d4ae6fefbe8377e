"""Audio on its way to the server, kept until it is transcribed, so that a lost connection loses no words."""

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain
from typing import Literal, TypeAlias

_TOLERANCE_S = 0.001
"""The server rounds its times to a tenth of a millisecond."""


class Mark(Enum):
    """What stands between audio."""

    FLUSH = auto()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some audio.

    Attributes:
        pcm: signed 16-bit mono.
        duration_s: its length.
        taken_at_s: wall-clock time when it came in.
    """

    pcm: bytes
    duration_s: float
    taken_at_s: float


Item: TypeAlias = Chunk | Literal[Mark.FLUSH]


class ReplayBuffer:
    """What was sent and is not transcribed yet, and behind it what is not sent.

    Server times count from the oldest item of the last `rewind`. Not thread-safe.

    Args:
        max_sent_s: of sent audio the latest is kept, this much; older audio counts as transcribed.
    """

    def __init__(self, max_sent_s: float) -> None:
        self._max_sent_s = max_sent_s
        self._sent: deque[Item] = deque()
        self._unsent: deque[Item] = deque()
        self._sent_s = 0.0
        self._settled_s = 0.0
        self._origin_s = 0.0

    @property
    def origin_s(self) -> float:
        """Where the audio of the last `rewind` starts, seconds of all audio put in."""
        return self._origin_s

    @property
    def oldest(self) -> Chunk | None:
        """The first chunk there is."""
        return next((item for item in chain(self._sent, self._unsent) if isinstance(item, Chunk)), None)

    @property
    def has_unsent_audio(self) -> bool:
        """Whether there is more than marks to send."""
        return any(isinstance(item, Chunk) for item in self._unsent)

    @property
    def has_unsent(self) -> bool:
        """Whether there is anything to send."""
        return bool(self._unsent)

    def put(self, item: Item) -> None:
        """Add what came in."""
        self._unsent.append(item)

    def take(self) -> Item | None:
        """What to send next, or None. From now on it counts as sent."""
        if not self._unsent:
            return None
        item = self._unsent.popleft()
        self._sent.append(item)
        self._sent_s += _duration_s(item)
        while self._sent_s > self._max_sent_s:
            self._drop_oldest()
        return item

    def settle(self, until_s: float | None) -> None:
        """Forget what the server has transcribed.

        Args:
            until_s: up to this time of the server; None is all that was sent.
        """
        end_s = self._settled_s + self._sent_s if until_s is None else self._origin_s + until_s
        while self._sent and self._settled_s + _duration_s(self._sent[0]) <= end_s + _TOLERANCE_S:
            self._drop_oldest()

    def rewind(self) -> None:
        """Send what is left once more, to a new session."""
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._sent_s = 0.0
        self._origin_s = self._settled_s

    def _drop_oldest(self) -> None:
        duration_s = _duration_s(self._sent.popleft())
        self._sent_s -= duration_s
        self._settled_s += duration_s


def _duration_s(item: Item) -> float:
    return item.duration_s if isinstance(item, Chunk) else 0.0
