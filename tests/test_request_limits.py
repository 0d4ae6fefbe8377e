"""Limits over HTTP: of audio, of single keys, of time; and requests that are called off."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest
from openai import APIStatusError, OpenAI, RateLimitError

from tests.media import tone, wav
from tests.wire import (
    FORM_TYPE,
    ROUTE,
    Background,
    connection,
    error_of,
    form,
    head,
    part,
    read_until,
    request,
    scripted_server,
    wait_until,
)
from whisper_server.cli.serve import bind
from whisper_server.config import ServerSettings
from whisper_server.core.admission import AdmissionLimits
from whisper_server.core.errors import (
    DeadlineExceededError,
    RequestCancelledError,
    ServerDrainingError,
    WhisperServerError,
)
from whisper_server.engines.scripted import ScriptedEngine, Step
from whisper_server.services.admission import Admission
from whisper_server.services.requests import RequestRegistry

AUDIO = wav(tone(2.0))
LONG = wav(tone(95.0))
KEYS = {name: f"the-key-of-{name}-and-nobody-else" for name in ("alice", "bob", "carol")}
CLIENTS = {
    "alice": {"max_requests": 2, "max_buffered_audio_s": 100.0},
    "bob": {"priority": "high"},
    "default": {"max_requests": 1},
}
SECURITY = {"api_keys": tuple(f"{name}: {key}" for name, key in KEYS.items()), "clients": CLIENTS}


def transcribe(
    url: str, audio: bytes = AUDIO, *, who: str = "", headers: dict[str, str] | None = None, **fields: str
) -> httpx.Response:
    headers = {**_key(who), **(headers or {})}
    return request("POST", f"{url}{ROUTE}", files={"file": audio}, data=fields, headers=headers)


def running(url: str, who: str = "") -> list[dict[str, Any]]:
    """What the server lists."""
    body = request("GET", f"{url}/v1/requests", headers=_key(who)).raise_for_status().json()
    assert body["object"] == "list"
    found: list[dict[str, Any]] = body["data"]
    return found


def wait_for(url: str, is_so: Callable[[list[dict[str, Any]]], bool], who: str = "") -> None:
    """Ask for the list until it is so."""
    for _ in range(2000):
        if is_so(running(url, who)):
            return
    raise AssertionError(f"the list stayed as it is: {running(url, who)}")


def cancel(url: str, id: str, who: str = "") -> httpx.Response:
    return request("DELETE", f"{url}/v1/requests/{id}", headers=_key(who))


def _key(who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[who]}"} if who else {}


def is_empty(state: dict[str, Any]) -> bool:
    return bool(state["requests_inside"] == 0)


class Gated:
    """A server whose first window waits for a gate."""

    def __init__(self, url: str, engine: ScriptedEngine, gate: threading.Event) -> None:
        self.url = url
        self.engine = engine
        self.gate = gate


@contextmanager
def gated_server(then: Step | None = None, **sections: Any) -> Iterator[Gated]:
    gate = threading.Event()
    engine = ScriptedEngine([Step("first", gate=gate)], then=then)
    with scripted_server(engine, **sections) as url:
        try:
            yield Gated(url, engine, gate)
        finally:
            gate.set()


# Audio in memory


def test_audio_beyond_the_room_is_refused_once_it_is_decoded_and_at_the_door_when_it_is_full() -> None:
    with gated_server(limits={"max_buffered_audio_s": 100.0}) as server:
        first = Background(lambda: transcribe(server.url, LONG))
        server.engine.wait_for_windows(1)
        refused = transcribe(server.url, wav(tone(6.0)))
        assert error_of(refused)["code"] == "server_busy"
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        second = Background(lambda: transcribe(server.url, wav(tone(5.0))))
        wait_for(server.url, lambda listed: [one["audio_s"] for one in listed] == [95.0, 5.0])
        with connection(server.url) as wire:
            wire.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": "20000000"}))
            answer = read_until(wire, b"server_busy")
        assert answer.startswith(b"HTTP/1.1 429 ")
        server.gate.set()
        assert first.result().status_code == second.result().status_code == 200
        wait_until(server.url, is_empty)
        assert transcribe(server.url, wav(tone(6.0))).status_code == 200
        too_long = transcribe(server.url, wav(tone(101.0)))
        assert (too_long.status_code, error_of(too_long)["code"]) == (400, "audio_too_long")
    assert sum(window.duration_s == 6.0 for window in server.engine.windows) == 1


def test_audio_without_room_is_refused_while_it_is_decoded() -> None:
    """Whole, the second recording would be longer than there may ever be: it is not decoded so far."""
    with gated_server(limits={"max_buffered_audio_s": 100.0}) as server:
        first = Background(lambda: transcribe(server.url, LONG))
        server.engine.wait_for_windows(1)
        for route in (ROUTE, "/debug/audio-info"):
            refused = request("POST", f"{server.url}{route}", files={"file": wav(tone(101.0))})
            assert (refused.status_code, error_of(refused)["code"]) == (429, "server_busy")
        server.gate.set()
        first.result().raise_for_status()
        wait_until(server.url, is_empty)


def test_every_route_with_audio_takes_room() -> None:
    with gated_server(limits={"max_buffered_audio_s": 97.0}) as server:
        first = Background(lambda: transcribe(server.url, LONG))
        server.engine.wait_for_windows(1)
        files = {"file": wav(tone(3.0))}
        for route in ("/v1/audio/translations", "/v1/audio/languages", "/debug/audio-info"):
            assert request("POST", f"{server.url}{route}", files=files).status_code == 429
        server.gate.set()
        first.result().raise_for_status()
        wait_until(server.url, is_empty)


# The estimated wait


def test_work_that_would_wait_too_long_is_refused_by_what_was_measured() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(), Step(gate=gate)])
    with scripted_server(engine, limits={"max_estimated_wait_s": 1e-6}) as url:
        first = Background(lambda: transcribe(url, LONG))
        engine.wait_for_windows(2)
        refused = transcribe(url, LONG)
        assert (refused.status_code, error_of(refused)["code"]) == (429, "server_busy")
        assert "The work before this request takes another" in error_of(refused)["message"]
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()
        first.result().raise_for_status()
        wait_until(url, is_empty)
        assert transcribe(url, LONG).status_code == 200


# Limits of single keys


def test_each_key_has_its_own_limits_and_its_clients_do_not_see_each_other() -> None:
    with gated_server(security=SECURITY) as server:
        url = server.url
        own = [Background(lambda: transcribe(url, LONG, who="alice"))]
        server.engine.wait_for_windows(1)
        with OpenAI(base_url=f"{url}/v1", api_key=KEYS["alice"], max_retries=0) as client:
            with pytest.raises(RateLimitError, match="'alice' has 95 seconds of audio inside") as busy:
                client.audio.transcriptions.create(file=wav(tone(6.0)), model="demo")
            own.append(Background(lambda: transcribe(url, who="alice")))
            wait_for(url, lambda listed: len(listed) == 2 and listed[1]["audio_s"] is not None, "alice")
            with pytest.raises(RateLimitError, match="'alice' has 2 requests inside"):
                client.audio.transcriptions.create(file=AUDIO, model="demo")
        assert int(busy.value.response.headers["retry-after"]) >= 1
        own.append(Background(lambda: transcribe(url, who="carol")))
        wait_for(url, lambda listed: len(listed) == 1, "carol")
        assert "'carol' has 1 requests inside" in transcribe(url, who="carol").text
        for _ in range(2):
            own.append(Background(lambda: transcribe(url, who="bob")))
        wait_for(url, lambda listed: len(listed) == 2, "bob")
        server.gate.set()
        assert [each.result().status_code for each in own] == [200] * 5


def test_a_key_with_priority_goes_first() -> None:
    with gated_server(security=SECURITY) as server:
        url = server.url
        waiting = [Background(lambda: transcribe(url, who="alice"))]
        server.engine.wait_for_windows(1)
        for who, seconds in (("carol", 3.0), ("bob", 4.0)):
            audio = wav(tone(seconds))
            waiting.append(Background(lambda who=who, audio=audio: transcribe(url, audio, who=who)))  # type: ignore[misc]  # mypy wants no defaults
            wait_for(url, lambda listed: [one["status"] for one in listed] == ["running"], who)
        server.gate.set()
        for each in waiting:
            each.result().raise_for_status()
    assert [window.duration_s for window in server.engine.windows] == [2.0, 4.0, 3.0]


# Deadlines


def test_a_request_that_waits_longer_than_its_client_likes_is_called_off_at_once() -> None:
    with gated_server() as server:
        first = Background(lambda: transcribe(server.url))
        server.engine.wait_for_windows(1)
        late = transcribe(server.url, headers={"X-Request-Timeout-S": "0.05"})
        assert (late.status_code, error_of(late)["code"]) == (504, "deadline_exceeded")
        assert "0.05 seconds it was given" in error_of(late)["message"]
        assert late.headers["x-should-retry"] == "false"
        server.gate.set()
        assert first.result().json()["text"] == "first"
        wait_until(server.url, is_empty)
        assert len(server.engine.windows) == 1


def test_the_deadline_holds_for_all_and_also_while_the_audio_arrives() -> None:
    with (
        scripted_server(ScriptedEngine(), limits={"request_deadline_s": 0.1}) as url,
        connection(url) as wire,
    ):
        headers = {"Content-Type": FORM_TYPE, "Content-Length": "20000", "X-Request-Timeout-S": "600"}
        wire.sendall(head(headers) + form(part("file", AUDIO))[:1000])
        answer = read_until(wire, b"deadline_exceeded")
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"longer than the 0.1 seconds a request may take" in answer
        wait_until(url, is_empty)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1e3", "inf", "nan", "", "0x10", "1_0", "9" * 400])
def test_a_timeout_that_is_no_number_is_refused(server_url: str, value: str) -> None:
    response = transcribe(server_url, headers={"X-Request-Timeout-S": value})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, "X-Request-Timeout-S")
    assert error["code"] == "invalid_value"


def test_the_deadline_of_a_stream_that_has_begun_is_its_last_event() -> None:
    with gated_server() as server, OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        events = client.audio.transcriptions.create(
            file=AUDIO,
            model="demo",
            stream=True,
            extra_body={"chunk_length": 1},
            extra_headers={"X-Request-Timeout-S": "1.5"},
        )
        server.engine.wait_for_windows(1)
        wait_for(server.url, lambda listed: [one["status"] for one in listed] != ["running"])
        server.gate.set()
        with pytest.raises(Exception, match=r"longer than the 1\.5 seconds"):
            list(events)
        wait_until(server.url, is_empty)
    assert len(server.engine.windows) == 1


# Called off by the client


def test_a_request_that_waits_is_called_off_and_never_decoded() -> None:
    with gated_server() as server:
        first = Background(lambda: transcribe(server.url))
        server.engine.wait_for_windows(1)
        second = Background(lambda: transcribe(server.url, LONG, headers={"X-Request-Id": "mine"}))
        wait_for(server.url, lambda listed: [one["audio_s"] for one in listed] == [2.0, 95.0])
        ids = [one["id"] for one in running(server.url)]
        assert ids[1] == "mine"
        deleted = cancel(server.url, "mine")
        assert (deleted.status_code, deleted.json()) == (
            200,
            {"id": "mine", "object": "request", "deleted": True},
        )
        response = second.result()
        assert (response.status_code, error_of(response)["code"]) == (409, "request_cancelled")
        assert response.headers["x-should-retry"] == "false"
        assert response.headers["x-request-id"] == "mine"
        gone = cancel(server.url, "mine")
        assert (gone.status_code, error_of(gone)["code"]) == (404, "not_found")
        server.gate.set()
        assert first.result().headers["x-request-id"] == ids[0]
        wait_until(server.url, is_empty)
    assert [window.duration_s for window in server.engine.windows] == [2.0]


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["plain", "stream"])
def test_a_request_that_runs_ends_after_its_window(fields: dict[str, str]) -> None:
    with gated_server() as server:
        running_one = Background(
            lambda: transcribe(server.url, LONG, headers={"X-Request-Id": "a.b"}, **fields)
        )
        server.engine.wait_for_windows(1)
        assert [one["status"] for one in running(server.url)] == ["running"]
        assert cancel(server.url, "a.b").status_code == 200
        server.gate.set()
        response = running_one.result()
        if fields:
            (event,) = [line for line in response.text.splitlines() if line]
            error = json.loads(event.removeprefix("data: "))["error"]
            assert response.status_code == 200
        else:
            error = error_of(response)
            assert response.status_code == 409
        assert error["code"] == "request_cancelled"
        wait_until(server.url, is_empty)
        assert transcribe(server.url).status_code == 200
    assert len(server.engine.windows) == 2


def test_a_chat_is_called_off_too() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(LONG).decode(), "format": "wav"}}
    with gated_server() as server, OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:

        def complete() -> None:
            client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": [audio]}],  # type: ignore[list-item,misc]  # a plain dict
                extra_headers={"X-Request-Id": "chat"},
            )

        chat = Background(complete)
        server.engine.wait_for_windows(1)
        (listed,) = running(server.url)
        assert (listed["path"], listed["audio_s"], listed["position_s"]) == (
            "/v1/chat/completions",
            95.0,
            0.0,
        )
        assert cancel(server.url, "chat").status_code == 200
        server.gate.set()
        with pytest.raises(APIStatusError, match="was cancelled") as stopped:
            chat.result()
        assert stopped.value.status_code == 409
    assert len(server.engine.windows) == 1


def test_an_upload_is_called_off_while_it_arrives() -> None:
    with scripted_server(ScriptedEngine()) as url, connection(url) as wire:
        headers = {"Content-Type": FORM_TYPE, "Content-Length": "20000", "X-Request-Id": "slow"}
        wire.sendall(head(headers) + form(part("file", AUDIO))[:1000])
        wait_for(
            url, lambda listed: [(one["id"], one["status"]) for one in listed] == [("slow", "receiving")]
        )
        assert cancel(url, "slow").status_code == 200
        assert read_until(wire, b"request_cancelled").startswith(b"HTTP/1.1 409 ")
        wait_until(url, is_empty)


def test_a_key_calls_off_its_own_requests_only_and_all_of_one_id() -> None:
    security = {**SECURITY, "clients": {}}
    with gated_server(security=security) as server:
        url, same = server.url, {"X-Request-Id": "same"}
        alices = [Background(lambda: transcribe(url, LONG, who="alice", headers=same))]
        server.engine.wait_for_windows(1)
        alices.append(Background(lambda: transcribe(url, LONG, who="alice", headers=same)))
        bobs = Background(lambda: transcribe(url, who="bob", headers=same))
        wait_for(url, lambda listed: len(listed) == 2, "alice")
        wait_for(url, lambda listed: len(listed) == 1, "bob")
        assert running(url, "carol") == []
        assert cancel(url, "same", "carol").status_code == 404
        assert cancel(url, "same").status_code == 401
        assert request("GET", f"{url}/v1/requests").status_code == 401
        assert cancel(url, "same", "alice").status_code == 200
        server.gate.set()
        assert [each.result().status_code for each in alices] == [409, 409]
        assert bobs.result().status_code == 200
    assert [window.duration_s for window in server.engine.windows] == [30.0, 2.0]


def test_the_list_tells_how_far_a_request_has_come() -> None:
    before_s = int(time.time())
    gate = threading.Event()
    engine = ScriptedEngine([Step(), Step(gate=gate)])
    with scripted_server(engine) as url:
        transcript = Background(lambda: transcribe(url, LONG))
        engine.wait_for_windows(2)
        (listed,) = running(url)
        assert listed.keys() == {"id", "object", "created", "path", "status", "audio_s", "position_s"}
        assert (listed["object"], listed["path"], listed["status"]) == ("request", ROUTE, "running")
        assert (listed["audio_s"], listed["position_s"]) == (95.0, 30.0)
        assert before_s <= listed["created"] <= time.time()
        gate.set()
        assert transcript.result().headers["x-request-id"] == listed["id"]
        wait_for(url, lambda found: found == [])


# Nobody is held up


def test_refusals_come_at_once_while_others_upload_and_compute() -> None:
    """Many of them, in the time in which nothing else gets done."""
    with gated_server(limits={"max_waiting_requests": 2}) as server, connection(server.url) as upload:
        first = Background(lambda: transcribe(server.url))
        server.engine.wait_for_windows(1)
        body = form(part("file", AUDIO))
        upload.sendall(
            head({"Content-Type": FORM_TYPE, "Content-Length": str(len(body))}) + body[:1000],
        )
        wait_until(server.url, lambda state: state["requests_inside"] == 2)
        with connection(server.url) as wire:
            for _ in range(30):
                _refused(wire)
        upload.sendall(body[1000:])
        server.gate.set()
        assert b"as scripted" in read_until(upload, b"as scripted")
        assert first.result().json()["text"] == "first"
        wait_until(server.url, is_empty)


def _refused(wire: socket.socket) -> None:
    wire.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": "0"}))
    assert read_until(wire, b'"server_busy"}}').startswith(b"HTTP/1.1 429 ")


@pytest.mark.anyio
async def test_small_answers_leave_at_once() -> None:
    """Nagle's algorithm would hold back the second part of each answer for 40 ms."""
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    with bind(ServerSettings(port=0)) as listener:
        server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener)
        _, client = await asyncio.open_connection(*listener.getsockname()[:2])
        transport = (await accepted).transport
        is_at_once = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()
        transport.close()
        server.close()
        await server.wait_closed()
    assert is_at_once


