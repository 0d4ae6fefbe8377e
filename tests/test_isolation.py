"""Engines in processes of their own: real ones, which crash, hang and are killed."""

import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from faster_whisper import decode_audio

from tests import commanded_engine
from tests.commanded_engine import (
    COMPUTE,
    DEMO_LOADER,
    LOAD_COMMAND,
    LOADER,
    MAX_BATCH,
    MOST_CALLS,
    RUNNING,
    TELL_PRIORITY,
    expected,
    said,
)
from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.errors import (
    EngineCrashedError,
    EngineError,
    EngineOutOfMemoryError,
    ModelLoadError,
    ServerBusyError,
    UnsupportedByEngineError,
    WhisperServerError,
)
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import DecodeOptions, Samples, Window
from whisper_server.engines import faster_whisper
from whisper_server.engines.isolation import IsolatedEngine, isolated

IN_TIME_S = 60.0
"""A wait that takes longer has failed."""


def noise(samples: int = 1600, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)


def window(command: str = "hello", samples: int = 1600, seed: int = 0) -> Window:
    return Window(noise(samples, seed), prompt=command)


def started(folder: Path, **arguments: Any) -> IsolatedEngine:
    engine = isolated(arguments.pop("loader", LOADER), **arguments)(folder, COMPUTE)
    assert isinstance(engine, IsolatedEngine)
    return engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / RUNNING)
    return tmp_path


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def start(folder: Path, threads: ThreadPoolExecutor) -> Iterator[Callable[..., IsolatedEngine]]:
    """Starts engines on the folder, which are closed before the threads that call them are waited for."""
    with ExitStack() as stack:

        def start(**arguments: Any) -> IsolatedEngine:
            engine = started(folder, **arguments)
            stack.callback(engine.close)
            return engine

        yield start


@pytest.fixture
def engine(start: Callable[..., IsolatedEngine]) -> IsolatedEngine:
    """An engine for tests that end its process."""
    return start(loader=commanded_engine.load)


@pytest.fixture(scope="module")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedEngine]:
    loaded = started(tmp_path_factory.mktemp("model"))
    yield loaded
    assert loaded.restarts == 0
    loaded.close()


def wait_until_running(folder: Path, calls: int = 1) -> None:
    """Until so many calls that were told to hang do."""
    pipe = os.open(folder / RUNNING, os.O_RDWR)
    for _ in range(calls):
        os.read(pipe, 1)
    os.close(pipe)


def wait_for_error(call: "Future[Any]") -> BaseException | None:
    return call.exception(IN_TIME_S)


def is_alive(pid: int | None) -> bool:
    """Whether there is such a process, if only as a zombie."""
    return Path(f"/proc/{pid}").exists()


