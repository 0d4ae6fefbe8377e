"""What Ctrl-C and SIGTERM do to a command."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt` as Ctrl-C does, while the block runs. For the main thread."""
    with _handled(signal.default_int_handler):
        yield


@contextmanager
def stopping(
    stop: Callable[[], None], *, warn: Callable[[str], None], close: Callable[[], None]
) -> Iterator[None]:
    """While the block runs, the first Ctrl-C or SIGTERM calls `stop`, and the second ends the process.

    For the main thread, inside its event loop. The loop handles the signals between its steps, so none finds
    a result half written.

    Args:
        stop: ends the work; called in the loop.
        warn: tells the user.
        close: leaves the terminal as it was.
    """
    loop = asyncio.get_running_loop()
    is_stopping = False

    def react() -> None:
        nonlocal is_stopping
        if is_stopping:
            close()
            os._exit(INTERRUPTED)  # threads may be deep in a model: nothing gentler ends at once
        is_stopping = True
        warn("Stopping. Once more stops at once.")
        stop()

    def handle(_: int, __: FrameType | None) -> None:
        loop.call_soon_threadsafe(react)

    with _handled(handle):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = [signal.signal(number, handler) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, old in zip(_SIGNALS, before, strict=True):
            signal.signal(number, old)
