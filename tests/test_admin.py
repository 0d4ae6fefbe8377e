"""The admin API: models loaded and unloaded by hand, who may do that, and every fault it has."""

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.live_server import make_settings, running_server
from tests.media import tone, wav
from tests.wire import (
    ROUTE,
    Background,
    connection,
    head,
    health,
    read_until,
    request,
    scripted_server,
    wait_until,
)
from whisper_server.bootstrap import create_app
from whisper_server.cli.main import main
from whisper_server.config import load_settings
from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.errors import ConfigurationError, ModelLoadError, ServerBusyError
from whisper_server.engines.scripted import ScriptedEngine, Step

TOKEN = "the-operators-token-0123456789"
KEY = "alice-has-this-key-0123456789"
AUDIO = wav(tone(1.0))
FAILURES = ("broken", "busy", "unforeseen")
FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.json")
CALLS = (("POST", "/admin/load_model"), ("POST", "/admin/unload_model"), ("GET", "/admin/list_models"))


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def post(url: str, action: str, body: Any, token: str = TOKEN) -> httpx.Response:
    return request("POST", f"{url}/admin/{action}", json=body, headers=bearer(token))


def load(url: str, **body: Any) -> httpx.Response:
    return post(url, "load_model", body)


def unload(url: str, model: str) -> httpx.Response:
    return post(url, "unload_model", {"model": model})


def models(url: str) -> dict[str, dict[str, Any]]:
    answer = request("GET", f"{url}/admin/list_models", headers=bearer(TOKEN)).raise_for_status()
    return {model["id"]: model for model in answer.json()["models"]}


def transcribe(url: str, model: str = "", headers: Mapping[str, str] | None = None) -> httpx.Response:
    return request("POST", f"{url}{ROUTE}", files={"file": AUDIO}, data={"model": model}, headers=headers)


