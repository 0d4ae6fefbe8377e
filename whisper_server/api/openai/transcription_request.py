"""The fields of a transcription request, OpenAI's and this server's own, to `TranscriptionRequest`.

The fields beyond OpenAI's have the names of `faster_whisper.WhisperModel.transcribe`'s arguments; the docs
list them. Unknown fields are ignored, as OpenAI does. Known ones that are not offered are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

from whisper_server.api.openai.decode_fields import MAX_SILENCE_MS, decode_options, vad_options
from whisper_server.api.openai.fields import Fields, shown
from whisper_server.config import DecodeProfile, Settings, TranscriptionSettings
from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.formats import SubtitleOptions
from whisper_server.core.languages import LANGUAGES, language_code
from whisper_server.core.longform import LongFormOptions
from whisper_server.core.types import MAX_WINDOW_S, AudioContext, DecodeOptions, Task, Timestamps
from whisper_server.core.voice_activity import VadOptions
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.transcription import LongForm, TranscriptionRequest

_MAX_CLIP_TIMES = 1000
_MAX_CLIP_S = 10_000_000
"""Beyond any recording, and still a number of frames."""
_MAX_BATCH = 64

_NOT_OFFERED = ("known_speaker_names", "known_speaker_references")
_MAX_SUBTITLE = 1000


class ResponseFormat(StrEnum):
    """How the transcript is written down."""

    JSON = "json"
    TEXT = "text"
    VERBOSE_JSON = "verbose_json"
    SRT = "srt"
    VTT = "vtt"

    @property
    def is_subtitles(self) -> bool:
        """Whether it is a subtitle file."""
        return self in (ResponseFormat.SRT, ResponseFormat.VTT)


class Granularity(StrEnum):
    """What a verbose answer times."""

    WORD = "word"
    SEGMENT = "segment"


class _Include(StrEnum):
    LOGPROBS = "logprobs"


class _Chunking(StrEnum):
    AUTO = "auto"


class _ChunkingType(StrEnum):
    SERVER_VAD = "server_vad"


class _LongForm(StrEnum):
    SEQUENTIAL = "sequential"
    BATCHED = "batched"


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request, and how to answer it.

    Attributes:
        transcription: what to transcribe and how.
        response_format: how to write it down.
        granularities: what a verbose answer lists.
        has_logprobs: list the log-probability of each token.
        is_stream: answer with events while the transcript grows.
        subtitles: how subtitles are broken into lines.
        normalize: bring the recording to full level first.
        trim_silence: leave out the silence at its ends first.
    """

    transcription: TranscriptionRequest
    response_format: ResponseFormat
    granularities: frozenset[Granularity]
    has_logprobs: bool
    is_stream: bool
    subtitles: SubtitleOptions
    normalize: bool
    trim_silence: bool


