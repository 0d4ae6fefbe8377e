"""API keys, headers, host names and origins: who gets an answer, and what browsers may do with it."""

import http.client
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request, Response, WebSocket
from openai import AuthenticationError, AzureOpenAI, OpenAI

from tests.live_server import make_settings, running_server
from whisper_server.api import middleware
from whisper_server.api.security import ApiKeys, api_key_name, is_loopback, load_api_keys
from whisper_server.cli.main import main
from whisper_server.config import Settings, load_settings
from whisper_server.core.errors import ConfigurationError

ALICE = "alice-has-this-key-0123456789"
NAMELESS = "nobody-has-this-key-0123456789"
ORIGIN = "https://app.example"
FOREIGN = "https://evil.example"
SPEECH = Path(__file__).parent.parent / "whisper_server" / "demo" / "samples" / "kitchen_en.wav"
TEXT = "Send a message to David on Monday."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that wants a key and answers to two host names."""
    settings = make_settings(
        security={"api_keys": (f"alice: {ALICE}", NAMELESS)},
        server={"allowed_origins": (ORIGIN,), "allowed_hosts": ("127.0.0.1", "*.example")},
        limits={"max_audio_file_size_mb": 0.5},
    )
    with running_server(settings) as url:
        yield url


def sdk(url: str, key: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def code_of(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    code: str = error["code"]
    return code


# Through the SDKs


@pytest.mark.parametrize("key", [ALICE, NAMELESS])
def test_the_sdk_with_a_key_gets_its_transcript(url: str, key: str) -> None:
    assert sdk(url, key).audio.transcriptions.create(file=SPEECH, model="demo").text == TEXT


def test_the_sdk_with_a_wrong_key_gets_an_authentication_error(url: str) -> None:
    with pytest.raises(AuthenticationError) as caught:
        sdk(url, "wrong").audio.transcriptions.create(file=SPEECH, model="demo")
    assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
    assert caught.value.request_id


def test_the_sdk_without_a_key_gets_an_authentication_error(url: str) -> None:
    with pytest.raises(AuthenticationError) as caught:
        sdk(url, "not sent").audio.transcriptions.create(
            file=SPEECH, model="demo", extra_headers={"Authorization": ""}
        )
    assert caught.value.code == "missing_api_key"


def test_the_azure_sdk_sends_its_key_in_a_header_of_its_own(url: str) -> None:
    azure = AzureOpenAI(azure_endpoint=url, api_version="2024-10-21", api_key=ALICE, max_retries=0)
    assert azure.audio.transcriptions.create(file=SPEECH, model="demo").text == TEXT
    azure = AzureOpenAI(azure_endpoint=url, api_version="2024-10-21", api_key="wrong", max_retries=0)
    with pytest.raises(AuthenticationError) as caught:
        azure.audio.transcriptions.create(file=SPEECH, model="demo")
    assert caught.value.code == "invalid_api_key"


# Keys on the wire


@pytest.mark.parametrize(
    "headers",
    [
        bearer(ALICE),
        {"Authorization": f"bearer  {ALICE}"},
        {"api-key": ALICE},
        {"Authorization": "Bearer wrong", "api-key": ALICE},
    ],
)
def test_a_key_opens_the_api(url: str, headers: dict[str, str]) -> None:
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer"}, "missing_api_key"),
        ({"Authorization": f"Basic {ALICE}"}, "missing_api_key"),
        ({"api-key": ""}, "missing_api_key"),
        (bearer("wrong"), "invalid_api_key"),
        (bearer(ALICE[:-1]), "invalid_api_key"),
        (bearer(ALICE.upper()), "invalid_api_key"),
        (bearer(f"alice: {ALICE}"), "invalid_api_key"),
        (bearer("schlüssel"), "invalid_api_key"),
        ({"api-key": "wrong"}, "invalid_api_key"),
    ],
)
def test_without_a_right_key_the_answer_is_401(url: str, headers: dict[str, str], code: str) -> None:
    response = httpx.get(
        f"{url}/v1/models",
        headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    )
    assert response.status_code == 401
    assert code_of(response) == code
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_in_the_query_is_not_looked_at(url: str) -> None:
    response = httpx.get(f"{url}/v1/models", params={"api_key": ALICE, "api-key": ALICE})
    assert (response.status_code, code_of(response)) == (401, "missing_api_key")


@pytest.mark.parametrize("path", ["/health", "/health/", "//health", "/docs", "/openapi.json"])
def test_health_and_docs_need_no_key(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 200
    assert httpx.head(url + path).status_code != 401
    assert httpx.get(url + path, headers=bearer("wrong")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/audio/transcriptions"),
        ("POST", "/v1//audio/transcriptions/"),
        ("POST", "/openai/deployments/demo/audio/transcriptions?api-version=1"),
        ("GET", "/v1/models"),
        ("GET", "//models"),
        ("GET", "/v1/models/demo"),
        ("POST", "/debug/audio-info"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
        ("GET", "/docs/../v1/models"),
        ("POST", "/health"),
        ("OPTIONS", "/v1/models"),
    ],
)
def test_everything_else_needs_a_key(url: str, method: str, path: str) -> None:
    assert exchange(url, method, path) == (401, "missing_api_key")


@pytest.mark.parametrize(
    "path",
    ["/health/../v1/models", "/health%2F..%2Fv1%2Fmodels", "/health/%2e%2e/v1/models", "/health/v1/models"],
)
def test_no_way_leads_from_an_open_path_to_another(url: str, path: str) -> None:
    assert exchange(url, "GET", path) == (404, "not_found")


def exchange(url: str, method: str, path: str) -> tuple[int, str]:
    """The status and the error code for a path as it is; httpx would resolve the dots."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.request(method, path)
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    return response.status, body["error"]["code"]


