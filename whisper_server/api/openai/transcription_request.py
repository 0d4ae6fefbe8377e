"""The fields of a transcription request, OpenAI's and this server's own, to `TranscriptionRequest`.

The fields beyond OpenAI's have the names of `faster_whisper.WhisperModel.transcribe`'s arguments; the docs
list them. Unknown fields are ignored, as OpenAI does. Known ones that are not offered are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from whisper_server.api.openai.fields import Fields
from whisper_server.config import DecodeProfile, TranscriptionSettings
from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.languages import LANGUAGES, language_code
from whisper_server.core.longform import LongFormOptions
from whisper_server.core.types import MAX_WINDOW_S, DecodeOptions, Task, Timestamps
from whisper_server.core.voice_activity import VadOptions
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.transcription import LongForm, TranscriptionRequest

_MAX_TEMPERATURES = 10
_MAX_CLIP_TIMES = 1000
_MAX_SUPPRESSED = 1000
_MAX_WINDOW_TOKENS = 448
_MAX_BEAMS = 100
_MAX_BATCH = 64

_NOT_OFFERED = ("chunking_strategy", "include", "known_speaker_names", "known_speaker_references")


class ResponseFormat(StrEnum):
    """How the transcript is written down."""

    JSON = "json"
    TEXT = "text"
    VERBOSE_JSON = "verbose_json"


class Granularity(StrEnum):
    """What a verbose answer times."""

    WORD = "word"
    SEGMENT = "segment"


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
        normalize: bring the recording to full level first.
        trim_silence: leave out the silence at its ends first.
    """

    transcription: TranscriptionRequest
    response_format: ResponseFormat
    granularities: frozenset[Granularity]
    normalize: bool
    trim_silence: bool


@dataclass(frozen=True, slots=True)
class RequestDefaults:
    """What counts where the request does not say, from the settings."""

    transcription: TranscriptionSettings
    profiles: Mapping[str, DecodeProfile]
    language: str | None


def parse_request(
    fields: Fields, model: ModelReference, task: Task, defaults: RequestDefaults
) -> ParsedRequest:
    """Check all fields of a request.

    Raises:
        InvalidRequestError: a field is malformed, out of range, or not offered; it is named in `param`.
    """
    _refuse_not_offered(fields)
    response_format = fields.choice("response_format", ResponseFormat) or ResponseFormat.JSON
    granularities = frozenset(fields.choices("timestamp_granularities", Granularity))
    if granularities and response_format is not ResponseFormat.VERBOSE_JSON:
        raise InvalidRequestError(
            "'timestamp_granularities' needs response_format 'verbose_json'.",
            param="timestamp_granularities",
            code="unsupported_value",
        )
    profile = _profile(fields, defaults)
    long_form: LongForm = defaults.transcription.long_form
    if chosen := fields.choice("long_form", _LongForm):
        long_form = "batched" if chosen is _LongForm.BATCHED else "sequential"
    options = _long_form_options(fields, task, granularities, _decode_options(fields, profile), defaults)
    only_text = response_format is not ResponseFormat.VERBOSE_JSON
    return ParsedRequest(
        transcription=TranscriptionRequest(
            model=model,
            options=options,
            long_form=long_form,
            batch_size=fields.integer("batch_size", 1, _MAX_BATCH) or defaults.transcription.batch_size,
            vad=_vad(fields, defaults),
            timestamps_are_optional=only_text and profile is not None and bool(profile.without_timestamps),
            language_detection_segments=fields.integer("language_detection_segments", 1, 100) or 1,
            language_detection_threshold=_or(fields.number("language_detection_threshold", 0, 1), 0.5),
        ),
        response_format=response_format,
        granularities=granularities or frozenset([Granularity.SEGMENT]),
        normalize=fields.flag("normalize") or False,
        trim_silence=fields.flag("trim_silence") or False,
    )


def _refuse_not_offered(fields: Fields) -> None:
    if fields.flag("stream"):
        raise InvalidRequestError(
            "Streaming is not offered: leave 'stream' out.", param="stream", code="unsupported_value"
        )
    for name in _NOT_OFFERED:
        if fields.is_given(name):
            raise InvalidRequestError(
                f"'{name}' is not offered by this server.", param=name, code="unsupported_parameter"
            )


def _profile(fields: Fields, defaults: RequestDefaults) -> DecodeProfile | None:
    name = fields.text("decode_profile") or defaults.transcription.decode_profile
    if not name:
        return None
    if name not in defaults.profiles:
        raise fields.unsupported("decode_profile", name, sorted(defaults.profiles))
    return defaults.profiles[name]


