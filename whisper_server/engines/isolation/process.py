"""The server's end of one model's process."""

import itertools
import logging
import multiprocessing
import pickle
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Final, cast

from whisper_server.core.engine import Capabilities
from whisper_server.core.errors import EngineCrashedError, ModelLoadError, WhisperServerError
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import Window
from whisper_server.engines.isolation import child
from whisper_server.engines.isolation.audio_slots import AudioSlots
from whisper_server.engines.isolation.messages import (
    Begin,
    Call,
    Fault,
    FromProcess,
    Job,
    Loaded,
    LogLine,
    Method,
    ModelProcessError,
    Ready,
    Reply,
    SentError,
)

_logger = logging.getLogger("whisper_server.isolation")

_LINGER_S: Final = 5.0
"""How long a process may take to vanish after its pipe has closed or it was killed."""


class Ending(Enum):
    """Why a process ended; the value is what its callers are told."""

    CRASHED = "The process that ran the model has died. It is being restarted: try again."
    ABORTED = "The model did not answer in time and is being restarted. Try again."
    CLOSED = "The model was unloaded before it answered."


class CallNotSentError(Exception):
    """The process died before the call reached it."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A call that was sent, or is about to be."""

    future: "Future[list[Any]]"
    slot: int | None


class ModelProcess:
    """A process with one model, started at once.

    One thread drives it: `load`, then `dispatch`, then `bury`. The rest is thread-safe.

    Args:
        job: what it loads.

    Raises:
        OSError: the process could not be started.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        context = multiprocessing.get_context("spawn")
        self._connection, connection = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(
            target=child.main, args=(connection, lifeline, job), name="whisper-engine", daemon=True
        )
        self._call_ids = itertools.count()
        self._sending = threading.Lock()
        self._slots: AudioSlots | None = None
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._ending = Ending.CRASHED
        self._is_over = False
        self._is_reaped = False
        try:
            _start(self._process)
        except BaseException:
            self._connection.close()
            self._lifeline.close()
            raise
        finally:
            connection.close()
            lifeline.close()
        self.pid: Final = cast(int, self._process.pid)

    def load(self, timeout_s: float) -> Capabilities:
        """Wait until the model is loaded; if it is not, nothing of the process is left.

        Raises:
            ModelLoadError: the process died or took too long; what else the loader names, it raises too.
        """
        try:
            return self._load(time.monotonic() + timeout_s)
        except (EOFError, OSError, CallNotSentError):
            how = self.bury()
            raise ModelLoadError(
                "The model could not be loaded: the process that loads it died. The machine may not have "
                "enough memory for it; the server's log tells more."
            ) from ModelProcessError(how)
        except BaseException:
            self.kill(Ending.CLOSED)
            self.bury()
            raise

    def call(self, method: Method, windows: Sequence[Window], priority: Priority) -> list[Any]:
        """Call the engine and wait for what it answers.

        Raises:
            CallNotSentError: the process has ended; nothing of the call was run.
            EngineCrashedError: it ended before it answered.
            WhisperServerError: whatever the engine raised.
        """
        call_id = next(self._call_ids)
        slots = self._slots
        if slots is None:
            raise CallNotSentError
        slot = slots.take()
        try:
            packed, places = slots.pack(slot, windows)
            message = pickle.dumps(Call(call_id, method, priority, packed, places), pickle.HIGHEST_PROTOCOL)
            future = self._expect(call_id, slot)
        except BaseException:
            slots.give_back(slot)
            raise
        try:
            self._send(message)
        except BaseException:
            self._taken(call_id)
            raise
        return future.result()

    def dispatch(self) -> None:
        """Hand what the process sends to whom it is for, until the process ends."""
        try:
            while True:
                self._handle(self._connection.recv())
        except (EOFError, OSError):
            return
        except Exception:  # a boundary: nothing that a damaged process sends can be relied on
            _logger.exception("The process %d of %s sent what cannot be read", self.pid, self._job.folder)
            self.kill(Ending.CRASHED)

    def ask_to_end(self) -> None:
        """Have the process end by itself, at once if it can."""
        with self._lock:
            self._ending = Ending.CLOSED
            self._lifeline.close()

    def kill(self, ending: Ending) -> None:
        """End the process whatever it does."""
        with self._lock:
            if not self._is_reaped:
                self._ending = ending
                self._process.kill()

    def bury(self) -> str:
        """See the process to its end, fail the calls it has not answered, and give back all it took.

        Returns:
            How it ended, such as `SIGSEGV`.
        """
        how = self._reap()
        with self._lock:
            self._is_over = True
            lost = list(self._waiting)
            self._lifeline.close()
        self._log_end(how, len(lost))
        for call_id in lost:
            if waiting := self._taken(call_id):
                waiting.future.set_exception(EngineCrashedError(self._ending.value))
        if self._slots is not None:
            self._slots.close()
        with self._sending:
            self._connection.close()
        return how

    def _load(self, deadline_s: float) -> Capabilities:
        capabilities: Capabilities | None = None
        while True:
            if not self._connection.poll(max(0.0, deadline_s - time.monotonic())):
                raise ModelLoadError("The model took too long to load.")
            message = cast(FromProcess, self._connection.recv())
            if isinstance(message, Fault):
                raise self._rebuilt(message.error)
            if isinstance(message, LogLine):
                self._log(message)
            elif isinstance(message, Loaded):
                capabilities = message.capabilities
                self._slots = AudioSlots(capabilities.most_calls, capabilities.max_batch)
                self._send(pickle.dumps(Begin(self._slots.name)))
            elif isinstance(message, Ready) and capabilities is not None:
                if self._slots is not None:
                    self._slots.unlink()
                return capabilities

    def _expect(self, call_id: int, slot: int | None) -> "Future[list[Any]]":
        future: Future[list[Any]] = Future()
        with self._lock:
            if self._is_over:
                raise CallNotSentError
            self._waiting[call_id] = _Waiting(future, slot)
        return future

    def _taken(self, call_id: int) -> _Waiting | None:
        """The call, which waits no longer and whose slot is free; None if it has been taken already."""
        with self._lock:
            waiting = self._waiting.pop(call_id, None)
        if waiting is not None and self._slots is not None:
            self._slots.give_back(waiting.slot)
        return waiting

    def _send(self, message: bytes) -> None:
        with self._sending:
            try:
                self._connection.send_bytes(message)
            except OSError as error:
                raise CallNotSentError from error
            except BaseException:
                # Half a message may be in the pipe, and nothing after it would be understood.
                self.kill(Ending.CRASHED)
                raise

    def _handle(self, message: FromProcess) -> None:
        if isinstance(message, LogLine):
            self._log(message)
        elif isinstance(message, Reply):
            if waiting := self._taken(message.call_id):
                waiting.future.set_result(message.results)
        elif isinstance(message, Fault) and message.call_id is not None:
            error = self._rebuilt(message.error)
            if waiting := self._taken(message.call_id):
                waiting.future.set_exception(error)

    def _rebuilt(self, sent: SentError) -> WhisperServerError:
        if sent.traceback:
            _logger.error(
                "The engine of %s raised %s",
                self._job.folder,
                sent.causes,
                exc_info=ModelProcessError(f"in process {self.pid}\n{sent.traceback}"),
            )
        return sent.rebuilt()

    def _log(self, line: LogLine) -> None:
        logger = logging.getLogger(line.logger)
        if not logger.isEnabledFor(line.level):
            return
        attributes = {
            "name": line.logger,
            "levelno": line.level,
            "levelname": logging.getLevelName(line.level),
            "msg": line.message,
            "created": line.created_s,
            "msecs": line.created_s % 1 * 1000,
            "process": self.pid,
            "processName": "whisper-engine",
        }
        if line.traceback:
            attributes["exc_info"] = (ModelProcessError, ModelProcessError(f"\n{line.traceback}"), None)
        logger.handle(logging.makeLogRecord(attributes))

    def _reap(self) -> str:
        self._process.join(_LINGER_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(_LINGER_S)
        with self._lock:
            self._is_reaped = True
            code = self._process.exitcode
            if code is None:
                return "it does not react to SIGKILL"
            self._process.close()
        return f"exit code {code}" if code >= 0 else _signal_name(-code)

    def _log_end(self, how: str, lost: int) -> None:
        if self._ending is Ending.CLOSED:
            _logger.debug("The process %d of %s has ended (%s)", self.pid, self._job.folder, how)
            return
        _logger.error(
            "The process %d of %s %s (%s); calls lost: %d",
            self.pid,
            self._job.folder,
            "was ended" if self._ending is Ending.ABORTED else "died",
            how,
            lost,
        )


def _start(process: BaseProcess) -> None:
    """Start it so that a terminal's Ctrl-C spares it until it ignores that itself."""
    if sys.platform == "win32":
        process.start()
        return
    # Otherwise this starts within `start`, and lets the signals through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, child.GROUP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name}: the system may have run out of memory" if name == "SIGKILL" else name
