"""A model's process that dies in the middle of a transcription, seen from outside the server."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commanded_engine import LOADER
from tests.live_server import make_settings, running_server
from tests.media import tone, wav
from tests.wire import Background, error_of, health, request
from whisper_server.engines.isolation import isolated

FIELDS = {"model": "demo", "language": "en", "response_format": "text"}


@pytest.fixture
def url() -> Iterator[str]:
    with running_server(make_settings(model={"engine_isolation": "process"})) as url:
        yield url


def state(url: str) -> dict[str, Any]:
    body: dict[str, Any] = request("GET", f"{url}/debug/scheduler").raise_for_status().json()
    return body


def transcribe(url: str, path: Path) -> Any:
    return request("POST", f"{url}/v1/audio/transcriptions", data=FIELDS, files={"file": path.read_bytes()})


def wait_until_running(url: str) -> None:
    for _ in range(20_000):
        if state(url)["windows_running"]:
            return
    raise AssertionError("no window began")


def the_model_s_process() -> int:
    (child,) = (one for one in multiprocessing.active_children() if one.name == "whisper-engine")
    assert child.pid is not None
    return child.pid


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL], ids=lambda number: number.name)
def test_a_crash_costs_a_retry_and_nothing_else(
    url: str, number: signal.Signals, sample_recordings: list[dict[str, Any]]
) -> None:
    recording = max(sample_recordings, key=lambda sample: float(sample["seconds"]))["path"]
    expected = transcribe(url, recording).text
    assert len(expected) > 100
    running = Background(lambda: transcribe(url, recording))
    wait_until_running(url)
    os.kill(the_model_s_process(), number)
    assert health(url)["status"] == "ok"
    answer = running.result()
    assert (answer.status_code, answer.text) == (200, expected)
    counters = state(url)["counters"]
    assert counters["calls_crashed"] == counters["windows_retried"] == 1
    assert counters["windows_failed"] == 0


def test_a_window_that_kills_its_process_twice_is_a_503_and_others_are_served() -> None:
    settings = make_settings(transcription={"vad_filter": False})
    with running_server(settings, engines={"faster-whisper": isolated(LOADER)}) as url:

        def ask(prompt: str) -> Any:
            fields = FIELDS | {"prompt": prompt}
            files = {"file": wav(tone(1.0))}
            return request("POST", f"{url}/v1/audio/transcriptions", data=fields, files=files)

        deadly = Background(lambda: ask("segv"))
        harmless = [Background(lambda: ask("fine")) for _ in range(3)]
        answer = deadly.result()
        assert (answer.status_code, error_of(answer)["code"]) == (503, "engine_crashed")
        assert [one.result().status_code for one in harmless] == [200] * 3
        assert ask("fine").status_code == 200
        counters = state(url)["counters"]
        assert counters["calls_crashed"] >= 2
        assert counters["windows_failed"] == 1