def test_a_refused_upload_is_read_so_that_the_client_gets_to_read_the_answer(url: str) -> None:
    with pytest.raises(AuthenticationError):
        sdk(url, "wrong").audio.transcriptions.create(file=("a.wav", bytes(8 << 20)), model="demo")


def test_without_keys_no_key_is_asked_for(server_url: str) -> None:
    assert httpx.get(f"{server_url}/v1/models").status_code == 200
    assert httpx.get(f"{server_url}/v1/models", headers=bearer("any")).status_code == 200


async def test_requests_carry_the_name_of_their_key() -> None:
    app = FastAPI()

    @app.get("/name")
    async def name(request: Request) -> str | None:
        return api_key_name(request)

    security = {"api_keys": (f"alice:{ALICE}", NAMELESS), "open_paths": ("/name/*",)}
    middleware.install(app, make_settings(security=security))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/name", headers=bearer(ALICE))).json() == "alice"
        fingerprint = (await client.get("/name", headers=bearer(NAMELESS))).json()
        assert fingerprint.startswith("key-")
        assert len(fingerprint) == len("key-") + 8
        assert (await client.get("/name")).status_code == 401

    keyless = FastAPI()
    keyless.add_api_route("/name", name)
    middleware.install(keyless, make_settings())
    transport = httpx.ASGITransport(keyless)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/name", headers=bearer(ALICE))).json() is None


# Where keys come from


def keys_from(**security: Any) -> ApiKeys:
    return load_api_keys(make_settings(security=security))


