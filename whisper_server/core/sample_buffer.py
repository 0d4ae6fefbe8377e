"""The audio of a live session that is still needed, addressed by its place in the session."""

import numpy as np
from numpy.typing import NDArray

from whisper_server.core.types import Pcm16, Samples

_FULL_SCALE = 32768.0
_LEAST_CAPACITY = 1 << 14


class SampleBuffer:
    """16-bit samples from a moving start to a growing end. Positions are samples since the session began."""

    def __init__(self) -> None:
        self._data: NDArray[np.int16] = np.empty(_LEAST_CAPACITY, dtype=np.int16)
        self._first = 0  # where in `_data` the first sample held is …
        self._start = 0  # … and which sample of the session that is
        self._length = 0

    @property
    def start(self) -> int:
        """The position of the first sample held."""
        return self._start

    @property
    def end(self) -> int:
        """The position after the last sample."""
        return self._start + self._length

    @property
    def held_bytes(self) -> int:
        """Bytes of the samples held."""
        return self._length * self._data.itemsize

    def append(self, pcm: Pcm16) -> None:
        """Add samples at the end."""
        if self._first + self._length + len(pcm) > len(self._data):
            self._make_room(self._length + len(pcm))
        end = self._first + self._length
        self._data[end : end + len(pcm)] = pcm
        self._length += len(pcm)

    def read(self, start: int, stop: int) -> Samples:
        """The samples from `start` to `stop`, in [-1, 1]; the part that is held."""
        first = self._first + max(0, start - self._start)
        last = self._first + min(self._length, max(0, stop - self._start))
        return self._data[first:last].astype(np.float32) / np.float32(_FULL_SCALE)

    def drop_before(self, position: int) -> None:
        """Give up the samples before a position."""
        count = min(max(0, position - self._start), self._length)
        self._first += count
        self._start += count
        self._length -= count

    def _make_room(self, needed: int) -> None:
        capacity = max(_LEAST_CAPACITY, 1 << (2 * needed - 1).bit_length() - 1)
        data = np.empty(max(capacity, needed), dtype=np.int16)
        data[: self._length] = self._data[self._first : self._first + self._length]
        self._data, self._first = data, 0
