"""Audio on its way to the server, kept until it is final, so that a lost connection loses none."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Final as Constant

from whisper_server.clients.grpc.options import AudioFormat


@dataclass(frozen=True, slots=True)
class Commit:
    """Stands between chunks: the utterance ends here."""


COMMIT: Constant = Commit()


@dataclass(frozen=True, slots=True)
class Piece:
    """What goes into one message.

    Attributes:
        pcm: whole frames, except at a commit that cuts one.
        commit: whether the utterance ends after it.
    """

    pcm: bytes
    commit: bool


class ReplayBuffer:
    """The audio of a stream from the first that is not settled. Not thread-safe.

    Positions are bytes of all audio put in; times are seconds of it.

    Args:
        audio: how it is written.
        max_sent_s: of sent audio the latest is kept, this much; infinite keeps all.
    """

    def __init__(self, audio: AudioFormat, max_sent_s: float) -> None:
        self._frame_bytes = audio.frame_bytes
        self._bytes_per_s = audio.bytes_per_s
        self._max_sent_bytes: int | None = None
        if math.isfinite(max_sent_s):
            self._max_sent_bytes = round(max_sent_s * audio.sample_rate_hz) * audio.frame_bytes
        self._kept = bytearray()
        self._start = 0
        self._next = 0
        self._settled = 0
        self._sent_commits: deque[int] = deque()
        self._commits: deque[int] = deque()

    @property
    def settled_s(self) -> float:
        """Up to here all is final."""
        return self._settled / self._bytes_per_s

    @property
    def unsettled_s(self) -> float:
        """Audio that is kept and not final, sent or not."""
        return len(self._kept) / self._bytes_per_s

    def put(self, item: bytes | Commit) -> None:
        """Add what comes next.

        Raises:
            TypeError: it is neither audio nor COMMIT.
        """
        end = self._start + len(self._kept)
        if isinstance(item, Commit):
            self._commits.append(end)
        elif isinstance(item, bytes | bytearray | memoryview):
            self._kept += item
        else:
            raise TypeError(f"a chunk is bytes or COMMIT, not {type(item).__name__}")

    def take(self, max_bytes: int) -> Piece | None:
        """What to send next, or None. From now on it counts as sent.

        Args:
            max_bytes: longest audio of it; at least one frame is taken.
        """
        end = self._start + len(self._kept)
        stop = min(self._commits[0] if self._commits else end, end)
        step = max(max_bytes // self._frame_bytes, 1) * self._frame_bytes
        stop = min(stop, self._next + step)
        pcm = bytes(self._kept[self._next - self._start : stop - self._start])
        self._next = stop
        commit = bool(self._commits) and self._commits[0] == stop
        if commit:
            self._sent_commits.append(self._commits.popleft())
        if not pcm and not commit:
            return None
        if self._max_sent_bytes is not None:
            self._drop_to(max(self._start, self._next - self._max_sent_bytes))
        return Piece(pcm, commit)

    def commit_from_s(self, at_s: float) -> float | None:
        """The first commit sent at this time or later that is not settled."""
        position = self._position(at_s)
        return next((c / self._bytes_per_s for c in self._sent_commits if c >= position), None)

    def settle(self, until_s: float) -> None:
        """Forget the sent audio up to here; it is final."""
        self._settled = max(self._settled, min(self._position(until_s), self._next))
        while self._sent_commits and self._sent_commits[0] <= self._settled:
            self._sent_commits.popleft()
        self._drop_to(max(self._start, self._settled))

    def rewind(self) -> tuple[float, float]:
        """Send what is not settled once more.

        Returns:
            Up to where it is settled, and from where it is kept; what lies between is lost.
        """
        settled_s = self.settled_s
        self._next = self._settled = self._start
        while self._sent_commits:
            commit = self._sent_commits.pop()
            if commit > self._start:
                self._commits.appendleft(commit)
        return settled_s, self._start / self._bytes_per_s

    def _drop_to(self, position: int) -> None:
        del self._kept[: position - self._start]
        self._start = position

    def _position(self, at_s: float) -> int:
        return round(at_s * self._bytes_per_s / self._frame_bytes) * self._frame_bytes
