"""The settings tree: every setting of the server with its type, range, default, names and meaning."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WrapSerializer,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from whisper_server.config.leaves import Setting
from whisper_server.config.profiles import (
    DecodeProfile,
    none_from_text,
    with_built_in_profiles,
)

_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _language_code(value: object) -> object:
    if value is False:
        raise ValueError('must be a string: in YAML put "no" in quotes, bare it means false')
    if not isinstance(value, str):
        return value
    code = value.strip().lower()
    if not _LANGUAGE_CODE.fullmatch(code):
        raise ValueError("must be an ISO 639-1 code such as en")
    return code


def _none_from_auto(value: object) -> object:
    is_auto = isinstance(value, str) and value.strip().lower() == "auto"
    return None if is_auto else none_from_text(value)


def _with_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError("must be a path whose ~ stands for a known home folder") from error


def _serialize_plain(value: Any, handler: SerializerFunctionWrapHandler) -> Any:
    return handler(dict(value))


_Value = TypeVar("_Value")
_FrozenMapping: TypeAlias = Annotated[
    Mapping[str, _Value], AfterValidator(MappingProxyType), WrapSerializer(_serialize_plain)
]

_Text = Annotated[str, Field(min_length=1)]
_UserPath = Annotated[Path, AfterValidator(_with_home)]
_NoneFromText = BeforeValidator(none_from_text)
_LanguageCode = Annotated[str, BeforeValidator(_language_code)]
_LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
_ComputeType = Literal[
    "auto",
    "default",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
    "float32",
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class ServerSettings(_Section):
    """Where the server listens and who may call it."""

    host: Annotated[
        _Text,
        Field(description="Address to listen on; `0.0.0.0` for all."),
        Setting(env=("STT_HOST",), flags=("--host",)),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one."),
        Setting(env=("STT_PORT",), flags=("--port",)),
    ] = 8089
    allowed_origins: Annotated[
        tuple[_Text, ...],
        Field(description="Origins whose pages may call the server (CORS); `*` for any."),
        Setting(env=("ALLOWED_ORIGINS",)),
    ] = ("http://localhost:3000",)
    allowed_hosts: Annotated[
        tuple[_Text, ...],
        Field(description="Host names the server answers to; `*` for any."),
        Setting(env=("ALLOWED_HOSTS",)),
    ] = ("*",)
    shutdown_grace_s: Annotated[
        float, Field(ge=0, description="How long requests may take to finish after a stop, seconds.")
    ] = 30.0


class SecuritySettings(_Section):
    """Who may use the API."""

    api_keys: Annotated[
        tuple[_Text, ...],
        Field(
            repr=False,
            description="Keys, or `name:key`, one of which a request must bring; without any, none is asked "
            "for. Never printed.",
        ),
        Setting(env=("WHISPER_API_KEYS", "API_KEYS"), is_secret=True),
    ] = ()
    api_keys_file: Annotated[
        _UserPath | None,
        _NoneFromText,
        Field(description="File with further keys, one on a line, read at start; `none` for no file."),
        Setting(env=("WHISPER_API_KEYS_FILE",)),
    ] = None
    open_paths: Annotated[
        tuple[_Text, ...],
        Field(description="Paths that are read without a key; `/*` at the end takes all below."),
    ] = ("/", "/health", "/health/*", "/docs", "/redoc", "/openapi.json")


class LoggingSettings(_Section):
    """What is logged, and where."""

    level: Annotated[
        _LogLevel,
        Field(description="The least severe level that is logged."),
        Setting(env=("LOG_LEVEL", "STT_LOG_LEVEL"), flags=("--log-level",)),
    ] = "INFO"
    format: Annotated[
        Literal["human", "json"],
        BeforeValidator(_lower),
        Field(description="Lines for people, or one JSON object per line for programs."),
        Setting(env=("LOG_FORMAT",), flags=("--log-format",)),
    ] = "human"
    file: Annotated[
        _UserPath | None,
        _NoneFromText,
        Field(description="File to log to besides standard error; `none` for no file."),
        Setting(flags=("--log-file",)),
    ] = None
    faster_whisper_level: Annotated[
        _LogLevel,
        Field(description="The same for the messages of faster-whisper."),
        Setting(flags=("--faster-whisper-log-level",)),
    ] = "WARNING"


class LimitSettings(_Section):
    """What a request may ask for."""

    max_audio_file_size_mb: Annotated[
        float,
        Field(gt=0, description="Largest upload, megabytes."),
        Setting(env=("MAX_AUDIO_FILE_SIZE_MB",)),
    ] = 25.0
    max_audio_s: Annotated[float, Field(gt=0, description="Longest recording once decoded, seconds.")] = (
        14400.0
    )
    max_waiting_requests: Annotated[
        int, Field(ge=1, description="Requests that may wait for a model; more are told to come back.")
    ] = 64


class ModelSettings(_Section):
    """Which model transcribes, and on what."""

    name: Annotated[
        _Text,
        Field(description="Model for requests that name none: a size, an alias or a Hugging Face id."),
        Setting(
            env=("WHISPER_MODEL_SIZE", "STT_WHISPER_MODEL"),
            flags=("--model",),
            keys=("size",),
        ),
    ] = "whisper-1"
    engine: Annotated[_Text, Field(description="Engine that runs the models.")] = "faster-whisper"
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Field(description="Where models compute."),
        Setting(env=("STT_DEVICE",), flags=("--device",)),
    ] = "auto"
    device_index: Annotated[int, Field(ge=0, description="Which GPU, counted from 0.")] = 0
    compute_type: Annotated[
        _ComputeType,
        Field(description="Number format of the weights; `default` keeps the one on disk."),
        Setting(env=("STT_COMPUTE_TYPE",), flags=("--compute-type",)),
    ] = "auto"
    cpu_threads: Annotated[int, Field(ge=0, description="Threads of one worker; 0 chooses.")] = 0
    workers: Annotated[
        int,
        Field(ge=0, description="Decodes that run at once on one model; 0 chooses."),
        Setting(flags=("--model-pool-size",), keys=("pool_size",)),
    ] = 0
    language: Annotated[
        _LanguageCode | None,
        BeforeValidator(_none_from_auto),
        Field(description="ISO 639-1 code for requests that name none; `auto` or `none` detects it."),
        Setting(env=("STT_LANGUAGE",), flags=("--language",)),
    ] = None
    languages: Annotated[
        tuple[_LanguageCode, ...] | None,
        _NoneFromText,
        Field(
            description="Codes a live stream is held to, a repeated one with more weight; `none` allows all."
        ),
        Setting(no_effect_yet=True),
    ] = None
    language_fix: Annotated[
        bool,
        Field(description="Keep the language a live stream began with."),
        Setting(no_effect_yet=True),
    ] = False
    task: Annotated[
        Literal["transcribe", "translate"],
        Field(description="Write down the words as spoken, or in English."),
    ] = "transcribe"
    default_decode_profile: Annotated[
        _Text,
        Field(description="Decode profile of live streams that name none."),
        Setting(no_effect_yet=True),
    ] = "realtime"
    preload: Annotated[tuple[_Text, ...], Field(description="Models loaded at start.")] = ()
    aliases: _FrozenMapping[_Text] = Field(
        default_factory=dict,
        description="Further model names: each stands for a size, a Hugging Face id or a path.",
    )
    allowed_paths: Annotated[
        tuple[_UserPath, ...], Field(description="Folders from which models may be loaded by path.")
    ] = ()
    cache_dir: Annotated[
        _UserPath | None,
        _NoneFromText,
        Field(description="Folder for downloaded models; `none` takes that of Hugging Face."),
    ] = None
    max_loaded: Annotated[int, Field(ge=1, description="Models kept in memory at once.")] = 2
    max_loaded_mb: Annotated[
        float, Field(ge=0, description="Megabytes of weights kept in memory at once; 0 sets no limit.")
    ] = 0.0
    idle_ttl_s: Annotated[
        float, Field(ge=0, description="An idle model is unloaded after this many seconds; 0 keeps it.")
    ] = 0.0


class TranscriptionSettings(_Section):
    """How files are transcribed where the request does not say."""

    decode_profile: Annotated[
        str, Field(description="Decode profile; empty takes faster-whisper's own defaults.")
    ] = ""
    long_form: Annotated[
        Literal["sequential", "batched"],
        Field(description="Windows one after the other, or speech chunks side by side."),
    ] = "sequential"
    batch_size: Annotated[int, Field(ge=1, le=256, description="Chunks decoded at once when batched.")] = 8
    vad_filter: Annotated[bool, Field(description="Leave silence out before decoding.")] = True
    condition_on_previous_text: Annotated[
        bool, Field(description="Give each window the text before it as prompt.")
    ] = False
    hallucination_silence_threshold_s: Annotated[
        Annotated[float, Field(gt=0)] | None,
        _NoneFromText,
        Field(
            description="Silence longer than this around doubtful text drops it, seconds; `none` keeps it."
        ),
    ] = None


class VadSettings(_Section):
    """How live streams tell speech from silence."""

    enabled: Annotated[
        bool,
        Field(description="Decode only where there is speech."),
        Setting(env=("STT_VAD_ENABLED",), no_effect_yet=True),
    ] = True
    threshold: Annotated[
        float,
        Field(ge=0, le=1, description="Speech probability above which audio is speech."),
        Setting(env=("STT_VAD_THRESHOLD",), no_effect_yet=True),
    ] = 0.5
    min_speech_ms: Annotated[
        int,
        Field(ge=0, description="Shorter speech is ignored, milliseconds."),
        Setting(env=("STT_VAD_MIN_SPEECH_MS",), no_effect_yet=True),
    ] = 250
    min_silence_ms: Annotated[
        int,
        Field(ge=0, description="Silence that ends an utterance, milliseconds."),
        Setting(env=("STT_VAD_MIN_SILENCE_MS",), no_effect_yet=True),
    ] = 500


class StreamingSettings(_Section):
    """What live streams may use."""

    max_sessions: Annotated[
        int,
        Field(ge=1, description="Live streams at once."),
        Setting(env=("STT_MAX_SESSIONS",), flags=("--max-sessions",), no_effect_yet=True),
    ] = 100
    partial_interval_ms: Annotated[
        int,
        Field(ge=1, description="Time between partial transcripts, milliseconds."),
        Setting(env=("STT_PARTIAL_INTERVAL_MS",), no_effect_yet=True),
    ] = 300
    max_partial_window_s: Annotated[
        float,
        Field(gt=0, le=30, description="Most audio a partial transcript is made from, seconds."),
        Setting(env=("STT_MAX_PARTIAL_WINDOW_S",), no_effect_yet=True),
    ] = 8.0
    max_utterance_s: Annotated[
        float,
        Field(gt=0, description="A longer utterance is made final, seconds."),
        Setting(env=("STT_MAX_UTTERANCE_S",), no_effect_yet=True),
    ] = 30.0
    max_buffer_ms: Annotated[
        int,
        Field(ge=1, description="Audio of one stream that may wait, milliseconds."),
        Setting(env=("STT_MAX_BUFFER_MS",), no_effect_yet=True),
    ] = 5000
    max_queue_depth: Annotated[
        int,
        Field(ge=1, description="Decodes of live streams that may wait."),
        Setting(env=("STT_MAX_QUEUE_DEPTH",), no_effect_yet=True),
    ] = 20
    max_estimated_server_total_ms: Annotated[
        int,
        Field(ge=1, description="New streams are refused above this estimated delay, milliseconds."),
        Setting(env=("STT_MAX_ESTIMATED_SERVER_TOTAL_MS",), no_effect_yet=True),
    ] = 500


class Settings(BaseSettings):
    """Every setting of the server, frozen.

    Built directly, it takes what is given in code and defaults for the rest; `load_settings` reads files,
    the environment and the command line.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    server: ServerSettings = Field(default_factory=ServerSettings)
    security: SecuritySettings = Field(default_factory=SecuritySettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    transcription: TranscriptionSettings = Field(default_factory=TranscriptionSettings)
    vad: VadSettings = Field(default_factory=VadSettings)
    streaming: StreamingSettings = Field(default_factory=StreamingSettings)
    decode_profiles: Annotated[_FrozenMapping[DecodeProfile], BeforeValidator(with_built_in_profiles)] = (
        Field(default_factory=dict, description="Decode options by profile name.")
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but what is given in code: `load_settings` brings its own sources."""
        return (init_settings,)

    @model_validator(mode="after")
    def _profiles_exist(self) -> Self:
        wanted = [("model.default_decode_profile", self.model.default_decode_profile)]
        if self.transcription.decode_profile:
            wanted.append(("transcription.decode_profile", self.transcription.decode_profile))
        for setting, profile in wanted:
            if profile not in self.decode_profiles:
                raise PydanticCustomError(
                    "unknown_profile",
                    "must be one of the decode profiles: {known}",
                    {"setting": setting, "value": profile, "known": ", ".join(self.decode_profiles)},
                )
        return self


def section_summary(section: str) -> str:
    """What a section of the tree is about, in one line."""
    info = Settings.model_fields[section]
    if info.description is not None:
        return info.description
    return getattr(info.annotation, "__doc__", None) or ""
