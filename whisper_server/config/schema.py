"""The settings tree: every setting of the server with its type, range, default, names and meaning."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from whisper_server.config.admin_schema import AdminSettings
from whisper_server.config.fields import (
    ComputeType,
    FrozenMapping,
    LanguageCode,
    LogLevel,
    NoneFromText,
    Section,
    Text,
    UserPath,
    lower,
    none_from_auto,
)
from whisper_server.config.grpc_schema import GrpcSettings
from whisper_server.config.leaves import Setting
from whisper_server.config.live_schema import StreamingSettings, VadSettings
from whisper_server.config.profiles import DecodeProfile, with_built_in_profiles
from whisper_server.config.storage_schema import StorageSettings


class ServerSettings(Section):
    """Where the server listens and who may call it."""

    enabled: Annotated[bool, Field(description="Serve HTTP; without it there is gRPC alone.")] = True
    host: Annotated[
        Text,
        Field(description="Address to listen on; `0.0.0.0` for all."),
        Setting(env=("STT_HOST",), flags=("--host",)),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one."),
        Setting(env=("STT_PORT",), flags=("--port",)),
    ] = 8089
    allowed_origins: Annotated[
        tuple[Text, ...],
        Field(description="Origins whose pages may call the server (CORS); `*` for any."),
        Setting(env=("ALLOWED_ORIGINS",)),
    ] = ("http://localhost:3000",)
    allowed_hosts: Annotated[
        tuple[Text, ...],
        Field(description="Host names the server answers to; `*` for any."),
        Setting(env=("ALLOWED_HOSTS",)),
    ] = ("*",)
    shutdown_grace_s: Annotated[
        float, Field(ge=0, description="How long requests may take to finish after a stop, seconds.")
    ] = 30.0


class ClientSettings(TypedDict, total=False):
    """What one client may use, and how much of it; a key that is not there sets no limit of its own.

    A dictionary, as it is written; `core.admission.ClientLimits` has the defaults.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[misc]  # how pydantic wants it

    weight: Annotated[float, Field(gt=0, le=1000)]
    priority: Annotated[Literal["high", "normal", "low"], BeforeValidator(lower)]
    max_requests: Annotated[Annotated[int, Field(ge=1)] | None, NoneFromText]
    max_buffered_audio_s: Annotated[Annotated[float, Field(gt=0)] | None, NoneFromText]


class SecuritySettings(Section):
    """Who may use the API, and how much of it."""

    api_keys: Annotated[
        tuple[Text, ...],
        Field(
            repr=False,
            description="Keys, or `name:key`, one of which a request must bring; without any, none is asked "
            "for. Never printed.",
        ),
        Setting(env=("WHISPER_API_KEYS", "API_KEYS"), is_secret=True),
    ] = ()
    api_keys_file: Annotated[
        UserPath | None,
        NoneFromText,
        Field(description="File with further keys, one on a line, read at start; `none` for no file."),
        Setting(env=("WHISPER_API_KEYS_FILE",)),
    ] = None
    open_paths: Annotated[
        tuple[Text, ...],
        Field(description="Paths that are read without a key; `/*` at the end takes all below."),
    ] = ("/", "/health", "/health/*", "/docs", "/redoc", "/openapi.json")
    clients: FrozenMapping[ClientSettings] = Field(
        default_factory=dict,
        description="What the clients of a key may use, by the key's name, and all others by `default`: "
        "`weight`, `priority`, `max_requests`, `max_buffered_audio_s`.",
    )


class LoggingSettings(Section):
    """What is logged, and where."""

    level: Annotated[
        LogLevel,
        Field(description="The least severe level that is logged."),
        Setting(env=("LOG_LEVEL", "STT_LOG_LEVEL"), flags=("--log-level",)),
    ] = "INFO"
    format: Annotated[
        Literal["human", "json"],
        BeforeValidator(lower),
        Field(description="Lines for people, or one JSON object per line for programs."),
        Setting(env=("LOG_FORMAT",), flags=("--log-format",)),
    ] = "human"
    file: Annotated[
        UserPath | None,
        NoneFromText,
        Field(description="File to log to besides standard error; `none` for no file."),
        Setting(flags=("--log-file",)),
    ] = None
    faster_whisper_level: Annotated[
        LogLevel,
        Field(description="The same for the messages of faster-whisper."),
        Setting(flags=("--faster-whisper-log-level",)),
    ] = "WARNING"


class LimitSettings(Section):
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
    max_buffered_audio_s: Annotated[
        float,
        Field(
            gt=0,
            description="Decoded audio of all requests together, seconds; an hour takes 115 MB. More is "
            "told to come back.",
        ),
    ] = 43200.0
    max_estimated_wait_s: Annotated[
        float,
        Field(
            ge=0,
            description="New requests are told to come back while the work before them takes longer than "
            "this by what was measured, seconds; 0 sets no limit.",
        ),
    ] = 3600.0
    request_deadline_s: Annotated[
        float,
        Field(ge=0, description="A request that takes longer is called off, seconds; 0 sets no deadline."),
    ] = 14400.0


