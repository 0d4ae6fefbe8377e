"""The models a client may name, and what the server says of itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from tests.media import tone, wav
from tests.wire import ROUTE, error_of, health, request, scripted_server
from whisper_server import __version__
from whisper_server.engines.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def url(engine: ScriptedEngine, folder: Path, demo_model_path: Path) -> Iterator[str]:
    """A server with aliases, and a folder that clients may name models in."""
    (folder / "elsewhere").symlink_to(demo_model_path)
    (folder / "mine").mkdir()
    for file in demo_model_path.iterdir():
        (folder / "mine" / file.name).symlink_to(file)
    model = {"aliases": {"fast": "demo", "house": "acme/house-model"}, "allowed_paths": (folder,)}
    with scripted_server(engine, model=model) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)


def test_the_list_has_every_name(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"demo", "fast", "house", "whisper-1", "gpt-4o-transcribe", "large-v3", "turbo"} <= models.keys()
    assert models["demo"].object == "model"
    assert models["demo"].owned_by == "whisper-server"
    assert models["house"].owned_by == "acme"
    assert models["large-v3"].owned_by == "Systran"
    assert all(type(model.created) is int for model in models.values())


def test_no_name_is_listed_twice_and_none_is_a_path(client: OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert len(set(ids)) == len(ids)
    assert not any(id.startswith(("/", ".")) for id in ids)


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_the_list_has_openais_form(url: str, prefix: str) -> None:
    body = request("GET", f"{url}{prefix}/models").json()
    assert body.keys() == {"object", "data"}
    assert body["object"] == "list"
    for model in body["data"]:
        assert {"id", "object", "created", "owned_by"} <= model.keys()


def test_the_list_may_have_a_slash_at_its_end(url: str) -> None:
    assert request("GET", f"{url}/v1/models/").json() == request("GET", f"{url}/v1/models").json()


def test_a_listed_model_can_be_retrieved(client: OpenAI) -> None:
    for model in list(client.models.list())[::3]:
        assert client.models.retrieve(model.id).id == model.id


@pytest.mark.parametrize("path", ["acme%2Fother-model", "acme/other-model"])
def test_a_model_of_the_hub_is_shown_by_its_id(url: str, client: OpenAI, path: str) -> None:
    """No request goes to the hub for that."""
    shown = request("GET", f"{url}/v1/models/{path}").json()
    assert (shown["id"], shown["owned_by"]) == ("acme/other-model", "acme")
    assert client.models.retrieve("acme/other-model").id == "acme/other-model"


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "gpt-4o-transcribe-diarize",
        "/etc",
        "/etc/passwd",
        "../..",
        "a/b/c",
        "a//b",
        "%00",
        "m" * 3000,
    ],
)
def test_an_unknown_model_is_not_found(url: str, client: OpenAI, name: str) -> None:
    with pytest.raises(NotFoundError) as missing:
        client.models.retrieve(name)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    error_of(missing.value.response)


def test_a_model_may_be_a_folder_inside_an_allowed_one(url: str, client: OpenAI, folder: Path) -> None:
    name = str(folder / "mine")
    assert client.audio.transcriptions.create(file=wav(tone(1.0)), model=name).text == "as scripted"
    assert client.models.retrieve(name).owned_by == "local"


@pytest.mark.parametrize("name", ["{}/missing", "{}/../../etc", "{}/elsewhere", "{}-other", "file://{}/mine"])
def test_any_other_folder_is_no_model(url: str, folder: Path, name: str) -> None:
    """A symbolic link is followed before its folder is judged."""
    data = {"model": name.format(folder)}
    answer = request("POST", f"{url}{ROUTE}", files={"file": wav(tone(1.0))}, data=data)
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"


def test_health_tells_what_is_loaded_and_how_much_is_going_on(engine: ScriptedEngine) -> None:
    with scripted_server(engine) as fresh:
        before = health(fresh)
        assert before["status"] == "ok"
        assert before["version"] == __version__
        assert before["default_model"] == "demo"
        assert before["loaded_models"] == []
        assert before["requests_inside"] == 0
        request("POST", f"{fresh}{ROUTE}", files={"file": wav(tone(1.0))}).raise_for_status()
        (loaded,) = health(fresh)["loaded_models"]
    assert {"id": "demo", "device": "cpu", "compute_type": "none", "users": 0}.items() <= loaded.items()


def test_all_names_of_a_model_share_one_load(url: str) -> None:
    for name in ("demo", "fast", "gpt-4o-transcribe", ""):
        answer = request("POST", f"{url}{ROUTE}", files={"file": wav(tone(1.0))}, data={"model": name})
        assert answer.status_code == 200
    assert [model["id"] for model in health(url)["loaded_models"]].count("demo") == 1
