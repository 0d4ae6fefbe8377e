"""One tree of faults, one row each on the wire, and an answer for faults nobody foresaw."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from whisper_server.api import errors as wire
from whisper_server.api.error_table import ADMIN_CODES, ERR_CODES, WIRE_ERRORS, err_code
from whisper_server.api.request_id import RequestIdMiddleware, request_id
from whisper_server.api.unread_body import UnreadBodyMiddleware
from whisper_server.core import errors as core


def tree(kind: type[core.WhisperServerError]) -> Iterator[type[core.WhisperServerError]]:
    """The faults a server can raise; those of the command line and of tests never come over HTTP."""
    if not kind.__module__.startswith("whisper_server.core."):
        return
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


def make(kind: type[core.WhisperServerError]) -> core.WhisperServerError:
    if issubclass(kind, core.ServerBusyError):
        return kind("Say it.", retry_after_s=2.5)
    return kind("Say it.")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """An app that fails in every way it is asked to."""
    app = FastAPI()

    @app.post("/raise/{name}")
    async def fail(name: str, request: Request) -> None:
        await request.body()
        if name == "Secret":
            raise RuntimeError("password=hunter2 in /secret/path")
        raise make(getattr(core, name))

    @app.get("/number/{value}")
    async def number(value: int) -> int:
        return value

    wire.install(app)
    app.add_middleware(RequestIdMiddleware)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def test_every_fault_has_a_row_of_its_own() -> None:
    faults = set(tree(core.WhisperServerError))
    assert len(faults) > 15
    assert set(WIRE_ERRORS) == faults
    codes = [row.code for row in WIRE_ERRORS.values()]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", list(tree(core.WhisperServerError)), ids=lambda kind: kind.__name__)
async def test_a_fault_is_answered_as_its_row_says(
    client: httpx.AsyncClient, kind: type[core.WhisperServerError]
) -> None:
    response = await client.post(f"/raise/{kind.__name__}")
    row = WIRE_ERRORS[kind]
    assert response.status_code == row.status
    assert response.json() == {
        "error": {"message": "Say it.", "type": row.type, "param": None, "code": row.code}
    }
    usual = "invalid_request_error" if row.status < 500 else "server_error"
    assert row.type == ("rate_limit_error" if row.status == 429 else usual)
    if row.should_retry is not None:
        assert response.headers["x-should-retry"] == str(row.should_retry).lower()


def test_what_the_client_must_change_is_4xx_and_what_it_cannot_is_5xx() -> None:
    for kind, row in WIRE_ERRORS.items():
        if issubclass(kind, core.InvalidRequestError):
            assert row.status == 400
        if issubclass(kind, core.ModelUnavailableError):
            assert row.status == 503


def test_every_fault_has_a_code_of_grpc_and_every_code_a_meaning() -> None:
    codes = {err_code(make(kind)) for kind in WIRE_ERRORS if not issubclass(kind, core.AdminError)}
    # Which call failed, and which field is wrong, tells these apart.
    assert codes | {"ERR1001", "ERR1003", "ERR3001"} == set(ERR_CODES)
    assert all(hasattr(grpc.StatusCode, row.status) for row in ERR_CODES.values())


def test_every_fault_of_the_admin_api_has_a_code_of_its_own() -> None:
    kinds = core.AdminError.__subclasses__()
    assert sorted(err_code(make(kind)) for kind in kinds) == list(ADMIN_CODES)
    statuses = {err_code(make(kind)): WIRE_ERRORS[kind].status for kind in kinds}
    assert statuses == {"ERR4001": 501, "ERR4002": 409, "ERR4003": 400, "ERR4004": 401, "ERR4005": 403}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (core.InvalidRequestError("No.", param="session_id"), "ERR1001"),
        (core.InvalidRequestError("No.", param="vad_threshold"), "ERR1003"),
        (core.InvalidRequestError("No.", param="beam_size"), "ERR1010"),
        (core.SessionExistsError("No.", param="session_id"), "ERR1002"),
        (core.NoAudioStreamError("No."), "ERR1013"),
        (core.EngineCrashedError("No."), "ERR2002"),
    ],
)
def test_faults_share_the_codes_of_grpc_with_those_above_them(
    error: core.WhisperServerError, code: str
) -> None:
    assert err_code(error) == code


def test_a_code_of_the_faults_own_wins() -> None:
    response = wire.error_response(
        core.InvalidRequestError("No.", param="language", code="unsupported_language")
    )
    error = json.loads(bytes(response.body))["error"]
    assert (error["param"], error["code"]) == ("language", "unsupported_language")
    response = wire.error_response(core.EmptyAudioError("Empty.", param="file"))
    assert json.loads(bytes(response.body))["error"]["code"] == "empty_audio"


@pytest.mark.parametrize("is_retryable", [True, False])
def test_a_download_says_itself_whether_to_try_again(is_retryable: bool) -> None:
    response = wire.error_response(core.ModelDownloadError("Broken.", is_retryable=is_retryable))
    assert response.headers["x-should-retry"] == str(is_retryable).lower()


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (2.5, "3"), (30.0, "30")])
def test_a_busy_server_says_when_in_whole_seconds(seconds: float, header: str) -> None:
    response = wire.error_response(core.ServerBusyError("Busy.", retry_after_s=seconds))
    assert response.headers["retry-after"] == header
    assert response.headers["x-should-retry"] == "true"


async def test_a_fault_nobody_foresaw_tells_only_where_to_look(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.post("/raise/Secret", headers={"x-request-id": "ticket-7"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "ticket-7"
    assert response.headers["x-should-retry"] == "false"
    message = "The server failed on this request. Its log has the details under request id ticket-7."
    assert response.json() == {
        "error": {"message": message, "type": "server_error", "param": None, "code": "internal_error"}
    }
    assert "hunter2" in caplog.text


async def test_the_log_line_of_an_unforeseen_fault_is_written_under_the_request_id(
    client: httpx.AsyncClient,
) -> None:
    ids = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ids.append(request_id())

    handler = Noting(logging.ERROR)
    logging.getLogger(wire.__name__).addHandler(handler)
    try:
        await client.post("/raise/Secret", headers={"x-request-id": "ticket-7"})
    finally:
        logging.getLogger(wire.__name__).removeHandler(handler)
    assert ids == ["ticket-7"]


async def test_an_answer_that_fails_half_way_is_cut_off() -> None:
    """The server closes the connection when the app raises, so that the client sees a broken answer."""
    app = FastAPI()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("the rest is missing")

    @app.get("/")
    async def answer() -> StreamingResponse:
        return StreamingResponse(pieces())

    wire.install(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        with pytest.raises(RuntimeError, match="the rest is missing"):
            await client.get("/")


async def test_causes_of_server_faults_are_logged_and_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.get("/")
    async def fail() -> None:
        try:
            raise OSError("/secret/path")
        except OSError as error:
            raise core.EngineError("The model failed.") from error

    wire.install(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/")
    assert "/secret/path" not in response.text
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/raise/EngineError", 405, "method_not_allowed"),
        ("GET", "/number/x", 400, "invalid_value"),
    ],
)
async def test_the_frameworks_own_faults_have_the_same_form(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


async def test_a_wrong_method_says_which_are_right(client: httpx.AsyncClient) -> None:
    response = await client.get("/raise/EngineError")
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["message"] == "Method Not Allowed: GET /raise/EngineError"


class Conversation:
    """One request at a middleware, message by message."""

    def __init__(self, body: list[bytes], status: int, *, reads: int = 0, expect: str = "") -> None:
        self._body = body
        self._status = status
        self._reads = reads
        self._headers = [(b"expect", expect.encode())] if expect else []
        self.log: list[str] = []

    async def run(self) -> list[str]:
        scope = {"type": "http", "headers": self._headers}
        await UnreadBodyMiddleware(self._app)(scope, self._receive, self._send)
        return self.log

    async def _app(self, _scope: Any, receive: Any, send: Any) -> None:
        for _ in range(self._reads):
            await receive()
        await send({"type": "http.response.start", "status": self._status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    async def _receive(self) -> dict[str, Any]:
        if not self._body:
            await asyncio.Event().wait()  # like a server: nothing comes until the client leaves
        self.log.append("read")
        return {"type": "http.request", "body": self._body.pop(0), "more_body": bool(self._body)}

    async def _send(self, message: Any) -> None:
        kind = "start" if message["type"] == "http.response.start" else message["body"].decode()
        self.log.append(kind if message.get("more_body") or kind == "start" else f"{kind}.")


async def test_an_error_is_sent_at_once_and_ended_when_the_body_is_read() -> None:
    assert await Conversation([b"a", b"b", b"c"], 400, reads=1).run() == [
        "read",
        "start",
        "answer",
        "read",
        "read",
        ".",
    ]


async def test_an_error_after_the_whole_body_waits_for_nothing() -> None:
    assert await Conversation([b"a", b"b"], 400, reads=2).run() == ["read", "read", "start", "answer."]


async def test_an_answer_other_than_an_error_is_left_as_it_is() -> None:
    assert await Conversation([b"a", b"b"], 200).run() == ["start", "answer."]


async def test_a_client_that_waits_to_be_asked_is_not_asked() -> None:
    assert await Conversation([b"a"], 413, expect="100-Continue").run() == ["start", "answer."]


async def test_a_client_that_was_asked_is_listened_to() -> None:
    log = await Conversation([b"a", b"b"], 413, reads=1, expect="100-continue").run()
    assert log == ["read", "start", "answer", "read", "."]


async def test_an_endless_body_is_not_read_for_ever() -> None:
    piece = bytes(1 << 20)
    log = await Conversation([piece] * 1000, 413).run()
    assert log.count("read") == 64
    assert log[-1] == "."


async def test_a_client_that_falls_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisper_server.api.unread_body._MAX_S", 0.01)
    silent = Conversation([], 413)
    assert await silent.run() == ["start", "answer", "."]
