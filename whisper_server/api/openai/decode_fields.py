"""The fields of a request that say how windows are decoded and what counts as speech.

Their names are those of `faster_whisper.WhisperModel.transcribe`'s arguments.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from whisper_server.api.openai.fields import Fields
from whisper_server.config import DecodeProfile
from whisper_server.core.types import MAX_WINDOW_S, DecodeOptions
from whisper_server.core.voice_activity import VadOptions

_MAX_TEMPERATURES = 10
_MAX_SUPPRESSED = 1000

_MAX_TOKEN_ID = 51_863
"""The last token that every Whisper has: CTranslate2 writes outside its memory for one the model lacks."""

_MAX_WINDOW_TOKENS = 448
_MAX_BEAMS = 100
MAX_SILENCE_MS = 600_000
"""The longest time of a voice filter, ms."""


def decode_options(fields: Fields, profile: DecodeProfile | None) -> DecodeOptions:
    """The decode options: faster-whisper's defaults, changed by the profile, changed by the fields.

    Raises:
        InvalidRequestError: a field is malformed or out of range.
    """
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
        "hotwords": _hotwords(fields),
        "prepend_punctuations": fields.text("prepend_punctuations"),
        "append_punctuations": fields.text("append_punctuations"),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    for name, (least, most) in _THRESHOLDS.items():
        if fields.text(name) is not None:
            changes[name] = None if fields.is_none(name) else fields.number(name, least, most)
    if fields.is_none("max_new_tokens"):
        changes["max_new_tokens"] = None
    elif limit := fields.integer("max_new_tokens", 1, _MAX_WINDOW_TOKENS):
        changes["max_new_tokens"] = limit
    if tokens := fields.integers("suppress_tokens", -1, _MAX_TOKEN_ID, max_count=_MAX_SUPPRESSED):
        changes["suppress_tokens"] = tokens
    options = replace(options, **changes)
    if options.beam_size * options.patience < 1:
        raise fields.invalid("patience", "is too small: times beam_size it must be at least 1")
    return options


_THRESHOLDS = {
    "compression_ratio_threshold": (0, 1000),
    "log_prob_threshold": (-1000, 0),
    "no_speech_threshold": (0, 1),
}


def _hotwords(fields: Fields) -> str | None:
    """faster-whisper's `hotwords`, and OpenAI's `keywords[]`, which are the same to a Whisper."""
    given = [*fields.texts("keywords")]
    if hotwords := fields.text("hotwords"):
        given.append(hotwords)
    return ", ".join(given) or None


def _temperatures(fields: Fields) -> tuple[float, ...] | None:
    """OpenAI's `temperature`, where 0 is the whole ladder, or the ladder itself in `temperatures[]`."""
    ladder = fields.numbers("temperatures", 0, 5, max_count=_MAX_TEMPERATURES)
    temperature = fields.number("temperature", 0, 1)
    if ladder:
        return ladder
    return (temperature,) if temperature else None


def vad_options(fields: Fields) -> VadOptions:
    """The voice filter's options from `vad_parameters`.

    Raises:
        InvalidRequestError: a field is malformed, unknown or out of range.
    """
    group = fields.group("vad_parameters")
    if group is None:
        return VadOptions()
    unknown = group.keys() - set(_VAD_READERS)
    if unknown:
        raise fields.unsupported("vad_parameters", min(unknown), sorted(_VAD_READERS))
    given: dict[str, Any] = {name: read(group, name) for name, read in _VAD_READERS.items()}
    return replace(VadOptions(), **{name: value for name, value in given.items() if value is not None})


def _milliseconds(fields: Fields, name: str) -> int | None:
    return fields.integer(name, 0, MAX_SILENCE_MS)


def _probability(fields: Fields, name: str) -> float | None:
    return fields.number(name, 0, 1)


def _seconds(fields: Fields, name: str) -> float | None:
    return fields.number(name, 1, 86_400)


_VAD_READERS: dict[str, Callable[[Fields, str], float | None]] = {
    "threshold": _probability,
    "neg_threshold": _probability,
    "min_speech_duration_ms": _milliseconds,
    "max_speech_duration_s": _seconds,
    "min_silence_duration_ms": _milliseconds,
    "speech_pad_ms": _milliseconds,
}
