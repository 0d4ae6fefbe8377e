"""Work that ends when its client leaves, or when its request is called off."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request

from whisper_server.services.requests import RunningRequest

_Result = TypeVar("_Result")


async def until_disconnect(
    request: Request, running: RunningRequest, work: Callable[[], Awaitable[_Result]]
) -> _Result:
    """Run `work` and cancel it when the client closes the connection. The body has been read.

    Raises:
        ClientDisconnect: the client left first.
        WhisperServerError: what the request was called off with.
    """
    results: list[_Result] = []
    has_left = False

    async def listen(scope: anyio.CancelScope) -> None:
        nonlocal has_left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        has_left = True
        scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(listen, group.cancel_scope)
            results.append(await running.run(work))
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        # One task listens and cannot fail, so there is one error: the work's.
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
    if has_left and not results:
        raise ClientDisconnect
    return results[0]
