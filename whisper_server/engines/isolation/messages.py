"""What the server and a model's process say to each other through their pipe, pickled."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from whisper_server.core import errors
from whisper_server.core.engine import Capabilities, ComputeChoice, EngineLoader
from whisper_server.core.errors import WhisperServerError
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import Window
from whisper_server.engines.isolation.audio_slots import Place

Method: TypeAlias = Literal["decode", "detect_language"]


class ModelProcessError(Exception):
    """Stands in the server for an exception of the model's process, as a cause or with its traceback."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is started with.

    Attributes:
        loader: brings the engine; as `module:function` it is imported by the process alone.
        folder: of the model.
        compute: where and how it computes.
    """

    loader: str | EngineLoader
    folder: Path
    compute: ComputeChoice


@dataclass(frozen=True, slots=True)
class Begin:
    """To the process: attach to this memory, and take calls. None: audio comes in the calls."""

    memory_name: str | None


@dataclass(frozen=True, slots=True)
class Call:
    """To the process: call the engine. Windows that have a place come without their samples."""

    call_id: int
    method: Method
    priority: Priority
    windows: tuple[Window, ...]
    places: tuple[Place | None, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """From the process: the model is loaded."""

    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Ready:
    """From the process: it has attached to the memory, whose name is not needed any more."""


@dataclass(frozen=True, slots=True)
class Reply:
    """From the process: what the engine answered."""

    call_id: int
    results: list[Any]


@dataclass(frozen=True, slots=True)
class SentError:
    """A fault on its way.

    Attributes:
        kind: name of its class in `core.errors`.
        message: for the client.
        attributes: `param` and what else its class has.
        causes: what led to it, in one line.
        traceback: of an exception that the engine did not name itself, else empty.
    """

    kind: str
    message: str
    attributes: Mapping[str, Any]
    causes: str
    traceback: str

    @classmethod
    def of(cls, error: WhisperServerError, traceback: str = "") -> Self:
        """What is sent for a fault."""
        # A class that an engine derives is known to the server by the nearest one in the tree.
        kind = next(base for base in type(error).__mro__ if base.__module__ == errors.__name__)
        simple = {
            name: value
            for name, value in vars(error).items()
            if value is None or isinstance(value, str | int | float)
        }
        return cls(kind.__name__, error.message, simple, error.causes, traceback)

    def rebuilt(self) -> WhisperServerError:
        """The fault, for the server to raise."""
        kind: type[WhisperServerError] = getattr(errors, self.kind)
        # Not by the constructor: some need more than the message.
        error = kind.__new__(kind, self.message)
        vars(error).update(self.attributes)
        if self.causes:
            error.__cause__ = ModelProcessError(self.causes)
        return error


@dataclass(frozen=True, slots=True)
class Fault:
    """From the process: the call raised; without a call, the loader did."""

    call_id: int | None
    error: SentError


@dataclass(frozen=True, slots=True)
class LogLine:
    """From the process: a line for the server's log.

    Attributes:
        logger: name of the logger.
        level: number of its level.
        message: complete.
        created_s: when, Unix time.
        traceback: of the exception it is about, or empty.
    """

    logger: str
    level: int
    message: str
    created_s: float
    traceback: str


ToProcess: TypeAlias = Begin | Call
FromProcess: TypeAlias = Loaded | Ready | Reply | Fault | LogLine
