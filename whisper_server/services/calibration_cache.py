"""Remembers what calibration found, in a file that outlives the server."""

import contextlib
import logging
import os
import platform
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from whisper_server.core.calibration import Measurement, Parallelism

_logger = logging.getLogger("whisper_server.calibration")

FILE_NAME: Final = "calibration.json"

MAX_ENTRIES: Final = 64
"""The oldest go first."""

_VERSION: Final = 2
"""Of what the results mean: 1 was measured while threads slept between the steps of a call."""

_MAX_FILE_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What a result holds for; where anything differs it is measured again.

    Attributes:
        machine: its fingerprint, see `core.calibration.machine_fingerprint`.
        model: fingerprint of the model's files.
        compute_type: the number format that was asked for.
        libraries: the versions of what computes, and what the environment tells them.
        candidates: what there was to choose from, the default first.
    """

    machine: str
    model: str
    compute_type: str
    libraries: str
    candidates: tuple[Parallelism, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """One result.

    Attributes:
        key: what it holds for.
        folder: of the model, for the reader.
        chosen: the best of the candidates.
        measurements: of each candidate that was measured, the default first.
        note: why candidates were left out; empty where none was.
        measured_at: ISO 8601, UTC.
    """

    key: CalibrationKey
    folder: str
    chosen: Parallelism
    measurements: tuple[Measurement, ...]
    note: str
    measured_at: str


@dataclass(frozen=True, slots=True)
class _Content:
    """The file."""

    version: int
    entries: tuple[Calibration, ...]


class CalibrationCache:
    """Results by key, in memory and in `calibration.json` of a folder. Thread-safe; blocking.

    Nothing here raises: a file that cannot be read or is not the server's counts as empty and is written
    anew; where it cannot be written, memory keeps the results until the program ends. Programs that write at
    the same time may lose each other's newest result, never the file.

    Args:
        folder: made when there is something to write; None keeps results in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE_NAME
        self._memory: dict[CalibrationKey, Calibration] = {}
        self._lock = threading.Lock()
        self._has_complained = False

    @property
    def place(self) -> str:
        """Where results are kept, for the reader."""
        return "memory" if self._path is None else str(self._path)

    def find(self, key: CalibrationKey) -> Calibration | None:
        """The result for this key, or None. One whose choice was not to choose from does not count."""
        with self._lock:
            entry = self._entries().get(key)
        return entry if entry is not None and entry.chosen in key.candidates else None

    def store(self, entry: Calibration) -> bool:
        """Keep a result, in place of the one before.

        Returns:
            Whether it is in the file.
        """
        with self._lock:
            entries = self._entries()
            entries.pop(entry.key, None)
            newest = [*entries.values(), entry][-MAX_ENTRIES:]
            self._memory = {kept.key: kept for kept in newest}
            return self._write(tuple(newest))

    def for_machine(self, machine: str) -> list[Calibration]:
        """The results for a machine, the oldest first."""
        with self._lock:
            return [entry for entry in self._entries().values() if entry.key.machine == machine]

    def _entries(self) -> dict[CalibrationKey, Calibration]:
        """The file's, with those of memory that it lacks; the oldest first."""
        return {entry.key: entry for entry in self._read()} | self._memory

    def _read(self) -> tuple[Calibration, ...]:
        if self._path is None:
            return ()
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
            if len(data) > _MAX_FILE_BYTES:
                raise ValueError("it is too large")
            content = TypeAdapter(_Content).validate_json(data)
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._complain("cannot be read (%s)", error.strerror)
            return ()
        except ValueError as error:  # pydantic's ValidationError is one
            faults = f"{error.error_count()} faults" if isinstance(error, ValidationError) else error
            self._complain("is not the server's (%s); the next result replaces it", faults)
            return ()
        return content.entries if content.version == _VERSION else ()

    def _write(self, entries: tuple[Calibration, ...]) -> bool:
        if self._path is None:
            return False
        data = TypeAdapter(_Content).dump_json(_Content(_VERSION, entries), indent=2)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._path, data)
        except OSError as error:
            self._complain("cannot be written (%s); the next start measures again", error.strerror)
            return False
        return True

    def _complain(self, what: str, detail: object) -> None:
        """Log once: each load would say the same."""
        if not self._has_complained:
            self._has_complained = True
            _logger.warning(f"Calibration: %s {what}", self._path, detail)


def platform_cache_folder(
    system: str | None = None, environment: Mapping[str, str] = os.environ
) -> Path | None:
    """Where this system's programs keep what they can make anew; None where the user has no home.

    Source: XDG Base Directory Specification; Apple's File System Programming Guide; Windows' known folders.

    Args:
        system: as `platform.system()` gives it, which is the default.
        environment: the variables to look at.
    """
    system = platform.system() if system is None else system
    base = environment.get("LOCALAPPDATA" if system == "Windows" else "XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # The specification says to ignore relative paths.
        return Path(base) / "whisper_server"
    below = {"Darwin": ("Library", "Caches"), "Windows": ("AppData", "Local")}.get(system, (".cache",))
    try:
        return Path.home().joinpath(*below, "whisper_server")
    except RuntimeError:
        return None


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