def write_keys(folder: Path, text: str, *, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_bytes(text.encode())
    path.chmod(mode)
    return path


def test_a_file_has_a_key_on_each_line_with_or_without_a_name(tmp_path: Path) -> None:
    text = f"\ufeff# who has them\n\nalice: {ALICE}\r\n  {NAMELESS}  \nalice:alice-old-key-0123456789\n"
    keys = keys_from(api_keys=("bob:bob-has-this-key-0123",), api_keys_file=write_keys(tmp_path, text))
    assert len(keys) == 4
    assert keys.name_of(ALICE.encode()) == keys.name_of(b"alice-old-key-0123456789") == "alice"
    assert keys.name_of(b"bob-has-this-key-0123") == "bob"
    name = keys.name_of(NAMELESS.encode())
    assert name is not None
    assert name not in NAMELESS
    for wrong in ("", "alice", f"alice: {ALICE}", "# who has them"):
        assert keys.name_of(wrong.encode()) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds none"),
        ("# nothing\n\n", "holds none"),
        ("two words\n", "Line 1 of"),
        (f"{ALICE}\nschlüssel\n", "Line 2 of"),
        (f"{ALICE}\na:b:c\n", "Line 2 of"),
        ("name:\n", "Line 1 of"),
    ],
)
def test_a_file_with_anything_but_keys_stops_the_start_without_being_shown(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        keys_from(api_keys_file=write_keys(tmp_path, text))
    assert words in caught.value.message
    for secret in (ALICE, "schlüssel", "two words", "a:b:c"):
        assert secret not in caught.value.message


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        keys_from(api_keys_file=tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        keys_from(api_keys_file=tmp_path / "binary")


@pytest.mark.parametrize(
    ("mode", "is_warned"), [(0o600, False), (0o640, False), (0o604, True), (0o602, True), (0o666, True)]
)
def test_a_file_that_every_user_may_open_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_warned: bool
) -> None:
    keys_from(api_keys_file=write_keys(tmp_path, ALICE, mode=mode))
    assert ("chmod 600" in caplog.text) is is_warned
    assert ALICE not in caplog.text


def test_short_keys_give_a_warning_that_does_not_show_them(caplog: pytest.LogCaptureFixture) -> None:
    keys_from(api_keys=("hunter2", ALICE))
    assert "1 of 2 API keys" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("host", "keys", "is_warned"),
    [
        ("127.0.0.1", (), False),
        ("localhost", (), False),
        ("0.0.0.0", (), True),
        ("::", (), True),
        ("192.168.1.2", (), True),
        ("0.0.0.0", (ALICE,), False),
    ],
)
def test_listening_to_others_without_keys_gives_a_loud_warning(
    caplog: pytest.LogCaptureFixture, host: str, keys: tuple[str, ...], is_warned: bool
) -> None:
    load_api_keys(make_settings(server={"host": host}, security={"api_keys": keys}))
    warnings = [record for record in caplog.records if "NO API KEYS" in record.message]
    assert len(warnings) == is_warned
    assert all(record.levelno == logging.WARNING and host in record.message for record in warnings)


@pytest.mark.parametrize(
    ("section", "is_warned"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "enabled": False}, False),
        ({"host": "0.0.0.0", "port": None, "unix_socket": "stt.sock"}, False),
        ({"host": "0.0.0.0", "tls_client_ca": "ca.pem"}, False),
        ({}, False),
    ],
)
def test_grpc_that_others_reach_without_keys_gives_it_too(
    caplog: pytest.LogCaptureFixture, section: dict[str, Any], is_warned: bool
) -> None:
    load_api_keys(make_settings(grpc=section))
    assert ("NO API KEYS: the server listens on 0.0.0.0," in caplog.text) == is_warned


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_addresses_are_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "fe80::1%lo", "myhost", "127.0.0.1.evil.com"])
def test_other_addresses_are_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("path", ["health", "/a*", "/*/b", "*"])
def test_an_open_path_that_means_nothing_stops_the_start(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"security\.open_paths"):
        middleware.install(FastAPI(), make_settings(security={"open_paths": (path,)}))


# Keys are never shown

SECRET = "never-print-this-key-0123"


@pytest.fixture
def _no_settings_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WHISPER_API_KEYS", "API_KEYS", "WHISPER_SECURITY_API_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["WHISPER_SECURITY_API_KEYS", "WHISPER_API_KEYS", "API_KEYS"])
@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.usefixtures("_no_settings_around")
def test_config_prints_where_keys_come_from_but_not_the_keys(
    name: str, form: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, f"alice:{SECRET},{SECRET}2")
    assert main(["config", *form]) == 0
    output, errors = capsys.readouterr()
    assert SECRET not in output + errors
    assert f"environment variable {name}" in output
    if form:
        assert json.loads(output)["security.api_keys"]["value"] == "not shown"
    else:
        printed = Path("printed.toml")
        printed.write_text(output, encoding="utf-8")
        assert load_settings(environ={}, config=printed).settings.security.api_keys == ()


