"""The configuration of a realtime session, and how clients read it.

They read and write it in one of two shapes: GA (`audio.input.…`), and beta (`input_audio_format` and others).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from whisper_server.services.pcm_input import PcmFormat

LOGPROBS: Final = "item.input_audio_transcription.logprobs"
WORDS: Final = "item.input_audio_transcription.words"
"""This server's own: the words with their times in `completed`."""

INCLUDABLE = (LOGPROBS, WORDS)

CLIENT_COMMITS_MODELS = ("gpt-realtime-whisper", "gpt-live-transcribe")
"""OpenAI's models without turn detection: their clients commit, and a turn cut twice is an error to them."""

_MAX_TEXT_CHARS = 10_000
_MAX_LIST = 1000

_Text = Annotated[str, Field(max_length=_MAX_TEXT_CHARS)]
_Name = Annotated[str, Field(max_length=200)]


class Dialect(Enum):
    """The shape of what is sent."""

    GA = "ga"
    BETA = "beta"


class Part(BaseModel):
    """A part of a session; fields that it does not know are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class AudioFormat(Part):
    """How the audio is written. `rate` is in Hz; None is 24000 for PCM and 8000 for G.711."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Annotated[int, Field(ge=4_000, le=192_000)] | None = None

    @property
    def pcm(self) -> PcmFormat:
        """The format of a sample."""
        return _PCM_FORMATS[self.type]

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self.rate or (24_000 if self.pcm is PcmFormat.S16LE else 8_000)


_PCM_FORMATS: Mapping[str, PcmFormat] = MappingProxyType(
    {"audio/pcm": PcmFormat.S16LE, "audio/pcmu": PcmFormat.PCMU, "audio/pcma": PcmFormat.PCMA}
)


class Transcription(Part):
    """The model, and what it is told beforehand. None leaves the language to the settings."""

    model: _Name
    language: _Name | None = None
    languages: Annotated[list[_Name], Field(max_length=_MAX_LIST)] | None = None
    prompt: _Text = ""
    keywords: Annotated[list[_Name], Field(max_length=_MAX_LIST)] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class NoiseReduction(Part):
    """Taken and told back; the server does not filter the audio."""

    type: Literal["near_field", "far_field"]
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0


class ServerVad(Part):
    """A turn ends after silence."""

    type: Literal["server_vad"] = "server_vad"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5_000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=0, le=60_000)] = 500
    idle_timeout_ms: Annotated[int, Field(ge=100, le=3_600_000)] | None = None


class SemanticVad(Part):
    """A turn ends after silence whose length depends on what was said."""

    type: Literal["semantic_vad"] = "semantic_vad"
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"


TurnDetection: TypeAlias = ServerVad | SemanticVad


@dataclass(frozen=True, slots=True)
class ConfigDefaults:
    """What stands where a client says nothing.

    Attributes:
        model: for transcriptions.
        turn_detection: of sessions whose model does not leave the commits to the client.
    """

    model: str
    turn_detection: ServerVad | None = field(default_factory=ServerVad)


@dataclass(frozen=True, slots=True)
class RealtimeConfig:
    """All that a client may set of a session.

    Attributes:
        defaults: what null leads back to.
        transcription: the model, and what it is told.
        format: of the audio.
        noise_reduction: as it was sent.
        given_turn_detection: as it was set; None where the client commits.
        is_turn_detection_given: whether it was; otherwise it depends on the model.
        include: what clients asked to be told besides.
    """

    defaults: ConfigDefaults
    transcription: Transcription
    format: AudioFormat = field(default_factory=AudioFormat)
    noise_reduction: NoiseReduction | None = None
    given_turn_detection: TurnDetection | None = None
    is_turn_detection_given: bool = False
    include: tuple[str, ...] = ()

    @classmethod
    def new(cls, defaults: ConfigDefaults, model: str = "") -> "RealtimeConfig":
        """A session that nobody has configured yet.

        Args:
            defaults: of the server.
            model: as the URL names it; empty takes the default.
        """
        return cls(defaults, Transcription(model=model or defaults.model))

    @property
    def turn_detection(self) -> TurnDetection | None:
        """In effect; None where the client commits."""
        if self.is_turn_detection_given:
            return self.given_turn_detection
        if self.transcription.model.startswith(CLIENT_COMMITS_MODELS):
            return None
        return self.defaults.turn_detection

    def in_shape(self, dialect: Dialect) -> dict[str, Any]:
        """All of it, as a client reads it."""
        return self._as_beta() if dialect is Dialect.BETA else self._as_ga()

    def _as_ga(self) -> dict[str, Any]:
        format_: dict[str, Any] = {"type": self.format.type}
        if self.format.rate is not None or self.format.pcm is PcmFormat.S16LE:
            format_["rate"] = self.format.rate_hz
        return {
            "type": "transcription",
            "include": list(self.include),
            "audio": {
                "input": {
                    "format": format_,
                    "transcription": self._transcription(),
                    "noise_reduction": _dump(self.noise_reduction),
                    "turn_detection": _dump(self.turn_detection),
                }
            },
        }

    def _as_beta(self) -> dict[str, Any]:
        return {
            "include": list(self.include),
            "modalities": ["text"],
            "input_audio_format": _BETA_NAMES[self.format.type],
            "input_audio_transcription": self._transcription(),
            "input_audio_noise_reduction": _dump(self.noise_reduction),
            "turn_detection": _dump(self.turn_detection),
        }

    def _transcription(self) -> dict[str, Any]:
        """As clients read it: the three fields every client knows, and the others where they are set."""
        known = self.transcription.model_dump()
        always = ("model", "language", "prompt")
        return {name: value for name, value in known.items() if value is not None or name in always}


BETA_FORMATS: Mapping[str, str] = MappingProxyType(
    {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
)
_BETA_NAMES: Mapping[str, str] = MappingProxyType({type_: name for name, type_ in BETA_FORMATS.items()})


def _dump(part: Part | None) -> dict[str, Any] | None:
    return None if part is None else part.model_dump()
