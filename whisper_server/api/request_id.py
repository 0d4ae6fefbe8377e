"""A request id on every response and, through the context, on every log line."""

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"

_current: ContextVar[str] = ContextVar("request_id", default="-")
_ACCEPTABLE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def request_id() -> str:
    """The id of the request in whose context this is called; `-` outside one."""
    return _current.get()


@contextmanager
def session_logging(session_id: str) -> Iterator[None]:
    """Let the log lines of the block, and of tasks it starts, carry a session's id after the request's."""
    token = _current.set(f"{_current.get()}/{session_id}")
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def request_logging(given: str) -> Iterator[str]:
    """Let the log lines of the block, and of tasks it starts, carry a request's id.

    Args:
        given: what the client calls it; taken where it is a plain word, else an id is made.
    """
    own = given if _ACCEPTABLE.fullmatch(given) else f"req_{uuid.uuid4().hex}"
    token = _current.set(own)
    try:
        yield own
    finally:
        _current.reset(token)


class RequestIdMiddleware:
    """Takes the client's `x-request-id` where it is a plain word, makes one otherwise, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER.encode(), b"").decode("latin-1")
        with request_logging(given) as own:

            async def send_with_id(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)[HEADER] = own
                await send(message)

            await self._app(scope, receive, send_with_id)
