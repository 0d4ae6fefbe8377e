"""The OpenAPI description: it says of fields what the parsers do, and its examples are real answers."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from pydantic import BaseModel

from tests.live_server import make_settings, running_server
from tests.wire import request, scripted_server
from tools.api_docs import api_page
from whisper_server.api.documentation.bodies import (
    AudioJsonTranscript,
    ChatCompletion,
    ChatCompletionChunk,
    Error,
)
from whisper_server.api.documentation.fields import (
    CHAT_FIELDS,
    LANGUAGE_FIELDS,
    OPENAI_FIELDS,
    OWN_FIELDS,
    RequestField,
)
from whisper_server.api.error_table import WIRE_ERRORS
from whisper_server.api.openai.chat_request import parse_chat_request
from whisper_server.api.openai.events import TextDelta, TextDone
from whisper_server.api.openai.fields import Fields
from whisper_server.api.openai.responses import JsonTranscript, VerboseTranscript
from whisper_server.api.openai.transcription_request import RequestDefaults, parse_request
from whisper_server.bootstrap import create_app
from whisper_server.config import Settings
from whisper_server.core.errors import AdminError, InvalidRequestError
from whisper_server.core.types import Task
from whisper_server.engines.scripted import ScriptedEngine
from whisper_server.services.model_catalog import ModelReference

_API_KEY = "a-key-only-for-this-test"
_NOT_OFFERED = {"known_speaker_names", "known_speaker_references"}
_READ_ELSEWHERE = {"model"}
_FIELDS = (*OPENAI_FIELDS, *OWN_FIELDS)


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return create_app(make_settings()).openapi()


def operations(description: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield operation | {"method": method.upper(), "path": path}


# The description itself


def test_the_description_is_valid_openapi(description: dict[str, Any]) -> None:
    schemathesis.openapi.from_dict(description).validate()


def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    found = set(json.dumps(description).split('"#/components/schemas/')[1:])
    assert {rest.split('"')[0] for rest in found} <= schemas.keys()


def test_every_operation_is_described(description: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(description)]
    assert len(set(ids)) == len(ids)
    assert {"createTranscription", "createTranslation", "listModels", "createChatCompletion"} <= set(ids)
    for operation in operations(description):
        assert {"200", "400", "401", "500"} <= operation["responses"].keys(), operation["path"]
        assert "422" not in operation["responses"]
        assert ("requestBody" in operation) is (operation["method"] == "POST")
        for status, response in operation["responses"].items():
            assert response["headers"]["x-request-id"]["required"]
            assert response["content"], (operation["path"], status)
            if status != "200":
                error = response["content"]["application/json"]["schema"]
                assert error == {"$ref": "#/components/schemas/Error"}


def test_every_status_that_faults_have_is_described(description: dict[str, Any]) -> None:
    (transcription,) = (o for o in operations(description) if o["operationId"] == "createTranscription")
    of_websockets = {"403"}
    of_files = [wire for kind, wire in WIRE_ERRORS.items() if not issubclass(kind, AdminError)]
    statuses = {str(wire.status) for wire in of_files} - of_websockets
    assert transcription["responses"].keys() == statuses | {"200"}


def test_it_asks_for_keys_where_the_server_does() -> None:
    assert "security" not in create_app(make_settings()).openapi()
    described = create_app(make_settings(security={"api_keys": (_API_KEY,)})).openapi()
    assert described["security"] == [{"bearer": []}, {"apiKey": []}]
    assert described["components"]["securitySchemes"].keys() == {"bearer", "apiKey"}
    is_open = [o["path"] for o in operations(described) if o.get("security") == []]
    assert is_open == ["/health"]
    assert _API_KEY not in json.dumps(described)


# The fields


class NotingFields(Fields):
    """Notes the names that a parser reads."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        super().__init__(pairs)
        self.read: set[str] = set()

    def text(self, name: str) -> str | None:
        self.read.add(name)
        return super().text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        self.read.add(name)
        return super().texts(name)

    def group(self, name: str) -> Fields | None:
        self.read.add(name)
        return super().group(name)

    def is_given(self, name: str) -> bool:
        self.read.add(name)
        return super().is_given(name)


