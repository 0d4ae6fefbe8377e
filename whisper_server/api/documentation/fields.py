"""The fields of a transcription request, for the OpenAPI description and for docs/api.md.

The parsers are in `api/openai`; tests hold this table to what they read and to the bounds they keep.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from whisper_server.api.openai.transcription_request import Granularity, ResponseFormat
from whisper_server.core.languages import LANGUAGES
from whisper_server.core.types import MAX_WINDOW_S


@dataclass(frozen=True, slots=True)
class RequestField:
    """One field.

    Attributes:
        name: as JSON has it; the part of a form that holds an item of an array is named `name[]`.
        schema: JSON Schema of the value.
        default: what counts where the field is absent, in Markdown; empty where that is nothing.
        meaning: what it does, in Markdown; no sentence, so that it fits a table.
        is_required: it has no default.
    """

    name: str
    schema: Mapping[str, Any]
    default: str
    meaning: str
    is_required: bool = False

    @property
    def form_name(self) -> str:
        """The name of its form parts."""
        return f"{self.name}[]" if self.schema.get("type") == "array" else self.name

    @property
    def described_schema(self) -> dict[str, Any]:
        """The schema with the meaning and the default."""
        text = self.meaning[0].upper() + self.meaning[1:] + "."
        return {**self.schema, "description": f"{text} Default: {self.default}." if self.default else text}


_MAX_MS = 600_000
_STRING = {"type": "string"}
_FLAG = {"type": "boolean"}


def _number(least: float, most: float) -> dict[str, Any]:
    return {"type": "number", "minimum": least, "maximum": most}


def _integer(least: int, most: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": least, "maximum": most}


def _enum(values: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _array(items: Mapping[str, Any], most: int | None = None) -> dict[str, Any]:
    limit = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": dict(items), **limit}


def _object(properties: Mapping[str, Any], required: Iterable[str] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _or_none(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [dict(schema), _enum(["none"])]}


_SERVER_VAD = _object(
    {
        "type": _enum(["server_vad"]),
        "threshold": _number(0, 1),
        "prefix_padding_ms": _integer(0, _MAX_MS),
        "silence_duration_ms": _integer(0, _MAX_MS),
    },
    required=["type"],
)

_VAD_PARAMETERS = {
    **_object(
        {
            "threshold": _number(0, 1),
            "neg_threshold": _number(0, 1),
            "min_speech_duration_ms": _integer(0, _MAX_MS),
            "max_speech_duration_s": _number(1, 86_400),
            "min_silence_duration_ms": _integer(0, _MAX_MS),
            "speech_pad_ms": _integer(0, _MAX_MS),
        }
    ),
    "additionalProperties": False,
}

FILE = RequestField("file", {"type": "string", "format": "binary"}, "", "the recording", is_required=True)
"""Only in forms."""

OPENAI_FIELDS: tuple[RequestField, ...] = (
    RequestField("model", _STRING, "the default model", "a name that `GET /v1/models` lists, or another one"),
    RequestField(
        "language",
        _STRING,
        "detected",
        "a code such as `en`, with a region such as `pt-BR`, or an English name; `auto` detects",
    ),
    RequestField(
        "languages",
        _array(_STRING),
        "all",
        "the recording is in one of these, named as for `language`; not beside it",
    ),
    RequestField("keywords", _array(_STRING), "", "words to expect, joined to `hotwords`"),
    RequestField("prompt", _STRING, "", "text that went before: style and vocabulary"),
    RequestField(
        "response_format",
        _enum(ResponseFormat),
        "`json`",
        "how the transcript is written down",
    ),
    RequestField(
        "temperature",
        _number(0, 1),
        "0",
        "0 tries 0, 0.2, … 1 until a result passes the thresholds; another number only that",
    ),
    RequestField(
        "timestamp_granularities",
        _array(_enum(Granularity)),
        "`segment`",
        "what `verbose_json` lists with its times: one or both",
    ),
    RequestField(
        "include",
        _array(_enum(["logprobs"])),
        "",
        "with `json`: each token of the text with its bytes and log-probability",
    ),
    RequestField(
        "stream", _FLAG, "false", "answer with events while the transcript grows, with `json` or `text`"
    ),
    RequestField(
        "chunking_strategy",
        {"anyOf": [_enum(["auto"]), _SERVER_VAD]},
        "",
        "cut at silences, which is `long_form=batched`; an object has `type=server_vad`, `threshold` (0.5), "
        "`prefix_padding_ms` (300) and `silence_duration_ms` (200)",
    ),
)
"""Those that OpenAI knows too, but for the file."""

OWN_FIELDS: tuple[RequestField, ...] = (
    RequestField(
        "decode_profile",
        _STRING,
        "setting `transcription.decode_profile`",
        "a named set of the options below: `realtime`, `accurate`, or one from the settings",
    ),
    RequestField("beam_size", _integer(1, 100), "5", "beams at temperature 0; 1 is greedy"),
    RequestField("best_of", _integer(1, 100), "5", "candidates at a temperature above 0"),
    RequestField(
        "patience", _number(0.01, 10), "1", "beam search patience; times `beam_size` it is at least 1"
    ),
    RequestField("length_penalty", _number(-10, 10), "1", "exponent of the length in a hypothesis' score"),
    RequestField(
        "repetition_penalty", _number(0.01, 10), "1", "above 1, tokens already said become less likely"
    ),
    RequestField("no_repeat_ngram_size", _integer(0, 448), "0", "n-grams of this size never repeat"),
    RequestField(
        "temperatures",
        _array(_number(0, 5), 10),
        "0, 0.2, … 1",
        "the ladder itself, in place of `temperature`",
    ),
    RequestField(
        "compression_ratio_threshold",
        _or_none(_number(0, 1000)),
        "2.4",
        "text that zlib shrinks more than this has failed: it repeats itself",
    ),
    RequestField(
        "log_prob_threshold",
        _or_none(_number(-1000, 0)),
        "-1",
        "a mean log-probability below this has failed",
    ),
    RequestField(
        "no_speech_threshold",
        _or_none(_number(0, 1)),
        "0.6",
        "above this no-speech probability, text that also misses `log_prob_threshold` is dropped",
    ),
    RequestField("suppress_blank", _FLAG, "true", "no blank as the first token"),
    RequestField(
        "suppress_tokens",
        _array(_integer(-1, 51_863), 1000),
        "-1",
        "token ids never sampled; -1 stands for the non-speech symbols",
    ),
    RequestField(
        "max_initial_timestamp", _number(0, MAX_WINDOW_S), "1", "latest first timestamp of a window, seconds"
    ),
    RequestField("max_new_tokens", _or_none(_integer(1, 448)), "none", "tokens per window"),
    RequestField("hotwords", _STRING, "", "words put before the prompt of every window"),
    RequestField("prefix", _STRING, "", "text the transcript begins with"),
    RequestField("without_timestamps", _FLAG, "false", "no timestamp tokens; a window is then one segment"),
    RequestField("word_timestamps", _FLAG, "false", "place words even where the answer does not list them"),
    RequestField("prepend_punctuations", _STRING, "as faster-whisper", "marks that join the word after them"),
    RequestField("append_punctuations", _STRING, "as faster-whisper", "marks that join the word before them"),
    RequestField(
        "condition_on_previous_text",
        _FLAG,
        "setting, false",
        "give each window the text before it; better style, but a model that repeats itself then goes on",
    ),
    RequestField(
        "prompt_reset_on_temperature",
        _number(0, 5),
        "0.5",
        "text decoded above this temperature is no prompt",
    ),
    RequestField("multilingual", _FLAG, "false", "detect the language of every window"),
    RequestField(
        "language_detection_segments", _integer(1, 100), "1", "windows to listen to until a language is sure"
    ),
    RequestField("language_detection_threshold", _number(0, 1), "0.5", "when it is sure"),
    RequestField(
        "audio_context",
        _enum(["full", "auto"]),
        "setting, `full`",
        "how much audio the encoder looks at: 30 s, or the speech and a margin; `auto` is faster for short "
        "recordings and can lose or change words",
    ),
    RequestField("chunk_length", _integer(1, MAX_WINDOW_S), "30", "longest window, seconds"),
    RequestField(
        "clip_timestamps",
        _array(_number(0, 10_000_000), 1000),
        "all",
        "`start,end,start,end,…` in seconds: only these parts, unfiltered; not when batched",
    ),
    RequestField(
        "hallucination_silence_threshold",
        _or_none(_number(0.01, MAX_WINDOW_S)),
        "setting, none",
        "text that looks invented is dropped where this much silence surrounds it, seconds; times words",
    ),
    RequestField("vad_filter", _FLAG, "setting, true", "leave silence out before decoding"),
    RequestField(
        "vad_parameters",
        _VAD_PARAMETERS,
        "as faster-whisper",
        "`threshold`, `neg_threshold`, `min_speech_duration_ms`, `max_speech_duration_s`, "
        "`min_silence_duration_ms`, `speech_pad_ms`",
    ),
    RequestField(
        "long_form",
        _enum(["sequential", "batched"]),
        "setting, `sequential`",
        "`sequential` follows the model's timestamps; `batched` cuts at silences and decodes the pieces side "
        "by side",
    ),
    RequestField("batch_size", _integer(1, 64), "setting, 8", "pieces at once when batched"),
    RequestField("normalize", _FLAG, "false", "bring the recording to full level first"),
    RequestField("trim_silence", _FLAG, "false", "leave out silence at the ends first"),
    RequestField("max_line_width", _integer(1, 1000), "", "characters in a line, with `srt` or `vtt`"),
    RequestField("max_line_count", _integer(1, 1000), "", "lines in a cue, with `srt` or `vtt`"),
    RequestField("max_words_per_line", _integer(1, 1000), "", "words in a line, with `srt` or `vtt`"),
)
"""Those of this server, in both bodies."""

_ONLY_FILES = frozenset(
    (
        *("response_format", "temperature", "timestamp_granularities", "include", "stream"),
        *("max_line_width", "max_line_count", "max_words_per_line"),
    )
)

CHAT_FIELDS: tuple[RequestField, ...] = tuple(
    field for field in (*OPENAI_FIELDS, *OWN_FIELDS) if field.name not in _ONLY_FILES
)
"""Those that chat completions share with transcriptions, in the same sense."""

_OF_LANGUAGES = ("model", "vad_filter", "vad_parameters", "normalize", "trim_silence")

LANGUAGE_FIELDS: tuple[RequestField, ...] = (
    RequestField("top_k", _integer(1, len(LANGUAGES)), "5", "the most languages to list"),
    *(field for field in (*OPENAI_FIELDS, *OWN_FIELDS) if field.name in _OF_LANGUAGES),
)
"""Those that the detection of a language takes."""
