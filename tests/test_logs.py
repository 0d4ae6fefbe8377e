"""Log lines: what they hold for people and for programs, and what they never hold."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from tests.live_server import make_settings
from whisper_server.api import middleware
from whisper_server.api.access_log import AccessLogMiddleware
from whisper_server.cli.logs import HumanFormatter, JsonFormatter, RequestIdFilter
from whisper_server.config import load_settings
from whisper_server.core.errors import ConfigurationError

ROOT = Path(__file__).parent.parent
SPEECH = ROOT / "whisper_server" / "demo" / "samples" / "kitchen_en.wav"

KEY = "the-key-that-is-never-logged-0123"
WRONG_KEY = "a-wrong-key-that-is-never-logged"
PROMPT = "zebra crossing prompt"
QUERY = "query-value-that-is-never-logged"

_ACCESS_FIELDS = {"method", "path", "status", "duration_ms", "bytes_in", "client", "key"}


@contextmanager
def captured(formatter: logging.Formatter, logger: logging.Logger) -> Iterator[io.StringIO]:
    """What a logger writes, DEBUG included."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(RequestIdFilter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def json_line(message: str, *values: Any, **options: Any) -> dict[str, Any]:
    logger = logging.getLogger("tests.logs")
    with captured(JsonFormatter(), logger) as stream:
        logger.warning(message, *values, **options)
    (line,) = stream.getvalue().splitlines()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def human_text(message: str, *values: Any, **options: Any) -> str:
    logger = logging.getLogger("tests.logs")
    with captured(HumanFormatter(), logger) as stream:
        logger.warning(message, *values, **options)
    return stream.getvalue()


def failure() -> ValueError:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        return error


# Lines


def test_a_json_line_has_time_level_logger_message_and_request_id() -> None:
    line = json_line("%d models, é\u2028\n", 2)
    moment = datetime.fromisoformat(line.pop("ts").removesuffix("Z") + "+00:00")
    assert datetime.now(UTC) - moment < timedelta(minutes=1)
    assert line == {
        "level": "WARNING",
        "logger": "tests.logs",
        "message": "2 models, é\u2028\n",
        "request_id": "-",
    }


def test_the_time_of_a_json_line_is_rfc_3339_in_utc() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json_line("x")["ts"])
    record = logging.LogRecord("a", logging.INFO, "", 0, "x", None, None)
    record.created = 0.25
    assert json.loads(JsonFormatter().format(record))["ts"] == "1970-01-01T00:00:00.250Z"


def test_an_exception_is_one_field_of_a_json_line() -> None:
    line = json_line("It failed", exc_info=failure())
    assert line["message"] == "It failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: first\nsecond")


def test_fields_for_programs_stand_beside_the_message() -> None:
    line = json_line("x", extra={"fields": {"path": Path("a"), "status": 200, "key": None}})
    assert (line["path"], line["status"], line["key"]) == ("a", 200, None)
    assert line["message"] == "x"


def test_a_human_line_has_the_same_facts() -> None:
    text = human_text("%d models", 2)
    assert re.fullmatch(r"[-\d]{10} [:,\d]{12} WARNING - tests\.logs: 2 models\n", text)


def test_a_message_cannot_forge_a_human_line_or_colour_it() -> None:
    text = human_text("from %s", "a\n2026-01-01 ERROR\r\x1b[31m\x9b\u2028\ttab é")
    assert text.count("\n") == 1
    assert text.endswith("from a\\n2026-01-01 ERROR\\r\\x1b[31m\\x9b\\u2028\ttab é\n")


