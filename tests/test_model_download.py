"""Models from folders and from a hub that misbehaves in every way the real one may."""

import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from tests.fake_hub import Behaviour, Break, FakeHub, Hold, Status, Step
from whisper_server.core.errors import (
    ModelAccessDeniedError,
    ModelDownloadError,
    ModelLoadError,
    ModelNotFoundError,
    WhisperServerError,
)
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.model_download import DownloadProgress, ModelStore

MODEL_FILES = {"config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.json"}


@pytest.fixture(scope="session")
def small_repository(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's files cut to 100 kB: enough to fetch, and quick."""
    folder = tmp_path_factory.mktemp("small_repository")
    for name in MODEL_FILES:
        (folder / name).write_bytes((demo_model_path / name).read_bytes()[:100_000])
    return folder


@pytest.fixture
def hub(small_repository: Path) -> Iterator[FakeHub]:
    with FakeHub(small_repository) as hub:
        yield hub
    close_session()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(hub: FakeHub, cache: Path) -> ModelStore:
    return ModelStore(cache, endpoint=hub.url)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library makes all its attempts, without the pauses between them."""
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, no_pauses: None) -> None:
    """The hub's library makes all its attempts, and waits less for each."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.3)


def at_hub(hub: FakeHub, requested: str = "my-model") -> ModelReference:
    return ModelReference(id=hub.repo_id, repo_id=hub.repo_id, requested=requested)


def in_folder(path: Path) -> ModelReference:
    return ModelReference(id=str(path), path=path, requested="my-model")


def same_files(left: Path, right: Path) -> bool:
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in MODEL_FILES)


def test_a_model_is_downloaded_whole_and_only_what_it_needs(
    hub: FakeHub, store: ModelStore, demo_model_path: Path, tmp_path: Path
) -> None:
    hub.folder = shutil.copytree(demo_model_path, tmp_path / "repository")
    (hub.folder / "pytorch_model.bin").write_bytes(bytes(1000))
    (hub.folder / "README.md").write_text("not needed")
    folder = store.locate(at_hub(hub))
    assert same_files(folder, demo_model_path)
    assert {path.name for path in folder.iterdir()} == MODEL_FILES
    assert not hub.asked("file", file="pytorch_model.bin")


def test_a_cached_model_needs_no_network(hub: FakeHub, store: ModelStore, cache: Path) -> None:
    folder = store.locate(at_hub(hub))
    hub.requests.clear()
    assert store.locate(at_hub(hub)) == folder
    assert hub.requests == []
    hub.close()
    assert ModelStore(cache, endpoint=hub.url).locate(at_hub(hub)) == folder