def parse(fields: Fields) -> None:
    settings = Settings()
    defaults = RequestDefaults(settings.transcription, settings.decode_profiles, None)
    parse_request(fields, ModelReference("demo"), Task.TRANSCRIBE, defaults)


def test_the_fields_described_are_those_that_are_read() -> None:
    fields = NotingFields([])
    parse(fields)
    assert fields.read - _NOT_OFFERED == {field.name for field in _FIELDS} - _READ_ELSEWHERE


def test_no_field_is_described_twice() -> None:
    for fields in (_FIELDS, CHAT_FIELDS, LANGUAGE_FIELDS):
        names = [field.name for field in fields]
        assert len(set(names)) == len(names)


CONTEXTS = {
    "timestamp_granularities": {"response_format": "verbose_json"},
    "max_line_width": {"response_format": "srt"},
    "max_line_count": {"response_format": "vtt"},
    "max_words_per_line": {"response_format": "srt"},
    "patience": {"beam_size": "100"},
}
"""What a field needs beside it."""


def accepted(schema: dict[str, Any]) -> Iterator[Any]:
    """Values at the bounds of a schema."""
    if "anyOf" in schema:
        for each in schema["anyOf"]:
            yield from accepted(each)
    elif "enum" in schema:
        yield from schema["enum"]
    elif schema["type"] == "boolean":
        yield from (True, False)
    elif schema["type"] == "array":
        items = list(accepted(schema["items"]))
        yield items
        yield [items[0]] * min(schema.get("maxItems", 2), 1000)
    elif schema["type"] == "object":
        values = {name: list(accepted(each)) for name, each in schema["properties"].items()}
        yield {name: each[0] for name, each in values.items()}
        yield {name: each[-1] for name, each in values.items()}
    elif schema["type"] in ("integer", "number"):
        yield schema["minimum"]
        yield schema.get("maximum", 1e6)
    else:
        yield "en"


def refused(schema: dict[str, Any]) -> Iterator[Any]:
    """Values just beyond the bounds of a schema; none for text."""
    if "anyOf" in schema:
        yield from refused(schema["anyOf"][0])
        yield from refused(schema["anyOf"][-1])
    elif "enum" in schema:
        yield "nonsense"
    elif schema["type"] == "boolean":
        yield "perhaps"
    elif schema["type"] == "array":
        yield from ([each] for each in refused(schema["items"]))
        if "maxItems" in schema:
            yield [next(accepted(schema["items"]))] * (schema["maxItems"] + 1)
    elif schema["type"] == "object":
        good = next(accepted(schema))
        for name, each in schema["properties"].items():
            yield from (good | {name: bad} for bad in refused(each))
    elif schema["type"] in ("integer", "number"):
        step = 1 if schema["type"] == "integer" else 0.001
        yield schema["minimum"] - step
        if "maximum" in schema:
            yield schema["maximum"] + step
        yield "many"


def as_form(field: RequestField, value: Any) -> list[tuple[str, str]]:
    values = value if isinstance(value, list) else [value]
    texts = [each if isinstance(each, str) else json.dumps(each) for each in values]
    return [*CONTEXTS.get(field.name, {}).items(), *((field.form_name, text) for text in texts)]


def named(field: RequestField) -> str:
    return field.name


@pytest.mark.parametrize("field", [f for f in _FIELDS if f.name != "decode_profile"], ids=named)
def test_what_the_description_allows_is_accepted(field: RequestField) -> None:
    for value in accepted(dict(field.schema)):
        parse(Fields(as_form(field, value)))


@pytest.mark.parametrize("field", [f for f in _FIELDS if [*refused(dict(f.schema))]], ids=named)
def test_what_the_description_rules_out_is_refused(field: RequestField) -> None:
    for value in refused(dict(field.schema)):
        with pytest.raises(InvalidRequestError) as caught:
            parse(Fields(as_form(field, value)))
        assert (caught.value.param or "").split(".")[0] == field.name, value


def test_chats_take_the_same_values() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"audio").decode()}}
    body = {"messages": [{"role": "user", "content": [audio]}]}
    for field in CHAT_FIELDS:
        for value in refused(dict(field.schema)):
            context = CONTEXTS.get(field.name, {})
            with (
                parse_chat_request({**body, **context, field.name: value}, max_file_bytes=100) as chat,
                pytest.raises(InvalidRequestError) as caught,
            ):
                parse(Fields(chat.fields))
            assert (caught.value.param or "").split(".")[0] == field.name, value