class ModelSettings(Section):
    """Which model transcribes, and on what."""

    name: Annotated[
        Text,
        Field(description="Model for requests that name none: a size, an alias or a Hugging Face id."),
        Setting(
            env=("WHISPER_MODEL_SIZE", "STT_WHISPER_MODEL"),
            flags=("--model",),
            keys=("size",),
        ),
    ] = "whisper-1"
    engine: Annotated[Text, Field(description="Engine that runs the models.")] = "faster-whisper"
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Field(description="Where models compute."),
        Setting(env=("STT_DEVICE",), flags=("--device",)),
    ] = "auto"
    device_index: Annotated[int, Field(ge=0, description="Which GPU, counted from 0.")] = 0
    compute_type: Annotated[
        ComputeType,
        Field(description="Number format of the weights; `default` keeps the one on disk."),
        Setting(env=("STT_COMPUTE_TYPE",), flags=("--compute-type",)),
    ] = "auto"
    cpu_threads: Annotated[
        int, Field(ge=0, description="Threads of one worker; 0 chooses, on a CPU by measuring.")
    ] = 0
    workers: Annotated[
        int,
        Field(ge=0, description="Decodes that run at once on one model; 0 chooses likewise."),
        Setting(flags=("--model-pool-size",), keys=("pool_size",)),
    ] = 0
    calibrate: Annotated[
        bool,
        Field(description="Measure, once for each model, how many workers and threads suit this CPU."),
    ] = True
    engine_isolation: Annotated[
        Literal["process", "thread"],
        Field(
            description="Run each model in a process of its own, which can crash without the server, or in "
            "threads of the server."
        ),
    ] = "process"
    max_batch: Annotated[
        int, Field(ge=0, le=256, description="Most windows decoded in one call; 0 leaves it to the engine.")
    ] = 0
    language: Annotated[
        LanguageCode | None,
        BeforeValidator(none_from_auto),
        Field(description="ISO 639-1 code for requests that name none; `auto` or `none` detects it."),
        Setting(env=("STT_LANGUAGE",), flags=("--language",)),
    ] = None
    languages: Annotated[
        tuple[LanguageCode, ...] | None,
        NoneFromText,
        Field(
            description="Codes a live stream is held to, a repeated one with more weight; `none` allows all."
        ),
    ] = None
    language_fix: Annotated[
        bool,
        Field(description="Keep the language a live stream began with."),
    ] = False
    task: Annotated[
        Literal["transcribe", "translate"],
        Field(description="Write down the words as spoken, or in English."),
    ] = "transcribe"
    prompt: Annotated[
        str,
        Field(description="Text before the audio, for style and vocabulary, where a request brings none."),
    ] = ""
    hotwords: Annotated[
        tuple[Text, ...], Field(description="Words to expect where a request brings none.")
    ] = ()
    default_decode_profile: Annotated[
        Text,
        Field(description="Decode profile of live streams that name none."),
    ] = "realtime"
    preload: Annotated[tuple[Text, ...], Field(description="Models loaded at start.")] = ()
    aliases: FrozenMapping[Text] = Field(
        default_factory=dict,
        description="Further model names: each stands for a size, a Hugging Face id or a path.",
    )
    allowed_paths: Annotated[
        tuple[UserPath, ...], Field(description="Folders from which models may be loaded by path.")
    ] = ()
    cache_dir: Annotated[
        UserPath | None,
        NoneFromText,
        Field(description="Folder for downloaded models; `none` takes that of Hugging Face."),
    ] = None
    max_loaded: Annotated[int, Field(ge=1, description="Models kept in memory at once.")] = 2
    max_loaded_mb: Annotated[
        float, Field(ge=0, description="Megabytes of weights kept in memory at once; 0 sets no limit.")
    ] = 0.0
    idle_ttl_s: Annotated[
        float, Field(ge=0, description="An idle model is unloaded after this many seconds; 0 keeps it.")
    ] = 0.0


class TranscriptionSettings(Section):
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
    audio_context: Annotated[
        Literal["full", "auto"],
        Field(
            description="How much audio the encoder looks at: `full` is the 30 s the model was trained on; "
            "`auto` is the speech and a margin, faster for short recordings and less exact."
        ),
    ] = "full"
    condition_on_previous_text: Annotated[
        bool, Field(description="Give each window the text before it as prompt.")
    ] = False
    hallucination_silence_threshold_s: Annotated[
        Annotated[float, Field(gt=0)] | None,
        NoneFromText,
        Field(
            description="Silence longer than this around doubtful text drops it, seconds; `none` keeps it."
        ),
    ] = None


class SchedulerSettings(Section):
    """In what order windows of audio are decoded."""

    short_file_s: Annotated[
        float, Field(ge=0, description="Recordings up to this length go before longer ones, seconds.")
    ] = 60.0
    ageing_s: Annotated[
        float,
        Field(
            ge=0,
            description="A window that has waited so long is due whatever its priority, seconds: such "
            "windows get every fourth turn.",
        ),
    ] = 5.0
    max_waiting_windows: Annotated[
        int, Field(ge=1, description="Windows that may wait for one model; more are refused.")
    ] = 2048
    call_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="A call to a model has hung after this time for each of its windows, seconds; it is "
            "given up and the model started anew.",
        ),
    ] = 120.0


class Settings(BaseSettings):
    """Every setting of the server, frozen.

    Built directly, it takes what is given in code and defaults for the rest; `load_settings` reads files,
    the environment and the command line.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    server: ServerSettings = Field(default_factory=ServerSettings)
    grpc: GrpcSettings = Field(default_factory=GrpcSettings)
    security: SecuritySettings = Field(default_factory=SecuritySettings)
    admin: AdminSettings = Field(default_factory=AdminSettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    transcription: TranscriptionSettings = Field(default_factory=TranscriptionSettings)
    scheduler: SchedulerSettings = Field(default_factory=SchedulerSettings)
    vad: VadSettings = Field(default_factory=VadSettings)
    streaming: StreamingSettings = Field(default_factory=StreamingSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    decode_profiles: Annotated[FrozenMapping[DecodeProfile], BeforeValidator(with_built_in_profiles)] = Field(
        default_factory=dict, description="Decode options by profile name."
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