@pytest.mark.parametrize(
    ("step", "file", "behaviour", "kind", "words", "is_retryable"),
    [
        ("info", None, Status(404, "RepoNotFound"), ModelNotFoundError, "does not exist on the hub", None),
        ("info", None, Status(404), ModelNotFoundError, "does not exist on the hub", None),
        ("info", None, Status(401), ModelAccessDeniedError, "HF_TOKEN", None),
        ("info", None, Status(401, "RepoNotFound"), ModelAccessDeniedError, "HF_TOKEN", None),
        ("info", None, Status(403, "GatedRepo"), ModelAccessDeniedError, "gated.*HF_TOKEN", None),
        ("info", None, Status(403), ModelAccessDeniedError, "HF_TOKEN", None),
        ("head", "model.bin", Status(403, "GatedRepo"), ModelAccessDeniedError, "HF_TOKEN", None),
        ("file", "model.bin", Status(403), ModelAccessDeniedError, "HF_TOKEN", None),
        ("info", None, Status(500), ModelDownloadError, r"error \(500\)", True),
        ("tree", None, Status(503), ModelDownloadError, r"error \(503\)", True),
        ("head", "model.bin", Status(500), ModelDownloadError, r"error \(500\)", True),
        ("file", "model.bin", Status(502), ModelDownloadError, r"error \(502\)", True),
        ("info", None, Status(429), ModelDownloadError, r"error \(429\)", True),
        ("info", None, Status(418), ModelDownloadError, r"error \(418\)", False),
        ("info", None, Break(10), ModelDownloadError, "cannot be reached", True),
        ("file", "model.bin", Break(40_000), ModelDownloadError, "broke off", True),
        ("file", "config.json", Break(0), ModelDownloadError, "broke off", True),
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_pauses")
def test_a_failing_hub_gives_a_typed_error_and_the_next_request_a_fresh_chance(
    hub: FakeHub,
    store: ModelStore,
    step: Step,
    file: str | None,
    behaviour: Behaviour,
    kind: type[WhisperServerError],
    words: str,
    is_retryable: bool | None,
) -> None:
    hub.on(step, behaviour, file=file)
    with pytest.raises(kind, match=words) as caught:
        store.locate(at_hub(hub))
    assert type(caught.value) is kind
    assert "'my-model'" in caught.value.message
    assert hub.url not in caught.value.message
    assert caught.value.__cause__ is not None
    assert getattr(caught.value, "is_retryable", None) is is_retryable
    assert store.cached() == []

    hub.repair()
    assert same_files(store.locate(at_hub(hub)), hub.folder)
    assert store.cached() == [hub.repo_id]


@pytest.mark.parametrize(
    ("step", "file", "hold", "words"),
    [
        ("info", None, Hold(), "cannot be reached"),
        ("tree", None, Hold(), "broke off"),
        ("head", "model.bin", Hold(), "broke off"),
        ("file", "model.bin", Hold(after_bytes=40_000), "broke off"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_hub_that_falls_silent_is_given_up_and_asked_anew_by_the_next_request(
    hub: FakeHub, store: ModelStore, cache: Path, step: Step, file: str | None, hold: Hold, words: str
) -> None:
    hub.on(step, hold, file=file)
    with pytest.raises(ModelDownloadError, match=words) as caught:
        store.locate(at_hub(hub))
    assert caught.value.is_retryable
    assert not list(cache.rglob("*.incomplete"))
    assert store.cached() == []

    hub.repair()
    assert same_files(store.locate(at_hub(hub)), hub.folder)


def test_an_unknown_repository_is_not_found(hub: FakeHub, store: ModelStore) -> None:
    with pytest.raises(ModelNotFoundError, match="'whisper-9' does not exist on the hub"):
        store.locate(ModelReference(id="acme/other", repo_id="acme/other", requested="whisper-9"))


def test_without_network_the_message_says_so(hub: FakeHub, cache: Path) -> None:
    hub.close()
    with pytest.raises(
        ModelDownloadError, match="not on this server, and the hub cannot be reached"
    ) as caught:
        ModelStore(cache, endpoint=hub.url).locate(at_hub(hub))
    assert caught.value.is_retryable


@pytest.mark.usefixtures("no_pauses")
def test_a_broken_download_leaves_no_half_model_and_keeps_the_whole_files(
    hub: FakeHub, store: ModelStore, cache: Path
) -> None:
    hub.on("file", Break(40_000), file="model.bin")
    with pytest.raises(ModelDownloadError, match="broke off"):
        store.locate(at_hub(hub))
    left = {path.name for path in cache.rglob("*") if path.is_file()}
    assert "model.bin" not in left
    assert not any(name.endswith(".incomplete") for name in left)
    hub.repair()
    store.locate(at_hub(hub))
    assert len(hub.asked("file", file="tokenizer.json")) == 1


@pytest.mark.usefixtures("no_pauses")
def test_a_model_that_lacks_only_an_optional_file_is_completed(hub: FakeHub, store: ModelStore) -> None:
    hub.on("file", Break(0), file="preprocessor_config.json")
    with pytest.raises(ModelDownloadError):
        store.locate(at_hub(hub))
    hub.repair()
    assert (store.locate(at_hub(hub)) / "preprocessor_config.json").is_file()


@pytest.mark.usefixtures("no_pauses")
def test_an_interrupted_transfer_continues_where_it_stopped(
    hub: FakeHub, store: ModelStore, demo_model_path: Path, tmp_path: Path
) -> None:
    hub.folder = shutil.copytree(demo_model_path, tmp_path / "repository")
    weights = random.Random(0).randbytes(25_000_000)
    (hub.folder / "model.bin").write_bytes(weights)
    hub.on("file", Break(after_bytes=21_000_000), file="model.bin", times=1)
    folder = store.locate(at_hub(hub))
    assert (folder / "model.bin").read_bytes() == weights
    ranges = [request.byte_range for request in hub.asked("file", file="model.bin")]
    assert ranges == [None, f"bytes={2 * constants.DOWNLOAD_CHUNK_SIZE}-"]


def test_transfers_are_plain_http_even_where_the_hub_offers_xet(small_repository: Path, cache: Path) -> None:
    with FakeHub(small_repository, offers_xet=True) as hub:
        assert same_files(ModelStore(cache, endpoint=hub.url).locate(at_hub(hub)), small_repository)
        assert len([request for request in hub.requests if request.step == "file"]) == len(MODEL_FILES)
    close_session()


def test_a_token_from_the_environment_reaches_the_hub(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    store.locate(at_hub(hub))
    assert {request.authorization for request in hub.requests} == {"Bearer hf_secret"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_disk_that_fills_up_is_named_and_not_retryable(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        is_download = path.name.endswith(".incomplete") and "w" in mode
        return real_open(Path("/dev/full") if is_download else path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(ModelDownloadError, match=r"not enough disk space .*'my-model'") as caught:
            store.locate(at_hub(hub))
    assert not caught.value.is_retryable
    assert same_files(store.locate(at_hub(hub)), hub.folder)


def test_a_disk_too_small_is_told_before_the_first_byte(
    hub: FakeHub, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100_000))
    with pytest.raises(ModelDownloadError, match="not enough disk space") as caught:
        store.locate(at_hub(hub))
    assert not caught.value.is_retryable
    assert {request.step for request in hub.requests} == {"info"}


def test_a_cache_that_cannot_be_written_is_named(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelDownloadError, match="cannot write to its model cache") as caught:
        ModelStore(tmp_path / "file" / "cache", endpoint=hub.url).locate(at_hub(hub))
    assert not caught.value.is_retryable


def test_a_repository_that_is_no_ctranslate2_model_is_refused_before_anything_is_fetched(
    hub: FakeHub, store: ModelStore, tmp_path: Path
) -> None:
    hub.folder = tmp_path / "repository"
    hub.folder.mkdir()
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (hub.folder / name).write_text("{}")
    with pytest.raises(ModelLoadError) as caught:
        store.locate(at_hub(hub))
    assert caught.value.message == (
        "'my-model' is not a whole CTranslate2 Whisper model: "
        "model.bin, vocabulary.json or vocabulary.txt missing."
    )
    assert not [request for request in hub.requests if request.step == "file"]


def test_a_local_model_is_taken_as_it_is(store: ModelStore, demo_model_path: Path) -> None:
    assert store.locate(in_folder(demo_model_path)) == demo_model_path


def test_a_local_model_may_have_either_vocabulary(
    store: ModelStore, demo_model_path: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo_model_path, tmp_path / "model")
    (folder / "vocabulary.json").rename(folder / "vocabulary.txt")
    assert store.locate(in_folder(folder)) == folder


def test_a_local_model_with_missing_or_empty_files_is_refused_by_their_names(
    store: ModelStore, demo_model_path: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo_model_path, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "model.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"model: model\.bin, tokenizer\.json missing") as caught:
        store.locate(in_folder(folder))
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        store.locate(in_folder(tmp_path / "gone"))


def test_cached_lists_whole_models_only(hub: FakeHub, store: ModelStore, cache: Path) -> None:
    assert store.cached() == []
    folder = store.locate(at_hub(hub))
    (cache / "models--acme--empty" / "snapshots").mkdir(parents=True)
    (cache / "datasets--acme--sounds").mkdir()
    assert store.cached() == [hub.repo_id]
    (folder / "model.bin").unlink()
    assert store.cached() == []


def test_stop_ends_a_running_download_and_lets_no_other_start(
    hub: FakeHub, store: ModelStore, cache: Path
) -> None:
    hub.on("file", Hold(after_bytes=40_000), file="model.bin")
    with ThreadPoolExecutor(1) as pool:
        download = pool.submit(store.locate, at_hub(hub))
        hub.wait_for("file", file="model.bin")
        store.stop()
        hub.release()
        with pytest.raises(ModelDownloadError, match="shutting down"):
            download.result()
    assert not [path for path in cache.rglob("*") if path.name == "model.bin" or path.suffix == ".incomplete"]
    hub.requests.clear()
    with pytest.raises(ModelDownloadError, match="shutting down"):
        store.locate(at_hub(hub))
    assert hub.requests == []


def test_a_download_tells_its_progress_in_the_log(
    hub: FakeHub, store: ModelStore, demo_model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="whisper_server.models")
    hub.folder = demo_model_path
    store.locate(at_hub(hub))
    lines = [record.message for record in caplog.records if record.name == "whisper_server.models"]
    assert "downloading 13 MB" in lines[0]
    assert any("13 of 13 MB (100 %)" in line for line in lines)
    assert "downloaded in" in lines[-1]


def test_the_failure_s_details_are_in_the_log_only(
    hub: FakeHub, store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    hub.on("info", Status(500))
    with pytest.raises(ModelDownloadError):
        store.locate(at_hub(hub))
    [record] = [record for record in caplog.records if record.name == "whisper_server.models"]
    assert record.levelno == logging.ERROR
    assert "HfHubHTTPError" in record.message
    assert hub.url in record.message


def test_progress_is_logged_at_each_tenth_and_after_a_pause_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="whisper_server.models")
    times_s = iter((0.0, 1.0, 2.0, 3.0, 9.0, 12.0, 13.0, 14.0))
    progress = DownloadProgress("acme/model", 100_000_000, clock=lambda: next(times_s))
    for done_mb in (9, 10, 19, 19, 19, 35, 100):
        progress.report(done_mb * 1_000_000)
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "10 of 100 MB (10 %), 5.0 MB/s",
        "19 of 100 MB (19 %), 1.6 MB/s",
        "35 of 100 MB (35 %), 2.7 MB/s",
        "100 of 100 MB (100 %), 7.1 MB/s",
    ]


def test_progress_never_goes_back_and_needs_no_total(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="whisper_server.models")
    times_s = iter((0.0, 1.0, 20.0))
    progress = DownloadProgress("acme/model", 0, clock=lambda: next(times_s))
    progress.report(20_000_000)
    progress.report(10_000_000)
    assert [record.message.split(": ")[1] for record in caplog.records] == ["20 of 0 MB (0 %), 1.0 MB/s"]


_LOCATE_AND_SAY = """
import sys
from whisper_server.core.errors import WhisperServerError
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.model_download import ModelStore

try:
    print(ModelStore().locate(ModelReference(id=sys.argv[1], repo_id=sys.argv[1], requested="my-model")))
except WhisperServerError as error:
    print(type(error).__name__, getattr(error, "is_retryable", None), error.message)
"""


def locate_in_a_process_of_its_own(hub: FakeHub, cache: Path, **environment: str) -> str:
    """What `locate` gives where the hub's variables are set from the start: they are read at import."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_TOKEN": "hf_secret"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LOCATE_AND_SAY, hub.repo_id],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def test_the_hub_s_own_variables_count(hub: FakeHub, cache: Path) -> None:
    message = locate_in_a_process_of_its_own(hub, cache, HF_HUB_OFFLINE="1")
    assert message == (
        "ModelDownloadError False The model 'my-model' is not on this server, "
        "and its downloads are switched off (HF_HUB_OFFLINE)."
    )
    assert hub.requests == []

    folder = Path(locate_in_a_process_of_its_own(hub, cache))
    assert folder.is_relative_to(cache)
    assert same_files(folder, hub.folder)
    assert {request.authorization for request in hub.requests} == {"Bearer hf_secret"}

    hub.requests.clear()
    assert Path(locate_in_a_process_of_its_own(hub, cache, HF_HUB_OFFLINE="1")) == folder
    assert hub.requests == []
