"""What the decorators of the routes for realtime client secrets are told; see `operations`."""

from typing import Any

from whisper_server.api.documentation.bodies import Error
from whisper_server.api.documentation.operations import LIST_MODELS, Operation

_REQUEST_ID = LIST_MODELS["responses"][200]["headers"]
_OBJECT = {"type": "object"}

_EXPIRY = {
    "type": "object",
    "properties": {
        "anchor": {"type": "string", "enum": ["created_at"]},
        "seconds": {"type": "integer", "minimum": 10, "maximum": 7200, "default": 600},
    },
}
_FLAT = {
    "include": {"type": "array", "items": {"type": "string"}},
    "input_audio_format": {"type": "string", "enum": ["pcm16", "g711_ulaw", "g711_alaw"]},
    "input_audio_transcription": _OBJECT,
    "input_audio_noise_reduction": _OBJECT,
    "turn_detection": _OBJECT,
}

_RETRY_LATER: dict[int | str, Any] = {
    429: {
        "model": Error,
        "description": "There are too many client secrets already.",
        "headers": _REQUEST_ID,
    }
}


def _body(properties: dict[str, Any]) -> Operation:
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_RESPONSES: dict[int | str, Any] = {
    **LIST_MODELS["responses"],
    404: {"model": Error, "description": "No model goes by this name.", "headers": _REQUEST_ID},
    413: {"model": Error, "description": "The body is too large.", "headers": _REQUEST_ID},
    **_RETRY_LATER,
}

CLIENT_SECRET: Operation = {
    "operation_id": "createRealtimeClientSecret",
    "tags": ["realtime"],
    "openapi_extra": _body({"expires_after": _EXPIRY, "session": _OBJECT}),
    "responses": _RESPONSES,
}

TRANSCRIPTION_SESSION: Operation = {
    "operation_id": "createRealtimeTranscriptionSession",
    "tags": ["realtime"],
    "openapi_extra": _body(
        {**_FLAT, "client_secret": {"type": "object", "properties": {"expires_at": _EXPIRY}}}
    ),
    "responses": _RESPONSES,
}
