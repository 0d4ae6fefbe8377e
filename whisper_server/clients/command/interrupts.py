"""Ctrl-C: the first ends the session properly, the second ends the command."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self

_DRAIN_S = 5.0


class Interrupts:
    """Takes SIGINT while the block runs, within an event loop of the main thread.

    Without signal handlers in event loops, as on Windows, Python's own KeyboardInterrupt ends the command.

    Attributes:
        stop: set by the first SIGINT while `can_drain`.
        can_drain: whether there is a session to end properly; without one the first SIGINT cancels the task.
        count: of SIGINTs.

    Args:
        task: is cancelled by the second SIGINT, or 5 s after the first.
    """

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.stop = asyncio.Event()
        self.can_drain = False
        self.count = 0
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        with suppress(NotImplementedError, RuntimeError):
            self._loop.add_signal_handler(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        with suppress(NotImplementedError, RuntimeError):
            self._loop.remove_signal_handler(signal.SIGINT)

    async def until_stop(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """The same chunks, up to the first SIGINT."""
        stopped = asyncio.create_task(self.stop.wait())
        async with aclosing(chunks):
            try:
                while (chunk := await self._next(chunks, stopped)) is not None:
                    yield chunk
            finally:
                stopped.cancel()

    async def _next(self, chunks: AsyncGenerator[bytes], stopped: asyncio.Task[Any]) -> bytes | None:
        """The next chunk; None when there is none or it was stopped."""
        upcoming = asyncio.ensure_future(anext(chunks, None))
        try:
            await asyncio.wait((upcoming, stopped), return_when=asyncio.FIRST_COMPLETED)
            return upcoming.result() if upcoming.done() and not stopped.done() else None
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)

    def _on_signal(self) -> None:
        self.count += 1
        if self.count == 1 and self.can_drain:
            self.stop.set()
            self._deadline = self._loop.call_later(_DRAIN_S, self._task.cancel)
        else:
            self._task.cancel()