@pytest.mark.usefixtures("_no_settings_around")
def test_config_prints_that_there_are_no_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    assert "api_keys = []  # default" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("value", [f'["{SECRET}', f'["{SECRET}", 5]', f'["{SECRET}", ""]'])
@pytest.mark.usefixtures("_no_settings_around")
def test_a_mistake_in_the_keys_is_reported_without_them(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ={"WHISPER_API_KEYS": value})
    assert "security.api_keys" in caught.value.message
    assert "environment variable WHISPER_API_KEYS" in caught.value.message
    assert SECRET not in caught.value.message
    Path("config.toml").write_text(f'[security]\napi_keys = "{SECRET}"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ={})
    assert "must be a list" in caught.value.message
    assert SECRET not in caught.value.message


def test_settings_and_keys_have_no_key_in_their_representation() -> None:
    settings = Settings.model_validate({"security": {"api_keys": (SECRET,)}})
    assert SECRET not in repr(settings) + str(settings) + repr(vars(load_api_keys(settings)))


# Headers


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/models", bearer(ALICE), 200),
        ("/v1/models", {}, 401),
        ("/v1/nowhere", bearer(ALICE), 404),
        ("/v1/audio/transcriptions", bearer(ALICE), 405),
        ("/health", {"Host": "other"}, 400),
        ("/health", {}, 200),
    ],
)
def test_every_answer_tells_browsers_to_do_nothing_with_it(
    url: str, path: str, headers: dict[str, str], status: int
) -> None:
    response = httpx.get(url + path, headers=headers)
    assert response.status_code == status
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_the_docs_page_may_load_what_it_is_made_of(url: str, path: str) -> None:
    response = httpx.get(url + path)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    for source in ("https://cdn.jsdelivr.net",):
        assert source in response.text
        assert source in policy
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_page_may_set_headers_of_its_own() -> None:
    app = FastAPI()

    own = {"content-security-policy": "default-src 'self'", "cache-control": "max-age=60"}

    @app.get("/")
    async def page() -> Response:
        return Response(headers=own)

    middleware.install(app, make_settings())
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/")
    assert response.headers.items() >= own.items()
    assert response.headers["x-content-type-options"] == "nosniff"


# Browsers' pages of other origins

_ASKED = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-retry-count"


def preflight(url: str, origin: str, **headers: str) -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": _ASKED,
    }
    return httpx.options(f"{url}/v1/audio/transcriptions", headers=asked | headers)


def test_the_preflight_of_the_openai_sdk_passes_without_a_key(url: str) -> None:
    response = preflight(url, ORIGIN)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    allowed = {name.strip() for name in response.headers["access-control-allow-headers"].split(",")}
    assert allowed >= set(_ASKED.split(","))
    assert "POST" in response.headers["access-control-allow-methods"]


def test_a_public_page_of_an_allowed_origin_may_reach_a_private_address(url: str) -> None:
    asked = {"Access-Control-Request-Private-Network": "true"}
    assert preflight(url, ORIGIN, **asked).headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("origin", [FOREIGN, "null", f"{ORIGIN}.evil.com", "http://app.example"])
def test_other_origins_are_allowed_nothing(url: str, origin: str) -> None:
    response = preflight(url, origin)
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers
    answered = httpx.get(f"{url}/v1/models", headers={"Origin": origin} | bearer(ALICE))
    assert "access-control-allow-origin" not in answered.headers


def test_answers_and_errors_can_be_read_by_an_allowed_origin(url: str) -> None:
    route = f"{url}/v1/audio/transcriptions"
    too_large = {"file": ("a.wav", bytes(1 << 20))}
    responses = {
        200: httpx.get(f"{url}/v1/models", headers={"Origin": ORIGIN} | bearer(ALICE)),
        400: httpx.post(route, headers={"Origin": ORIGIN} | bearer(ALICE), files={"a": b"b"}),
        401: httpx.post(route, headers={"Origin": ORIGIN}, files=too_large),
        404: httpx.get(f"{url}/nowhere", headers={"Origin": ORIGIN} | bearer(ALICE)),
        413: httpx.post(route, headers={"Origin": ORIGIN} | bearer(ALICE), files=too_large),
    }
    for status, response in responses.items():
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "Origin" in response.headers["vary"]
        exposed = response.headers["access-control-expose-headers"]
        assert {"x-request-id", "retry-after", "x-should-retry"} <= set(exposed.split(", "))


