"""Schemas by name, which the operations refer to: those of request bodies and of stream events."""

from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import models_json_schema

from whisper_server.api.documentation.bodies import ChatCompletionChunk, Error
from whisper_server.api.documentation.fields import (
    CHAT_FIELDS,
    FILE,
    LANGUAGE_FIELDS,
    OPENAI_FIELDS,
    OWN_FIELDS,
    RequestField,
)
from whisper_server.api.openai.events import TextDelta, TextDone

_STRING = {"type": "string"}
_FLAG = {"type": "boolean"}
_BASE64 = {**_STRING, "description": "The recording as base64, or as a data URL with it."}

_INPUT_AUDIO = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "data": _BASE64,
        "format": {**_STRING, "description": "It does not matter: the content tells."},
    },
}

_ROLES = ("user", "system", "developer", "assistant", "tool", "function")


def request_schemas() -> dict[str, Any]:
    """The schemas of request bodies."""
    transcription = (*OPENAI_FIELDS, *OWN_FIELDS)
    return {
        "TranscriptionForm": _form(transcription),
        "TranscriptionJson": _json(transcription),
        "LanguageForm": _form(LANGUAGE_FIELDS),
        "LanguageJson": _json(LANGUAGE_FIELDS),
        "AudioForm": _form(()),
        "AudioJson": _json(()),
        "ChatCompletionRequest": _chat(),
    }


def event_schemas() -> dict[str, Any]:
    """The schemas of stream events, and of what is in them."""
    events = (TextDelta, TextDone, ChatCompletionChunk, Error)
    _, schema = models_json_schema(
        [(event, "serialization") for event in events], ref_template="#/components/schemas/{model}"
    )
    found: dict[str, Any] = schema["$defs"]
    return found


def _form(fields: Iterable[RequestField]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [FILE.name],
        "properties": {field.form_name: field.described_schema for field in (FILE, *fields)},
    }


def _json(fields: Iterable[RequestField]) -> dict[str, Any]:
    return {
        "type": "object",
        "oneOf": [{"required": ["audio"]}, {"required": ["input_audio"]}],
        "properties": {
            "audio": _BASE64,
            "input_audio": _INPUT_AUDIO,
            **{field.name: field.described_schema for field in fields},
        },
    }


def _chat() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["messages"],
        "properties": {
            "messages": {
                "type": "array",
                "minItems": 1,
                "items": _message(),
                "description": "The user messages after the last answer hold the recordings; their text is "
                "the prompt.",
            },
            "stream": {**_FLAG, "description": "Answer in chunks."},
            "stream_options": {"type": "object", "properties": {"include_usage": _FLAG}},
            "n": {"type": "integer", "enum": [1]},
            **{field.name: field.described_schema for field in CHAT_FIELDS},
        },
    }


def _message() -> dict[str, Any]:
    parts = [_part("text", _STRING), _part("input_audio", _INPUT_AUDIO)]
    content = [_STRING, {"type": "array", "items": {"anyOf": parts}}, {"type": "null"}]
    return {
        "type": "object",
        "required": ["role"],
        "properties": {"role": {**_STRING, "enum": list(_ROLES)}, "content": {"anyOf": content}},
    }


def _part(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", kind],
        "properties": {"type": {**_STRING, "enum": [kind]}, kind: value},
    }
