"""An engine for tests of isolation: each call does what the prompt of its first window says.

It runs in a process of its own, so its module imports little.
"""

import ctypes
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from whisper_server.core.engine import Capabilities, ComputeChoice, Engine
from whisper_server.core.errors import (
    EngineCrashedError,
    EngineOutOfMemoryError,
    ModelLoadError,
    ServerBusyError,
    UnsupportedByEngineError,
)
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import Decoded, LanguageProbabilities, Segment, Window

COMPUTE = ComputeChoice("commanded", "cpu", "none", cpu_threads=1, workers=1)
LOADER = "tests.commanded_engine:load"
DEMO_LOADER = "tests.commanded_engine:load_demo"

LOAD_COMMAND = "load"
"""Name of the file in the model's folder that says what its load does."""

TELL_PRIORITY = "tell priority"
"""A window with this prompt is answered with the priority of its call."""

RUNNING = "running"
"""Name of the named pipe in the model's folder that gets a byte when a call runs."""

MOST_CALLS = 4
MAX_BATCH = 2

_MEETING_S = 30.0


class OwnUnsupportedError(UnsupportedByEngineError):
    """A class that the server does not know."""


class CommandedEngine:
    """Answers with the prompt, the number of samples, their first and last, and the thread's process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._meeting = threading.Barrier(MOST_CALLS)
        self._commands: dict[str, Callable[[], object]] = {
            "segv": lambda: signal.pthread_kill(threading.get_ident(), signal.SIGSEGV),
            "read nothing": lambda: ctypes.string_at(0),
            "exit": lambda: os._exit(7),
            "hang": self._hang,
            "hang with the GIL": self._hang_with_gil,
            "meet": lambda: self._meeting.wait(_MEETING_S),
            "log": _log,
            "wrong arguments": _refuse,
            "busy": _be_busy,
            "out of memory": _run_out_of_memory,
            "own class": _raise_own_class,
            "foreign": _divide_by_zero,
            "lose the device": _lose_device,
            "leave": _leave,
        }

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            engine="commanded",
            device="cpu",
            compute_type="none",
            languages=frozenset(("en", "pt")),
            translation=True,
            word_timestamps=True,
            hotwords=True,
            mel_bins=None,
            parallel_calls=MOST_CALLS - 1,
            max_batch=MAX_BATCH,
            weights_bytes=0,
            overtaking_calls=1,
        )

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        self._commands.get(windows[0].prompt, lambda: None)()
        return [_answer(window, priority) for window in windows]

    def detect_language(
        self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
    ) -> list[LanguageProbabilities]:
        return [[("pt", float(window.samples[0])), ("en", 0.0)] for window in windows]

    def wait_until_ready(self) -> None:
        pass

    def abort(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def _hang(self) -> None:
        self._announce()
        threading.Event().wait()

    def _hang_with_gil(self) -> None:
        self._announce()
        ctypes.PyDLL(None).sleep(600)

    def _announce(self) -> None:
        announce(self._folder)


def load(folder: Path, _compute: ComputeChoice) -> CommandedEngine:
    """Load as the folder says."""
    command = folder / LOAD_COMMAND
    match command.read_text() if command.exists() else "":
        case "die":
            os._exit(9)
        case "refuse":
            raise ModelLoadError("The commanded engine refuses.")
        case "foreign":
            raise ZeroDivisionError("a secret")
        case "hang":
            threading.Event().wait()
    return CommandedEngine(folder)


def load_demo(folder: Path, compute: ComputeChoice) -> Engine:
    """faster-whisper; its calls are announced where the folder has a named pipe for that."""
    from whisper_server.engines import faster_whisper

    engine = faster_whisper.load(folder, compute)
    decode = engine.decode

    def announced(windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        if (folder / RUNNING).exists():
            announce(folder)
        return decode(windows, priority)

    engine.decode = announced  # type: ignore[method-assign]  # the rest of the engine stays as it is
    return engine


def announce(folder: Path) -> None:
    """Tell who reads the other end of the named pipe that the call runs."""
    (folder / RUNNING).write_bytes(b"1")


def said(decoded: Decoded) -> str:
    """The text of an answer."""
    return decoded.segments[0].text


def expected(window: Window) -> str:
    """What the engine answers to a window, but for the process."""
    samples = window.samples
    first, last = (samples[0], samples[-1]) if len(samples) else (0.0, 0.0)
    return f"{window.prompt}/{len(samples)}/{first:.4f}/{last:.4f}/{float(samples.sum()):.4f}"


def _answer(window: Window, priority: Priority) -> Decoded:
    text = priority.name if window.prompt == TELL_PRIORITY else expected(window)
    segment = Segment(0.0, window.duration_s, text, (), -0.25, 1.0, 0.0, 0.0)
    return Decoded((segment,), window.language or "en", 1.0, window.duration_s, True, 0.0)


def _log() -> None:
    logging.getLogger("whisper_server.models").info("loaded %d things", 3)
    logging.getLogger("whisper_server.models").debug("not of interest")
    logging.getLogger("some.library").info("not of interest")
    warnings.warn("an odd way", UserWarning, stacklevel=1)
    try:
        _divide_by_zero()
    except ZeroDivisionError:
        logging.getLogger("some.library").exception("it does not divide")


def _refuse() -> None:
    raise UnsupportedByEngineError("Not this.", param="language", code="unsupported_language")


def _be_busy() -> None:
    raise ServerBusyError("Come back.", retry_after_s=2.5)


def _run_out_of_memory() -> None:
    raise EngineOutOfMemoryError("Too many.") from RuntimeError("CUDA failed with error out of memory")


def _raise_own_class() -> None:
    raise OwnUnsupportedError("Mine.", param="prompt")


def _lose_device() -> None:
    raise EngineCrashedError("The device has failed.")


def _divide_by_zero() -> None:
    raise ZeroDivisionError("a secret")


def _leave() -> None:
    raise SystemExit(3)