# The examples


@pytest.fixture(scope="module")
def fresh_url() -> Iterator[str]:
    """A server whose model is not loaded when the test begins."""
    with running_server() as url:
        yield url


@pytest.fixture(scope="module")
def locked_url() -> Iterator[str]:
    with scripted_server(ScriptedEngine(), security={"api_keys": (_API_KEY,)}) as url:
        yield url


class Asker:
    """Sends the requests that the examples' names and summaries describe."""

    def __init__(self, url: str, samples: list[dict[str, Any]]) -> None:
        self.url = url
        self._paths = {sample["path"].name: sample["path"] for sample in samples}

    def upload(self, path: str, **data: Any) -> httpx.Response:
        recording = "train_de.ogg" if path.endswith("translations") else "kitchen_en.wav"
        content = self._paths[recording].read_bytes()
        return request("POST", f"{self.url}{path}", files={"file": content}, data={"model": "demo"} | data)

    def send(self, path: str, content: bytes) -> httpx.Response:
        return request("POST", f"{self.url}{path}", files={"file": content}, data={"model": "demo"})

    def post(self, path: str, body: Any) -> httpx.Response:
        return request("POST", f"{self.url}{path}", json=body)

    def audio(self) -> str:
        return base64.b64encode(self._paths["kitchen_en.wav"].read_bytes()).decode()

    def chat(self, **more: Any) -> httpx.Response:
        audio = {"type": "input_audio", "input_audio": {"data": self.audio(), "format": "wav"}}
        body = {"model": "demo", "messages": [{"role": "user", "content": [audio]}]} | more
        return self.post("/v1/chat/completions", body)


def body_example(description: dict[str, Any], operation_id: str) -> Any:
    (operation,) = (o for o in operations(description) if o["operationId"] == operation_id)
    ((_, value),) = shown_in(description, operation["requestBody"]["content"]["application/json"])
    return value