def fault(answer: httpx.Response) -> tuple[int, str]:
    """(status, code) of a fault in the form of the admin API, which tells no secrets."""
    body = answer.json()
    assert body.keys() == {"code", "message"}
    assert body["message"]
    for secret in (TOKEN, KEY, "Traceback", "Error:", ".py"):
        assert secret not in answer.text
    assert answer.headers["x-request-id"]
    return answer.status_code, body["code"]


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("the scripted engine does not read it")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`models`, which models may be loaded from, and others."""
    root = tmp_path_factory.mktemp("root").resolve()
    for name in ("models/base", "models-private/base", "outside"):
        make_model(root / name)
    (root / "models" / "out").symlink_to(root / "outside")
    (root / "models" / "empty").mkdir()
    return root


def load_or_fail(folder: Path, _compute: ComputeChoice) -> Engine:
    match folder.name:
        case "broken":
            raise ModelLoadError("The model is broken.")
        case "busy":
            raise ServerBusyError("Come back later.", retry_after_s=2.5)
        case "unforeseen":
            raise RuntimeError("password=hunter2")
    return ScriptedEngine()


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[str]:
    """A server with API keys and an admin API; its default is `demo`."""
    for name in FAILURES:
        make_model(root / name)
    settings = make_settings(
        admin={
            "enabled": True,
            "token": TOKEN,
            "allow_model_path": True,
            "model_path_allowlist": (f"{root}/models/", "acme/"),
        },
        security={"api_keys": (f"alice: {KEY}",)},
        model={
            "aliases": {
                "mine": str(root / "models" / "base"),
                **{name: str(root / name) for name in FAILURES},
            },
            "max_loaded": 4,
        },
        transcription={"vad_filter": False},
    )
    with running_server(settings, engines={"faster-whisper": load_or_fail}) as url:
        yield url


@pytest.fixture
def url(server: str) -> Iterator[str]:
    """The same, with nothing loaded."""
    yield server
    for model in models(server):
        if unload(server, model).status_code != 200:
            request("DELETE", f"{server}/v1/models/{model}", headers=bearer(KEY)).raise_for_status()
    assert models(server) == {}


# Loading and unloading


def test_a_model_is_loaded_listed_and_unloaded(url: str, root: Path) -> None:
    folder = str(root / "models" / "base")
    assert models(url) == {}
    loaded = load(url, model="mine")
    assert loaded.json() == {"id": folder, "status": "loaded", "message": "The model is loaded."}
    (model,) = models(url).values()
    assert datetime.fromisoformat(model.pop("loaded_at")).utcoffset() is not None
    assert model.pop("idle_s") >= 0
    assert model == {
        "id": folder,
        "status": "loaded",
        "is_default": False,
        "device": "cpu",
        "compute_type": "none",
        "users": 0,
        "size_bytes": 0,
    }
    assert unload(url, "mine").json() == {
        "id": folder,
        "status": "unloaded",
        "message": "The model is unloaded.",
    }
    assert models(url) == {}
    assert load(url, name="mine").status_code == 200, "`name` is another word for `model`"


def test_the_demo_model_is_loaded_for_those_who_ask_for_it(sample_recordings: list[dict[str, Any]]) -> None:
    settings = make_settings(model={"name": "tiny"}, admin={"enabled": True, "token": TOKEN})
    with running_server(settings) as url:
        assert load(url, model="demo").json()["status"] == "loaded"
        assert models(url)["demo"]["size_bytes"] > 1_000_000
        client = OpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0)
        text = client.audio.transcriptions.create(file=sample_recordings[0]["path"], model="demo").text
        assert text == "Send a message to David on Monday."
        assert unload(url, "demo").json()["status"] == "unloaded"
        assert health(url)["loaded_models"] == []


def test_the_default_is_told_apart(url: str) -> None:
    assert load(url, model="gpt-4o-transcribe").json()["id"] == "demo"
    load(url, model="mine").raise_for_status()
    assert [model["is_default"] for model in models(url).values()] == [True, False]


def test_a_loaded_model_is_not_loaded_again_whatever_it_is_called(url: str, root: Path) -> None:
    load(url, model="mine").raise_for_status()
    for body in ({"model": "mine"}, {"model_path": str(root / "models" / "base")}):
        assert fault(load(url, **body)) == (409, "ERR4002")
    assert transcribe(url, "mine", bearer(KEY)).json()["text"] == "as scripted"


def test_a_model_in_use_goes_with_its_last_user_unless_it_is_wanted_again() -> None:
    """Neither call disturbs who uses it, nor the requests for other models."""
    gates = threading.Event(), threading.Event()
    engine = ScriptedEngine([Step("first", gate=gates[0]), Step("second", gate=gates[1])])
    settings = make_settings(
        model={"name": "tiny"},
        admin={"enabled": True, "token": TOKEN},
        transcription={"vad_filter": False},
    )
    with running_server(settings, engines={"faster-whisper": engine.load}) as url:
        first = Background(lambda: transcribe(url, "demo"))
        engine.wait_for_windows(1)
        answer = unload(url, "demo").json()
        assert (answer["id"], answer["status"]) == ("demo", "unloading")
        assert "last user" in answer["message"]
        assert (models(url)["demo"]["status"], models(url)["demo"]["users"]) == ("unloading", 1)

        assert load(url, model="demo").json()["status"] == "loaded"
        assert models(url)["demo"]["status"] == "loaded"
        gates[0].set()
        assert first.result().json()["text"] == "first"
        wait_until(url, lambda state: state["requests_inside"] == 0)
        assert models(url)["demo"]["users"] == 0

        second = Background(lambda: transcribe(url, "demo"))
        engine.wait_for_windows(2)
        assert unload(url, "demo").json()["status"] == "unloading"
        gates[1].set()
        assert second.result().json()["text"] == "second"
        wait_until(url, lambda state: state["loaded_models"] == [])
    assert engine.is_closed


def test_loading_waits_and_lets_others_work() -> None:
    is_loading, may_go_on = threading.Event(), threading.Event()

    def load_slowly(_folder: Path, _compute: ComputeChoice) -> Engine:
        is_loading.set()
        assert may_go_on.wait(30)
        return ScriptedEngine()

    settings = make_settings(admin={"enabled": True, "token": TOKEN})
    with running_server(settings, engines={"faster-whisper": load_slowly}) as url:
        asked = Background(lambda: load(url, model="demo"))
        assert is_loading.wait(30)
        assert models(url) == {}
        may_go_on.set()
        assert asked.result().json()["status"] == "loaded"
        assert models(url)["demo"]["users"] == 0


def test_the_default_and_what_is_not_there_are_not_unloaded(url: str) -> None:
    load(url, model="demo").raise_for_status()
    for name in ("demo", "gpt-4o-transcribe", "mine", "tiny", "nobody", "/etc", "acme/none"):
        assert fault(unload(url, name)) == (400, "ERR4003"), name
    assert list(models(url)) == ["demo"]


@pytest.mark.parametrize("name", ["nobody", "/etc", "../..", "gpt-4o-transcribe-diarize", "m" * 3000, "\0"])
def test_an_unknown_model_is_not_loaded(url: str, name: str) -> None:
    assert fault(load(url, model=name)) == (400, "ERR4003")
    assert models(url) == {}


# Paths


def test_a_model_is_loaded_by_its_path_and_unloaded_by_its_id(url: str, root: Path) -> None:
    folder = str(root / "models" / "base")
    assert load(url, model_path=f"{root}/models/../models/base/").json()["id"] == folder
    assert list(models(url)) == [folder]
    assert unload(url, folder).json() == {
        "id": folder,
        "status": "unloaded",
        "message": "The model is unloaded.",
    }


@pytest.mark.parametrize(
    "path",
    [
        "{}/outside",
        "{}/models/../outside",
        "{}/models/base/../../outside",
        "{}/models/out",
        "{}/models-private/base",
        "{}/missing",
        "/etc/passwd",
        "../outside",
        "openai/whisper-small",
        "acme-fake/whisper",
        "tiny",
        "mine",
        "demo",
        "file://{}/models/base",
    ],
)
def test_a_path_outside_the_allowlist_is_refused(url: str, root: Path, path: str) -> None:
    """Links and `..` are followed first, names and aliases do not count, and what exists does not show."""
    answer = load(url, model_path=path.format(root))
    assert fault(answer) == (403, "ERR4005")
    assert "outside the server's allowlist" in answer.json()["message"]
    assert models(url) == {}
    assert transcribe(url, "", bearer(KEY)).status_code == 200


@pytest.mark.parametrize("path", ["{}/models/missing", "{}/models/base/config.json", "acme/../x", "acme/a/b"])
def test_an_allowed_path_without_a_model_is_not_found(url: str, root: Path, path: str) -> None:
    assert fault(load(url, model_path=path.format(root))) == (400, "ERR4003")


def test_an_allowed_folder_that_is_no_model_cannot_be_loaded(url: str, root: Path) -> None:
    assert fault(load(url, model_path=f"{root}/models/empty")) == (503, "ERR2003")


def test_no_path_is_loaded_unless_that_is_allowed(root: Path) -> None:
    admin = {"enabled": True, "token": TOKEN, "model_path_allowlist": (str(root),)}
    with scripted_server(ScriptedEngine(), admin=admin) as url:
        for path in (str(root / "models" / "base"), "/etc", "openai/whisper"):
            assert fault(load(url, model_path=path)) == (403, "ERR4005")


def test_without_an_allowlist_any_folder_may_be_named(root: Path) -> None:
    admin = {"enabled": True, "token": TOKEN, "allow_model_path": True}
    with scripted_server(ScriptedEngine(), admin=admin) as url:
        assert load(url, model_path=str(root / "outside")).json()["id"] == str(root / "outside")


# Who may


@pytest.mark.parametrize("headers", [{}, bearer(TOKEN), bearer(KEY)])
def test_an_admin_api_that_is_not_enabled_says_so(server_url: str, headers: dict[str, str]) -> None:
    with scripted_server(ScriptedEngine(), security={"api_keys": (KEY,)}, admin={"token": TOKEN}) as locked:
        for url in (server_url, locked):
            for method, path in CALLS:
                answer = request(method, f"{url}{path}", headers=headers)
                assert fault(answer) == (501, "ERR4001")
                assert answer.headers["x-should-retry"] == "false"


def test_only_the_admin_token_opens_it(url: str) -> None:
    """It is asked for before the body is looked at, and API keys are not asked for at all."""
    wrong: list[dict[str, str]] = [
        {},
        bearer(KEY),
        {"Authorization": "Bearer"},
        bearer("wrong"),
        bearer(TOKEN[:-1]),
        bearer(TOKEN.upper()),
        bearer(f"{TOKEN} {TOKEN}"),
        bearer("schl\xfcssel"),
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"api-key": TOKEN},
        {"api-key": KEY},
        {"api-key": KEY, **bearer("wrong")},
    ]
    for method, path in CALLS:
        for headers in wrong:
            encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            answer = request(method, f"{url}{path}?token={TOKEN}", headers=encoded)
            assert fault(answer) == (401, "ERR4004"), headers
            assert answer.headers["www-authenticate"] == "Bearer"
    assert models(url) == {}
    assert (
        request("GET", f"{url}/admin/list_models", headers=bearer(TOKEN) | {"api-key": KEY}).status_code
        == 200
    )


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/admin/list_models/", (401, 200)),
        ("//admin//list_models", (401, 200)),
        ("/admin%2Flist_models", (401, 200)),
        ("/v1/admin/list_models", (401, 401)),
        ("/openai/admin/list_models", (401, 401)),
        ("/admin", (401, 401)),
        ("/admin/other", (401, 401)),
        ("/admin/../v1/models", (401, 401)),
        ("/v1/models", (401, 401)),
        ("/debug/scheduler", (401, 401)),
    ],
)
def test_the_token_opens_nothing_else(url: str, path: str, statuses: tuple[int, int]) -> None:
    """The statuses are those with a wrong token and with the right one."""
    for token, status in zip(("wrong", TOKEN), statuses, strict=True):
        with connection(url) as wire:  # an HTTP library would put the path right
            wire.sendall(head(bearer(token), method="GET", path=path))
            assert read_until(wire, b"\r\n").startswith(f"HTTP/1.1 {status} ".encode())


# Other faults


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        "{}",
        '"demo"',
        '{"model": 1}',
        '{"model": ""}',
        '{"model": " "}',
        '{"model": null}',
        '{"model": ["demo"]}',
        '{"model": "demo", "name": "demo"}',
        '{"model": "demo", "model_path": "/models"}',
        '{"model": "demo", "device": "cuda"}',
        '{"model": "demo", "model": "tiny"}',
        '{"model": "\\ud800"}',
    ],
)
def test_a_wrong_body_is_refused(url: str, body: str) -> None:
    for action in ("load_model", "unload_model"):
        headers = bearer(TOKEN) | {"Content-Type": "application/json"}
        answer = request("POST", f"{url}/admin/{action}", content=body, headers=headers)
        assert fault(answer) == (400, "ERR1010")
    assert models(url) == {}


def test_null_is_as_good_as_nothing_but_a_path_unloads_nothing(url: str) -> None:
    assert load(url, model="demo", model_path=None).status_code == 200
    assert fault(post(url, "unload_model", {"model_path": "/models/base"})) == (400, "ERR1010")


def test_a_body_is_json_and_not_endless(url: str) -> None:
    form = request("POST", f"{url}/admin/load_model", data={"model": "demo"}, headers=bearer(TOKEN))
    assert fault(form) == (400, "ERR1010")
    assert fault(load(url, model="m" * (4 << 20))) == (413, "ERR1007")


@pytest.mark.parametrize(
    ("name", "status", "code", "headers"),
    [
        ("broken", 503, "ERR2003", {"x-should-retry": "false"}),
        ("busy", 429, "ERR1011", {"x-should-retry": "true", "retry-after": "3"}),
        ("unforeseen", 500, "ERR3002", {"x-should-retry": "false"}),
    ],
)
def test_a_load_that_fails_has_the_code_of_its_fault(
    url: str, caplog: pytest.LogCaptureFixture, name: str, status: int, code: str, headers: dict[str, str]
) -> None:
    answer = load(url, model=name)
    assert fault(answer) == (status, code)
    assert answer.headers.items() >= headers.items()
    assert "hunter2" not in answer.text
    if name == "unforeseen":
        assert answer.headers["x-request-id"] in answer.json()["message"]
        assert "hunter2" in caplog.text
    assert models(url) == {}
    assert load(url, model="mine").status_code == 200


# The log


def test_every_call_is_logged_and_no_token_is(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    load(url, model="mine")
    load(url, model="mine")
    unload(url, "no\nbody")
    models(url)
    post(url, "load_model", {"model": "mine"}, token="not-the-token-0123456789")
    lines = [record for record in caplog.records if record.name.endswith("admin_route")]
    assert [line.__dict__["fields"] for line in lines] == [
        {"action": action, "subject": subject, "client": "127.0.0.1", "result": result}
        for action, subject, result in (
            ("load_model", "mine", "200"),
            ("load_model", "mine", "409 ERR4002"),
            ("unload_model", "no�body", "400 ERR4003"),
            ("list_models", None, "200"),
            ("load_model", None, "401 ERR4004"),
        )
    ]
    assert lines[0].getMessage() == "Admin: load_model of mine by 127.0.0.1: 200"
    assert [line.levelname for line in lines] == [*["INFO"] * 4, "WARNING"]
    for secret in (TOKEN, "not-the-token"):
        assert secret not in caplog.text
        assert not any(secret in repr(record.__dict__) for record in caplog.records)


# The start


@pytest.mark.parametrize(
    ("admin", "message"),
    [
        ({}, "STT_ADMIN_TOKEN"),
        ({"token": "two words"}, "STT_ADMIN_TOKEN"),
        ({"token": "schlüssel-0123456789"}, "STT_ADMIN_TOKEN"),
        ({"token": KEY}, "one of the API keys"),
        ({"token": TOKEN, "model_path_allowlist": ("*",)}, "model_path_allowlist"),
    ],
)
def test_an_admin_api_that_cannot_be_safe_stops_the_start(admin: dict[str, Any], message: str) -> None:
    settings = make_settings(admin={"enabled": True} | admin, security={"api_keys": (f"alice: {KEY}",)})
    with pytest.raises(ConfigurationError, match=message) as caught:
        create_app(settings)
    if "token" in admin:
        assert admin["token"] not in caught.value.message
    create_app(settings.model_copy(update={"admin": settings.admin.model_copy(update={"enabled": False})}))


def test_a_short_token_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    create_app(make_settings(admin={"enabled": True, "token": "short"}))
    assert "The admin token has fewer than 16 characters" in caplog.text


def test_the_environment_sets_it_and_the_token_is_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {
        "STT_ADMIN_ENABLED": "true",
        "STT_ADMIN_TOKEN": TOKEN,
        "STT_ADMIN_ALLOW_MODEL_PATH": "true",
        "STT_ADMIN_MODEL_PATH_ALLOWLIST": "/models/, openai/",
    }
    monkeypatch.chdir(tmp_path)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(environ=environ).settings
    assert settings.admin.enabled
    assert settings.admin.allow_model_path
    assert settings.admin.model_path_allowlist == ("/models/", "openai/")
    assert TOKEN not in repr(settings)
    assert main(["config", "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["admin.enabled"]["value"] is True
    assert TOKEN not in printed


def test_the_description_for_clients_leaves_it_out() -> None:
    description = create_app(make_settings(admin={"enabled": True, "token": TOKEN})).openapi()
    assert not any(path.startswith("/admin") for path in description["paths"])
