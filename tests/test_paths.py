"""Paths as clients put them together, and the routes they lead to."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from openai import AzureOpenAI, OpenAI

from tests.live_server import make_settings, running_server
from whisper_server.api.paths import PathMiddleware, deployment_model, raw_path


async def routed(path: str, *, has_raw_path: bool = True, kind: str = "http") -> tuple[str, str | None]:
    """The path that an app gets for one that a client has sent, and the deployment's model."""
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError("a path is no matter of messages")

    sent, _, query = path.partition("?")
    scope: dict[str, Any] = {"type": kind, "path": httpx.URL(sent).path if has_raw_path else sent}
    scope |= {"headers": [], "query_string": query.encode()}
    if has_raw_path:
        scope["raw_path"] = sent.encode()
    before = dict(scope)
    await PathMiddleware(app)(scope, nothing, nothing)
    assert {key: value for key, value in scope.items() if key != "state"} == before
    assert seen[0]["query_string"] == query.encode()
    state = seen[0].get("state", {})
    return seen[0]["path"], state.get("deployment_model")


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("/v1/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/v1//audio/transcriptions", "/v1/audio/transcriptions"),
        ("//audio/transcriptions", "/audio/transcriptions"),
        ("///v1///audio//transcriptions///", "/v1/audio/transcriptions"),
        ("/v1/audio/transcriptions/", "/v1/audio/transcriptions"),
        ("/v1/audio/transcriptions/?a=//b/", "/v1/audio/transcriptions"),
        ("/", "/"),
        ("//", "/"),
        ("", "/"),
        ("/health/", "/health"),
        ("/v1/models/org%2Fmodel", "/v1/models/org/model"),
        ("/v1/models/org/model/", "/v1/models/org/model"),
        ("/v1/models/a%2F%2Fb%2F", "/v1/models/a//b/"),
        ("/v1/models/a%20b%3Fc", "/v1/models/a b?c"),
        ("/v1/models/%C3%A9", "/v1/models/é"),
        ("/v1/../health", "/v1/../health"),
        ("/V1/Models", "/V1/Models"),
        ("/openai", "/v1"),
        ("/openai/models?api-version=1", "/v1/models"),
        ("/openai/v1/models/org%2Fmodel", "/v1/models/org/model"),
        ("/openai/v1/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/openai/realtime?api-version=1&deployment=a", "/v1/realtime"),
        ("/openai/deployments", "/openai/deployments"),
        ("/openai/deployments/a", "/openai/deployments/a"),
        ("/openai/deployments/a/models", "/openai/deployments/a/models"),
        ("/openai/deployments/audio/transcriptions", "/openai/deployments/audio/transcriptions"),
        ("/openaipi/v1/models", "/openaipi/v1/models"),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_path_is_put_right_in_place(sent: str, path: str, kind: str) -> None:
    assert await routed(sent, kind=kind) == (path, None)


@pytest.mark.parametrize(
    ("sent", "path", "model"),
    [
        ("/openai/deployments/demo/audio/transcriptions?api-version=1", "/v1/audio/transcriptions", "demo"),
        ("/openai/deployments/demo/audio/translations", "/v1/audio/translations", "demo"),
        ("/openai/deployments/demo/chat/completions", "/v1/chat/completions", "demo"),
        ("//openai//deployments/demo//audio/transcriptions/", "/v1/audio/transcriptions", "demo"),
        ("/openai/deployments/org%2Fmodel/audio/transcriptions", "/v1/audio/transcriptions", "org/model"),
        ("/openai/deployments/org/model/audio/transcriptions", "/v1/audio/transcriptions", "org/model"),
        ("/openai/deployments/a%20b/audio/transcriptions", "/v1/audio/transcriptions", "a b"),
    ],
)
async def test_azures_deployment_is_the_model(sent: str, path: str, model: str) -> None:
    assert await routed(sent) == (path, model)


async def test_a_server_that_gives_no_raw_path_is_understood() -> None:
    assert await routed("//v1/models/a b/", has_raw_path=False) == ("/v1/models/a b", None)


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({"path": "/a b", "raw_path": b"/a%20b?c=d"}, "/a%20b"),
        ({"path": "/a\nb"}, "/a%0Ab"),
    ],
)
def test_the_path_for_logs_is_encoded_and_without_query(scope: dict[str, Any], path: str) -> None:
    assert raw_path(scope) == path


async def test_events_of_the_servers_life_pass() -> None:
    passed = []

    async def app(scope: Any, *_: Any) -> None:
        passed.append(scope)

    scope = {"type": "lifespan"}
    await PathMiddleware(app)(scope, None, None)  # type: ignore[arg-type]  # nothing is received or sent
    assert passed == [scope]


async def test_a_handler_reads_the_deployment_from_its_request() -> None:
    app = FastAPI()

    @app.post("/v1/audio/transcriptions")
    async def handler(request: Request) -> str | None:
        return deployment_model(request)

    app.add_middleware(PathMiddleware)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/openai/deployments/a%2Fb/audio/transcriptions")
        assert response.json() == "a/b"
        assert (await client.post("/v1/audio/transcriptions")).json() is None


# On a live server


@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/transcriptions",
        "/audio/transcriptions",
        "/v1//audio/transcriptions",
        "//audio/transcriptions",
        "/v1/audio/transcriptions/",
        "/openai/v1/audio/transcriptions",
        "/openai/deployments/demo/audio/transcriptions?api-version=2024-10-21",
    ],
)
def test_an_upload_arrives_whatever_slashes_its_path_has(
    server_url: str, sample_recordings: list[dict[str, Any]], path: str
) -> None:
    recording = sample_recordings[0]["path"].read_bytes()
    response = httpx.post(
        server_url + path, files={"file": recording}, data={"model": "demo", "response_format": "text"}
    )
    assert response.status_code == 200
    assert not response.history
    assert len(response.text) > 1


@pytest.mark.parametrize("path", ["/v1/models/", "/v1//models", "/models/", "/openai/models", "/health/"])
def test_nothing_is_answered_with_a_redirect(server_url: str, path: str) -> None:
    response = httpx.get(server_url + path)
    assert (response.status_code, response.history) == (200, [])


def test_a_model_with_a_slash_is_found_however_the_slash_is_written() -> None:
    settings = make_settings(model={"aliases": {"org/model": "demo"}})
    with running_server(settings) as url:
        for base_url in (f"{url}/v1", f"{url}/v1/", url, f"{url}/openai/v1"):
            client = OpenAI(base_url=base_url, api_key="none-needed", max_retries=0)
            assert client.models.retrieve("org/model").id == "org/model"
            assert "org/model" in [model.id for model in client.models.list()]
        for path in ("org/model", "org%2Fmodel", "org%2Fmodel/"):
            assert httpx.get(f"{url}/v1/models/{path}").json()["id"] == "org/model"


@pytest.mark.parametrize("deployment", [None, "org/model"])
def test_the_azure_sdk_gets_its_transcript(
    deployment: str | None, sample_recordings: list[dict[str, Any]]
) -> None:
    settings = make_settings(model={"aliases": {"org/model": "demo"}})
    with running_server(settings) as url:
        azure = AzureOpenAI(
            azure_endpoint=url,
            azure_deployment=deployment,
            api_version="2024-10-21",
            api_key="none-needed",
            max_retries=0,
        )
        transcript = azure.audio.transcriptions.create(file=sample_recordings[0]["path"], model="org/model")
        assert transcript.text
        assert "org/model" in [model.id for model in azure.models.list()]
