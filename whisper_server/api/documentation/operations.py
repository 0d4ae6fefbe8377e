"""What each route's decorator is told, so that the OpenAPI description is true.

@router.post("/audio/transcriptions", response_class=Response, **operations.TRANSCRIPTION)
"""

from collections.abc import Sequence
from typing import Any

from whisper_server.api.documentation import examples
from whisper_server.api.documentation.bodies import AudioJsonTranscript, ChatCompletion, Error
from whisper_server.api.documentation.examples import Examples
from whisper_server.api.openai.responses import JsonTranscript, VerboseTranscript

Operation = dict[str, Any]
"""Keywords of a route's decorator."""

_STRING = {"type": "string"}

_REQUEST_ID = {
    "x-request-id": {
        "description": "The client's own, where it sent a plain word, or a new one; the log has it too.",
        "required": True,
        "schema": _STRING,
    }
}
_PROCESSING = {
    "openai-processing-ms": {
        "description": "How long the work took, milliseconds.",
        "schema": {"type": "integer"},
    }
}
_RETRY = {
    "x-should-retry": {
        "description": "Whether trying again can help; it overrides what clients do by status.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    }
}
_RETRY_AFTER = {
    "retry-after": {
        "description": "When to come back, seconds.",
        "required": True,
        "schema": {"type": "integer"},
    }
}
_MAY_RETRY_AFTER = {"retry-after": _RETRY_AFTER["retry-after"] | {"required": False}}
_AUTHENTICATE = {"www-authenticate": {"required": True, "schema": {"type": "string", "enum": ["Bearer"]}}}


def _refer(given: Examples) -> dict[str, dict[str, str]]:
    """The examples by reference: FastAPI would drop the nulls in their values."""
    return {name: {"$ref": f"#/components/examples/{name}"} for name in given}


def _error(description: str, given: Examples | None = None, headers: Operation | None = None) -> Operation:
    content = {"application/json": {"examples": _refer(given)}} if given else {}
    return {
        "model": Error,
        "description": description,
        "headers": _REQUEST_ID | (headers or {}),
        "content": content,
    }


def _anywhere(given: Examples | None = None) -> dict[int | str, Operation]:
    """The errors of every route."""
    return {
        400: _error("The request is wrong; `param` names the field at fault.", given),
        401: _error(
            "The server has API keys, and the request brings none of them.",
            examples.MISSING_KEYS,
            _AUTHENTICATE,
        ),
        500: _error("The server failed.", headers=_RETRY),
    }


def _on_upload(given: Examples | None = None) -> dict[int | str, Operation]:
    """Those of a route that takes a recording."""
    return _anywhere(given) | {
        408: _error("The recording stopped arriving."),
        409: _error("The request was called off.", headers=_RETRY),
        413: _error("The recording is larger than the server takes.", examples.LARGE_UPLOADS),
        429: _error("Too much is waiting already.", headers=_RETRY | _RETRY_AFTER),
        503: _error("The server is stopping.", headers=_RETRY | _MAY_RETRY_AFTER),
        504: _error("The request took longer than it may.", headers=_RETRY),
    }


def _on_model(given: Examples | None = None) -> dict[int | str, Operation]:
    """Those of a route that runs a model on a recording."""
    return _on_upload(given) | {
        404: _error("No model goes by this name.", examples.UNKNOWN_MODELS),
        503: _error(
            "The model cannot be had now, or the server is stopping.", headers=_RETRY | _MAY_RETRY_AFTER
        ),
    }


def _json(given: Examples) -> Operation:
    """The good answer of a route with a response model."""
    return {"headers": _REQUEST_ID, "content": {"application/json": {"examples": _refer(given)}}}


def _events(models: Sequence[str], last: str | None = None) -> Operation:
    """The schema of each event of a stream, before OpenAPI 3.2 has a place of its own for it."""
    data: Operation = {
        **_STRING,
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in models]},
    }
    if last is not None:
        data = {"anyOf": [{**_STRING, "enum": [last]}, data]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _transcript(objects: Examples, texts: Examples, events: Examples) -> Operation:
    """The good answer in every format."""
    schema = {
        "description": "An event: `TextDelta`s, whose `delta`s joined are the text, then a `TextDone` with "
        "all of it. A fault in the middle is an `Error`. Comments fill pauses.",
        **_events(["TextDelta", "TextDone", "Error"]),
    }
    return {
        "model": VerboseTranscript | JsonTranscript | AudioJsonTranscript,
        "description": "The transcript, as `response_format` and `stream` say.",
        "headers": _REQUEST_ID | _PROCESSING,
        "content": {
            "application/json": {"examples": _refer(objects)},
            "text/plain": {"schema": _STRING, "examples": _refer(texts)},
            "text/event-stream": {"schema": schema, "examples": _refer(events)},
        },
    }


def _body(*contents: tuple[str, str, Examples | None]) -> Operation:
    """A request body: (media type, name of its schema, examples)."""
    content = {
        media_type: {
            "schema": {"$ref": f"#/components/schemas/{name}"},
            **({"examples": _refer(given)} if given else {}),
        }
        for media_type, name, given in contents
    }
    return {"requestBody": {"required": True, "content": content}}


def _audio_body(name: str) -> Operation:
    return _body(
        ("multipart/form-data", f"{name}Form", None),
        ("application/json", f"{name}Json", examples.AUDIO_BODIES),
    )


TRANSCRIPTION: Operation = {
    "operation_id": "createTranscription",
    "tags": ["audio"],
    "openapi_extra": _audio_body("Transcription"),
    "responses": _on_model(examples.BAD_TRANSCRIPTIONS)
    | {200: _transcript(examples.TRANSCRIPT_OBJECTS, examples.TRANSCRIPT_TEXTS, examples.TRANSCRIPT_EVENTS)},
}

TRANSLATION: Operation = {
    "operation_id": "createTranslation",
    "tags": ["audio"],
    "openapi_extra": _audio_body("Transcription"),
    "responses": _on_model() | {200: _transcript(examples.TRANSLATION_OBJECTS, {}, {})},
}

LANGUAGES: Operation = {
    "operation_id": "detectLanguage",
    "tags": ["audio"],
    "openapi_extra": _audio_body("Language"),
    "responses": _on_model() | {200: _json(examples.LANGUAGES)},
}

CHAT_COMPLETION: Operation = {
    "operation_id": "createChatCompletion",
    "tags": ["chat"],
    "openapi_extra": _body(("application/json", "ChatCompletionRequest", examples.CHAT_BODIES)),
    "responses": _on_model(examples.BAD_CHATS)
    | {
        200: {
            "model": ChatCompletion,
            "description": "The transcript, as the answer in a chat.",
            "headers": _REQUEST_ID | _PROCESSING,
            "content": {
                "application/json": {"examples": _refer(examples.CHAT_OBJECTS)},
                "text/event-stream": {
                    "schema": {
                        "description": "An event: `ChatCompletionChunk`s, then `[DONE]`. A fault in the "
                        "middle is an `Error`. Comments fill pauses.",
                        **_events(["ChatCompletionChunk", "Error"], last="[DONE]"),
                    }
                },
            },
        }
    },
}

LIST_MODELS: Operation = {
    "operation_id": "listModels",
    "tags": ["models"],
    "responses": _anywhere() | {200: {"headers": _REQUEST_ID}},
}

RETRIEVE_MODEL: Operation = {
    "operation_id": "retrieveModel",
    "tags": ["models"],
    "responses": _anywhere()
    | {
        200: _json(examples.MODEL),
        404: _error("No model goes by this name.", examples.UNKNOWN_MODELS),
    },
}

DELETE_MODEL: Operation = {
    "operation_id": "deleteModel",
    "tags": ["models"],
    "responses": _anywhere()
    | {
        200: _json(examples.DELETED_MODEL),
        404: _error(
            "The model is not loaded, or none goes by this name.",
            examples.UNKNOWN_MODELS | examples.UNLOADED_MODELS,
        ),
    },
}

HEALTH: Operation = {
    "operation_id": "getHealth",
    "tags": ["server"],
    "responses": _anywhere() | {200: _json(examples.HEALTH)},
}

AUDIO_INFO: Operation = {
    "operation_id": "describeAudio",
    "tags": ["server"],
    "openapi_extra": _audio_body("Audio"),
    "responses": _on_upload() | {200: _json(examples.AUDIO_INFO)},
}