@dataclass(frozen=True, slots=True)
class RequestDefaults:
    """What counts where the request does not say, from the settings."""

    transcription: TranscriptionSettings
    profiles: Mapping[str, DecodeProfile]
    language: str | None
    prompt: str = ""
    hotwords: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of the settings."""
        model = settings.model
        return cls(
            settings.transcription,
            settings.decode_profiles,
            model.language,
            prompt=model.prompt,
            hotwords=", ".join(model.hotwords),
        )


def parse_request(
    fields: Fields, model: ModelReference, task: Task, defaults: RequestDefaults
) -> ParsedRequest:
    """Check all fields of a request.

    Raises:
        InvalidRequestError: a field is malformed, out of range, or not offered; it is named in `param`.
    """
    _refuse_not_offered(fields)
    response_format = fields.choice("response_format", ResponseFormat) or ResponseFormat.JSON
    is_stream = _is_stream(fields, response_format)
    has_logprobs = _has_logprobs(fields, response_format)
    subtitles = _subtitles(fields, response_format)
    granularities = frozenset(fields.choices("timestamp_granularities", Granularity))
    if granularities and response_format is not ResponseFormat.VERBOSE_JSON:
        raise InvalidRequestError(
            "'timestamp_granularities' needs response_format 'verbose_json'.",
            param="timestamp_granularities",
            code="unsupported_value",
        )
    profile = _profile(fields, defaults)
    decode = decode_options(fields, profile)
    if not decode.hotwords:
        decode = replace(decode, hotwords=defaults.hotwords)
    needs_words = subtitles != SubtitleOptions() or Granularity.WORD in granularities
    options = replace(
        _long_form_options(fields, task, decode, defaults, needs_words=needs_words),
        token_logprobs=has_logprobs,
    )
    vad, long_form = _chunking(fields, defaults)
    only_text = response_format in (ResponseFormat.JSON, ResponseFormat.TEXT)
    candidates = _candidate_languages(fields)
    if len(candidates) == 1:
        options = replace(options, language=candidates[0])
    return ParsedRequest(
        transcription=TranscriptionRequest(
            model=model,
            options=options,
            candidate_languages=candidates,
            long_form=long_form,
            batch_size=fields.integer("batch_size", 1, _MAX_BATCH) or defaults.transcription.batch_size,
            vad=vad,
            timestamps_are_optional=only_text and profile is not None and bool(profile.without_timestamps),
            language_detection_segments=fields.integer("language_detection_segments", 1, 100) or 1,
            language_detection_threshold=_or(fields.number("language_detection_threshold", 0, 1), 0.5),
        ),
        response_format=response_format,
        granularities=granularities or frozenset([Granularity.SEGMENT]),
        has_logprobs=has_logprobs,
        is_stream=is_stream,
        subtitles=subtitles,
        normalize=fields.flag("normalize") or False,
        trim_silence=fields.flag("trim_silence") or False,
    )


def _refuse_not_offered(fields: Fields) -> None:
    for name in _NOT_OFFERED:
        if fields.is_given(name):
            raise InvalidRequestError(
                f"'{name}' is not offered by this server.", param=name, code="unsupported_parameter"
            )


def _is_stream(fields: Fields, response_format: ResponseFormat) -> bool:
    is_stream = fields.flag("stream") or False
    if is_stream and response_format not in (ResponseFormat.JSON, ResponseFormat.TEXT):
        raise InvalidRequestError(
            f"'stream' needs response_format 'json' or 'text', not '{response_format.value}'.",
            param="stream",
            code="unsupported_value",
        )
    return is_stream


def _has_logprobs(fields: Fields, response_format: ResponseFormat) -> bool:
    if not fields.choices("include", _Include):
        return False
    if response_format is not ResponseFormat.JSON:
        raise InvalidRequestError(
            "'include' with 'logprobs' needs response_format 'json'.",
            param="include",
            code="unsupported_value",
        )
    return True


def _subtitles(fields: Fields, response_format: ResponseFormat) -> SubtitleOptions:
    options = SubtitleOptions(
        max_line_width=fields.integer("max_line_width", 1, _MAX_SUBTITLE),
        max_line_count=fields.integer("max_line_count", 1, _MAX_SUBTITLE),
        max_words_per_line=fields.integer("max_words_per_line", 1, _MAX_SUBTITLE),
    )
    if options != SubtitleOptions() and not response_format.is_subtitles:
        name = next(n for n in ("max_line_width", "max_line_count", "max_words_per_line") if fields.text(n))
        raise InvalidRequestError(
            f"'{name}' needs response_format 'srt' or 'vtt'.", param=name, code="unsupported_value"
        )
    return options


def _chunking(fields: Fields, defaults: RequestDefaults) -> tuple[VadOptions | None, LongForm]:
    """The voice filter, and how the recording is cut: by `long_form`, or by OpenAI's `chunking_strategy`.

    `auto` and `server_vad` cut at silences; the latter with its own threshold and times.
    """
    vad = _vad(fields, defaults)
    long_form: LongForm = defaults.transcription.long_form
    if chosen := fields.choice("long_form", _LongForm):
        long_form = "batched" if chosen is _LongForm.BATCHED else "sequential"
    if not fields.is_given("chunking_strategy"):
        return vad, long_form
    bare = fields.text("chunking_strategy")
    if bare is not None and not bare.startswith("{"):
        fields.choice("chunking_strategy", _Chunking)
        return vad or VadOptions(), "batched"
    group = fields.group("chunking_strategy")
    if group is None or group.choice("type", _ChunkingType) is None:
        raise fields.invalid("chunking_strategy", "must be 'auto' or an object with type 'server_vad'")
    given: dict[str, Any] = {
        "threshold": group.number("threshold", 0, 1),
        "speech_pad_ms": group.integer("prefix_padding_ms", 0, MAX_SILENCE_MS),
        "min_silence_duration_ms": group.integer("silence_duration_ms", 0, MAX_SILENCE_MS),
    }
    return replace(
        _SERVER_VAD, **{name: value for name, value in given.items() if value is not None}
    ), "batched"


_SERVER_VAD = VadOptions(threshold=0.5, speech_pad_ms=300, min_silence_duration_ms=200)
"""OpenAI's defaults."""