def shown_in(description: dict[str, Any], content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of the examples of one media type."""
    for name, reference in content.get("examples", {}).items():
        assert reference == {"$ref": f"#/components/examples/{name}"}
        yield name, description["components"]["examples"][name]["value"]


TRANSCRIPTIONS = "/v1/audio/transcriptions"
BOTH = {"timestamp_granularities[]": ["word", "segment"]}
HELLO = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}

ASKED: dict[str, Callable[[Asker], httpx.Response]] = {
    "createTranscription transcript": lambda ask: ask.upload(TRANSCRIPTIONS),
    "createTranscription verbose_transcript": lambda ask: ask.upload(
        TRANSCRIPTIONS, response_format="verbose_json", **BOTH
    ),
    "createTranscription text": lambda ask: ask.upload(TRANSCRIPTIONS, response_format="text"),
    "createTranscription srt": lambda ask: ask.upload(TRANSCRIPTIONS, response_format="srt"),
    "createTranscription vtt": lambda ask: ask.upload(TRANSCRIPTIONS, response_format="vtt"),
    "createTranscription delta_event": lambda ask: ask.upload(TRANSCRIPTIONS, stream="true"),
    "createTranscription done_event": lambda ask: ask.upload(TRANSCRIPTIONS, stream="true"),
    "createTranscription bad_field": lambda ask: ask.upload(TRANSCRIPTIONS, response_format="yaml"),
    "createTranscription bad_file": lambda ask: ask.send(TRANSCRIPTIONS, b"no audio"),
    "createTranslation translation": lambda ask: ask.upload("/v1/audio/translations"),
    "detectLanguage ranking": lambda ask: ask.upload("/v1/audio/languages", top_k="2"),
    "describeAudio audio_info": lambda ask: ask.upload("/debug/audio-info"),
    "createChatCompletion completion": lambda ask: ask.chat(),
    "createChatCompletion no_audio": lambda ask: ask.post("/v1/chat/completions", HELLO),
    "retrieveModel model": lambda ask: request("GET", f"{ask.url}/v1/models/demo"),
}
"""How to get each example's answer again, where nothing special is needed."""

ROUTES = {
    "createTranscription": TRANSCRIPTIONS,
    "createTranslation": "/v1/audio/translations",
    "detectLanguage": "/v1/audio/languages",
    "describeAudio": "/debug/audio-info",
}

VARIABLE = {"id", "created", "processing_time"}
"""Keys of values that are new in each answer, where they are not the names of models."""


def alike(example: Any, answer: Any, key: str = "") -> None:
    """Equal, but for numbers that differ from processor to processor."""
    assert type(example) is type(answer), key
    if isinstance(example, dict):
        assert example.keys() == answer.keys(), key
        for name, value in example.items():
            alike(value, answer[name], name)
    elif isinstance(example, list):
        assert len(example) == len(answer), key
        for one, other in zip(example, answer, strict=True):
            alike(one, other, key)
    elif isinstance(example, float):
        assert answer == pytest.approx(example, abs=0.15), key
    elif key not in VARIABLE or example == "demo":
        assert example == answer, key


def content_of(response: httpx.Response, name: str) -> Any:
    match response.headers["content-type"].partition(";")[0]:
        case "application/json":
            return response.json()
        case "text/event-stream":
            events = [frame.removeprefix("data: ") for frame in response.text.split("\n\n") if frame]
            return {"data": events[0] if name.endswith("delta_event") else events[-1]}
        case _:
            return response.text


def examples_of(description: dict[str, Any]) -> Iterator[tuple[str, str, str, str, Any]]:
    """(operation, status, media type, name, value) of every answer."""
    for operation in operations(description):
        for status, response in operation["responses"].items():
            for media_type, content in response["content"].items():
                for name, value in shown_in(description, content):
                    yield operation["operationId"], status, media_type, name, value


def test_the_answers_shown_are_real(
    description: dict[str, Any], server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    ask = Asker(server_url, sample_recordings)
    shown = {f"{e[0]} {e[3]}": e for e in examples_of(description)}
    assert ASKED.keys() <= shown.keys()
    for name, get in ASKED.items():
        _, status, media_type, _, value = shown[name]
        response = get(ask)
        assert str(response.status_code) == status, name
        assert response.headers["content-type"].partition(";")[0] == media_type, name
        alike(value, content_of(response, name), name)


def test_every_answer_shown_is_asked_for_again(description: dict[str, Any]) -> None:
    elsewhere = {
        "audio_transcript",
        "missing_key",
        "unknown_model",
        "too_large",
        "fresh_server",
        "not_loaded",
    }
    shown = {f"{e[0]} {e[3]}" for e in examples_of(description) if e[3] not in elsewhere}
    assert shown == ASKED.keys() | {"deleteModel deleted_model"}


def example_of(description: dict[str, Any], operation_id: str, name: str) -> tuple[int, Any]:
    found = [e for e in examples_of(description) if (e[0], e[3]) == (operation_id, name)]
    ((_, status, _, _, value),) = found
    return int(status), value


@pytest.mark.parametrize("operation_id", ROUTES)
def test_silence_in_json_is_answered(description: dict[str, Any], server_url: str, operation_id: str) -> None:
    body = body_example(description, operation_id)
    response = request("POST", f"{server_url}{ROUTES[operation_id]}", json=body)
    assert response.status_code == 200, response.text
    if operation_id == "createTranscription":
        alike(example_of(description, operation_id, "audio_transcript")[1], response.json())


def test_silence_in_a_chat_is_answered(description: dict[str, Any], server_url: str) -> None:
    body = body_example(description, "createChatCompletion")
    response = request("POST", f"{server_url}/v1/chat/completions", json=body)
    assert response.json()["choices"][0]["message"]["content"] == ""


def test_a_fresh_server_and_its_models_are_as_shown(
    description: dict[str, Any], fresh_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    assert (
        example_of(description, "getHealth", "fresh_server")[1]
        == request("GET", f"{fresh_url}/health").json()
    )
    url = f"{fresh_url}/v1/models/demo"
    status, not_loaded = example_of(description, "deleteModel", "not_loaded")
    response = request("DELETE", url)
    assert (response.status_code, response.json()) == (status, not_loaded)
    Asker(fresh_url, sample_recordings).upload(TRANSCRIPTIONS).raise_for_status()
    assert request("DELETE", url).json() == example_of(description, "deleteModel", "deleted_model")[1]


def test_an_unknown_model_is_as_shown(
    description: dict[str, Any], server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    ask = Asker(server_url, sample_recordings)
    responses = [
        ask.upload("/v1/audio/transcriptions", model="nobody"),
        ask.upload("/v1/audio/translations", model="nobody"),
        ask.upload("/v1/audio/languages", model="nobody"),
        ask.chat(model="nobody"),
        request("GET", f"{server_url}/v1/models/nobody"),
        request("DELETE", f"{server_url}/v1/models/nobody"),
    ]
    shown = [(int(e[1]), e[4]) for e in examples_of(description) if e[3] == "unknown_model"]
    assert len(shown) == len(responses)
    assert all((r.status_code, r.json()) == shown[0] == each for r in responses for each in shown)


def test_a_missing_key_is_as_shown(description: dict[str, Any], locked_url: str) -> None:
    shown = {e[0]: (int(e[1]), e[4]) for e in examples_of(description) if e[3] == "missing_key"}
    for operation in operations(description):
        if operation["path"] == "/health":
            continue
        path = operation["path"].replace("{name}", "demo")
        response = request(operation["method"], f"{locked_url}{path}")
        assert (response.status_code, response.json()) == shown[operation["operationId"]]
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("operation_id", ROUTES)
def test_a_file_over_the_limit_is_as_shown(
    description: dict[str, Any], server_url: str, operation_id: str
) -> None:
    status, shown = example_of(description, operation_id, "too_large")
    body = bytes((25 << 20) + 1)
    response = request("POST", f"{server_url}{ROUTES[operation_id]}", files={"file": body})
    assert (response.status_code, response.json()) == (status, shown)


# The schemas of answers


def is_valid(description: dict[str, Any], schema: dict[str, Any], value: Any) -> bool:
    whole = {"components": description["components"], **schema}
    return jsonschema_rs.Draft202012Validator(whole).is_valid(value)


def test_the_answers_shown_are_of_their_schemas(description: dict[str, Any]) -> None:
    for operation in operations(description):
        for response in operation["responses"].values():
            for content in response["content"].values():
                for name, value in shown_in(description, content):
                    assert is_valid(description, content["schema"], value), name
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for name, value in shown_in(description, content):
                assert is_valid(description, content["schema"], value), name


@pytest.mark.parametrize(
    ("operation_id", "name", "model"),
    [
        ("createTranscription", "transcript", JsonTranscript),
        ("createTranscription", "verbose_transcript", VerboseTranscript),
        ("createTranscription", "audio_transcript", AudioJsonTranscript),
        ("createTranslation", "translation", JsonTranscript),
        ("createChatCompletion", "completion", ChatCompletion),
        ("createTranscription", "bad_field", Error),
    ],
)
def test_no_key_of_an_answer_is_missing_in_its_schema(
    description: dict[str, Any], operation_id: str, name: str, model: type[BaseModel]
) -> None:
    value = example_of(description, operation_id, name)[1]
    model.model_validate(value, strict=True, extra="forbid")


def events_of(response: httpx.Response) -> list[Any]:
    frames = response.text.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: ") for frame in frames)
    return [json.loads(frame[6:]) for frame in frames if frame != "data: [DONE]"]


def test_the_events_of_streams_are_of_their_schemas(
    description: dict[str, Any], server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    ask = Asker(server_url, sample_recordings)
    *deltas, done = events_of(ask.upload(TRANSCRIPTIONS, stream="true", **{"include[]": "logprobs"}))
    for delta in deltas:
        TextDelta.model_validate(delta, strict=True, extra="forbid")
    TextDone.model_validate(done, strict=True, extra="forbid")
    chunks = events_of(ask.chat(stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True, extra="forbid")
    assert description["components"]["schemas"].keys() >= {"TextDelta", "TextDone", "ChatCompletionChunk"}


# The tables of the docs


def test_the_page_on_the_api_lists_every_field() -> None:
    page = api_page()
    assert [field.name for field in _FIELDS if page.count(f"\n| `{field.form_name}` |") != 1] == []
    for line in page.splitlines():
        if line.startswith("| `") and line.count("|") > 3:
            assert line.count("|") == 5, line