def _decode_options(fields: Fields, profile: DecodeProfile | None) -> DecodeOptions:
    options = DecodeOptions() if profile is None else profile.apply(DecodeOptions())
    if profile is not None and not fields.is_given("decode_profile") and options.temperatures == (0.0,):
        # The operator's default profile; temperature 0 of a file request means the ladder.
        options = replace(options, temperatures=DecodeOptions().temperatures)
    given: dict[str, Any] = {
        "beam_size": fields.integer("beam_size", 1, _MAX_BEAMS),
        "best_of": fields.integer("best_of", 1, _MAX_BEAMS),
        "patience": fields.number("patience", 0.01, 10),
        "length_penalty": fields.number("length_penalty", -10, 10),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 10),
        "no_repeat_ngram_size": fields.integer("no_repeat_ngram_size", 0, _MAX_WINDOW_TOKENS),
        "temperatures": _temperatures(fields),
        "suppress_blank": fields.flag("suppress_blank"),
        "max_initial_timestamp_s": fields.number("max_initial_timestamp", 0, MAX_WINDOW_S),
        "hotwords": fields.text("hotwords"),
        "prepend_punctuations": fields.text("prepend_punctuations"),
        "append_punctuations": fields.text("append_punctuations"),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    for name, (least, most) in _THRESHOLDS.items():
        if fields.is_given(name):
            changes[name] = None if fields.is_none(name) else fields.number(name, least, most)
    if fields.is_given("max_new_tokens"):
        is_none = fields.is_none("max_new_tokens")
        changes["max_new_tokens"] = (
            None if is_none else fields.integer("max_new_tokens", 1, _MAX_WINDOW_TOKENS)
        )
    if fields.is_given("suppress_tokens"):
        tokens = fields.numbers("suppress_tokens", -1, 1 << 20, max_count=_MAX_SUPPRESSED)
        changes["suppress_tokens"] = tuple(int(token) for token in tokens)
    return replace(options, **changes)


_THRESHOLDS = {
    "compression_ratio_threshold": (0, 1000),
    "log_prob_threshold": (-1000, 0),
    "no_speech_threshold": (0, 1),
}


def _temperatures(fields: Fields) -> tuple[float, ...] | None:
    """OpenAI's `temperature`, where 0 is the whole ladder, or the ladder itself in `temperatures[]`."""
    ladder = fields.numbers("temperatures", 0, 5, max_count=_MAX_TEMPERATURES)
    temperature = fields.number("temperature", 0, 1)
    if ladder:
        return ladder
    return (temperature,) if temperature else None


def _long_form_options(
    fields: Fields,
    task: Task,
    granularities: frozenset[Granularity],
    decode: DecodeOptions,
    defaults: RequestDefaults,
) -> LongFormOptions:
    settings = defaults.transcription
    threshold_s = settings.hallucination_silence_threshold_s
    if fields.is_given("hallucination_silence_threshold"):
        name = "hallucination_silence_threshold"
        threshold_s = None if fields.is_none(name) else fields.number(name, 0.01, MAX_WINDOW_S)
    condition = fields.flag("condition_on_previous_text")
    return LongFormOptions(
        language=_language(fields, defaults),
        multilingual=fields.flag("multilingual") or False,
        task=task,
        prompt=fields.text("prompt") or "",
        prefix=fields.text("prefix") or "",
        timestamps=_timestamps(fields, granularities, needs_words=threshold_s is not None),
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
    code = language_code(text)
    if code is None:
        raise InvalidRequestError(
            f"'language' does not know '{text[:100]}'. Use an ISO 639-1 code such as 'en', one of: "
            f"{', '.join(sorted(LANGUAGES))}.",
            param="language",
            code="unsupported_language",
        )
    return code


def _timestamps(fields: Fields, granularities: frozenset[Granularity], *, needs_words: bool) -> Timestamps:
    has_tokens = not fields.flag("without_timestamps")
    if Granularity.WORD in granularities or fields.flag("word_timestamps") or needs_words:
        return Timestamps.WORD if has_tokens else Timestamps.WORD_ONLY
    return Timestamps.SEGMENT if has_tokens else Timestamps.NONE


def _clips(fields: Fields) -> tuple[tuple[float, float | None], ...]:
    """`clip_timestamps`: start, end, start, end, … in seconds; the last end may be missing."""
    times = fields.numbers("clip_timestamps", 0, max_count=_MAX_CLIP_TIMES)
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
    if not (defaults.transcription.vad_filter if wanted is None else wanted):
        return None
    group = fields.group("vad_parameters")
    if group is None:
        return VadOptions()
    unknown = group.keys() - set(_VAD_READERS)
    if unknown:
        raise fields.unsupported("vad_parameters", min(unknown), sorted(_VAD_READERS))
    given = {name: read(group, name) for name, read in _VAD_READERS.items()}
    return replace(VadOptions(), **{name: value for name, value in given.items() if value is not None})


def _milliseconds(fields: Fields, name: str) -> int | None:
    return fields.integer(name, 0, 600_000)


def _probability(fields: Fields, name: str) -> float | None:
    return fields.number(name, 0, 1)


def _seconds(fields: Fields, name: str) -> float | None:
    return fields.number(name, 1, 86_400)


_VAD_READERS: dict[str, Any] = {
    "threshold": _probability,
    "neg_threshold": _probability,
    "min_speech_duration_ms": _milliseconds,
    "max_speech_duration_s": _seconds,
    "min_silence_duration_ms": _milliseconds,
    "speech_pad_ms": _milliseconds,
}


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
