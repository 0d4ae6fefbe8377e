"""Audio in memory that the server and a model's process share: written once, read where it is."""

import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from whisper_server.core.types import MAX_WINDOW_S, SAMPLE_RATE, Samples, Window

_logger = logging.getLogger("whisper_server.isolation")

_WINDOW_SAMPLES: Final = MAX_WINDOW_S * SAMPLE_RATE + SAMPLE_RATE // 10
"""Room for the longest window with its margins, and some to spare."""

_SAMPLE_BYTES: Final = np.dtype(np.float32).itemsize
_ALIGNMENT_SAMPLES: Final = 16
"""Windows start at a cache line."""

_NO_SAMPLES: Final[Samples] = np.zeros(0, np.float32)


class Place(NamedTuple):
    """Where in the memory a window's samples are."""

    first_sample: int
    samples: int


class AudioSlots:
    """The server's end: a slot for each call that may run at once. Thread-safe.

    Whatever finds no room, because all slots are taken, a window is too long, or the system has no memory
    to share, stays in its window and goes through the pipe: slower, and right.

    Args:
        slots: how many calls run at once.
        windows: of the longest kind, how many one slot holds.
    """

    def __init__(self, slots: int, windows: int) -> None:
        self._slot_samples = windows * _WINDOW_SAMPLES
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_named = True
        self._has_warned = False
        self._claimed_samples = [0] * slots
        self._memory: SharedMemory | None = None
        self._pages: int | None = None
        try:
            self._memory = SharedMemory(create=True, size=slots * self._slot_samples * _SAMPLE_BYTES)
            self._pages = _open_pages(self._memory)
        except OSError as error:
            self._warn(error)
            self._discard()
        self._slots = list(range(slots)) if self._memory is not None else []
        self._free = list(self._slots)

    @property
    def name(self) -> str | None:
        """By which the other process finds the memory; None if there is none."""
        return None if self._memory is None else self._memory.name

    def unlink(self) -> None:
        """Take the name away once the other process has attached: nothing is left behind whoever dies."""
        if self._memory is not None and self._is_named:
            self._is_named = False
            self._memory.unlink()

    def take(self) -> int | None:
        """A free slot, for the caller alone until it is given back; None if there is none."""
        with self._lock:
            return self._free.pop() if self._free and not self._is_closed else None

    def give_back(self, slot: int | None) -> None:
        """End the use of a slot."""
        if slot is not None:
            with self._lock:
                self._free.append(slot)
                self._unmap_if_unused()

    def close(self) -> None:
        """Return the memory, as soon as all slots are given back."""
        self.unlink()
        with self._lock:
            self._is_closed = True
            self._unmap_if_unused()

    def pack(
        self, slot: int | None, windows: Sequence[Window]
    ) -> tuple[tuple[Window, ...], tuple[Place | None, ...]]:
        """Write the windows' samples into the slot; the windows without them, and where they are."""
        packed, places = [], []
        used_samples = 0
        for window in windows:
            place = None if slot is None else self._write(slot, used_samples, window.samples)
            if place is not None:
                used_samples += -(-place.samples // _ALIGNMENT_SAMPLES) * _ALIGNMENT_SAMPLES
                window = dataclasses.replace(window, samples=_NO_SAMPLES)
            packed.append(window)
            places.append(place)
        return tuple(packed), tuple(places)

    def _write(self, slot: int, used_samples: int, samples: Samples) -> Place | None:
        stop = used_samples + len(samples)
        if self._memory is None or stop > self._slot_samples or not self._claim(slot, stop):
            return None
        place = Place(slot * self._slot_samples + used_samples, len(samples))
        _view(self._memory, place)[:] = samples
        return place

    def _claim(self, slot: int, samples: int) -> bool:
        """Have the system set memory aside for the start of the slot.

        Without that it does so when the memory is written to, and kills the writer if it has none left: a
        container's /dev/shm has 64 MB unless it is told otherwise.
        """
        claimed = self._claimed_samples[slot]
        if self._pages is None or samples <= claimed:
            return True
        offset = slot * self._slot_samples + claimed
        try:
            os.posix_fallocate(self._pages, offset * _SAMPLE_BYTES, (samples - claimed) * _SAMPLE_BYTES)
        except OSError as error:
            self._warn(error)
            return False
        self._claimed_samples[slot] = samples
        return True

    def _discard(self) -> None:
        if self._memory is not None:
            self._memory.unlink()
            self._memory.close()
            self._memory = None

    def _unmap_if_unused(self) -> None:
        if not self._is_closed or len(self._free) < len(self._slots) or self._memory is None:
            return
        self._memory.close()
        self._memory = None
        if self._pages is not None:
            os.close(self._pages)
            self._pages = None

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "Not enough shared memory (%s): some audio goes to the model's process through a pipe, which "
                "is slower. In a container, make /dev/shm larger, such as by --shm-size=256m.",
                error.strerror,
            )


class SharedAudio:
    """The other end: finds the samples of windows in the memory of this name. Thread-safe.

    Raises:
        OSError: there is no such memory.
    """

    def __init__(self, name: str) -> None:
        self._memory = SharedMemory(name)

    def unpack(self, windows: Sequence[Window], places: Sequence[Place | None]) -> list[Window]:
        """The windows with their samples, which may be read until the call is answered."""
        return [
            window if place is None else dataclasses.replace(window, samples=self._samples(place))
            for window, place in zip(windows, places, strict=True)
        ]

    def _samples(self, place: Place) -> Samples:
        samples = _view(self._memory, place)
        samples.flags.writeable = False
        return samples


def _view(memory: SharedMemory, place: Place) -> Samples:
    offset_bytes = place.first_sample * _SAMPLE_BYTES
    return np.ndarray(place.samples, np.float32, buffer=memory.buf, offset=offset_bytes)


def _open_pages(memory: SharedMemory) -> int | None:
    """The memory as a file, where it is one: on Linux."""
    path = Path("/dev/shm") / memory.name
    return os.open(path, os.O_RDWR) if sys.platform == "linux" and path.exists() else None
