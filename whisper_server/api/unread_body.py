"""Errors that the client gets to read, though it may still be sending its request."""

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_BYTES = 64 << 20
_MAX_S = 5.0


class UnreadBodyMiddleware:
    """Sends an error at once, and ends the answer only when the request body is read, up to a limit.

    A connection closed with unread data is reset, and a client that reads the answer after it has sent
    everything gets a broken connection instead of the error. Other answers are left as they are.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, is_waiting=Headers(scope=scope).get("expect", "").lower() == "100-continue")
        is_error = False

        async def send_to_the_end(message: Message) -> None:
            nonlocal is_error
            if message["type"] == "http.response.start":
                is_error = message["status"] >= 400
            elif is_error and not message.get("more_body", False) and not body.is_over:
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, body.receive, send_to_the_end)


class _Body:
    """The body of one request.

    Args:
        receive: of the request.
        is_waiting: the client sends nothing before it is asked to, which the first `receive` does.
    """

    def __init__(self, receive: Receive, *, is_waiting: bool) -> None:
        self._receive = receive
        self._is_waiting = is_waiting
        self._is_ended = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._is_ended or self._is_waiting

    async def receive(self) -> Message:
        self._is_waiting = False
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._is_ended = True
        return message

    async def discard(self) -> None:
        remaining = _MAX_BYTES
        with anyio.move_on_after(_MAX_S):
            while remaining > 0 and not self.is_over:
                remaining -= len((await self.receive()).get("body", b""))
