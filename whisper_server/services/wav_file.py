"""Writes a WAV that can be played at any moment, also after the process was killed.

The samples go to the file first and the sizes in the header after them, with nothing in between that could
hold them back: the header never promises what is not there.
Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF).
"""

import contextlib
import errno
import os
import struct
from pathlib import Path
from typing import Final, Protocol

HEADER_BYTES: Final = 44

_SAMPLE_BYTES: Final = 2
_MAX_DATA_BYTES: Final = 0xFFFF_FFFF - HEADER_BYTES
_SILENCE: Final = bytes(1 << 16)


class UnbufferedFile(Protocol):
    """What a WAV is written to: a file opened with `buffering=0`."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int | None:
        """Write some of it; how many bytes."""

    def seek(self, offset: int, /) -> int:
        """Go to a place from the file's start."""

    def truncate(self, size: int, /) -> int:
        """Cut it to so many bytes."""

    def close(self) -> None:
        """Give it back."""


class WavFile:
    """One mono 16-bit WAV. For one thread. Every method but `close` raises `OSError` as the file does.

    Args:
        file: new and empty.
        rate_hz: samples per second.
    """

    def __init__(self, file: UnbufferedFile, rate_hz: int) -> None:
        self._file = file
        self._rate_hz = rate_hz
        self._data_bytes = 0
        self._write_header(0)

    @property
    def duration_s(self) -> float:
        """Length of what can be played."""
        return self._data_bytes / (_SAMPLE_BYTES * self._rate_hz)

    def write(self, pcm: bytes, *, silence_bytes: int = 0) -> None:
        """Add whole samples, signed little-endian, and silence before them.

        Where it fails, what was written before is what can be played.
        """
        data_bytes = self._data_bytes + silence_bytes + len(pcm)
        if data_bytes > _MAX_DATA_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        try:
            self._file.seek(HEADER_BYTES + self._data_bytes)
            for start in range(0, silence_bytes, len(_SILENCE)):
                self._write_all(_SILENCE[: silence_bytes - start])
            self._write_all(pcm)
            self._write_header(data_bytes)
        except OSError:
            with contextlib.suppress(OSError):  # most players ignore what is behind the samples
                self._file.truncate(HEADER_BYTES + self._data_bytes)
            raise
        self._data_bytes = data_bytes

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _write_header(self, data_bytes: int) -> None:
        self._file.seek(0)
        self._write_all(_header(data_bytes, self._rate_hz))

    def _write_all(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            written = self._file.write(left)
            if not written:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            left = left[written:]


def repair(path: Path, rate_hz: int) -> float:
    """Make the header of a WAV that nobody writes any more say what is there.

    Returns:
        Its length, seconds.

    Raises:
        OSError: it cannot be read or written.
    """
    with path.open("r+b", buffering=0) as file:
        found = max(0, file.seek(0, os.SEEK_END) - HEADER_BYTES)
        data_bytes = min(found - found % _SAMPLE_BYTES, _MAX_DATA_BYTES)
        file.seek(0)
        file.write(_header(data_bytes, rate_hz))
        file.truncate(HEADER_BYTES + data_bytes)
    return data_bytes / (_SAMPLE_BYTES * rate_hz)


def _header(data_bytes: int, rate_hz: int) -> bytes:
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", HEADER_BYTES - 8 + data_bytes, b"WAVE"),
        *(b"fmt ", 16, 1, 1, rate_hz, _SAMPLE_BYTES * rate_hz, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES),
        *(b"data", data_bytes),
    )
