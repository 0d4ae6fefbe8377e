"""Memory that the C library keeps after it was freed."""

import contextlib
import ctypes


def trim_heap() -> None:
    """Have the C library return freed memory to the system, where it can: glibc keeps it otherwise."""
    # musl and macOS have no malloc_trim; Windows has no CDLL(None).
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