@pytest.mark.anyio
async def test_whatever_calls_requests_off_is_counted() -> None:
    admission = Admission(AdmissionLimits(9))
    registry = RequestRegistry(admission)
    ended: list[type[Exception]] = []

    async def serve(id: str, timeout_s: float | None = None) -> None:
        try:
            with registry.enter(id, "/", key_name=None, address="here", timeout_s=timeout_s) as request:
                await request.run(lambda: request.run(anyio.sleep_forever))
        except WhisperServerError as error:
            ended.append(type(error))

    await serve("late", timeout_s=0.0)
    async with anyio.create_task_group() as group:
        group.start_soon(serve, "cancelled")
        group.start_soon(serve, "cut")
        await anyio.wait_all_tasks_blocked()
        assert registry.cancel("cancelled", lambda _: True)
        assert not registry.cancel("cut", lambda one: one.caller.client == "there")
        await anyio.wait_all_tasks_blocked()
        registry.drain(1.0)
        assert [request.id for request in registry] == ["cut"]
        assert registry.cut() == 1
        await registry.wait_until_empty()
    counters = admission.counters
    assert (counters.deadline_exceeded, counters.cancelled, counters.cut) == (1, 1, 1)
    assert counters.admitted == 3
    assert ended == [DeadlineExceededError, RequestCancelledError, ServerDrainingError]
