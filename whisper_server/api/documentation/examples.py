"""Answers that the server gives with the demo model.

Where nothing else is said, the recording is the sample `kitchen_en.wav`. A test asks again and compares.
Numbers differ a little from one processor to the next.
"""

from typing import Any

from whisper_server import __version__

Examples = dict[str, dict[str, Any]]
"""OpenAPI's `examples`: name to summary and value."""

TINY_WAV = (
    "UklGRkwAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YSgAAACA"
    "gICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICA"
)
"""Five milliseconds of silence as base64: short enough to be sent from the docs page."""

_TEXT = "Send a message to David on Monday."
_SECONDS = {"type": "duration", "seconds": 3.679}


def _example(summary: str, value: Any) -> dict[str, Any]:
    return {"summary": summary, "value": value}


def _error(message: str, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


AUDIO_BODIES: Examples = {
    "silent_audio": _example("Five milliseconds of silence", {"model": "demo", "audio": TINY_WAV}),
}

CHAT_BODIES: Examples = {
    "silent_chat": _example(
        "Five milliseconds of silence",
        {
            "model": "demo",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": TINY_WAV, "format": "wav"}}],
                }
            ],
        },
    ),
}

TRANSCRIPT_OBJECTS: Examples = {
    "transcript": _example("response_format=json", {"text": _TEXT, "usage": _SECONDS}),
    "verbose_transcript": _example(
        "response_format=verbose_json with words and segments",
        {
            "task": "transcribe",
            "language": "english",
            "duration": 3.679,
            "text": _TEXT,
            "words": [
                {"word": "Send", "start": 0.11, "end": 0.89, "probability": 0.9996864795684814},
                {"word": "a", "start": 0.89, "end": 1.45, "probability": 0.9999969005584717},
                {"word": "message", "start": 1.45, "end": 1.45, "probability": 0.9998995065689087},
                {"word": "to", "start": 1.45, "end": 1.83, "probability": 0.9999918937683105},
                {"word": "David", "start": 1.83, "end": 2.25, "probability": 0.9981997013092041},
                {"word": "on", "start": 2.25, "end": 2.45, "probability": 0.9991331696510315},
                {"word": "Monday.", "start": 2.45, "end": 2.71, "probability": 0.9996032118797302},
            ],
            "segments": [
                {
                    "id": 0,
                    "seek": 0,
                    "start": 0.11,
                    "end": 2.71,
                    "text": f" {_TEXT}",
                    "tokens": [50383, 17908, 257, 3636, 281, 4389, 322, 8138, 13, 50513],
                    "temperature": 0.0,
                    "avg_logprob": -0.04591152749278329,
                    "compression_ratio": 0.8095238095238095,
                    "no_speech_prob": 8.374782396458613e-07,
                }
            ],
            "usage": _SECONDS,
        },
    ),
    "audio_transcript": _example(
        "Five milliseconds of silence as JSON with `audio`",
        {"text": "", "processing_time": 0.006, "model": "demo", "format": "wav"},
    ),
}

TRANSCRIPT_TEXTS: Examples = {
    "text": _example("response_format=text", f"{_TEXT}\n"),
    "srt": _example("response_format=srt", f"1\n00:00:00,110 --> 00:00:03,090\n{_TEXT}\n\n"),
    "vtt": _example("response_format=vtt", f"WEBVTT\n\n00:00:00.110 --> 00:00:03.090\n{_TEXT}\n\n"),
}

TRANSCRIPT_EVENTS: Examples = {
    "delta_event": _example(
        "The first event of stream=true",
        {"data": f'{{"type":"transcript.text.delta","delta":"{_TEXT}"}}'},
    ),
    "done_event": _example(
        "The last event of stream=true",
        {
            "data": f'{{"type":"transcript.text.done","text":"{_TEXT}","usage":{{"type":"tokens",'
            '"input_tokens":184,"output_tokens":8,"total_tokens":192,'
            '"input_token_details":{"text_tokens":0,"audio_tokens":184}}}'
        },
    ),
}

TRANSLATION_OBJECTS: Examples = {
    "translation": _example(
        "`train_de.ogg`",
        {
            "text": "The number is zero, seven, nine. The number is eight, nine, nine. The train to Madrid "
            "leaves in twenty-four minutes.",
            "usage": {"type": "duration", "seconds": 10.29},
        },
    ),
}

