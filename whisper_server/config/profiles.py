"""Decode profiles: named sets of decode options that a file may add to or change."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:
    # Not imported at run time: numpy behind it would double the time the command line takes to start.
    from whisper_server.core.types import DecodeOptions

NONE_WORD = "none"
"""Stands for None where a format has no null: TOML, the environment, the command line."""

_NULLABLE_OPTIONS = frozenset(
    {"compression_ratio_threshold", "log_prob_threshold", "no_speech_threshold", "max_new_tokens"}
)


def none_from_text(value: object) -> object:
    """None for an empty string and for `NONE_WORD`; anything else as it is."""
    return None if isinstance(value, str) and value.strip().lower() in ("", NONE_WORD) else value


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, int | float | str) else value


_NoneFromText = BeforeValidator(none_from_text)
_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0)]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Temperatures = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


class DecodeProfile(BaseModel):
    """Decode options to change; what a profile leaves out stays as it is.

    The keys are those of `core.types.DecodeOptions`, but `temperature` is a number or a list of them.
    None switches a threshold or a limit off; for another key it means left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    beam_size: int | None = Field(default=None, ge=1, description="Beams at temperature 0; 1 is greedy.")
    best_of: int | None = Field(default=None, ge=1, description="Candidates drawn at a temperature above 0.")
    patience: float | None = Field(default=None, gt=0, description="Beam search patience.")
    length_penalty: float | None = Field(
        default=None, description="Exponent of the length in the score of a hypothesis."
    )
    repetition_penalty: float | None = Field(
        default=None, gt=0, description="Above 1, tokens already said become less likely."
    )
    no_repeat_ngram_size: int | None = Field(
        default=None, ge=0, description="N-grams of this size never repeat; 0 allows them."
    )
    temperature: Annotated[_Temperatures | None, BeforeValidator(_as_tuple)] = Field(
        default=None, description="A number, or a list tried in order until the thresholds are passed."
    )
    compression_ratio_threshold: Annotated[_Positive | None, _NoneFromText] = Field(
        default=None, description="Text that zlib shrinks more than this has failed; `none` = off."
    )
    log_prob_threshold: Annotated[float | None, _NoneFromText] = Field(
        default=None, description="A mean token log-probability below this has failed; `none` = off."
    )
    no_speech_threshold: Annotated[_Probability | None, _NoneFromText] = Field(
        default=None,
        description="Above this no-speech probability a window that also misses `log_prob_threshold` "
        "is silence; `none` = off.",
    )
    suppress_blank: bool | None = Field(default=None, description="No blank as the first token.")
    suppress_tokens: tuple[int, ...] | None = Field(
        default=None, description="Token ids never sampled; -1 stands for the non-speech symbols."
    )
    max_initial_timestamp_s: float | None = Field(
        default=None, ge=0, description="The first timestamp of a window is no later than this, seconds."
    )
    max_new_tokens: Annotated[_Count | None, _NoneFromText] = Field(
        default=None, description="Tokens per window; `none` leaves it to the model."
    )
    hotwords: str | None = Field(default=None, description="Words put before the prompt of every window.")
    prepend_punctuations: str | None = Field(default=None, description="Marks that join the word after them.")
    append_punctuations: str | None = Field(default=None, description="Marks that join the word before them.")
    without_timestamps: bool | None = Field(
        default=None, description="Leave timestamps out of the text where the request does not ask for them."
    )

    def overrides(self) -> dict[str, Any]:
        """What the profile changes, by its own keys."""
        return {
            key: getattr(self, key)
            for key in type(self).model_fields
            if key in self.model_fields_set and (getattr(self, key) is not None or key in _NULLABLE_OPTIONS)
        }

    def apply(self, options: "DecodeOptions") -> "DecodeOptions":
        """These options with the profile's changes; `without_timestamps` is the caller's to honour."""
        changes = self.overrides()
        changes.pop("without_timestamps", None)
        if "temperature" in changes:
            changes["temperatures"] = changes.pop("temperature")
        return dataclasses.replace(options, **changes)


_COMMON = {
    "patience": 1.0,
    "temperature": 0.0,
    "length_penalty": 1.0,
    "without_timestamps": True,
    "compression_ratio_threshold": 2.4,
    "no_speech_threshold": 0.6,
    "log_prob_threshold": -1.0,
}

BUILT_IN_PROFILES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "realtime": MappingProxyType({"beam_size": 1, "best_of": 1, **_COMMON}),
        "accurate": MappingProxyType({"beam_size": 5, "best_of": 5, **_COMMON}),
    }
)
"""The profiles every server has; a file changes single keys of them or adds others."""


def with_built_in_profiles(given: object) -> object:
    """The built-in profiles, changed and extended by the ones given; not a mapping, as it is."""
    if not isinstance(given, Mapping):
        return given
    names = dict.fromkeys([*BUILT_IN_PROFILES, *given])
    return {name: _merged(BUILT_IN_PROFILES.get(name, {}), given.get(name)) for name in names}


def _merged(built_in: Mapping[str, Any], given: object) -> object:
    if given is None:
        return dict(built_in)
    if isinstance(given, DecodeProfile):
        given = given.overrides()
    return {**built_in, **given} if isinstance(given, Mapping) else given
