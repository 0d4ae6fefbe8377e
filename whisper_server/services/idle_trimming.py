"""Gives the server's own freed memory back once nobody has left for a few seconds."""

import asyncio
from collections.abc import Callable
from typing import Final

from whisper_server.core.heap import trim_heap

_IDLE_S: Final = 5.0


class IdleTrimmer:
    """Trims the heap some time after the last use. For one event loop.

    It may be while others are inside: that costs them some milliseconds and page faults.

    Args:
        idle_s: how long nobody has used memory.
        trim: gives it back; blocking, called in a worker thread.
    """

    def __init__(self, idle_s: float = _IDLE_S, trim: Callable[[], None] = trim_heap) -> None:
        self._idle_s = idle_s
        self._trim = trim
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def note_use(self) -> None:
        """Somebody who has used memory has left."""
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + self._idle_s
        if self._timer is None:
            self._timer = loop.call_at(self._due_s, self._look, loop)

    def close(self) -> None:
        """Trim no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.time() < self._due_s:
            self._timer = loop.call_at(self._due_s, self._look, loop)
            return
        self._timer = None
        loop.run_in_executor(None, self._trim)
