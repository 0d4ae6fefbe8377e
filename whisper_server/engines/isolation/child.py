"""What a model's process runs: it loads the model, then answers calls until the server is done with it.

It ends by `os._exit` alone: nothing in native code can hold that up, and the system takes all memory back.
"""

import contextlib
import ctypes
import faulthandler
import importlib
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Final, cast

from whisper_server.core.engine import Engine, EngineLoader
from whisper_server.core.errors import EngineCrashedError, EngineError, ModelLoadError, WhisperServerError
from whisper_server.engines.blas_threads import use_one_blas_thread
from whisper_server.engines.isolation.audio_slots import SharedAudio
from whisper_server.engines.isolation.heap import Trimmer, keep_freed_memory
from whisper_server.engines.isolation.messages import (
    Begin,
    Call,
    Fault,
    FromProcess,
    Job,
    Loaded,
    LogLine,
    Ready,
    Reply,
    SentError,
    ToProcess,
)

_NAME: Final = b"whisper-engine"
_PR_SET_NAME: Final = 15
"""See prctl(2)."""

_LOST_DEVICE_EXIT: Final = 70

GROUP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
"""Terminals and service managers send these to the server's whole group; what follows, the server decides."""


def main(connection: "Connection[Any, Any]", lifeline: "Connection[Any, Any]", job: Job) -> None:
    """Serve one model; never returns.

    Args:
        connection: where calls come from and replies go.
        lifeline: nothing is ever sent; it is closed when the server wants an end, or has died.
        job: the model.
    """
    keep_freed_memory()
    _prepare_process()
    threading.Thread(target=_end_with, args=(lifeline,), name="lifeline", daemon=True).start()
    pipe = _Pipe(connection)
    _forward_logs(pipe)
    use_one_blas_thread()
    try:
        engine = _loader(job.loader)(job.folder, job.compute)
        pipe.send(Loaded(engine.capabilities))
    except BaseException as error:  # a boundary: it is raised in the server
        pipe.send(Fault(None, _described(error, ModelLoadError("The model could not be loaded."))))
        os._exit(1)
    _serve(pipe, engine)


class _Pipe:
    """The way to the server. Thread-safe."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: FromProcess) -> None:
        self.send_pickled(pickle.dumps(message))

    def send_pickled(self, message: bytes) -> None:
        # A server that is gone needs no answer: this process is about to end.
        with self._sending, contextlib.suppress(OSError):
            self._connection.send_bytes(message)

    def receive(self) -> ToProcess:
        """The next message; ends the process when there are no more."""
        try:
            return cast(ToProcess, self._connection.recv())
        except (EOFError, OSError):
            os._exit(0)


class _Calls:
    """Answers calls, each on a thread of a pool."""

    def __init__(self, pipe: _Pipe, engine: Engine, audio: SharedAudio | None) -> None:
        self._pipe = pipe
        self._engine = engine
        self._audio = audio
        self._trimmer = Trimmer()

    def answer(self, call: Call) -> None:
        try:
            answer = pickle.dumps(Reply(call.call_id, self._results(call)))
        except EngineCrashedError:  # the engine says that this process is of no more use
            logging.getLogger("whisper_server.isolation").exception(
                "The process ends, since its device failed"
            )
            os._exit(_LOST_DEVICE_EXIT)
        except BaseException as error:  # a boundary: it is raised in the server
            fault = _described(error, EngineError("The model failed on this audio."))
            answer = pickle.dumps(Fault(call.call_id, fault))
        self._pipe.send_pickled(answer)
        self._trimmer.note_use()

    def _results(self, call: Call) -> list[Any]:
        windows = list(call.windows)
        if self._audio is not None:
            windows = self._audio.unpack(windows, call.places)
        if call.method == "decode":
            return list(self._engine.decode(windows, call.priority))
        return list(self._engine.detect_language(windows, call.priority))


class _LogForwarder(logging.Handler):
    """Sends log records to the server, whose handlers write them."""

    def __init__(self, pipe: _Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record."""
        try:
            trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
            line = LogLine(record.name, record.levelno, record.getMessage(), record.created, trace)
        except (TypeError, ValueError):  # arguments that do not fit the message
            self.handleError(record)
        else:
            self._pipe.send(line)


def _prepare_process() -> None:
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    if sys.stderr is not None:
        faulthandler.enable()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_NAME, _NAME, 0, 0, 0)


def _end_with(lifeline: "Connection[Any, Any]") -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(0)


def _forward_logs(pipe: _Pipe) -> None:
    logging.basicConfig(level=logging.WARNING, handlers=[_LogForwarder(pipe)], force=True)
    logging.getLogger("whisper_server").setLevel(logging.INFO)
    logging.captureWarnings(True)


def _loader(loader: str | EngineLoader) -> EngineLoader:
    if not isinstance(loader, str):
        return loader
    module, _, function = loader.partition(":")
    return cast(EngineLoader, getattr(importlib.import_module(module), function))


def _serve(pipe: _Pipe, engine: Engine) -> None:
    begin = pipe.receive()
    assert isinstance(begin, Begin)
    calls = _Calls(pipe, engine, None if begin.memory_name is None else SharedAudio(begin.memory_name))
    pipe.send(Ready())
    threads = ThreadPoolExecutor(engine.capabilities.most_calls, thread_name_prefix="engine")
    while True:
        call = pipe.receive()
        assert isinstance(call, Call)
        threads.submit(calls.answer, call)


def _described(error: BaseException, otherwise: WhisperServerError) -> SentError:
    """The fault to send; what the engine did not name itself becomes `otherwise`, with its traceback."""
    if isinstance(error, WhisperServerError):
        return SentError.of(error)
    otherwise.__cause__ = error
    return SentError.of(otherwise, "".join(traceback.format_exception(error)))
