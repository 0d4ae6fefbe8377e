"""Which host names the server answers to, and which pages may open a WebSocket."""

from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_server.api.refusal import refuse
from whisper_server.core.errors import ConfigurationError, HostNotAllowedError, OriginNotAllowedError

ANY = "*"


class HostMiddleware:
    """Refuses requests to any other host name.

    A page whose name is rebound to this machine's address sends that name as its host. Not Starlette's
    middleware: that one answers in plain text, and redirects to `www.`, which loses the body.

    Args:
        app: gets the other requests.
        allowed_hosts: names, `*.` and a domain for the names below it, or `*` for any; see
            `check_allowed_hosts`.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        patterns = [pattern.lower().strip("[]") for pattern in allowed_hosts]
        self._is_open = ANY in patterns
        self._names = frozenset(patterns)
        self._domains = tuple(pattern[1:] for pattern in patterns if pattern.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if self._is_open or scope["type"] not in ("http", "websocket") or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        message = "The server does not answer to this host name. Add it to the setting server.allowed_hosts."
        await refuse(HostNotAllowedError(message), scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        name = _host_name(Headers(scope=scope).get("host", ""))
        return name in self._names or name.endswith(self._domains)


def check_allowed_hosts(patterns: Iterable[str]) -> None:
    """Check `server.allowed_hosts`.

    Raises:
        ConfigurationError: an asterisk stands where it has no meaning.
    """
    for pattern in patterns:
        if pattern != ANY and "*" in pattern.removeprefix("*."):
            raise ConfigurationError(
                f"server.allowed_hosts does not know the pattern '{pattern}'. Write a host name, '*.' and a "
                "domain, or '*' for any."
            )


class WebSocketOriginMiddleware:
    """Refuses WebSockets that a page of a foreign origin opens.

    Browsers hold pages to CORS for requests, but let any page open and read a WebSocket. Programs send no
    origin; a page of this server has its own.

    Args:
        app: gets the other requests.
        allowed_origins: as for CORS.
    """

    def __init__(self, app: ASGIApp, allowed_origins: Iterable[str]) -> None:
        self._app = app
        self._origins = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "websocket" or self._is_allowed(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        message = (
            "Pages of this origin may not open a WebSocket. Add it to the setting server.allowed_origins."
        )
        await refuse(OriginNotAllowedError(message), scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or ANY in self._origins or origin in self._origins:
            return True
        own = headers.get("host", "").lower()
        return bool(own) and origin.partition("://")[2].lower() == own


def _host_name(header: str) -> str:
    """The name in a Host header, without port and the brackets of IPv6."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
