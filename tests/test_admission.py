"""Who may come in, and when the others are told to come back."""

import threading
from typing import Any

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI, RateLimitError

from tests.media import tone, wav
from tests.wire import (
    FORM_TYPE,
    ROUTE,
    Background,
    connection,
    error_of,
    head,
    read_until,
    request,
    scripted_server,
    wait_until,
)
from whisper_server.core.errors import ServerBusyError
from whisper_server.engines.scripted import ScriptedEngine, Step, scripted_capabilities
from whisper_server.services.admission import Admission


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def retry_after_s(admission: Admission) -> float:
    with pytest.raises(ServerBusyError) as caught, admission.enter():
        pass
    return caught.value.retry_after_s


def serve(admission: Admission, clock: Clock, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        with admission.enter():
            clock.now_s += seconds


def test_no_more_than_the_limit_are_inside() -> None:
    admission = Admission(2)
    with admission.enter(), admission.enter():
        assert admission.inside == 2
        with pytest.raises(ServerBusyError, match="busy with 2 requests"), admission.enter():
            pass
        assert admission.inside == 2
    assert admission.inside == 0


def test_who_leaves_makes_room_also_after_an_error() -> None:
    admission = Admission(1)
    with pytest.raises(ValueError, match="broken"), admission.enter():
        raise ValueError("broken")
    with admission.enter():
        assert admission.inside == 1


def test_nobody_is_told_to_come_back_at_once(clock: Clock) -> None:
    admission = Admission(1, clock)
    with admission.enter():
        assert retry_after_s(admission) == 1
    serve(admission, clock, seconds=0.001, times=100)
    with admission.enter():
        assert retry_after_s(admission) == 1


def test_the_time_to_come_back_is_how_long_it_takes_until_one_leaves(clock: Clock) -> None:
    admission = Admission(1, clock)
    serve(admission, clock, seconds=20.0, times=50)
    with admission.enter():
        assert retry_after_s(admission) == 20


def test_requests_side_by_side_leave_more_often(clock: Clock) -> None:
    admission = Admission(2, clock)
    for _ in range(50):
        with admission.enter(), admission.enter():
            clock.now_s += 20.0
    with admission.enter(), admission.enter():
        assert retry_after_s(admission) <= 12


def test_an_idle_night_does_not_count(clock: Clock) -> None:
    admission = Admission(1, clock)
    serve(admission, clock, seconds=2.0, times=50)
    clock.now_s += 36_000
    serve(admission, clock, seconds=2.0)
    with admission.enter():
        assert retry_after_s(admission) == 2


# Over HTTP.

AUDIO = wav(tone(2.0))
LIMITS = {"max_waiting_requests": 2}


def transcribe(url: str) -> httpx.Response:
    return request("POST", f"{url}{ROUTE}", files={"file": AUDIO})


def inside(url: str, count: int) -> None:
    wait_until(url, lambda state: state["requests_inside"] == count)


def test_the_third_of_two_is_told_to_come_back_and_the_others_are_served() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step("first", gate=gate)], then=Step("later"))
    with scripted_server(engine, limits=LIMITS) as url:
        first = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        second = Background(lambda: transcribe(url))
        inside(url, 2)
        with OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(RateLimitError) as busy:
                client.audio.transcriptions.create(file=AUDIO, model="demo")
            assert client.models.list().data, "only work is limited"
        gate.set()
        assert first.result().json()["text"] == "first"
        assert second.result().json()["text"] == "later"
        inside(url, 0)
        assert transcribe(url).json()["text"] == "later"
    assert busy.value.code == "server_busy"
    assert busy.value.type == "rate_limit_error"
    assert int(busy.value.response.headers["retry-after"]) >= 1
    assert busy.value.response.headers["x-should-retry"] == "true"
    error_of(busy.value.response)
    assert len(engine.windows) == 3


def test_the_upload_of_a_refused_request_is_not_read() -> None:
    """It is refused before it is asked to go on, and before a byte of its body has come."""
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    with scripted_server(engine, limits={"max_waiting_requests": 1}) as url:
        first = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        for more in ({"Expect": "100-continue"}, {}):
            with connection(url) as wire:
                wire.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": "20000000", **more}))
                answer = read_until(wire, b"server_busy")
            assert answer.startswith(b"HTTP/1.1 429 ")
        gate.set()
        first.result().raise_for_status()


def test_a_refused_client_that_sends_everything_first_can_still_read_why() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    with scripted_server(engine, limits={"max_waiting_requests": 1}) as url:
        first = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        size = 20_000_000
        with connection(url) as wire:
            headers = {"Content-Type": FORM_TYPE, "Content-Length": str(size), "Connection": "close"}
            wire.sendall(head(headers))
            wire.sendall(bytes(size))
            assert read_until(wire, b"server_busy").startswith(b"HTTP/1.1 429 ")
        gate.set()
        first.result().raise_for_status()


def test_the_sdk_tries_again_by_itself_and_is_served() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    with scripted_server(engine, limits={"max_waiting_requests": 1}) as url:
        first = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        refused = threading.Event()

        def release(response: Any) -> None:
            if response.status_code == 429:
                refused.set()
                gate.set()

        http = DefaultHttpxClient(event_hooks={"response": [release]})
        with OpenAI(base_url=f"{url}/v1", api_key="x", http_client=http, max_retries=5) as client:
            assert client.audio.transcriptions.create(file=AUDIO, model="demo").text == "as scripted"
        assert refused.is_set()
        first.result().raise_for_status()


def test_an_engine_that_fails_fails_one_request_and_leaves_no_trace_in_the_count() -> None:
    gate = threading.Event()
    failure = RuntimeError("CUDA error in /secret/path/kernel.cu")
    engine = ScriptedEngine(
        [Step("fine", gate=gate), Step(error=failure), Step("fine")],
        capabilities=scripted_capabilities(parallel_calls=2),
    )
    with scripted_server(engine, limits=LIMITS) as url:
        neighbour = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        failed = transcribe(url)
        gate.set()
        assert neighbour.result().json()["text"] == "fine"
        assert transcribe(url).json()["text"] == "fine"
        inside(url, 0)
    assert failed.status_code == 500
    error = error_of(failed)
    assert (error["type"], error["code"], error["param"]) == ("server_error", "inference_failed", None)
    assert "secret" not in failed.text
    assert "CUDA" not in failed.text


def test_bad_requests_take_no_place_for_good() -> None:
    with scripted_server(ScriptedEngine(), limits={"max_waiting_requests": 1}) as url:
        for _ in range(5):
            assert request("POST", f"{url}{ROUTE}", files={"file": b"no audio"}).status_code == 400
            assert request("POST", f"{url}{ROUTE}").status_code == 400
        assert transcribe(url).status_code == 200
