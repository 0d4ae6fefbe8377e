"""What a command is set to: defaults, changed by a YAML file, changed by flags."""

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from whisper_server.clients.grpc import (
    AudioFormat,
    ConnectionOptions,
    RecognitionOptions,
    SessionOptions,
    Task,
    TlsOptions,
    VadMode,
    VadOptions,
)

API_KEY_VARIABLE = "WHISPER_API_KEY"


class UsageError(Exception):
    """The command was called wrongly; the message says how."""


def _split(words: object) -> object:
    return [word.strip() for word in words.split(",") if word.strip()] if isinstance(words, str) else words


class CommandSettings(BaseModel):
    """What all commands have. Its fields are the keys of the YAML file and, with dashes, the flags.

    Attributes:
        server: `host:port` or `unix:/path`.
        api_key: of the server.
        tls: encrypt, trusting the CAs that gRPC brings.
        tls_ca: PEM file of the CAs to trust instead; implies `tls`.
        tls_cert: PEM file of the client's certificate; implies `tls`.
        tls_key: PEM file of its key.
        session_id: empty makes one.
        attributes: to be found again in logs and recordings.
        require_token: have the server issue a token for the session.
        model: empty is the server's.
        language: empty is the server's; "auto" detects it.
        task: None is the server's.
        decode_profile: empty is the server's.
        prompt: text that went before.
        hotwords: words to expect.
        vad_mode: what ends an utterance.
        vad_silence: seconds of silence that end one; None is the server's.
        vad_threshold: probability at which speech starts; None is the server's.
        metrics: tell where the time went.
        json_lines: write one JSON object per event; the key is `json`.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        coerce_numbers_to_str=True,
        populate_by_name=True,
        protected_namespaces=(),
    )

    server: str = "localhost:50051"
    api_key: SecretStr | None = None
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    session_id: str = ""
    attributes: dict[str, str] = Field(default_factory=dict)
    require_token: bool = False
    model: str = ""
    language: str = ""
    task: Task | None = None
    decode_profile: str = ""
    prompt: str = ""
    hotwords: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    vad_mode: VadMode = VadMode.CONTINUE
    vad_silence: float | None = Field(default=None, ge=0, le=3600)
    vad_threshold: float | None = None
    metrics: bool = False
    json_lines: bool = Field(default=False, alias="json")

    def connection(self) -> ConnectionOptions:
        """Where the server is.

        Raises:
            UsageError: the address is none, or a certificate cannot be read.
        """
        key = self.api_key.get_secret_value() if self.api_key else os.environ.get(API_KEY_VARIABLE)
        try:
            has_tls = self.tls or self.tls_ca or self.tls_cert or self.tls_key
            tls = TlsOptions.from_files(self.tls_ca, self.tls_cert, self.tls_key) if has_tls else None
            return ConnectionOptions(self.server, api_key=key or None, tls=tls)
        except OSError as error:
            raise UsageError(f"{error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(str(error)) from error

    def session(self, audio: AudioFormat) -> SessionOptions:
        """The session to open.

        Args:
            audio: how the chunks are written.
        """
        return SessionOptions(
            session_id=self.session_id,
            attributes=self.attributes,
            recognition=RecognitionOptions(
                model=self.model,
                language=self.language,
                task=self.task,
                decode_profile=self.decode_profile,
                prompt=self.prompt,
                hotwords=self.hotwords,
            ),
            vad=VadOptions(
                mode=self.vad_mode,
                threshold=self.vad_threshold,
                silence_ms=None if self.vad_silence is None else round(self.vad_silence * 1000),
            ),
            audio=audio,
            require_token=self.require_token,
        )


class FileSettings(CommandSettings):
    """What the commands for files have besides.

    Attributes:
        audio_path: the recording.
        chunk_ms: audio of a message.
        realtime: send it as fast as it was spoken, not as fast as possible.
    """

    audio_path: Path
    chunk_ms: int = Field(default=100, ge=1, le=60_000)
    realtime: bool = True


class BatchSettings(FileSettings):
    """The same, with the profile for accuracy; `chunk_ms` and `realtime` do nothing."""

    decode_profile: str = "accurate"


class MicrophoneSettings(CommandSettings):
    """What the command for a microphone has besides.

    Attributes:
        device: number or part of the name; None is the system's.
        sample_rate: Hz.
        chunk_ms: audio of a message.
    """

    device: int | str | None = None
    sample_rate: int = Field(default=16_000, ge=4_000, le=192_000)
    chunk_ms: int = Field(default=100, ge=1, le=10_000)


Settings = TypeVar("Settings", bound=CommandSettings)


def read_settings(kind: type[Settings], flags: argparse.Namespace) -> Settings:
    """The settings of a command.

    Args:
        kind: of which command.
        flags: those that were given, and `config`, a YAML file or None.

    Raises:
        UsageError: the file cannot be read, a key is unknown, or a value is wrong.
    """
    given = dict(vars(flags))
    path: Path | None = given.pop("config", None)
    values = _read_yaml(path, kind) if path else {}
    attributes = given.pop("attributes", None)
    values |= given
    if attributes:
        values["attributes"] = {**(values.get("attributes") or {}), **dict(attributes)}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(fault, path, given) for fault in error.errors())) from None


def keys_of(kind: type[CommandSettings]) -> list[str]:
    """The keys of its YAML file."""
    return [field.alias or name for name, field in kind.model_fields.items()]


def _read_yaml(path: Path, kind: type[CommandSettings]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'is not UTF-8'}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold keys and values")
    known = keys_of(kind)
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: {_unknown(str(key), known)}")
    return {key: value for key, value in values.items() if value is not None}


def _unknown(key: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown key {key!r}; the nearest is {nearest[0]!r}"


def _explain(fault: Mapping[str, Any], path: Path | None, given: Mapping[str, Any]) -> str:
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"{name} is missing: give it on the command line or in the YAML file"
    key = str(fault["loc"][0]) if fault["loc"] else ""
    where = "" if path is None or key in given else f"{path}: "
    return f"{where}{name}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
