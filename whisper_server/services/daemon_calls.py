"""Blocking calls that may never return."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

_THREAD_NAME = "engine call"


def in_daemon_thread(call: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """Run a blocking call on a thread of its own, which does not keep the program from ending.

    A pool's thread would be lost with a call that hangs, and waited for at the program's end. Starting a
    thread takes 0.1 ms.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # without an error it is the call's result

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # raised where the future is awaited
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=_THREAD_NAME, daemon=True).start()
    return future


def are_running() -> bool:
    """Whether such a call has not returned yet.

    Python must not be taken down then: the call would come back from native code into an interpreter that is
    gone, which aborts the process.
    """
    return any(thread.name == _THREAD_NAME for thread in threading.enumerate())
