"""An engine in a process of its own, which is started again when it dies."""

import atexit
import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

from whisper_server.core.engine import Capabilities, ComputeChoice, EngineLoader
from whisper_server.core.errors import EngineCrashedError, ModelLoadError, WhisperServerError
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import Decoded, LanguageProbabilities, Window
from whisper_server.engines.isolation.messages import Job, Method
from whisper_server.engines.isolation.process import CallNotSentError, Ending, ModelProcess

_logger = logging.getLogger("whisper_server.isolation")

LOAD_TIMEOUT_S: Final = 600.0
CLOSE_GRACE_S: Final = 3.0

_TRIES_AT_ONCE: Final = 3
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_MOST_DOUBLINGS: Final = 16

_KILLS: Final = 4
_KILL_WAIT_S: Final = 3.0


class _State(Enum):
    LOADING = auto()
    READY = auto()
    BROKEN = auto()
    """Several loads in a row have failed; a call after the pause has the next tried."""
    CLOSED = auto()


def isolated(
    loader: str | EngineLoader,
    *,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    close_grace_s: float = CLOSE_GRACE_S,
    clock: Callable[[], float] = time.monotonic,
) -> EngineLoader:
    """A loader that runs another one, and the engine it gives, in a process for each loaded model.

    Args:
        loader: of the engine, as `package.module:function`, which only the process imports, or a function
            that can be pickled.
        load_timeout_s: a load that takes longer has failed; calls wait no longer for a restart.
        close_grace_s: how long `close` waits before it kills.
        clock: seconds that only grow; measures the pauses between loads that fail.
    """

    def load(folder: Path, compute: ComputeChoice) -> IsolatedEngine:
        return IsolatedEngine(
            Job(loader, folder, compute),
            load_timeout_s=load_timeout_s,
            close_grace_s=close_grace_s,
            clock=clock,
        )

    return load