def _profile(fields: Fields, defaults: RequestDefaults) -> DecodeProfile | None:
    name = fields.text("decode_profile") or defaults.transcription.decode_profile
    if not name:
        return None
    if name not in defaults.profiles:
        raise fields.unsupported("decode_profile", name, sorted(defaults.profiles))
    return defaults.profiles[name]


def _long_form_options(
    fields: Fields,
    task: Task,
    decode: DecodeOptions,
    defaults: RequestDefaults,
    *,
    needs_words: bool,
) -> LongFormOptions:
    settings = defaults.transcription
    threshold_s = settings.hallucination_silence_threshold_s
    name = "hallucination_silence_threshold"
    if fields.text(name) is not None:
        threshold_s = None if fields.is_none(name) else fields.number(name, 0.01, MAX_WINDOW_S)
    condition = fields.flag("condition_on_previous_text")
    return LongFormOptions(
        language=_language(fields, defaults),
        multilingual=fields.flag("multilingual") or False,
        task=task,
        prompt=fields.text("prompt") or defaults.prompt,
        prefix=fields.text("prefix") or "",
        timestamps=_timestamps(fields, needs_words=needs_words or threshold_s is not None),
        audio_context=fields.choice("audio_context", AudioContext) or AudioContext(settings.audio_context),
        decode=decode,
        window_s=fields.integer("chunk_length", 1, MAX_WINDOW_S) or MAX_WINDOW_S,
        condition_on_previous_text=settings.condition_on_previous_text if condition is None else condition,
        prompt_reset_on_temperature=_or(fields.number("prompt_reset_on_temperature", 0, 5), 0.5),
        clips_s=_clips(fields),
        hallucination_silence_threshold_s=threshold_s,
    )


def _language(fields: Fields, defaults: RequestDefaults) -> str | None:
    text = fields.text("language")
    if text is None:
        return defaults.language
    if text.lower() == "auto":
        return None
    return _known_language(text, "language")


def _candidate_languages(fields: Fields) -> tuple[str, ...]:
    """OpenAI's `languages[]`: the recording is in one of these."""
    given = fields.texts("languages")
    if given and fields.text("language"):
        raise InvalidRequestError(
            "Send 'language' or 'languages', not both.", param="languages", code="invalid_value"
        )
    return tuple(dict.fromkeys(_known_language(text, "languages") for text in given))


def _known_language(text: str, param: str) -> str:
    code = language_code(text)
    if code is None:
        raise InvalidRequestError(
            f"'{param}' does not know '{shown(text)}'. Use an ISO 639-1 code such as 'en', one of: "
            f"{', '.join(sorted(LANGUAGES))}.",
            param=param,
            code="unsupported_language",
        )
    return code


def _timestamps(fields: Fields, *, needs_words: bool) -> Timestamps:
    has_tokens = not fields.flag("without_timestamps")
    if fields.flag("word_timestamps") or needs_words:
        return Timestamps.WORD if has_tokens else Timestamps.WORD_ONLY
    return Timestamps.SEGMENT if has_tokens else Timestamps.NONE


def _clips(fields: Fields) -> tuple[tuple[float, float | None], ...]:
    """`clip_timestamps`: start, end, start, end, … in seconds; the last end may be missing."""
    times = fields.numbers("clip_timestamps", 0, _MAX_CLIP_S, max_count=_MAX_CLIP_TIMES)
    if not times or times == (0.0,):
        return LongFormOptions().clips_s
    if list(times) != sorted(times):
        raise fields.invalid("clip_timestamps", "must be in ascending order")
    ends: list[float | None] = [*times[1::2]]
    if len(times) % 2:
        ends.append(None)
    return tuple(zip(times[::2], ends, strict=True))


def _vad(fields: Fields, defaults: RequestDefaults) -> VadOptions | None:
    wanted = fields.flag("vad_filter")
    options = vad_options(fields)
    return options if (defaults.transcription.vad_filter if wanted is None else wanted) else None


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
