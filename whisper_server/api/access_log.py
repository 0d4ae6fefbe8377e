"""One log line per request."""

import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_server.api.paths import raw_path
from whisper_server.api.security import api_key_name_in

logger = logging.getLogger(__name__)

_MAX_PATH_CHARACTERS = 500
_HEALTH = "/health"


@dataclass(slots=True)
class _Exchange:
    """What is seen of a request.

    Attributes:
        status: of the response; None where none was begun. An accepted WebSocket has 101.
        bytes_in: of the body, or of the messages of a WebSocket.
    """

    status: int | None = None
    bytes_in: int = 0

    def note_received(self, message: Message) -> None:
        data = message.get("body") or message.get("bytes") or (message.get("text") or "").encode()
        self.bytes_in += len(data)

    def note_sent(self, message: Message) -> None:
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self.status = message["status"]
            case "websocket.accept":
                self.status = 101
            case "websocket.close" if self.status is None:
                self.status = 403


class AccessLogMiddleware:
    """Logs each request when it is over: at INFO, and at DEBUG where it only asked for the server's health.

    The record's `fields` are `method`, `path` (encoded, without the query), `status`, `duration_ms`,
    `bytes_in`, `client` (its address) and `key` (the name of its API key).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange()
        # A copy would not see the name of the key that is put there on the way in.
        scope.setdefault("state", {})
        started_s = time.perf_counter()

        async def receive_and_note() -> Message:
            message = await receive()
            exchange.note_received(message)
            return message

        async def send_and_note(message: Message) -> None:
            exchange.note_sent(message)
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_and_note)
        finally:
            _log(scope, exchange, (time.perf_counter() - started_s) * 1000)


def _log(scope: Scope, exchange: _Exchange, duration_ms: float) -> None:
    path = raw_path(scope)[:_MAX_PATH_CHARACTERS]
    client = scope.get("client")
    fields = {
        "method": scope.get("method", "WEBSOCKET"),
        "path": path,
        "status": exchange.status,
        "duration_ms": round(duration_ms, 1),
        "bytes_in": exchange.bytes_in,
        "client": client[0] if client else None,
        "key": api_key_name_in(scope),
    }
    is_health = path.rstrip("/") == _HEALTH or path.startswith(f"{_HEALTH}/")
    is_quiet = is_health and exchange.status is not None and exchange.status < 400
    logger.log(
        logging.DEBUG if is_quiet else logging.INFO,
        "%s %s %s in %.1f ms, %d bytes in, client %s, key %s",
        *("-" if value is None else value for value in fields.values()),
        extra={"fields": fields},
    )
