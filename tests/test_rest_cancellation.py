"""A client that leaves takes its work with it, and only its own."""

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.media import tone, wav
from tests.wire import (
    FORM_TYPE,
    ROUTE,
    Background,
    connection,
    form,
    head,
    health,
    part,
    request,
    scripted_server,
    settle,
    wait_until,
)
from whisper_server.engines.scripted import ScriptedEngine, Step, scripted_capabilities

LONG = wav(tone(95.0))
SHORT = wav(tone(2.0))
WINDOWS_OF_LONG = 4


@contextmanager
def sent(url: str, audio: bytes, **fields: str) -> Iterator[socket.socket]:
    """A whole request on a bare connection, which the end of the block closes without reading the answer."""
    content = form(*(part(name, value) for name, value in fields.items()), part("file", audio))
    with connection(url) as wire:
        wire.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": str(len(content))}) + content)
        yield wire


def transcript(url: str, audio: bytes = SHORT) -> str:
    response = request("POST", f"{url}{ROUTE}", files={"file": audio})
    text: str = response.raise_for_status().json()["text"]
    return text


def wait_until_empty(url: str) -> None:
    wait_until(url, lambda state: state["requests_inside"] == 0)


def users(state: dict[str, Any]) -> int:
    return sum(model["users"] for model in state["loaded_models"])


def test_the_whole_of_a_long_recording_is_so_many_windows() -> None:
    """What the tests below would count if nothing ended the work."""
    engine = ScriptedEngine()
    with scripted_server(engine) as url:
        transcript(url, LONG)
    assert len(engine.windows) == WINDOWS_OF_LONG


@pytest.mark.parametrize("running", [1, 2])
@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["plain", "stream"])
def test_no_window_after_the_running_one_is_decoded(running: int, fields: dict[str, str]) -> None:
    gate = threading.Event()
    engine = ScriptedEngine([*[Step()] * (running - 1), Step(gate=gate)])
    with scripted_server(engine) as url:
        with sent(url, LONG, **fields):
            engine.wait_for_windows(running)
        settle(url)
        gate.set()
        wait_until_empty(url)
        assert len(engine.windows) == running
        assert transcript(url) == "as scripted"
        assert len(engine.windows) == running + 1


def test_batches_end_in_the_same_way() -> None:
    gate = threading.Event()
    engine = ScriptedEngine(then=Step(gate=gate))
    with scripted_server(engine) as url:
        fields = {"long_form": "batched", "batch_size": "1", "chunk_length": "1", "vad_filter": "true"}
        fields |= {"vad_parameters[threshold]": "0"}
        with sent(url, LONG, **fields):
            engine.wait_for_windows(1)
        settle(url)
        gate.set()
        wait_until_empty(url)
        assert len(engine.windows) == 1
        assert transcript(url) == "as scripted"


def test_who_leaves_the_queue_is_never_decoded() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step("first", gate=gate)], then=Step("others"))
    with scripted_server(engine) as url:
        first = Background(lambda: transcript(url, wav(tone(3.0))))
        engine.wait_for_windows(1)
        with sent(url, LONG):
            wait_until(url, lambda state: users(state) == 2)
            third = Background(lambda: transcript(url, wav(tone(4.0))))
            wait_until(url, lambda state: users(state) == 3)
        settle(url)
        wait_until(url, lambda state: users(state) == 2)
        gate.set()
        assert first.result() == "first"
        assert third.result() == "others"
        wait_until_empty(url)
    assert [w.duration_s for w in engine.windows] == [3.0, 4.0]


def test_who_leaves_while_the_model_loads_is_never_decoded() -> None:
    engine = ScriptedEngine()
    may_load, is_loading = threading.Event(), threading.Event()

    class SlowEngine(ScriptedEngine):
        def load(self, *_: object) -> ScriptedEngine:
            is_loading.set()
            assert may_load.wait(30)
            return engine

    with scripted_server(SlowEngine()) as url:
        with sent(url, LONG):
            assert is_loading.wait(30)
        wait_until_empty(url)
        may_load.set()
        assert transcript(url) == "as scripted"
    assert [w.duration_s for w in engine.windows] == [2.0]


def test_the_others_go_on() -> None:
    gate = threading.Event()
    engine = ScriptedEngine(
        [Step("mine", gate=gate), Step("theirs", gate=gate)],
        then=Step("theirs"),
        capabilities=scripted_capabilities(parallel_calls=2),
    )
    with scripted_server(engine) as url:
        with sent(url, LONG):
            engine.wait_for_windows(1)
            other = Background(lambda: transcript(url, LONG))
            engine.wait_for_windows(2)
        settle(url)
        gate.set()
        assert other.result() == " ".join(["theirs"] * WINDOWS_OF_LONG)
        wait_until_empty(url)
    assert len(engine.windows) == 1 + WINDOWS_OF_LONG


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tempfile.SpooledTemporaryFile[bytes]]:
    """Every temporary file of an upload."""
    made: list[tempfile.SpooledTemporaryFile[bytes]] = []

    class Noted(tempfile.SpooledTemporaryFile[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("whisper_server.api.uploads.tempfile.SpooledTemporaryFile", Noted)
    return made


@pytest.mark.parametrize("size", [1_000, 3_000_000], ids=["in memory", "on disk"])
def test_who_leaves_while_uploading_leaves_nothing_behind(
    uploads: list[tempfile.SpooledTemporaryFile[bytes]], size: int
) -> None:
    engine = ScriptedEngine()
    with scripted_server(engine) as url:
        content = form(part("file", LONG))[:size]
        with connection(url) as wire:
            wire.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": "20000000"}) + content)
            wait_until(url, lambda _: bool(uploads) and uploads[0].tell() > size - 2000)
            assert health(url)["requests_inside"] == 1
        wait_until_empty(url)
        (upload,) = uploads
        assert upload.closed
        assert engine.windows == []
        assert transcript(url) == "as scripted"


def test_a_hundred_clients_that_leave_do_no_harm() -> None:
    engine = ScriptedEngine()
    with scripted_server(engine) as url:
        for _ in range(100):
            with sent(url, SHORT):
                pass
        wait_until_empty(url)
        assert transcript(url) == "as scripted"
        assert users(health(url)) == 0
