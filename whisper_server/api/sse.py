"""Server-sent events: `data:` frames, comments while nothing happens, and an end when the client leaves."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from whisper_server.api.errors import error_content
from whisper_server.core.errors import WhisperServerError

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
"""Silence after which a comment is sent, so that proxies and clients keep the connection."""

_UNREAD_S = 60.0
"""A client that reads nothing for so long is cut off: it would hold its place and its model."""

_KEEP_ALIVE = b": keep-alive\n\n"

_Item = TypeVar("_Item")


class EventStream(Response):
    """A stream of events, each a JSON text.

    The client's leaving cancels `events`. A fault after the first byte becomes an event with OpenAI's error
    object, which the SDKs raise.

    Args:
        events: JSON texts without line breaks.
        resources: closed when the stream has ended, however it ends.
        keep_alive_s: silence after which a comment is sent, seconds.
        unread_s: a client that reads nothing for so long is cut off, seconds.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        resources: AsyncExitStack,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        unread_s: float = _UNREAD_S,
    ) -> None:
        self._events = events
        self._resources = resources
        self._keep_alive_s = keep_alive_s
        self._unread_s = unread_s
        self.status_code = 200
        self.background = None
        # Proxies such as nginx hold a response back unless told not to.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        async with self._resources:
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            async with anyio.create_task_group() as group:
                group.start_soon(self._listen, receive, group.cancel_scope)
                await self._send_events(send)
                group.cancel_scope.cancel()

    @staticmethod
    async def _listen(receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        logger.info("The client left the stream")
        scope.cancel()

    async def _send_events(self, send: Send) -> None:
        async with contextlib.aclosing(self._frames()) as frames:
            async for frame in frames:
                with anyio.move_on_after(self._unread_s) as waiting:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
                if waiting.cancelled_caught:
                    logger.warning("The client has read nothing for %g s; its stream ends", self._unread_s)
                    return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _frames(self) -> AsyncGenerator[bytes, None]:
        try:
            async with contextlib.aclosing(with_pauses(self._events, self._keep_alive_s)) as events:
                async for event in events:
                    yield _KEEP_ALIVE if event is None else f"data: {event}\n\n".encode()
        except WhisperServerError as error:
            logger.warning("%s in a stream: %s (%s)", type(error).__name__, error.message, error.causes)
            yield f"data: {error_content(error)}\n\n".encode()
        except Exception:  # the boundary of one stream: the client is told, the server goes on
            logger.exception("The stream failed")
            failure = WhisperServerError("The server failed on this request.")
            yield f"data: {error_content(failure)}\n\n".encode()


async def with_pauses(
    items: AsyncGenerator[_Item, None], pause_s: float
) -> AsyncGenerator[_Item | None, None]:
    """The items, and None whenever the next one takes longer than `pause_s`.

    Closing or cancelling this cancels the work on the next item and waits until it has ended.
    """
    pending: asyncio.Task[_Item] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(anext(items))
            while not (await asyncio.wait([pending], timeout=pause_s))[0]:
                yield None
            try:
                yield pending.result()
            except StopAsyncIteration:
                return
    finally:
        with anyio.CancelScope(shield=True):
            if pending is not None and not pending.done():
                pending.cancel()
                await asyncio.wait([pending])
            if pending is not None and not pending.cancelled():
                pending.exception()  # seen: whoever asked has gone, or has got it
            with contextlib.suppress(RuntimeError):  # still running: its task was cancelled and closes it
                await items.aclose()


async def first_of(items: AsyncGenerator[_Item, None]) -> AsyncGenerator[_Item, None]:
    """The same items, the first of which is there already: its fault is raised here, before the stream.

    A model that must be downloaded first may take minutes; its faults then come before the first byte.
    """
    first = await anext(items, None)

    async def chained() -> AsyncGenerator[_Item, None]:
        async with contextlib.aclosing(items):
            if first is not None:
                yield first
            async for item in items:
                yield item

    return chained()
