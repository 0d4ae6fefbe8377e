"""How the process of a model keeps the memory that its calls use, and when it gives it back.

CTranslate2 allocates and frees large buffers in every layer. glibc maps and unmaps each anew, and half of an
encode's time goes into page faults. A heap that keeps what was freed halves the cost of an encode; once no
call has come for a while, it goes back to the system.
"""

import threading
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


def keep_freed_memory() -> None:
    """Have the C library keep freed memory, in one heap: before a thread has made another."""
    set_malloc_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: _NEVER, M_ARENA_MAX: 1})


class IdleTrimmer:
    """Gives freed memory back to the system once nothing has been done for a few seconds.

    Thread-safe; it has a thread of its own.

    Args:
        idle_s: how long nothing was done.
    """

    def __init__(self, idle_s: float = _IDLE_S) -> None:
        self._idle_s = idle_s
        self._used = threading.Event()
        threading.Thread(target=self._run, name="trim", daemon=True).start()

    def note_use(self) -> None:
        """Something was done."""
        self._used.set()

    def _run(self) -> None:
        while True:
            self._used.wait()
            while self._used.is_set():
                self._used.clear()
                self._used.wait(self._idle_s)
            trim_heap()