def mapped_shared_memory() -> list[str]:
    """The shared memory this process uses, by name."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line]


def test_calls_from_many_threads_get_their_own_answers(
    shared_engine: Engine, threads: ThreadPoolExecutor
) -> None:
    rng = np.random.default_rng(1)
    batches = []
    for call in range(60):
        count = int(rng.integers(1, 2 * MAX_BATCH))  # more than its slot has room for, now and then
        lengths = rng.choice([0, 1, 1600, 480_000, 480_400, 700_000], count)
        batches.append([window(f"{call}.{row}", int(n), 10 * call + row) for row, n in enumerate(lengths)])
    answers = threads.map(shared_engine.decode, batches, timeout=IN_TIME_S)
    for batch, decoded in zip(batches, answers, strict=True):
        assert [said(each) for each in decoded] == [expected(each) for each in batch]


def test_as_many_calls_as_the_engine_takes_run_at_once(
    shared_engine: Engine, threads: ThreadPoolExecutor
) -> None:
    assert shared_engine.capabilities.most_calls == MOST_CALLS
    # None of them ends before all have begun.
    batches = [[window("meet", seed=n)] for n in range(MOST_CALLS)]
    for batch, decoded in zip(batches, threads.map(shared_engine.decode, batches), strict=True):
        assert said(decoded[0]) == expected(batch[0])


def test_a_call_comes_with_its_priority(shared_engine: Engine) -> None:
    for priority in Priority:
        (decoded,) = shared_engine.decode([window(TELL_PRIORITY)], priority)
        assert said(decoded) == priority.name


def test_languages_are_detected_in_the_process(shared_engine: Engine) -> None:
    windows = [window(seed=1), window(seed=2)]
    detected = shared_engine.detect_language(windows)
    assert [row[0] for row in detected] == [("pt", float(w.samples[0])) for w in windows]


@pytest.mark.parametrize(
    ("command", "kind", "attributes", "causes"),
    [
        (
            "wrong arguments",
            UnsupportedByEngineError,
            {"message": "Not this.", "param": "language", "code": "unsupported_language"},
            "",
        ),
        ("busy", ServerBusyError, {"message": "Come back.", "param": None, "retry_after_s": 2.5}, ""),
        (
            "out of memory",
            EngineOutOfMemoryError,
            {"message": "Too many.", "param": None},
            "ModelProcessError: RuntimeError: CUDA failed with error out of memory",
        ),
        (
            "own class",
            UnsupportedByEngineError,
            {"message": "Mine.", "param": "prompt", "code": None},
            "",
        ),
    ],
)
def test_a_fault_the_engine_names_arrives_as_it_is(
    shared_engine: Engine,
    command: str,
    kind: type[WhisperServerError],
    attributes: dict[str, Any],
    causes: str,
) -> None:
    with pytest.raises(WhisperServerError) as raised:
        shared_engine.decode([window(command)])
    assert type(raised.value) is kind
    assert str(raised.value) == attributes["message"]
    assert vars(raised.value) == attributes
    assert raised.value.causes == causes


@pytest.mark.parametrize(
    ("command", "causes"), [("foreign", "ZeroDivisionError: a secret"), ("leave", "SystemExit: 3")]
)
def test_any_other_exception_is_an_engine_error_and_its_traceback_is_logged(
    shared_engine: Engine, caplog: pytest.LogCaptureFixture, command: str, causes: str
) -> None:
    with pytest.raises(EngineError) as raised:
        shared_engine.decode([window(command)])
    assert type(raised.value) is EngineError
    assert "secret" not in raised.value.message
    assert causes in raised.value.causes
    assert causes in caplog.text
    assert "in decode" in caplog.text


def test_log_lines_of_the_process_come_to_the_servers_loggers(
    shared_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        shared_engine.decode([window("log")])
    lines = {record.name: record for record in caplog.records}
    assert sorted(lines) == ["py.warnings", "some.library", "whisper_server.models"]
    assert [r.getMessage() for r in caplog.records if r.name != "py.warnings"] == [
        "loaded 3 things",
        "it does not divide",
    ]
    assert lines["whisper_server.models"].levelno == logging.INFO
    assert "an odd way" in lines["py.warnings"].getMessage()
    assert "ZeroDivisionError: a secret" in caplog.text


def test_signals_to_the_whole_group_are_left_to_the_server(shared_engine: IsolatedEngine) -> None:
    assert shared_engine.pid is not None
    os.kill(shared_engine.pid, signal.SIGINT)
    os.kill(shared_engine.pid, signal.SIGTERM)
    asked = window()
    assert said(shared_engine.decode([asked])[0]) == expected(asked)


@pytest.mark.parametrize(
    ("command", "how"),
    [("segv", "SIGSEGV"), ("read nothing", "SIGSEGV"), ("exit", "7"), ("lose the device", "70")],
)
def test_a_crash_costs_its_calls_and_the_next_ones_are_answered(
    start: Callable[..., IsolatedEngine],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    command: str,
    how: str,
) -> None:
    engine = start()
    pid = engine.pid
    with pytest.raises(EngineCrashedError):
        engine.decode([window(command)])
    assert f"The process {pid} of" in caplog.text
    assert f"{how})" in caplog.text
    asked = window()
    assert said(engine.decode([asked])[0]) == expected(asked)
    assert engine.restarts == 1
    assert engine.pid != pid
    assert not is_alive(pid)
    assert ("in decode" in capfd.readouterr().err) is (how == "SIGSEGV")


def test_sigkill_fails_all_running_calls_and_no_later_one(
    engine: IsolatedEngine, folder: Path, threads: ThreadPoolExecutor
) -> None:
    hanging = []
    for _ in range(MOST_CALLS + 2):  # some wait within the process
        hanging.append(threads.submit(engine.decode, [window("hang")]))
    wait_until_running(folder, MOST_CALLS)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    for call in hanging:
        assert isinstance(wait_for_error(call), EngineCrashedError)
    asked = [window(seed=n) for n in range(8)]
    answers = threads.map(lambda each: engine.decode([each]), asked, timeout=IN_TIME_S)
    assert [said(decoded[0]) for decoded in answers] == [expected(each) for each in asked]
    assert engine.restarts == 1


@pytest.mark.parametrize("command", ["hang", "hang with the GIL"])
def test_an_aborted_call_ends_and_the_engine_goes_on(
    engine: IsolatedEngine, folder: Path, threads: ThreadPoolExecutor, command: str
) -> None:
    hanging = threads.submit(engine.decode, [window(command)])
    wait_until_running(folder)
    assert engine.abort()
    asked = window()
    assert said(engine.decode([asked])[0]) == expected(asked)
    assert isinstance(wait_for_error(hanging), EngineCrashedError)
    assert engine.restarts == 1


def test_abort_frees_the_calls_that_wait_for_a_restart(
    engine: IsolatedEngine, folder: Path, threads: ThreadPoolExecutor
) -> None:
    (folder / LOAD_COMMAND).write_text("hang")
    with pytest.raises(EngineCrashedError):
        engine.decode([window("segv")])
    waiting = threads.submit(engine.decode, [window()])
    while not wait([waiting], timeout=0.01).done:  # it may not wait yet
        assert engine.abort()
    assert isinstance(wait_for_error(waiting), EngineCrashedError)


@pytest.mark.parametrize("command", ["hang", "hang with the GIL"])
def test_closing_ends_the_process_whatever_it_does(
    start: Callable[..., IsolatedEngine], folder: Path, threads: ThreadPoolExecutor, command: str
) -> None:
    engine = start(close_grace_s=0.2)
    pid = engine.pid
    hanging = threads.submit(engine.decode, [window(command)])
    wait_until_running(folder)
    engine.close()
    assert not is_alive(pid)
    assert engine.pid is None
    assert isinstance(wait_for_error(hanging), EngineCrashedError)
    with pytest.raises(EngineCrashedError):
        engine.decode([window()])
    assert not engine.abort()
    engine.close()
    assert engine.restarts == 0


@pytest.mark.parametrize(
    ("command", "message", "causes"),
    [
        ("refuse", "The commanded engine refuses.", ""),
        ("foreign", "The model could not be loaded.", "ZeroDivisionError: a secret"),
        ("die", "The model could not be loaded: the process that loads it died.", "exit code 9"),
        ("hang", "The model took too long to load.", ""),
    ],
)
def test_a_load_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, command: str, message: str, causes: str
) -> None:
    (tmp_path / LOAD_COMMAND).write_text(command)
    before = multiprocessing.active_children()
    with pytest.raises(ModelLoadError) as raised:
        started(tmp_path, load_timeout_s=0.3 if command == "hang" else IN_TIME_S)
    assert raised.value.message.startswith(message)
    assert causes in raised.value.causes
    assert multiprocessing.active_children() == before


def test_a_loader_that_does_not_exist_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as raised:
        started(tmp_path, loader="whisper_server.engines.nothing:load")
    assert "ModuleNotFoundError" in raised.value.causes
    with pytest.raises(ModelLoadError) as raised:
        started(tmp_path, loader=lambda *_: None)
    assert "pickle" in raised.value.causes


def test_loads_that_keep_failing_are_tried_after_growing_pauses(
    start: Callable[..., IsolatedEngine], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0
    engine = start(clock=lambda: now_s)
    (folder / LOAD_COMMAND).write_text("die")
    attempts = []
    with pytest.raises(EngineCrashedError):
        engine.decode([window("segv")])
    for now_s in (0.0, 0.9, 1.0, 2.9, 3.0):  # noqa: B007  # the engine's clock
        with pytest.raises(EngineCrashedError):
            engine.decode([window()])
        attempts.append(engine.restarts)
    assert attempts == [3, 3, 4, 4, 5]
    assert "exit code 9" in caplog.text
    (folder / LOAD_COMMAND).unlink()
    now_s = 7.0
    asked = window()
    assert said(engine.decode([asked])[0]) == expected(asked)


def test_audio_goes_another_way_when_shared_memory_is_full(
    start: Callable[..., IsolatedEngine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    engine = start()
    asked = [window("a", 480_000, 1), window("b", 480_000, 2)]
    for _ in range(2):
        assert [said(each) for each in engine.decode(asked)] == [expected(each) for each in asked]
    assert caplog.text.count("--shm-size") == 1


PARENT = """
import sys, threading
from pathlib import Path
from tests.commanded_engine import COMPUTE, LOADER, RUNNING
from tests.test_isolation import started, wait_until_running, window

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    engine = started(folder)
    threading.Thread(target=engine.decode, args=([window("hang")],), daemon=True).start()
    wait_until_running(folder)
    print("running", flush=True)
    if sys.argv[2] == "is killed":
        threading.Event().wait()