async def test_a_failure_nobody_foresaw_can_be_read_by_an_allowed_origin() -> None:
    app = FastAPI()

    @app.get("/")
    async def fail() -> None:
        raise RuntimeError("not foreseen")

    middleware.install(app, make_settings(server={"allowed_origins": (ORIGIN,)}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/", headers={"Origin": ORIGIN})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["x-content-type-options"] == "nosniff"


# Host names


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:80", "a.example", "A.B.Example:8089"])
def test_allowed_host_names_are_answered(url: str, host: str) -> None:
    assert httpx.get(f"{url}/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["other", "example", "a.example.evil.com", "[::1]:80", "", "www.127.0.0.1"])
def test_other_host_names_get_an_error_of_openais_form(url: str, host: str) -> None:
    response = httpx.get(f"{url}/health", headers={"Host": host})
    assert (response.status_code, code_of(response)) == (400, "invalid_host")


def test_the_name_of_an_ipv6_address_is_what_stands_in_the_brackets() -> None:
    settings = make_settings(server={"allowed_hosts": ("::1", "[fe80::1]")})
    with running_server(settings) as url:
        for host, status in (("[::1]:80", 200), ("[fe80::1]", 200), ("[::2]", 400)):
            assert httpx.get(f"{url}/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("pattern", ["a.*", "*example.com", "*.*.com", "**"])
def test_a_host_pattern_that_means_nothing_stops_the_start(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.allowed_hosts"):
        middleware.install(FastAPI(), make_settings(server={"allowed_hosts": (pattern,)}))


# WebSockets


async def handshake(
    headers: dict[str, str], *, subprotocols: tuple[str, ...] = (), can_deny: bool = True, **sections: Any
) -> list[dict[str, Any]]:
    """What a server sends to a client that opens a WebSocket."""
    app = FastAPI()

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json({"key": api_key_name(socket)})
        await socket.close()

    middleware.install(app, make_settings(server={"allowed_origins": (ORIGIN,)}, **sections))
    scope = {
        "type": "websocket",
        "path": "/v1//realtime/",
        "raw_path": b"/v1//realtime/",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "subprotocols": list(subprotocols),
        "extensions": {"websocket.http.response": {}} if can_deny else {},
        "state": {},
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def status_of(messages: list[dict[str, Any]]) -> int:
    first = messages[0]
    if first["type"] == "websocket.accept":
        return 101
    assert first["type"] == "websocket.http.response.start"
    error = json.loads(messages[1]["body"])["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    status: int = first["status"]
    return status


@pytest.mark.parametrize(
    ("headers", "subprotocols", "status"),
    [
        (bearer(ALICE), (), 101),
        ({"api-key": ALICE}, (), 101),
        ({}, ("realtime", f"openai-insecure-api-key.{ALICE}"), 101),
        ({}, (), 401),
        (bearer("wrong"), (), 401),
        ({}, ("realtime", "openai-insecure-api-key.wrong"), 401),
        ({}, ("realtime", ALICE), 401),
    ],
)
async def test_a_websocket_needs_a_key_too(
    headers: dict[str, str], subprotocols: tuple[str, ...], status: int
) -> None:
    security = {"api_keys": (f"alice:{ALICE}",), "open_paths": ("/v1/*",)}
    messages = await handshake(headers, subprotocols=subprotocols, security=security)
    assert status_of(messages) == status
    if status == 101:
        assert json.loads(messages[1]["text"]) == {"key": "alice"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8089"}, 101),
        ({"Host": "127.0.0.1:8089", "Origin": ORIGIN}, 101),
        ({"Host": "127.0.0.1:8089", "Origin": "http://127.0.0.1:8089"}, 101),
        ({"Host": "127.0.0.1:8089", "Origin": "http://127.0.0.1:3000"}, 403),
        ({"Host": "127.0.0.1:8089", "Origin": FOREIGN}, 403),
        ({"Host": "127.0.0.1:8089", "Origin": "null"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
    ],
)
async def test_only_pages_of_allowed_origins_may_open_a_websocket(
    headers: dict[str, str], status: int
) -> None:
    assert status_of(await handshake(headers)) == status


async def test_a_server_that_cannot_deny_with_an_answer_closes_the_handshake() -> None:
    messages = await handshake({"Origin": FOREIGN}, can_deny=False)
    assert messages == [{"type": "websocket.close", "code": 1008}]
