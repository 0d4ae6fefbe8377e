"""A model that cannot be had: each reason has its answer, and the next request a fresh chance."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session
from openai import InternalServerError, OpenAI

from tests.fake_hub import Behaviour, Break, FakeHub, Hold, Status, Step
from tests.live_server import make_settings, running_server
from tests.media import tone, wav
from tests.wire import ROUTE, Background, error_of, health, request, scripted_server
from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.errors import ModelLoadError
from whisper_server.engines.scripted import ScriptedEngine
from whisper_server.engines.scripted import Step as Spoken
from whisper_server.services.model_download import ModelStore
from whisper_server.services.model_manager import ModelManager

AUDIO = wav(tone(1.0))
REPOSITORY = "acme/faster-whisper-demo"
MODEL_FILES = ("config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.json")


@pytest.fixture(scope="module")
def repository(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's files, cut short: the scripted engine does not read them."""
    folder = tmp_path_factory.mktemp("repository")
    for name in MODEL_FILES:
        (folder / name).write_bytes((demo_model_path / name).read_bytes()[:100_000])
    return folder


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that servers started in this test download from; the hub's library retries without pauses."""
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with FakeHub(repository, REPOSITORY) as hub:
        monkeypatch.setattr("whisper_server.bootstrap.ModelStore", partial(ModelStore, endpoint=hub.url))
        yield hub
    close_session()


@pytest.fixture
def url(hub: FakeHub, tmp_path: Path) -> Iterator[str]:
    """A server with an empty cache."""
    engine = ScriptedEngine(then=Spoken("as scripted"))
    with scripted_server(engine, model={"cache_dir": tmp_path / "cache"}) as url:
        yield url


def ask(url: str, model: str = REPOSITORY) -> Any:
    return request("POST", f"{url}{ROUTE}", files={"file": AUDIO}, data={"model": model})


@dataclass(frozen=True)
class Failure:
    """A step of the download that goes wrong, and the answer."""

    step: Step
    behaviour: Behaviour
    status: int
    code: str
    should_retry: str | None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.step} {self.file or ''} {self.behaviour}"


@pytest.mark.parametrize(
    "failure",
    [
        Failure("info", Status(404, "RepoNotFound"), 404, "model_not_found", None),
        Failure("info", Status(401), 503, "model_access_denied", "false"),
        Failure("info", Status(403, "GatedRepo"), 503, "model_access_denied", "false"),
        Failure("info", Status(500), 503, "model_download_failed", "true"),
        Failure("info", Status(429), 503, "model_download_failed", "true"),
        Failure("info", Status(418), 503, "model_download_failed", "false"),
        Failure("info", Break(10), 503, "model_download_failed", "true"),
        Failure("head", Status(403), 503, "model_access_denied", "false", "model.bin"),
        Failure("file", Status(502), 503, "model_download_failed", "true", "model.bin"),
        Failure("file", Break(40_000), 503, "model_download_failed", "true", "model.bin"),
    ],
    ids=str,
)
def test_a_failed_download_is_answered_by_name_and_tried_anew(
    hub: FakeHub, url: str, failure: Failure
) -> None:
    hub.on(failure.step, failure.behaviour, file=failure.file)
    answer = ask(url)
    assert answer.status_code == failure.status
    error = error_of(answer)
    assert error["code"] == failure.code
    assert error["type"] == ("invalid_request_error" if failure.status == 404 else "server_error")
    assert REPOSITORY in error["message"]
    assert hub.url not in answer.text
    assert answer.headers.get("x-should-retry") == failure.should_retry

    hub.repair()
    assert ask(url).json()["text"] == "as scripted"


def test_the_sdk_itself_tries_again_where_that_may_help(hub: FakeHub, url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=1)
    hub.on("info", Status(503), times=1)
    transcript = client.audio.transcriptions.create(file=AUDIO, model=REPOSITORY)
    assert transcript.text == "as scripted"
    assert len(hub.asked("info")) == 3, "the good attempt asks twice"


def test_the_sdk_does_not_try_again_where_that_cannot_help(hub: FakeHub, url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=2)
    hub.on("info", Status(403))
    with pytest.raises(InternalServerError) as refused:
        client.audio.transcriptions.create(file=AUDIO, model=REPOSITORY)
    assert refused.value.code == "model_access_denied"
    assert len(hub.asked("info")) == 1


def test_a_repository_that_is_no_model_is_said_to_be_none(hub: FakeHub, url: str, tmp_path: Path) -> None:
    hub.folder = tmp_path / "other"
    hub.folder.mkdir()
    (hub.folder / "config.json").write_text("{}")
    answer = ask(url)
    assert answer.status_code == 503
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("model_load_failed", "model")
    assert "model.bin" in error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_everyone_who_waits_for_a_download_shares_it_and_its_failure(hub: FakeHub, url: str) -> None:
    hub.on("info", Hold())
    waiting = [Background(lambda: ask(url)) for _ in range(3)]
    hub.wait_for("info")
    hub.repair()
    hub.on("head", Status(403), file="model.bin")
    hub.release()
    answers = [one.result() for one in waiting]
    assert {error_of(answer)["code"] for answer in answers} == {"model_access_denied"}
    hub.repair()
    assert ask(url).status_code == 200


def test_a_slow_download_delays_nobody_else(hub: FakeHub, url: str) -> None:
    hub.on("file", Hold(after_bytes=1000), file="model.bin")
    slow = Background(lambda: ask(url))
    hub.wait_for("file", file="model.bin")
    for _ in range(3):
        assert ask(url, "demo").json()["text"] == "as scripted"
        state = health(url)
        assert [model["id"] for model in state["loaded_models"]] == ["demo"]
        assert state["requests_inside"] == 1
    hub.release()
    assert slow.result().json()["text"] == "as scripted"


def test_a_model_that_does_not_load_is_said_so_and_tried_anew() -> None:
    engine = ScriptedEngine()
    failures: list[Exception] = [
        ModelLoadError("The model's files could not be loaded."),
        RuntimeError("cuDNN is missing in /secret/path"),
    ]

    def load(folder: Path, compute: ComputeChoice) -> Engine:
        if failures:
            raise failures.pop(0)
        return engine.load(folder, compute)

    settings = make_settings(transcription={"vad_filter": False})
    with running_server(settings, engines={"faster-whisper": load}) as url:
        named, unnamed, fine = ask(url, "demo"), ask(url, "demo"), ask(url, "demo")
    assert (named.status_code, error_of(named)["code"]) == (503, "model_load_failed")
    assert named.headers["x-should-retry"] == "false"
    assert (unnamed.status_code, error_of(unnamed)["code"]) == (500, "internal_error")
    assert "secret" not in unnamed.text
    assert unnamed.headers["x-request-id"] in unnamed.text
    assert fine.json()["text"] == "as scripted"


def test_too_many_models_at_once_is_busy_not_broken(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    """One place, held by a running request: a request for another model is told to come back."""
    monkeypatch.setattr("whisper_server.bootstrap.ModelManager", partial(ModelManager, room_timeout_s=0.01))
    gate = threading.Event()
    engine = ScriptedEngine([Spoken(gate=gate)])
    with scripted_server(engine, model={"max_loaded": 1}) as url:
        holder = Background(lambda: ask(url, "demo"))
        engine.wait_for_windows(1)
        answer = ask(url)
        gate.set()
        assert holder.result().status_code == 200
    assert answer.status_code == 429
    assert error_of(answer)["code"] == "server_busy"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-should-retry"] == "true"
