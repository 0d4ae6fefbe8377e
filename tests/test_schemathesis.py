"""Requests that schemathesis makes up from the OpenAPI description, right ones and wrong ones.

No answer may be a fault of the server, or have a status, media type, header or form that is not described.
Wrong requests need not be refused: the server forgives nulls, text for numbers, and single items for arrays.
"""

import base64
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import hypothesis
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

_SAME_EACH_TIME = {"max-examples": 25, "deterministic": True, "database": "none"}


_NOT_IN_STREAMS = (
    *("response_format", "timestamp_granularities", "timestamp_granularities[]"),
    *("max_line_width", "max_line_count", "max_words_per_line"),
)


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

# At the bounds of each schema and beyond, and at random.
everything = schemathesis.openapi.from_dict(
    narrowed_description(), config=schemathesis.Config.from_dict({"generation": _SAME_EACH_TIME})
)

# At random and right.
transcripts = schemathesis.openapi.from_dict(
    narrowed_description(),
    config=schemathesis.Config.from_dict(
        {
            "generation": {**_SAME_EACH_TIME, "mode": "positive"},
            "phases": {"examples": {"enabled": False}, "coverage": {"enabled": False}},
        }
    ),
).include(operation_id=["createTranscription", "createTranslation", "createChatCompletion"])


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


@transcripts.parametrize()
def test_every_event_is_as_described(case: schemathesis.Case[Any], url: str) -> None:
    body = cast("dict[str, Any]", case.body)
    body["stream"] = True
    for name in _NOT_IN_STREAMS:
        body.pop(name, None)
    response = answer(case, url)
    hypothesis.assume(response.status_code == 200)
    assert response.headers["content-type"] == ["text/event-stream; charset=utf-8"]


def answer(case: schemathesis.Case[Any], url: str) -> schemathesis.Response:
    """The checked answer to a request."""
    if isinstance(case.body, dict):
        body = cast("dict[str, Any]", case.body)
        if "file" in body:
            body["file"] = _RECORDING
        if "/" in str(body.get("model")):  # such a model would be looked for at the hub
            body["model"] = "nobody"
    response = case.call(base_url=url)
    case.validate_response(response, checks=_CHECKS)
    return response


def test_the_requests_made_up_get_as_far_as_the_model(statuses: Counter[tuple[str, int]]) -> None:
    if not statuses:
        pytest.skip("No requests were made.")
    uploads = {label for label, _ in statuses if label.startswith("POST")}
    assert all(statuses[label, 200] >= 20 and statuses[label, 400] >= 20 for label in uploads), statuses
