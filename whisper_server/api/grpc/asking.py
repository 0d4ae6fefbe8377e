"""From the messages of a client to what the services take."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias, TypeVar

from whisper_server.api.openai.decode_fields import decode_options
from whisper_server.api.openai.fields import Fields, shown
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
    stream_options,
)
from whisper_server.config import Settings
from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.stream_events import Eagerness, Endpointing, StreamOptions
from whisper_server.core.types import SAMPLE_RATE, Task
from whisper_server.services.pcm_input import PcmFormat
from whisper_server.services.raw_audio import RawAudio
from whisper_server.stt_v1 import stt_pb2

_G711_RATE_HZ = 8_000

_MOST_ATTRIBUTES = 32
_LONGEST_KEY, _LONGEST_VALUE = 64, 512

FieldPairs: TypeAlias = list[tuple[str, str]]

_Number = TypeVar("_Number", bound=int)
_Enum = TypeVar("_Enum")

TASKS: "Mapping[stt_pb2.Task.ValueType, Task]" = MappingProxyType(
    {stt_pb2.TASK_TRANSCRIBE: Task.TRANSCRIBE, stt_pb2.TASK_TRANSLATE: Task.TRANSLATE}
)
MODES: "Mapping[stt_pb2.VadMode.ValueType, Endpointing]" = MappingProxyType(
    {
        stt_pb2.VAD_MODE_CONTINUE: Endpointing.CONTINUE,
        stt_pb2.VAD_MODE_AUTO_END: Endpointing.AUTO_END,
        stt_pb2.VAD_MODE_MANUAL: Endpointing.MANUAL,
    }
)
EAGERNESS: "Mapping[stt_pb2.Eagerness.ValueType, Eagerness]" = MappingProxyType(
    {
        stt_pb2.EAGERNESS_LOW: Eagerness.LOW,
        stt_pb2.EAGERNESS_MEDIUM: Eagerness.MEDIUM,
        stt_pb2.EAGERNESS_HIGH: Eagerness.HIGH,
    }
)
ENCODINGS: "Mapping[stt_pb2.AudioEncoding.ValueType, PcmFormat]" = MappingProxyType(
    {
        stt_pb2.AUDIO_ENCODING_LINEAR16: PcmFormat.S16LE,
        stt_pb2.AUDIO_ENCODING_MULAW: PcmFormat.PCMU,
        stt_pb2.AUDIO_ENCODING_ALAW: PcmFormat.PCMA,
    }
)


@dataclass(frozen=True, slots=True)
class RawFormat:
    """How raw audio is written, nothing left open.

    Attributes:
        encoding: of a sample.
        rate_hz: samples per second and channel.
        channels: interleaved.
    """

    encoding: PcmFormat
    rate_hz: int
    channels: int

    @classmethod
    def of(cls, format: stt_pb2.AudioFormat) -> "RawFormat":
        """What a client says, with the defaults for the rest.

        Raises:
            InvalidRequestError: the encoding does not exist.
        """
        encoding = _known(ENCODINGS, format.encoding, "encoding") or PcmFormat.S16LE
        default_hz = SAMPLE_RATE if encoding is PcmFormat.S16LE else _G711_RATE_HZ
        return cls(encoding, format.sample_rate_hz or default_hz, format.channels or 1)

    def converter(self) -> RawAudio:
        """What converts it.

        Raises:
            InvalidRequestError: rate or channels are out of range.
        """
        return RawAudio(self.encoding, self.rate_hz, self.channels)


@dataclass(frozen=True, slots=True)
class SessionWish:
    """A session that a client asks for.

    Attributes:
        session_id: its name.
        attributes: of the client.
        model: as the client or the settings name it.
        decode_profile: likewise.
        options: of the stream.
        audio: how it is written.
    """

    session_id: str
    attributes: Mapping[str, str]
    model: str
    decode_profile: str
    options: StreamOptions
    audio: RawFormat


def session_wish(request: stt_pb2.CreateSessionRequest, settings: Settings) -> SessionWish:
    """Check all that a session is asked for.

    Raises:
        InvalidRequestError: a field is missing, out of range or unknown; it is named in `param`.
    """
    if not request.session_id.strip():
        raise InvalidRequestError("'session_id' is missing.", param="session_id", code="invalid_value")
    _check_length("session_id", request.session_id, MAX_ID_CHARS)
    _check_attributes(request.attributes)
    config, vad = request.config, request.vad
    wishes = StreamWishes(
        language=config.language or None,
        task=_known(TASKS, config.task, "task"),
        prompt=_text("prompt", config.prompt),
        hotwords=_words(config.hotwords),
        decode_profile=config.decode_profile or None,
        endpointing=_known(MODES, vad.mode, "mode"),
        eagerness=_known(EAGERNESS, vad.eagerness, "eagerness"),
        vad_enabled=vad.enabled if vad.HasField("enabled") else None,
        vad_threshold=_number(vad, "vad_threshold", 0, 1),
        min_speech_ms=_whole(vad, "min_speech_ms", 0, MAX_VOICE_MS),
        min_silence_ms=_whole(vad, "vad_silence_ms", 0, MAX_SILENCE_MS),
        prefix_padding_ms=_whole(vad, "prefix_padding_ms", 0, MAX_PADDING_MS),
        max_utterance_s=_number(vad, "max_utterance_s", LEAST_UTTERANCE_S, MOST_UTTERANCE_S),
        partials=request.partials if request.HasField("partials") else None,
        partial_interval_ms=_whole(request, "partial_interval_ms", 1, MAX_INTERVAL_MS),
        word_timestamps=config.word_timestamps if config.HasField("word_timestamps") else None,
    )
    options = stream_options(wishes, settings, language_param="language")
    name = config.decode_profile or settings.model.default_decode_profile
    # With the profile's name among them, its temperature counts as the client's.
    fields = Fields([*_decode_pairs(config.decode_options), ("decode_profile", name)])
    decode = decode_options(fields, settings.decode_profiles[name])
    return SessionWish(
        session_id=request.session_id,
        attributes=dict(request.attributes),
        model=config.model or settings.model.name,
        decode_profile=name,
        options=replace(options, final_decode=decode),
        audio=RawFormat.of(request.audio),
    )


def prompted(options: StreamOptions, prompting: stt_pb2.Prompting) -> StreamOptions:
    """The options with a prompt and words that count before those of the session.

    Raises:
        InvalidRequestError: the text is too long.
    """
    prompt, hotwords = _text("prompt", prompting.prompt), _words(prompting.hotwords)
    return replace(options, prompt=prompt or options.prompt, hotwords=hotwords or options.hotwords)


def recognize_fields(config: stt_pb2.RecognitionConfig) -> Fields:
    """What is asked of the model, as the form fields of `/v1/audio/transcriptions` say it.

    Raises:
        InvalidRequestError: a text is too long.
    """
    given = {
        "model": config.model,
        "language": config.language,
        "decode_profile": config.decode_profile,
        "prompt": _text("prompt", config.prompt) or "",
        "hotwords": _words(config.hotwords) or "",
        "word_timestamps": "true" if not config.HasField("word_timestamps") or config.word_timestamps else "",
    }
    return Fields([*given.items(), *_decode_pairs(config.decode_options)])


def task_of(config: stt_pb2.RecognitionConfig) -> Task | None:
    """What is to be done with speech; None leaves it to the settings.

    Raises:
        InvalidRequestError: there is no such task.
    """
    return _known(TASKS, config.task, "task")


def _decode_pairs(options: stt_pb2.DecodeOptions) -> FieldPairs:
    """The decode options that are set, as form fields: both have one set of rules."""
    pairs: FieldPairs = []
    for descriptor, value in options.ListFields():
        if isinstance(value, bool):
            pairs.append((descriptor.name, str(value).lower()))
        elif isinstance(value, Iterable):
            pairs += [(f"{descriptor.name}[]", _shortest(each)) for each in value]
        else:
            pairs.append((descriptor.name, _shortest(value)))
    return pairs


def _shortest(value: float) -> str:
    """A number of 32 bits as it was meant: 0.2, not 0.20000000298023224."""
    return str(value) if isinstance(value, int) else f"{value:.7g}"


def _number(message: stt_pb2.VadConfig, name: str, low: float, high: float) -> float | None:
    if not message.HasField(name):  # type: ignore[arg-type]  # the stubs list the names
        return None
    value: float = round(getattr(message, name), 6)
    _check_range(name, value, low, high)
    return value


def _whole(
    message: stt_pb2.VadConfig | stt_pb2.CreateSessionRequest, name: str, low: int, high: int
) -> int | None:
    if not message.HasField(name):  # type: ignore[arg-type]  # the stubs list the names
        return None
    value: int = getattr(message, name)
    _check_range(name, value, low, high)
    return value


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # not a number is in no range
        raise InvalidRequestError(
            f"'{name}' must be between {low:g} and {high:g}.", param=name, code="invalid_value"
        )


def _known(names: Mapping[_Number, _Enum], number: _Number, param: str) -> _Enum | None:
    """What an enum stands for; None where it is not set."""
    if number and number not in names:
        raise InvalidRequestError(
            f"'{param}' knows no value {number}.", param=param, code="unsupported_value"
        )
    return names.get(number)


def _text(name: str, text: str) -> str | None:
    _check_length(name, text, MAX_TEXT_CHARS)
    return text.strip() or None


def _words(words: Sequence[str]) -> str | None:
    """Words as one text; None where there are none."""
    text = ", ".join(word.strip() for word in words if word.strip())
    return _text("hotwords", text)


def _check_length(name: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise InvalidRequestError(
            f"'{name}' may have {longest} characters.", param=name, code="invalid_value"
        )


def _check_attributes(attributes: Mapping[str, str]) -> None:
    if len(attributes) > _MOST_ATTRIBUTES:
        raise InvalidRequestError(
            f"A session may have {_MOST_ATTRIBUTES} attributes.", param="attributes", code="invalid_value"
        )
    for key, value in attributes.items():
        if not 0 < len(key) <= _LONGEST_KEY or len(value) > _LONGEST_VALUE:
            raise InvalidRequestError(
                f"The attribute '{shown(key)}' is too long or has no name: names have up to {_LONGEST_KEY} "
                f"characters, values up to {_LONGEST_VALUE}.",
                param="attributes",
                code="invalid_value",
            )
