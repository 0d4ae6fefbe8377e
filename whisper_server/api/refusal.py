"""How middleware turns a request away."""

from starlette.types import Receive, Scope, Send

from whisper_server.api.errors import error_response
from whisper_server.core.errors import WhisperServerError

_POLICY_VIOLATION = 1008

_DENIAL_EXTENSION = "websocket.http.response"


async def refuse(error: WhisperServerError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or the handshake of a WebSocket, with an error."""
    if scope["type"] == "websocket" and _DENIAL_EXTENSION not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        return
    await error_response(error)(scope, receive, send)
