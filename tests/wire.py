"""Requests as bytes, for what an HTTP library would not send, and answers as OpenAI's clients judge them."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from tests.live_server import make_settings, running_server
from whisper_server.engines.scripted import ScriptedEngine

BOUNDARY = "the-boundary"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
ROUTE = "/v1/audio/transcriptions"

_WAIT_S = 30.0
_PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_SECRETS = ("Traceback", "site-packages", "Exception", "Error:", ".py", str(Path.home()), str(Path.cwd()))


def part(
    name: str | None, content: bytes | str, *, filename: str | None = None, content_type: str | None = None
) -> bytes:
    """One part of a form; without a name, it is one that no field owns."""
    disposition = "form-data"
    if name is not None:
        disposition += f'; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    headers = f"Content-Disposition: {disposition}\r\n"
    if content_type is not None:
        headers += f"Content-Type: {content_type}\r\n"
    return raw_part(headers.encode(), content.encode() if isinstance(content, str) else content)


def raw_part(headers: bytes, content: bytes) -> bytes:
    """One part with these header lines."""
    return b"--" + BOUNDARY.encode() + b"\r\n" + headers + b"\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole form body."""
    return b"".join(parts) + b"--" + BOUNDARY.encode() + b"--\r\n"


class Answer(Protocol):
    """A response of any HTTP library: the OpenAI SDK may bring its own."""

    @property
    def text(self) -> str: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def json(self) -> Any: ...


def error_of(response: Answer) -> dict[str, Any]:
    """The error object of a response, which has all its keys and tells no secrets."""
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    for secret in _SECRETS:
        assert secret not in response.text
    assert response.headers["x-request-id"]
    return error


@contextmanager
def scripted_server(engine: ScriptedEngine, **sections: Any) -> Iterator[str]:
    """A live server whose every model is this engine; sections change its settings.

    The voice filter is off by default: to it, the tones of the tests are silence.
    """
    sections = {"transcription": {"vad_filter": False}} | sections
    with running_server(make_settings(**sections), engines={"faster-whisper": engine.load}) as url:
        yield url


def request(method: str, url: str, **options: Any) -> httpx.Response:
    """One request on a connection of its own, without the time it takes to load certificates."""
    return httpx.request(method, url, verify=_PLAIN, trust_env=False, timeout=_WAIT_S, **options)


def health(url: str) -> dict[str, Any]:
    """What the server says of itself."""
    body: dict[str, Any] = request("GET", f"{url}/health").raise_for_status().json()
    return body


def wait_until(url: str, is_so: Callable[[dict[str, Any]], bool]) -> None:
    """Ask for the server's health until it is so."""
    for _ in range(2000):
        if is_so(health(url)):
            return
    raise AssertionError(f"the server stayed as it is: {health(url)}")


def settle(url: str) -> None:
    """Let the server's event loop go round often enough to have seen whatever was sent or closed before."""
    for _ in range(5):
        health(url)


@contextmanager
def connection(url: str) -> Iterator[socket.socket]:
    """A bare connection to the server."""
    parts = urlsplit(url)
    assert parts.hostname
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=_WAIT_S) as open_socket:
        yield open_socket


def head(headers: dict[str, str], *, method: str = "POST", path: str = ROUTE) -> bytes:
    """The beginning of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def read_until(open_socket: socket.socket, mark: bytes) -> bytes:
    """Read until a mark has come or the server has closed."""
    received = b""
    while mark not in received and (block := open_socket.recv(65536)):
        received += block
    return received


class Background:
    """A call in another thread, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as error:  # raised in the test's own thread by `result`
            self._error = error

    def result(self) -> Any:
        """Wait for it; raises what it raised."""
        self._thread.join(_WAIT_S)
        assert not self._thread.is_alive(), "the call did not return"
        if self._error is not None:
            raise self._error
        return self._outcome
