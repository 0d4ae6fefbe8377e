"""What a request with a live body asks for: its query, and what its headers say of the audio."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from whisper_server.api.openai.fields import Fields
from whisper_server.api.streams.options import (
    LEAST_UTTERANCE_S,
    MAX_ID_CHARS,
    MAX_INTERVAL_MS,
    MAX_PADDING_MS,
    MAX_SILENCE_MS,
    MAX_TEXT_CHARS,
    MAX_VOICE_MS,
    MOST_UTTERANCE_S,
    StreamWishes,
)
from whisper_server.core.errors import EmptyAudioError, InvalidRequestError
from whisper_server.core.stream_events import Eagerness, Endpointing
from whisper_server.core.types import SAMPLE_RATE, Task
from whisper_server.services.audio_decoding import SUPPORTED_FORMATS
from whisper_server.services.pcm_input import PcmFormat
from whisper_server.services.raw_audio import MAX_CHANNELS, RawAudio

_G711_RATE_HZ = 8_000
_LEAST_RATE_HZ, _MOST_RATE_HZ = 4_000, 192_000


class StreamFormat(StrEnum):
    """How events are framed: server-sent events, or one JSON object on each line."""

    SSE = "sse"
    NDJSON = "ndjson"


class ByteOrder(StrEnum):
    """Of 16-bit samples, by the name that `audio/l16` has for it."""

    LITTLE = "little-endian"
    BIG = "big-endian"


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """What is asked for.

    Attributes:
        wishes: of the stream.
        session_id: the client's name for it.
        audio: what converts the body; None where it is a container.
        stream_format: of the answer.
    """

    wishes: StreamWishes
    session_id: str | None
    audio: RawAudio | None
    stream_format: StreamFormat


@dataclass(frozen=True, slots=True)
class _Encoding:
    format: PcmFormat
    is_big_endian: bool = False


_S16LE = _Encoding(PcmFormat.S16LE)
_S16BE = _Encoding(PcmFormat.S16LE, is_big_endian=True)
_PCMU = _Encoding(PcmFormat.PCMU)
_PCMA = _Encoding(PcmFormat.PCMA)

_MEDIA_TYPES: Mapping[bytes, _Encoding] = MappingProxyType(
    {
        b"audio/pcm": _S16LE,
        b"audio/x-raw": _S16LE,
        b"audio/l16": _S16BE,  # network byte order: RFC 2586
        b"audio/pcmu": _PCMU,
        b"audio/basic": _PCMU,
        b"audio/x-mulaw": _PCMU,
        b"audio/pcma": _PCMA,
        b"audio/x-alaw": _PCMA,
    }
)

_FORMATS: Mapping[str, _Encoding | None] = MappingProxyType(
    {
        "auto": None,
        **dict.fromkeys(SUPPORTED_FORMATS),
        "aac": None,
        "opus": None,
        **dict.fromkeys(("s16le", "pcm", "pcm16", "linear16"), _S16LE),
        "s16be": _S16BE,
        **dict.fromkeys(("pcmu", "mulaw", "ulaw", "g711_ulaw"), _PCMU),
        **dict.fromkeys(("pcma", "alaw", "g711_alaw"), _PCMA),
    }
)
"""Names of formats, the containers among them: these are told apart by their content whatever is said."""

_NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_NO_AUDIO_TYPES = (b"multipart/form-data", b"application/json")


def parse_live_request(request: Request) -> LiveRequest:
    """Read everything but the body.

    Raises:
        InvalidRequestError: a parameter is malformed or out of range, or the body is no audio.
        EmptyAudioError: there will be no body.
    """
    fields = Fields(request.query_params.multi_items())
    media_type, parameters = parse_options_header(request.headers.get("content-type", ""))
    if media_type in _NO_AUDIO_TYPES:
        raise InvalidRequestError(
            f"The body must be the audio itself, not {media_type.decode('latin-1')}. Forms and JSON are for "
            "/v1/audio/transcriptions.",
            code="unsupported_content_type",
        )
    if request.headers.get("content-length") == "0":
        raise EmptyAudioError("The body is empty. Send audio.", code="empty_audio")
    return LiveRequest(
        wishes=_wishes(fields),
        session_id=_text(fields, "session_id", MAX_ID_CHARS),
        audio=_audio(fields, media_type.lower(), _decoded(parameters)),
        stream_format=_stream_format(fields, request),
    )


def _wishes(fields: Fields) -> StreamWishes:
    keywords = [*fields.texts("keywords"), _text(fields, "hotwords", MAX_TEXT_CHARS) or ""]
    words = fields.flag("words")
    return StreamWishes(
        language=_text(fields, "language", MAX_ID_CHARS),
        model=fields.text("model"),
        task=fields.choice("task", Task),
        prompt=_text(fields, "prompt", MAX_TEXT_CHARS),
        hotwords=", ".join(filter(None, keywords)) or None,
        decode_profile=fields.text("decode_profile"),
        endpointing=fields.choice("endpointing", Endpointing),
        eagerness=fields.choice("eagerness", Eagerness),
        vad_enabled=fields.flag("vad_enabled"),
        vad_threshold=fields.number("vad_threshold", 0, 1),
        min_speech_ms=fields.integer("min_speech_ms", 0, MAX_VOICE_MS),
        min_silence_ms=fields.integer("min_silence_ms", 0, MAX_SILENCE_MS),
        prefix_padding_ms=fields.integer("prefix_padding_ms", 0, MAX_PADDING_MS),
        partials=fields.flag("partials"),
        partial_interval_ms=fields.integer("partial_interval_ms", 1, MAX_INTERVAL_MS),
        word_timestamps=fields.flag("word_timestamps") if words is None else words,
        max_utterance_s=fields.number("max_utterance_s", LEAST_UTTERANCE_S, MOST_UTTERANCE_S),
    )


def _audio(fields: Fields, media_type: bytes, parameters: Fields) -> RawAudio | None:
    """What converts samples without a container; the query counts before the content type."""
    encoding = _MEDIA_TYPES.get(media_type)
    if (name := parameters.text("format")) is not None:
        encoding = _named(parameters, name)
    if (order := parameters.choice("endianness", ByteOrder)) is not None and encoding in (_S16LE, _S16BE):
        encoding = _S16BE if order is ByteOrder.BIG else _S16LE
    if (name := fields.text("format")) is not None:
        encoding = _named(fields, name)
    if encoding is None:
        return None
    rate_hz = (
        _rate_hz(fields, "sample_rate")
        or _rate_hz(parameters, "rate")
        or _rate_hz(parameters, "samplerate")
        or (SAMPLE_RATE if encoding.format is PcmFormat.S16LE else _G711_RATE_HZ)
    )
    channels = (
        fields.integer("channels", 1, MAX_CHANNELS) or parameters.integer("channels", 1, MAX_CHANNELS) or 1
    )
    return RawAudio(encoding.format, rate_hz, channels, is_big_endian=encoding.is_big_endian)


def _named(fields: Fields, name: str) -> _Encoding | None:
    if name.lower() not in _FORMATS:
        raise fields.unsupported("format", name, list(_FORMATS))
    return _FORMATS[name.lower()]


def _rate_hz(fields: Fields, name: str) -> int | None:
    return fields.integer(name, _LEAST_RATE_HZ, _MOST_RATE_HZ)


def _stream_format(fields: Fields, request: Request) -> StreamFormat:
    wanted = fields.choice("stream_format", StreamFormat)
    if wanted is not None:
        return wanted
    accepted = request.headers.get("accept", "").lower()
    return StreamFormat.NDJSON if any(name in accepted for name in _NDJSON_TYPES) else StreamFormat.SSE


def _text(fields: Fields, name: str, most_chars: int) -> str | None:
    value = fields.text(name)
    if value is not None and len(value) > most_chars:
        raise fields.invalid(name, f"must have at most {most_chars} characters")
    return value


def _decoded(parameters: Mapping[bytes, bytes]) -> Fields:
    return Fields((k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in parameters.items())
