"""Finds out by measuring how many workers and threads suit a model on this machine, once for both."""

import hashlib
import importlib.metadata
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from whisper_server.core.calibration import (
    TOTAL_S,
    Measurement,
    Parallelism,
    candidates,
    machine_fingerprint,
    predicted_s,
    winner,
)
from whisper_server.core.engine import ComputeChoice, Engine, EngineLoader
from whisper_server.core.errors import EngineTimeoutError, ModelLoadError, WhisperServerError
from whisper_server.core.hardware import Decision, HardwareFacts
from whisper_server.services.calibration_cache import Calibration, CalibrationCache, CalibrationKey
from whisper_server.services.engine_measuring import Clock, Measure, measure_engine

_logger = logging.getLogger("whisper_server.calibration")

_LIBRARIES: Final = ("ctranslate2", "faster-whisper")

_PREFIXES: Final = ("CT2_", "GOMP_", "MKL_", "OMP_")
"""Of environment variables that tell these libraries how to compute."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One model to calibrate: its files, what to load it with, and how."""

    folder: Path
    compute: ComputeChoice
    load: EngineLoader

    def engine(self, parallelism: Parallelism) -> Engine:
        """The model loaded so, or with the default where it does not load so."""
        compute = parallelism.applied_to(self.compute)
        if compute != self.compute:
            try:
                return self.load(self.folder, compute)
            except ModelLoadError as error:
                _logger.warning(
                    "Calibration of %s: no load with %s: %s", self.folder, parallelism, error.message
                )
        return self.load(self.folder, self.compute)