class IsolatedEngine:
    """An engine behind `core.engine.Engine` that runs in a process of its own. Thread-safe.

    When the process dies, its running calls raise `EngineCrashedError`, and another one loads the model at
    once; calls wait for that. Loads that keep failing are tried again after pauses that double.

    It must be closed, or the process lives until this one ends. It ends with this one in any case.

    Args:
        job: what to load.
        load_timeout_s: see `isolated`, as for the others.
        close_grace_s: see there.
        clock: see there.

    Raises:
        ModelLoadError: the first load failed; the loader's own errors come as they are.
    """

    def __init__(
        self, job: Job, *, load_timeout_s: float, close_grace_s: float, clock: Callable[[], float]
    ) -> None:
        self._job = job
        self._load_timeout_s = load_timeout_s
        self._close_grace_s = close_grace_s
        self._clock = clock
        self._changed = threading.Condition()
        self._state = _State.LOADING
        self._process: ModelProcess | None = None
        self._loaded: Capabilities | None = None
        self._load_error: Exception | None = None
        self._starts = 0
        self._aborts = 0
        self._failed_loads = 0
        self._retry_at_s = 0.0
        # multiprocessing's own handler would wait for ever for a process that ignores SIGTERM. This one, as
        # the later one, runs before it.
        atexit.register(self.close)
        self._supervisor = threading.Thread(target=self._supervise, name="engine-supervisor", daemon=True)
        self._supervisor.start()
        self._capabilities = self._wait_for_first_load()

    @property
    def capabilities(self) -> Capabilities:
        """What the engine in the process can do."""
        return self._capabilities

    @property
    def pid(self) -> int | None:
        """Of the process that has the model or is loading it; None while there is none."""
        with self._changed:
            return None if self._process is None else self._process.pid

    @property
    def restarts(self) -> int:
        """How often a process was started because the one before had died."""
        with self._changed:
            return max(0, self._starts - 1)

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        """As the engine in the process; raises `EngineCrashedError` when that dies."""
        return self._call("decode", windows, priority)

    def detect_language(
        self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
    ) -> list[LanguageProbabilities]:
        """As the engine in the process; raises `EngineCrashedError` when that dies."""
        return self._call("detect_language", windows, priority)

    def wait_until_ready(self) -> None:
        """Block while the process is being restarted; raises `EngineCrashedError` where that fails."""
        self._ready_process()

    def abort(self) -> bool:
        """Kill the process: calls that run raise `EngineCrashedError`, later ones wait for the next process.

        Calls that wait for a restart already raise too; the restart goes on.

        Returns:
            Whether there will be one: always, unless the engine is closed.
        """
        with self._changed:
            self._aborts += 1
            self._changed.notify_all()
            process = self._process if self._state is _State.READY else None
            if process is not None:
                self._state = _State.LOADING
            is_open = self._state is not _State.CLOSED
        if process is not None:
            process.kill(Ending.ABORTED)
        return is_open

    def close(self) -> None:
        """End the process; calls that run raise `EngineCrashedError`. Its memory is returned after that.

        Takes milliseconds, or `close_grace_s` where native code holds the process up. Closing twice is
        harmless.
        """
        with self._changed:
            self._state = _State.CLOSED
            self._changed.notify_all()
            if self._process is not None:
                self._process.ask_to_end()
        self._supervisor.join(self._close_grace_s)
        for _ in range(_KILLS):
            if not self._supervisor.is_alive():
                break
            with self._changed:
                if self._process is not None:
                    self._process.kill(Ending.CLOSED)
            self._supervisor.join(_KILL_WAIT_S)
        else:
            _logger.error("The process %s of %s could not be ended", self.pid, self._job.folder)
        atexit.unregister(self.close)

    def _wait_for_first_load(self) -> Capabilities:
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._state is not _State.LOADING)
                loaded, error, self._load_error = self._loaded, self._load_error, None
        except BaseException:
            self.close()
            raise
        if loaded is not None:
            return loaded
        self.close()
        if isinstance(error, WhisperServerError):
            raise error
        raise ModelLoadError("The model could not be loaded.") from error

    def _call(self, method: Method, windows: Sequence[Window], priority: Priority) -> list[Any]:
        while True:
            process = self._ready_process()
            try:
                return process.call(method, windows, priority)
            except CallNotSentError:
                self._note_lost(process)

    def _ready_process(self) -> ModelProcess:
        """The process that takes calls, waited for while it is being restarted."""
        with self._changed:
            if self._state is _State.BROKEN and self._clock() >= self._retry_at_s:
                self._state = _State.LOADING
                self._changed.notify_all()
            self._wait_while_loading()
            if self._state is _State.READY and self._process is not None:
                return self._process
            if self._state is _State.CLOSED:
                raise EngineCrashedError(Ending.CLOSED.value)
        raise EngineCrashedError(
            "The model's process has died and could not be restarted. Try again in a minute."
        )

    def _wait_while_loading(self) -> None:
        aborts = self._aborts
        in_time = self._changed.wait_for(
            lambda: self._state is not _State.LOADING or self._aborts != aborts, self._load_timeout_s
        )
        if self._state is _State.LOADING:
            raise EngineCrashedError(
                Ending.ABORTED.value
                if in_time
                else "The model's process has died, and its restart takes long."
            )

    def _supervise(self) -> None:
        """Keep one process alive and hand out what it sends, until the engine is closed."""
        while self._is_process_wanted():
            process = self._loaded_process()
            if process is None:
                continue
            process.dispatch()
            # First no new calls for it, then the end of the old ones: who tries again gets the next process.
            self._note_lost(process)
            process.bury()
            with self._changed:
                self._process = None

    def _is_process_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._state is not _State.BROKEN)
            return self._state is not _State.CLOSED

    def _loaded_process(self) -> ModelProcess | None:
        """A process that has loaded the model, or None after noting that there is none."""
        started_s = time.monotonic()
        try:
            process = ModelProcess(self._job)
            self._adopt(process)
            capabilities = process.load(self._load_timeout_s)
        except Exception as error:  # a boundary: raised by the constructor, or counted
            self._note_failed_load(error)
            return None
        with self._changed:
            if self._loaded is not None:
                loading_s = time.monotonic() - started_s
                _logger.info("The model in %s is loaded again, in %.1f s", self._job.folder, loading_s)
            self._loaded = capabilities
            self._failed_loads = 0
            if self._state is _State.LOADING:
                self._state = _State.READY
            self._changed.notify_all()
        return process

    def _adopt(self, process: ModelProcess) -> None:
        with self._changed:
            self._starts += 1
            self._process = process
            if self._state is _State.CLOSED:
                process.ask_to_end()

    def _note_lost(self, process: ModelProcess) -> None:
        with self._changed:
            if self._process is process and self._state is _State.READY:
                self._state = _State.LOADING

    def _note_failed_load(self, error: Exception) -> None:
        with self._changed:
            self._process = None
            if self._loaded is None:
                self._load_error = error
                self._state = _State.CLOSED
            elif self._state is _State.LOADING:
                self._count_failed_load(error)
            self._changed.notify_all()

    def _count_failed_load(self, error: Exception) -> None:
        self._failed_loads += 1
        pause_s = 0.0
        if self._failed_loads >= _TRIES_AT_ONCE:
            doublings = min(self._failed_loads - _TRIES_AT_ONCE, _MOST_DOUBLINGS)
            pause_s = min(_FIRST_PAUSE_S * 2**doublings, _LONGEST_PAUSE_S)
            self._retry_at_s = self._clock() + pause_s
            self._state = _State.BROKEN
        causes = error.causes if isinstance(error, WhisperServerError) else ""
        _logger.error(
            "The model in %s could not be loaded again: %s (%s); next try %s",
            self._job.folder,
            error,
            causes,
            f"on a call in {pause_s:.0f} s or later" if pause_s else "at once",
        )
