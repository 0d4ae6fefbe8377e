"""WebSockets to a server, and what it says when it opens none."""

import json
import ssl
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from whisper_server.cli.bench.drivers.driver import Address
from whisper_server.cli.bench.session import SessionFailedError
from whisper_server.core.errors import ConfigurationError

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_OPEN_S = 10.0
_CLOSE_S = 5.0
_MAX_MESSAGE_BYTES = 16 << 20
_HOPELESS = (401, 403, 404)


class NotOpenError(SessionFailedError):
    """No WebSocket came of it.

    Attributes:
        status: of the server's answer; None where there was none.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(code, message)
        self.status = status


class WebDoor:
    """Opens WebSockets to one route of a server.

    Args:
        address: with a URL, with or without `/v1`.
        route: path and query.

    Raises:
        ConfigurationError: the URL is none, or a certificate cannot be read.
    """

    def __init__(self, address: Address, route: str) -> None:
        self._url = websocket_url(address.target) + route
        self._headers = {"Authorization": f"Bearer {address.api_key}"} if address.api_key else {}
        self._ssl = _ssl_context(address) if self._url.startswith("wss:") else None

    async def open(self) -> ClientConnection:
        """A new connection.

        Raises:
            NotOpenError: the server cannot be reached, or refuses.
        """
        try:
            return await connect(
                self._url,
                additional_headers=self._headers,
                ssl=self._ssl,
                compression=None,
                proxy=None,
                open_timeout=_OPEN_S,
                close_timeout=_CLOSE_S,
                # Whoever sends faster than real time has much audio under way, and a ping waits behind it.
                ping_interval=None,
                max_size=_MAX_MESSAGE_BYTES,
            )
        except InvalidStatus as error:
            response = error.response
            code, message = _refusal(response.body)
            status = response.status_code
            raise NotOpenError(
                code or f"HTTP_{status}", message or f"The server says {status}.", status
            ) from error
        except (OSError, TimeoutError, InvalidHandshake) as error:
            reason = str(error) or type(error).__name__
            raise NotOpenError("CONNECTION_FAILED", f"{self._url} does not open: {reason}") from error

    async def check(self) -> None:
        """See that the door is there. A server that is full is there.

        Raises:
            ConfigurationError: nobody is, or nobody who knows this door or takes this key.
        """
        try:
            connection = await self.open()
        except NotOpenError as error:
            if error.status is None:
                raise ConfigurationError(f"Cannot reach the server: {error.message}.") from error
            if error.status in _HOPELESS:
                more = "" if error.status == 404 else " Give its key with --api-key or WHISPER_API_KEY."
                raise ConfigurationError(f"{self._url} does not open: {error.message}{more}") from error
        else:
            await connection.close()


def broken(error: ConnectionClosed) -> SessionFailedError:
    """The failure of a session whose connection was closed in its middle."""
    close = error.rcvd
    if close is None:
        return SessionFailedError("CONNECTION_LOST", "The connection broke.")
    return SessionFailedError(f"CLOSED_{close.code}", close.reason or "The server closed the connection.")


def parsed(raw: str | bytes) -> dict[str, Any]:
    """A message.

    Raises:
        SessionFailedError: it is no JSON object with a type.
    """
    try:
        message = json.loads(raw)
    except ValueError:
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise SessionFailedError("NOT_UNDERSTOOD", "The server sent what is no message of this protocol.")
    return message


def websocket_url(text: str) -> str:
    """The address with a WebSocket's scheme, without `/v1` and a slash at the end.

    Raises:
        ConfigurationError: it is not an address.
    """
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigurationError(f"--server '{text}' is no address. Write it as http://127.0.0.1:8089.")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{_SCHEMES[parts.scheme]}://{parts.netloc}{path}"


def _refusal(body: bytes | bytearray | None) -> tuple[str, str]:
    """Code and message of an error object, where an answer is one."""
    try:
        content = json.loads(body or b"")
    except ValueError:
        return "", ""
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("code") or ""), str(error.get("message") or "")


def _ssl_context(address: Address) -> ssl.SSLContext:
    """Certificates for a WebSocket.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=address.ca_path)
        if address.cert_path is not None:
            context.load_cert_chain(address.cert_path, address.key_path)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(
            f"--tls-ca, --tls-cert or --tls-key cannot be used: {error.strerror or error}."
        ) from error
    return context