def test_the_traceback_of_a_human_line_stays_readable() -> None:
    lines = human_text("It failed", exc_info=failure()).splitlines()
    assert lines[0].endswith("tests.logs: It failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-2:] == ["ValueError: first", "second"]


# The line of a request


@pytest.fixture
async def access() -> Any:
    """An app with keys, and the access lines it writes, by request."""
    app = FastAPI()

    @app.post("/v1/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.post("/v1/deaf")
    async def deaf() -> int:
        return 0

    @app.get("/v1/fail")
    async def fail() -> None:
        raise RuntimeError("not foreseen")

    for path in ("/health", "/health/ready"):
        app.add_api_route(path, deaf, methods=["GET"])
    app.add_api_route("/health/broken", fail, methods=["GET"])
    middleware.install(app, make_settings(security={"api_keys": (f"alice:{KEY}",)}))
    transport = httpx.ASGITransport(app, client=("10.1.2.3", 4567))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def line_of(method: str, path: str, *, key: str | None = KEY, **options: Any) -> dict[str, Any]:
            headers = {"x-request-id": "ticket-7"} | ({"Authorization": f"Bearer {key}"} if key else {})
            with captured(JsonFormatter(), logging.getLogger("whisper_server.api.access_log")) as stream:
                await client.request(method, path, headers=headers, **options)
            (line,) = stream.getvalue().splitlines()
            for secret in (KEY, WRONG_KEY, PROMPT, QUERY):
                assert secret not in line
            parsed: dict[str, Any] = json.loads(line)
            assert parsed["request_id"] == "ticket-7"
            assert parsed["duration_ms"] >= 0
            assert parsed.keys() >= _ACCESS_FIELDS
            return parsed

        yield line_of


async def test_each_request_has_a_line_that_says_what_became_of_it(access: Any) -> None:
    line = await access("POST", f"/v1/echo?prompt={QUERY}", content=PROMPT.encode())
    wanted = {"method": "POST", "path": "/v1/echo", "status": 200, "client": "10.1.2.3", "key": "alice"}
    assert line.items() >= (wanted | {"bytes_in": len(PROMPT), "level": "INFO"}).items()
    assert line["message"].startswith("POST /v1/echo 200 in ")
    assert line["message"].endswith(f" ms, {len(PROMPT)} bytes in, client 10.1.2.3, key alice")


@pytest.mark.parametrize("key", [None, WRONG_KEY])
async def test_a_refused_request_has_a_line_without_a_key(access: Any, key: str | None) -> None:
    line = await access("POST", "/v1/echo", key=key, content=b"unheard")
    assert (line["status"], line["key"], line["bytes_in"]) == (401, None, len("unheard"))
    assert line["message"].endswith("key -")


async def test_the_path_is_the_one_that_was_sent(access: Any) -> None:
    assert (await access("POST", "/v1//echo/"))["path"] == "/v1//echo/"
    assert (await access("GET", "/a%0Ab%20c"))["path"] == "/a%0Ab%20c"
    assert len((await access("GET", "/" + "x" * 5000))["path"]) == 500


@pytest.mark.parametrize(
    ("path", "status", "level"),
    [
        ("/health", 200, "DEBUG"),
        ("/health/", 200, "DEBUG"),
        ("/health/ready", 200, "DEBUG"),
        ("/health/none", 404, "INFO"),
        ("/health/broken", 500, "INFO"),
        ("/healthy", 404, "INFO"),
    ],
)
async def test_a_request_for_health_is_quiet_unless_it_fails(
    access: Any, path: str, status: int, level: str
) -> None:
    line = await access("GET", path)
    assert (line["status"], line["level"]) == (status, level)


async def test_a_request_that_fails_has_its_line_too(access: Any) -> None:
    line = await access("GET", "/v1/fail")
    assert (line["status"], line["level"]) == (500, "INFO")


async def websocket_line(sent: list[dict[str, Any]], received: list[dict[str, Any]]) -> dict[str, Any]:
    messages = iter(received)

    async def app(_: Any, receive: Any, send: Any) -> None:
        for _message in received:
            await receive()
        for message in sent:
            await send(message)

    async def receive() -> Any:
        return next(messages)

    async def send(_: Any) -> None: ...

    scope: dict[str, Any] = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    with captured(JsonFormatter(), logging.getLogger("whisper_server.api.access_log")) as stream:
        await AccessLogMiddleware(app)(scope, receive, send)
    line: dict[str, Any] = json.loads(stream.getvalue())
    return line


async def test_a_websocket_has_a_line_when_it_is_over() -> None:
    accepted: dict[str, Any] = {"type": "websocket.accept"}
    received: list[dict[str, Any]] = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "bytes": b"abc"},
        {"type": "websocket.receive", "text": "é", "bytes": None},
        {"type": "websocket.disconnect", "code": 1000},
    ]
    line = await websocket_line([accepted, {"type": "websocket.close"}], received)
    wanted = {"method": "WEBSOCKET", "path": "/v1/realtime", "status": 101, "bytes_in": 5, "client": None}
    assert line.items() >= wanted.items()
    assert (await websocket_line([{"type": "websocket.close"}], []))["status"] == 403
    denial = {"type": "websocket.http.response.start", "status": 401}
    assert (await websocket_line([denial], []))["status"] == 401
    assert (await websocket_line([], []))["status"] is None


# The settings