CHAT_OBJECTS: Examples = {
    "completion": _example(
        "The recording as the only content part",
        {
            "id": "chatcmpl-9005144201fa4bccbf220443ebd78d02",
            "object": "chat.completion",
            "created": 1795252278,
            "model": "demo",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": _TEXT,
                        "refusal": None,
                        "annotations": [],
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 184,
                "completion_tokens": 8,
                "total_tokens": 192,
                "prompt_tokens_details": {"audio_tokens": 184, "cached_tokens": 0},
            },
        },
    ),
}

LANGUAGES: Examples = {
    "ranking": _example(
        "top_k=2",
        {
            "language": "en",
            "language_name": "english",
            "probability": 0.999996,
            "languages": [
                {"code": "en", "name": "english", "probability": 0.999996},
                {"code": "pt", "name": "portuguese", "probability": 3e-6},
            ],
            "duration": 3.679,
            "usage": _SECONDS,
        },
    ),
}

AUDIO_INFO: Examples = {
    "audio_info": _example(
        "The recording",
        {
            "format": "wav",
            "container": "wav",
            "codec": "pcm_s16le",
            "sample_rate_hz": 16000,
            "channels": 1,
            "bit_rate_bps": 256000,
            "duration_s": 3.679,
            "size_bytes": 117798,
            "peak_dbfs": -3.34,
            "rms_dbfs": -20.52,
        },
    ),
}

MODEL: Examples = {
    "model": _example(
        "The bundled model", {"id": "demo", "object": "model", "created": 0, "owned_by": "whisper-server"}
    ),
}

DELETED_MODEL: Examples = {
    "deleted_model": _example("A model that was loaded", {"id": "demo", "object": "model", "deleted": True}),
}

HEALTH: Examples = {
    "fresh_server": _example(
        "Before the first transcription",
        {
            "status": "ok",
            "version": __version__,
            "default_model": "demo",
            "loaded_models": [],
            "requests_inside": 0,
        },
    ),
}

BAD_TRANSCRIPTIONS: Examples = {
    "bad_field": _example(
        "response_format=yaml",
        _error(
            "'response_format' does not support 'yaml'. Supported values: json, text, verbose_json, srt, "
            "vtt.",
            "response_format",
            "unsupported_value",
        ),
    ),
    "bad_file": _example(
        "A file that is no recording",
        _error(
            "Invalid file format. Supported formats: ['flac', 'm4a', 'mp3', 'mp4', 'mpeg', 'mpga', 'oga', "
            "'ogg', 'wav', 'webm']",
            "file",
            "unsupported_format",
        ),
    ),
}

BAD_CHATS: Examples = {
    "no_audio": _example(
        "A message without audio",
        _error(
            "There is no audio to transcribe. This server answers with transcripts: send a user message with "
            "a content part of type 'input_audio'.",
            "messages",
            "missing_required_parameter",
        ),
    ),
}

UNKNOWN_MODELS: Examples = {
    "unknown_model": _example(
        "model=nobody", _error("The model 'nobody' does not exist.", "model", "model_not_found")
    ),
}

UNLOADED_MODELS: Examples = {
    "not_loaded": _example(
        "A model that is not loaded", _error("The model 'demo' is not loaded.", "model", "model_not_found")
    ),
}

MISSING_KEYS: Examples = {
    "missing_key": _example(
        "No key, where the server has some",
        _error(
            "An API key is missing: send the header 'Authorization: Bearer <key>'.", None, "missing_api_key"
        ),
    ),
}

LARGE_UPLOADS: Examples = {
    "too_large": _example(
        "A file over the limit",
        _error("The file is larger than the maximum of 25 MB.", "file", "file_too_large"),
    ),
}

ALL: Examples = {
    **AUDIO_BODIES,
    **CHAT_BODIES,
    **TRANSCRIPT_OBJECTS,
    **TRANSCRIPT_TEXTS,
    **TRANSCRIPT_EVENTS,
    **TRANSLATION_OBJECTS,
    **CHAT_OBJECTS,
    **LANGUAGES,
    **AUDIO_INFO,
    **MODEL,
    **DELETED_MODEL,
    **HEALTH,
    **BAD_TRANSCRIPTIONS,
    **BAD_CHATS,
    **UNKNOWN_MODELS,
    **UNLOADED_MODELS,
    **MISSING_KEYS,
    **LARGE_UPLOADS,
}
"""Every example by its name; the names differ."""
