"""Memory that the C library keeps after it was freed. All of this is glibc's; elsewhere nothing changes."""

import contextlib
import ctypes
from collections.abc import Mapping
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
M_MMAP_MAX: Final = -4
M_ARENA_MAX: Final = -8
"""Options of mallopt(3)."""

_MAPPED_BYTES: Final = 4 << 20
_KEPT_BYTES: Final = 32 << 20


def share_one_heap() -> None:
    """Have all threads use one heap; to be called before a thread has another.

    glibc gives threads heaps of their own, each keeps what its uploads have left behind, and trimming leaves
    most of that where it is. One heap can be trimmed. In it what is larger than a window's samples is mapped
    by itself and returned when it is freed; the rest is used again without page faults.
    """
    set_malloc_options({M_ARENA_MAX: 1, M_MMAP_THRESHOLD: _MAPPED_BYTES, M_TRIM_THRESHOLD: _KEPT_BYTES})


def set_malloc_options(options: Mapping[int, int]) -> None:
    """Set options of the C library's allocator."""
    # musl and macOS have no mallopt; Windows has no CDLL(None).
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        for option, value in options.items():
            libc.mallopt(option, value)


def trim_heap() -> None:
    """Have the C library return freed memory to the system, where it can."""
    # As above.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
