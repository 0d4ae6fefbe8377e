"""How the process of a model keeps the memory that its calls use, and when it gives it back.

CTranslate2 allocates and frees large buffers in every layer. glibc maps and unmaps each anew, and half of an
encode's time goes into page faults. A heap that keeps what was freed halves the cost of an encode; once no
call has come for a while, it goes back to the system. Under load that happens now and then too: what lies
between pieces that are in use would otherwise grow with every unusual batch.

Intel's MKL, in CTranslate2's wheels for x86, has a heap of its own besides, in which each thread keeps the
buffers it has used: 130 MB with a model of the size of base. With this heap it gains nothing.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from whisper_server.core.heap import (
    M_ARENA_MAX,
    M_MMAP_MAX,
    M_TRIM_THRESHOLD,
    set_malloc_options,
    trim_heap,
)

_NEVER: Final = 2**31 - 1

_IDLE_S: Final = 5.0

_LONGEST_S: Final = 30.0


def keep_freed_memory() -> None:
    """Have the C library alone keep freed memory, in one heap.

    To be called before a thread has made another heap, and before CTranslate2 is imported. What the
    environment says of MKL's heap already stays.
    """
    set_malloc_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: _NEVER, M_ARENA_MAX: 1})
    os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")


class Trimmer:
    """Gives freed memory back once nothing was done for some seconds, and at times while calls go on.

    Thread-safe; it has a thread of its own.

    Args:
        idle_s: how long nothing was done.
        longest_s: how long calls may go on without it.
        trim: gives it back.
    """

    def __init__(
        self,
        idle_s: float = _IDLE_S,
        longest_s: float = _LONGEST_S,
        trim: Callable[[], None] = trim_heap,
    ) -> None:
        self._idle_s = idle_s
        self._longest_s = longest_s
        self._trim = trim
        self._used = threading.Event()
        threading.Thread(target=self._run, name="trim", daemon=True).start()

    def note_use(self) -> None:
        """Something was done."""
        self._used.set()

    def _run(self) -> None:
        while True:
            self._used.wait()
            due_s = time.monotonic() + self._longest_s
            while self._used.is_set() and time.monotonic() < due_s:
                self._used.clear()
                self._used.wait(self._idle_s)
            self._trim()