@pytest.mark.parametrize("name", ["WHISPER_LOGGING_FORMAT", "LOG_FORMAT"])
def test_the_format_has_two_names_in_the_environment(name: str) -> None:
    assert load_settings(environ={name: "JSON"}).settings.logging.format == "json"
    assert load_settings(environ={}).settings.logging.format == "human"
    with pytest.raises(ConfigurationError, match=r"logging\.format"):
        load_settings(environ={name: "xml"})


def serve(*words: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "whisper_server", "serve", "--port", "0", "--model", "demo", *words],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def log_of_a_session(environment: dict[str, str]) -> str:
    """All that a server writes to standard error while it is used and misused."""
    with serve(**environment) as process:
        assert process.stderr is not None
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            lines = []
            url = None
            while url is None:
                lines.append(process.stderr.readline())
                assert lines[-1], "".join(lines)
                url = re.search(r"Listening on (http://[\d.:]+)", lines[-1])
            use(url[1])
            process.terminate()
            lines.append(process.stderr.read())
            assert process.wait(30) == 0
        finally:
            watchdog.cancel()
            process.kill()
    return "".join(lines)


def use(url: str) -> None:
    route, speech = f"{url}/v1/audio/transcriptions?q={QUERY}", SPEECH.read_bytes()
    right, wrong = ({"Authorization": f"Bearer {key}"} for key in (KEY, WRONG_KEY))
    fields = {"model": "demo", "prompt": PROMPT, "hotwords": PROMPT}
    with httpx.Client(timeout=60) as client:
        named = right | {"x-request-id": "ticket-7"}
        answer = client.post(route, headers=named, data=fields, files={"file": speech})
        assert answer.json()["text"]
        assert client.post(route, headers=wrong, files={"file": speech}).status_code == 401
        assert client.post(route, headers={"api-key": WRONG_KEY}, data=fields).status_code == 401
        assert client.post(route, headers=right, files={"file": PROMPT.encode()}).status_code == 400
        assert client.get(f"{url}/health").status_code == 200


SECRETS = (KEY, WRONG_KEY, PROMPT, QUERY, "Bearer", "David", "Monday")


def test_a_server_logs_json_lines_alone_and_no_secrets(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    keys = {"WHISPER_API_KEYS": f"alice:{KEY}"}
    text = log_of_a_session(
        keys | {"LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG", "WHISPER_LOGGING_FILE": str(file)}
    )
    assert not [secret for secret in SECRETS if secret in text]
    assert file.read_text(encoding="utf-8") == text
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(line.keys() >= {"ts", "level", "logger", "message", "request_id"} for line in lines)
    access = [line for line in lines if "status" in line]
    assert [(line["method"], line["path"], line["status"]) for line in access] == [
        ("POST", "/v1/audio/transcriptions", 200),
        ("POST", "/v1/audio/transcriptions", 401),
        ("POST", "/v1/audio/transcriptions", 401),
        ("POST", "/v1/audio/transcriptions", 400),
        ("GET", "/health", 200),
    ]
    assert [line["key"] for line in access] == ["alice", None, None, "alice", None]
    assert access[0].keys() >= _ACCESS_FIELDS
    assert access[0]["request_id"] == "ticket-7"
    assert access[0]["bytes_in"] > SPEECH.stat().st_size
    assert access[0]["duration_ms"] > 0
    assert {line["client"] for line in access} == {"127.0.0.1"}
    assert {line["level"] for line in access} == {"INFO", "DEBUG"}
    loggers = {line["logger"] for line in lines}
    assert "uvicorn.error" in loggers
    assert "uvicorn.access" not in loggers


def test_a_server_logs_lines_for_people_unless_told_otherwise() -> None:
    text = log_of_a_session({"WHISPER_API_KEYS": f"alice:{KEY}"})
    assert not [secret for secret in SECRETS if secret in text]
    lines = text.splitlines()
    assert all(
        re.match(r"[-\d]{10} [:,\d]{12} (DEBUG|INFO|WARNING|ERROR) +\S+ \S+: ", line) for line in lines
    )
    access = [line for line in lines if "whisper_server.api.access_log" in line]
    assert len(access) == 4  # the request for health is not among them
    assert re.search(r"INFO +ticket-7 \S+: POST /v1/audio/transcriptions 200 in [\d.]+ ms, ", access[0])


def test_a_log_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    with serve("--log-file", str(tmp_path / "none" / "server.log")) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "server.log cannot be written: No such file or directory. Set WHISPER_LOGGING_FILE." in errors
    assert "Traceback" not in errors
