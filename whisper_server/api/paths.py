"""The path as the routes know it, however a client has put it together.

A redirect to the right path would lose the body of a POST, so the path is put right in place.
"""

from collections.abc import Sequence
from urllib.parse import quote, unquote

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

_STATE_KEY = "deployment_model"

_AZURE = "openai"
_DEPLOYMENTS = "deployments"
_VERSION = "v1"

_DEPLOYMENT_ROUTES = frozenset(
    {("audio", "transcriptions"), ("audio", "translations"), ("chat", "completions")}
)


class PathMiddleware:
    """Drops empty segments and trailing slashes, and turns Azure's paths into OpenAI's.

    `/openai/deployments/{model}/audio/transcriptions` becomes `/v1/audio/transcriptions`, and
    `deployment_model` tells the model; any other `/openai/…` becomes `/v1/…`. Encoded slashes stay part of
    their segment.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] in ("http", "websocket"):
            scope = _with_plain_path(scope)
        await self._app(scope, receive, send)


def deployment_model(connection: HTTPConnection) -> str | None:
    """The model that an Azure client has put into the path, for requests whose body names none."""
    model: str | None = getattr(connection.state, _STATE_KEY, None)
    return model


def raw_path(scope: Scope) -> str:
    """The path of a request as it was sent, percent-encoded and without the query."""
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    return raw.partition(b"?")[0].decode("ascii", "replace")


def _with_plain_path(scope: Scope) -> Scope:
    segments = [segment for segment in raw_path(scope).split("/") if segment]
    model = None
    if segments[:1] == [_AZURE]:
        segments, model = _from_azure(segments)
    path = "/" + "/".join(segments)
    scope = {**scope, "path": unquote(path), "raw_path": path.encode("ascii", "replace")}
    if model is not None:
        scope.setdefault("state", {})[_STATE_KEY] = model
    return scope


def _from_azure(segments: Sequence[str]) -> tuple[list[str], str | None]:
    """OpenAI's segments for Azure's, and the deployment if one is named."""
    if segments[1:2] != [_DEPLOYMENTS]:
        rest = segments[2:] if segments[1:2] == [_VERSION] else segments[1:]
        return [_VERSION, *rest], None
    # A model's name may have a slash, which not every client encodes.
    model, route = segments[2:-2], segments[-2:]
    if not model or tuple(route) not in _DEPLOYMENT_ROUTES:
        return list(segments), None
    return [_VERSION, *route], unquote("/".join(model))
