"""API keys: who may call the server."""

import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from whisper_server.api.ephemeral_keys import ephemeral_keys, opens
from whisper_server.api.refusal import refuse
from whisper_server.config import Settings
from whisper_server.core.errors import ConfigurationError, InvalidApiKeyError, MissingApiKeyError

logger = logging.getLogger(__name__)

_STATE_KEY = "api_key_name"
SHORT_CHARACTERS = 16
"""Shorter keys can be guessed."""

_ENTRY = re.compile(r"(?:(?P<name>[\w.@-]{1,64}):\s*)?(?P<key>[!-9;-~]+)", re.ASCII)
"""A key of visible ASCII characters without colon, and the name it may have."""

_SUBPROTOCOL = "openai-insecure-api-key."
"""Before the key among the WebSocket subprotocols, where a browser can put it."""


class ApiKeys:
    """The keys that open the server. It holds their digests, not the keys.

    Args:
        entries: (name, key). Several keys may have one name, so that an old and a new one work side by side.
            A key without a name goes by `key-` and the beginning of its SHA-256.
    """

    def __init__(self, entries: Iterable[tuple[str | None, str]]) -> None:
        self._names: dict[bytes, str] = {}
        for name, key in entries:
            digest = _digest(key.encode())
            self._names.setdefault(digest, name or f"key-{digest.hex()[:8]}")

    def __len__(self) -> int:
        return len(self._names)

    def name_of(self, presented: bytes) -> str | None:
        """The name of a key, or None where it is not one of these. Takes the same time for any key."""
        digest = _digest(presented)
        found = None
        for own, name in self._names.items():
            if hmac.compare_digest(digest, own):
                found = name
        return found


def load_api_keys(settings: Settings) -> ApiKeys:
    """The keys of the settings and of the file they name. What the operator should know goes to the log.

    Raises:
        ConfigurationError: the file cannot be read or holds no key, or an entry is no key.
    """
    security = settings.security
    entries = [
        _entry(text, f"Entry {number} of security.api_keys")
        for number, text in enumerate(security.api_keys, start=1)
    ]
    if security.api_keys_file is not None:
        entries += _read_file(security.api_keys_file)
    short = sum(len(key) < SHORT_CHARACTERS for _, key in entries)
    if short:
        logger.warning(
            "%d of %d API keys have fewer than %d characters; such keys can be guessed.",
            short,
            len(entries),
            SHORT_CHARACTERS,
        )
    reachable = [] if entries else [host for host in _open_hosts(settings) if not is_loopback(host)]
    if reachable:
        logger.warning(
            "NO API KEYS: the server listens on %s, and whoever reaches it may use it. Set "
            "WHISPER_API_KEYS or WHISPER_API_KEYS_FILE, or listen on 127.0.0.1 (docs/security.md).",
            " and ".join(dict.fromkeys(reachable)),
        )
    return ApiKeys(entries)


def _open_hosts(settings: Settings) -> Iterator[str]:
    """The addresses where nothing but API keys can keep anybody out."""
    server, grpc = settings.server, settings.grpc
    if server.enabled:
        yield server.host
    # With mutual TLS clients bring a certificate.
    if grpc.enabled and grpc.port is not None and grpc.tls_client_ca is None:
        yield grpc.host or server.host


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    try:
        return ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def api_key_name(connection: HTTPConnection) -> str | None:
    """The name of the key that opened a request or a WebSocket; None where no key was needed."""
    return api_key_name_in(connection.scope)


def api_key_name_in(scope: Scope) -> str | None:
    """The same, for middleware."""
    name: str | None = scope.get("state", {}).get(_STATE_KEY)
    return name


def check_open_paths(paths: Iterable[str]) -> None:
    """Check `security.open_paths`.

    Raises:
        ConfigurationError: an entry is no path, or has an asterisk elsewhere than in `/*` at its end.
    """
    for path in paths:
        if not path.startswith("/") or "*" in path.removesuffix("/*"):
            raise ConfigurationError(
                f"security.open_paths does not know '{path}'. A path begins with a slash; '/*' at its end "
                "takes all below it."
            )


class AuthenticationMiddleware:
    """Asks for an API key before the body is read.

    Args:
        app: gets the requests that bring a key.
        keys: those that open it.
        open_paths: paths that GET and HEAD reach without a key; see `check_open_paths`.
        own_paths: paths whose routes ask for a secret of their own instead.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        open_paths: Collection[str] = (),
        own_paths: Collection[str] = (),
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = frozenset(path for path in open_paths if not path.endswith("/*"))
        self._own_paths = frozenset(own_paths)
        self._open_folders = tuple(path[:-1] for path in open_paths if path.endswith("/*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] not in ("http", "websocket") or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        presented = list(presented_keys(scope))
        names = [name for key in presented if (name := self._keys.name_of(key)) is not None]
        names += _owners(scope, presented)
        if names:
            scope.setdefault("state", {})[_STATE_KEY] = names[0]
            await self._app(scope, receive, send)
        elif presented:
            await refuse(InvalidApiKeyError("The API key is not one of this server's."), scope, receive, send)
        else:
            message = "An API key is missing: send the header 'Authorization: Bearer <key>'."
            await refuse(MissingApiKeyError(message), scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        if scope["type"] != "http":
            return False
        path: str = scope["path"]
        if path in self._own_paths:
            return True
        is_open = path in self._open_paths or path.startswith(self._open_folders)
        return is_open and scope["method"] in ("GET", "HEAD")


def presented_keys(scope: Scope) -> Iterator[bytes]:
    """Every key a request brings: as OpenAI's clients, Azure's clients, and browsers' WebSockets send it."""
    yield from bearer_tokens(scope)
    for value in Headers(scope=scope).getlist("api-key"):
        if value.strip():
            yield value.strip().encode("latin-1")
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(_SUBPROTOCOL):
            yield protocol.removeprefix(_SUBPROTOCOL).encode("utf-8", "replace")


def bearer_tokens(scope: Scope) -> Iterator[bytes]:
    """What a request brings as `Authorization: Bearer`."""
    for value in Headers(scope=scope).getlist("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            yield token.strip().encode("latin-1")


def is_same_secret(one: bytes, other: bytes) -> bool:
    """Whether two secrets are equal; takes the same time for any."""
    return hmac.compare_digest(_digest(one), _digest(other))


def _owners(scope: Scope, presented: Iterable[bytes]) -> list[str]:
    """Who made the ephemeral key that opens this request, if one does."""
    keys = ephemeral_keys(scope)
    key = keys.find(presented) if keys is not None and opens(scope) else None
    return [key.owner] if key is not None and key.owner is not None else []


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _entry(text: str, place: str) -> tuple[str | None, str]:
    match = _ENTRY.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(
            f"{place} is no API key. Write a key, or 'name: key'; a key has visible ASCII characters only, "
            "without spaces and colons."
        )
    return match["name"], match["key"]


def _read_file(path: Path) -> list[tuple[str | None, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(
            f"The file of API keys {path} cannot be read: {reason}. Set WHISPER_API_KEYS_FILE to a file that "
            "the server may read."
        ) from error
    if os.name == "posix" and mode & (stat.S_IROTH | stat.S_IWOTH):
        logger.warning("Every user of this machine may open the file of API keys %s: chmod 600 it.", path)
    entries = [
        _entry(line, f"Line {number} of {path}")
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not entries:
        raise ConfigurationError(f"The file of API keys {path} holds none. Write one key per line.")
    return entries
