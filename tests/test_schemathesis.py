"""Requests that schemathesis makes up from the OpenAPI description, right ones and wrong ones.

No answer may be a fault of the server, or have a status, media type, header or form that is not described.
Wrong requests need not be refused: the server forgives nulls, text for numbers, and single items for arrays.
"""

import base64
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.live_server import make_settings
from tests.media import tone, wav
from tests.wire import scripted_server
from whisper_server.bootstrap import create_app
from whisper_server.engines.scripted import ScriptedEngine

_RECORDING = wav(tone(0.3))
_BASE64 = {"type": "string", "enum": [base64.b64encode(_RECORDING).decode()]}

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


_TIED_TO_A_FORMAT = (
    *("response_format", "stream", "include", "include[]"),
    *("timestamp_granularities", "timestamp_granularities[]"),
    *("max_line_width", "max_line_count", "max_words_per_line"),
)
_WISHES = (
    ({"stream": True}, "text/event-stream"),
    ({"response_format": "verbose_json"}, "application/json"),
    (
        {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]},
        "application/json",
    ),
    ({"response_format": "text"}, "text/plain"),
    ({"response_format": "srt", "max_line_width": 20}, "text/plain"),
    ({"response_format": "vtt"}, "text/plain"),
    ({"include[]": ["logprobs"]}, "application/json"),
)
"""Fields that shape the answer, and its media type."""


def narrowed_description() -> dict[str, Any]:
    """The description, with right values in requests where random ones never are, and no more in answers."""
    description = create_app(make_settings()).openapi()
    schemas = description["components"]["schemas"]
    for name, schema in schemas.items():
        if name.endswith(("Form", "Json", "Request")):
            for field, values in _RIGHT_VALUES.items():
                if field in schema["properties"]:
                    schema["properties"][field] = values
        else:
            schema["additionalProperties"] = False
    return description


_INPUT_AUDIO = {"type": "object", "required": ["data"], "properties": {"data": _BASE64}}
_AUDIO_PART = {
    "type": "object",
    "required": ["type", "input_audio"],
    "properties": {"type": {"type": "string", "enum": ["input_audio"]}, "input_audio": _INPUT_AUDIO},
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"type": "string", "enum": ["user"]},
        "content": {"type": "array", "minItems": 1, "items": _AUDIO_PART},
    },
}
_RIGHT_VALUES: dict[str, dict[str, Any]] = {
    "audio": _BASE64,
    "input_audio": _INPUT_AUDIO,
    "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
    "model": {"type": "string", "enum": ["demo"]},
    "language": {"type": "string", "enum": ["en", "de-DE", "portuguese", "auto"]},
    "decode_profile": {"type": "string", "enum": ["accurate", "realtime"]},
    "patience": {"type": "number", "minimum": 1, "maximum": 10},
}


def made_up(mode: str, phase: str, examples: int) -> schemathesis.BaseSchema:
    """The same requests each time."""
    generation = {"mode": mode, "max-examples": examples, "deterministic": True, "database": "none"}
    phases = {name: {"enabled": name in ("fuzzing", phase)} for name in ("examples", "coverage", "fuzzing")}
    config = schemathesis.Config.from_dict({"generation": generation, "phases": phases})
    return schemathesis.openapi.from_dict(narrowed_description(), config=config)


# At the bounds of each schema and beyond, and at random. Translations have the schema of transcriptions.
everything = made_up("all", "coverage", 25).exclude(operation_id="createTranslation")

transcripts = made_up("positive", "fuzzing", 50).include(
    operation_id=["createTranscription", "createTranslation"]
)
chats = made_up("positive", "fuzzing", 50).include(operation_id="createChatCompletion")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with scripted_server(ScriptedEngine(), transcription={"vad_filter": False}) as url:
        yield url


@pytest.fixture(scope="module")
def statuses() -> Counter[tuple[str, int]]:
    """How often each operation has answered with each status."""
    return Counter()


@everything.parametrize()
def test_every_answer_is_as_described(
    case: schemathesis.Case[Any], url: str, statuses: Counter[tuple[str, int]]
) -> None:
    response = answer(case, url)
    statuses[case.operation.label, response.status_code] += 1


@pytest.mark.parametrize(("wish", "media_type"), _WISHES)
@transcripts.parametrize()
def test_every_form_of_a_transcript_is_as_described(
    case: schemathesis.Case[Any], url: str, wish: dict[str, Any], media_type: str
) -> None:
    body = cast("dict[str, Any]", case.body)
    for name in _TIED_TO_A_FORMAT:
        body.pop(name, None)
    body.update(wish)
    response = answer(case, url)
    assert response.status_code in (200, 400)
    if response.status_code == 200:
        assert response.headers["content-type"][0].startswith(media_type)


@chats.parametrize()
def test_every_event_of_a_chat_is_as_described(case: schemathesis.Case[Any], url: str) -> None:
    cast("dict[str, Any]", case.body)["stream"] = True
    response = answer(case, url)
    if response.status_code == 200:
        assert response.headers["content-type"][0].startswith("text/event-stream")


def answer(case: schemathesis.Case[Any], url: str) -> schemathesis.Response:
    """The checked answer to a request."""
    if isinstance(case.body, dict):
        body = cast("dict[str, Any]", case.body)
        if case.media_type == "multipart/form-data":  # in JSON, `file` is a name made up like any other
            body["file"] = _RECORDING
        if "/" in str(body.get("model")):  # such a model would be looked for at the hub
            body["model"] = "nobody"
    response = case.call(base_url=url)
    case.validate_response(response, checks=_CHECKS)
    return response


def test_the_requests_made_up_get_as_far_as_the_model(statuses: Counter[tuple[str, int]]) -> None:
    if not statuses:
        pytest.skip("No requests were made.")
    for label in {label for label, _ in statuses if label.startswith("POST")}:
        assert min(statuses[label, 200], statuses[label, 400]) >= 10, (label, statuses)