class Calibrator:
    """Loads models with the workers and threads that suit them.

    On the CPU, where the operator left workers or threads open, the first load of a model tries a few
    candidates on made-up audio and keeps the best; later loads take what was found. Whatever goes wrong with
    measuring, the model is loaded as it would be without.

    Thread-safe; blocking. Models are measured one at a time, for two would disturb each other.

    Args:
        decision: made for this machine; what it says was set stays.
        facts: of this machine.
        cache: what is known from before.
        measure: measures one loaded engine; None measures nothing and only uses what is known.
        clock: seconds, monotonic.
        now: the time of day.
    """

    def __init__(
        self,
        decision: Decision,
        facts: HardwareFacts,
        cache: CalibrationCache,
        *,
        measure: Measure | None = measure_engine,
        clock: Clock = time.perf_counter,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._candidates = candidates(decision, facts)
        self._machine = machine_fingerprint(facts)
        self._cache = cache
        self._measure = measure
        self._clock = clock
        self._now = now
        self._measuring = threading.Lock()
        self._is_stopped = threading.Event()

    def calibrated_loader(self, load: EngineLoader) -> EngineLoader:
        """The same loader, but for the workers and threads it loads with."""
        return lambda folder, compute: self.load(folder, compute, load)

    def load(self, folder: Path, compute: ComputeChoice, load: EngineLoader) -> Engine:
        """Load the model in a folder, measuring first where that is needed: up to about 10 s.

        Args:
            folder: of the model.
            compute: the decision's choice, whose workers and threads are the default.
            load: makes an engine of it.

        Raises:
            ModelLoadError: as `load` raises it for the default.
        """
        task = _Task(folder, compute, load)
        key = self._key(task)
        if key is None:
            return load(folder, compute)
        known = self._cache.find(key)
        if known is None and self._measure is not None and not self._is_stopped.is_set():
            with self._measuring:
                known = self._cache.find(key)  # another thread may have measured it meanwhile
                if known is None:
                    return self._calibrate(task, key, self._measure)
        if known is None:
            return load(folder, compute)
        _logger.info("Calibration of %s: %s, as measured %s", folder, known.chosen, known.measured_at)
        return task.engine(known.chosen)

    def stop(self) -> None:
        """Measure no more, and end what runs after the candidate it is at; for shutdown."""
        self._is_stopped.set()

    def _key(self, task: _Task) -> CalibrationKey | None:
        """What to look the model up by; None where there is nothing to choose."""
        compute = task.compute
        if len(self._candidates) < 2 or self._candidates[0].applied_to(compute) != compute:
            return None
        try:
            model = _model_fingerprint(task.folder)
        except OSError:
            return None  # the loader says better what is missing
        return CalibrationKey(self._machine, model, compute.compute_type, _libraries(), self._candidates)

    def _calibrate(self, task: _Task, key: CalibrationKey, measure: Measure) -> Engine:
        default, *challengers = key.candidates
        _logger.info("Calibration of %s: measuring %d candidates", task.folder, len(key.candidates))
        trial = _Trial(task, measure, self._clock)
        trial.begin(default)
        while challengers and not self._is_stopped.is_set() and trial.has_time_for(challengers[0]):
            trial.challenge(challengers.pop(0))
        if self._is_stopped.is_set():
            return trial.any_engine()
        if not trial.measurements:
            return task.engine(default)
        notes = [*trial.notes, *(f"{left} left out: no time" for left in challengers)]
        entry = Calibration(
            key=key,
            folder=str(task.folder),
            chosen=winner(trial.measurements),
            measurements=tuple(trial.measurements),
            note="; ".join(notes),
            measured_at=self._now().isoformat(timespec="seconds"),
        )
        place = self._cache.place if self._cache.store(entry) else "memory"
        found = "; ".join([*map(str, trial.measurements), *notes])
        _logger.info("Calibration of %s: %s. Chosen: %s, kept in %s", task.folder, found, entry.chosen, place)
        return trial.engine_with(entry.chosen)


class _Trial:
    """One model while its candidates are tried; holds one engine at most, to spare memory.

    Attributes:
        measurements: of the candidates that could be measured.
        notes: what became of the others.
    """

    def __init__(self, task: _Task, measure: Measure, clock: Clock) -> None:
        self.measurements: list[Measurement] = []
        self.notes: list[str] = []
        self._task = task
        self._measure = measure
        self._clock = clock
        self._engine: Engine | None = None
        self._parallelism: Parallelism | None = None  # of the engine
        self._load_s = 0.0
        self._end_s = 0.0

    def begin(self, default: Parallelism) -> None:
        """Load and measure the default; raises what the loader raises."""
        start_s = self._clock()
        self._engine, self._parallelism = self._task.engine(default), default
        loaded_s = self._clock()
        self._load_s, self._end_s = loaded_s - start_s, loaded_s + TOTAL_S
        self._measure_engine(self._engine, default)

    def has_time_for(self, challenger: Parallelism) -> bool:
        """Whether a challenger can be loaded and measured, and the best one loaded again, in time."""
        if not self.measurements:
            return False
        needed_s = 2 * self._load_s + predicted_s(self.measurements[0], challenger)
        return self._clock() + needed_s <= self._end_s

    def challenge(self, challenger: Parallelism) -> None:
        """Load a challenger in place of what is loaded, and measure it."""
        self._close()
        compute = challenger.applied_to(self._task.compute)
        try:
            self._engine = self._task.load(self._task.folder, compute)
        except Exception as error:  # the default works: what is only tried must not fail the load
            self._note_failure(challenger, error)
            return
        self._parallelism = challenger
        self._measure_engine(self._engine, challenger)

    def engine_with(self, parallelism: Parallelism) -> Engine:
        """The model loaded so; loaded anew where another one is."""
        if self._engine is not None and self._parallelism == parallelism:
            return self._engine
        self._close()
        return self._task.engine(parallelism)

    def any_engine(self) -> Engine:
        """What is loaded, whatever its workers and threads; else the default."""
        default = Parallelism(self._task.compute.workers, self._task.compute.cpu_threads)
        return self.engine_with(self._parallelism or default)

    def _measure_engine(self, engine: Engine, parallelism: Parallelism) -> None:
        batch = self.measurements[0].batch if self.measurements else None
        try:
            self.measurements.append(self._measure(engine, parallelism, batch))
        except EngineTimeoutError as error:
            self._note_failure(parallelism, error)
            if not engine.abort():
                self._engine = self._parallelism = None  # lost: it must not even be closed
            self._close()
        except Exception as error:  # engines may raise anything; the load goes on without measuring
            self._note_failure(parallelism, error)
            self._close()

    def _note_failure(self, parallelism: Parallelism, error: Exception) -> None:
        self.notes.append(f"{parallelism} failed")
        detail = error.message if isinstance(error, WhisperServerError) else repr(error)
        _logger.warning("Calibration of %s: %s failed: %s", self._task.folder, parallelism, detail)

    def _close(self) -> None:
        engine, self._engine, self._parallelism = self._engine, None, None
        if engine is not None:
            engine.close()


def _model_fingerprint(folder: Path) -> str:
    """Tells one model's files from another's without reading gigabytes."""
    weights = (folder / "model.bin").stat()
    config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]
    return f"{weights.st_size} bytes, {weights.st_mtime_ns}, {config}"


def _libraries() -> str:
    versions = [f"{name} {_version(name)}" for name in _LIBRARIES]
    told = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)]
    return ", ".join(versions + told)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # as in a program frozen without metadata
        return "unknown"