"""


@pytest.mark.parametrize("end", ["is killed", "exits"])
def test_a_process_in_mid_call_ends_with_the_server(folder: Path, end: str) -> None:
    script = folder / "server.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(folder), end]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        assert server.stdout.readline() == "running\n"
        if end == "is killed":
            server.kill()
        # They end when the last process that holds them has: the server, the engine's, Python's tracker.
        assert server.stdout.read() == ""
        errors = server.stderr.read()
    assert server.returncode == (-signal.SIGKILL if end == "is killed" else 0)
    assert "resource_tracker" not in errors


def test_twenty_loads_leave_nothing_behind(folder: Path) -> None:
    def cycle(number: int) -> None:
        engine = started(folder)
        asked = window(samples=480_000, seed=number)
        assert said(engine.decode([asked])[0]) == expected(asked)
        if number % 5 == 0:
            with pytest.raises(EngineCrashedError):
                engine.decode([window("segv")])
        engine.close()

    def held() -> tuple[int, int, int]:
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return descriptors, threading.active_count(), len(mapped_shared_memory())

    cycle(1)  # starts Python's resource tracker, which stays
    children = set(multiprocessing.active_children())
    before = held()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(cycle, range(20)))
    assert held() == before
    assert set(multiprocessing.active_children()) == children


def test_shared_memory_has_no_name_once_it_is_shared(shared_engine: Engine) -> None:
    shared_engine.decode([window()])
    # Whoever is killed now, nothing is left in /dev/shm.
    assert mapped_shared_memory()
    assert all(name.endswith("(deleted)") for name in mapped_shared_memory())


def test_the_demo_model_answers_as_in_this_process_before_and_after_a_kill(
    tmp_path: Path, demo_model_path: Path, demo_test_set: list[dict[str, Any]], threads: ThreadPoolExecutor
) -> None:
    for file in demo_model_path.iterdir():
        (tmp_path / file.name).symlink_to(file)
    compute = ComputeChoice("faster-whisper", "cpu", "int8", cpu_threads=1, workers=1)
    windows = [
        Window(decode_audio(str(clip["path"])), options=DecodeOptions(temperatures=(0.0,)))
        for clip in demo_test_set[:4]
    ]
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        here = faster_whisper.load(tmp_path, compute)
        wanted = here.decode(windows)
        languages = here.detect_language(windows)
        assert here.capabilities.max_batch >= len(windows)
    engine = isolated(DEMO_LOADER)(tmp_path, compute)
    assert isinstance(engine, IsolatedEngine)
    assert engine.capabilities == here.capabilities
    assert engine.decode(windows) == wanted
    os.mkfifo(tmp_path / RUNNING)
    running = threads.submit(engine.decode, windows)
    wait_until_running(tmp_path)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    assert isinstance(wait_for_error(running), EngineCrashedError)
    (tmp_path / RUNNING).unlink()
    assert engine.decode(windows) == wanted
    assert engine.detect_language(windows) == languages
    engine.close()
    here.close()
