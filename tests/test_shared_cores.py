"""Calls compute on one thread each while as many of them as cores compute, and on all they have otherwise."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faster_whisper import decode_audio
from threadpoolctl import threadpool_info

from tests.recorded_whisper import RecordedWhisper, recorded_engine
from whisper_server.core.engine import Engine
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import DecodeOptions, Window
from whisper_server.engines import shared_cores as module
from whisper_server.engines.shared_cores import SharedCores, shared_cores

GREEDY = DecodeOptions(beam_size=1, best_of=1, temperatures=(0.0,))

needs_gnu = pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP comes with Linux's wheels alone")


@pytest.fixture
def told() -> list[bool]:
    """Whether calls are to compute on one thread, each time that is told."""
    return []


def test_as_many_steps_as_cores_compute_on_one_thread_each(told: list[bool]) -> None:
    cores = SharedCores(2, told.append)
    with cores.computing():
        assert told == []
        with cores.computing():
            assert told == [True]
            with cores.computing():
                pass
            assert told == [True]
        assert told == [True, False]
        with cores.computing():
            assert told == [True, False, True]
    assert told == [True, False, True, False]


def test_a_step_that_fails_no_longer_counts(told: list[bool]) -> None:
    cores = SharedCores(2, told.append)
    with cores.computing():
        with pytest.raises(RuntimeError), cores.computing():
            raise RuntimeError
        assert told == [True, False]


@pytest.mark.parametrize("count", [0, 1])
def test_without_cores_to_share_nothing_is_told(told: list[bool], count: int) -> None:
    cores = SharedCores(count, told.append)
    with cores.computing(), cores.computing():
        pass
    assert told == []


def test_more_cores_than_steps_leave_all_threads(told: list[bool]) -> None:
    cores = SharedCores(4, told.append)
    with cores.computing(), cores.computing(), cores.computing():
        pass
    assert told == []


def test_it_is_one_for_the_process() -> None:
    assert shared_cores(2) is shared_cores(2)


def region_threads() -> int:
    """How many threads a parallel region of CTranslate2's OpenMP gets that asks for two."""
    (path,) = (lib["filepath"] for lib in threadpool_info() if "ctranslate2" in lib["filepath"])
    openmp = ctypes.CDLL(path)
    counts: list[int] = []

    def count(_: int) -> None:
        counts.append(openmp.omp_get_num_threads())

    openmp.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(count), None, 2, 0)
    assert len(counts) == counts[0]
    return counts[0]


@pytest.fixture
def recorded(demo_model_path: Path) -> Iterator[tuple[Engine, RecordedWhisper]]:
    engine, whisper = recorded_engine(demo_model_path, cores=2)
    yield engine, whisper
    engine.close()


@needs_gnu
def test_two_calls_on_two_cores_have_one_thread_each(
    recorded: tuple[Engine, RecordedWhisper], demo_test_set: list[dict[str, Any]]
) -> None:
    engine, whisper = recorded
    clip = demo_test_set[0]
    window = Window(decode_audio(str(clip["path"])), language=clip["language"], options=GREEDY)
    (alone,) = engine.decode([window])
    holds = [threading.Event(), threading.Event()]
    whisper.holds.extend(holds)
    assert region_threads() == 2
    with ThreadPoolExecutor(2) as threads:
        file = threads.submit(engine.decode, [window], Priority.LONG_FILE)
        whisper.wait_until_held(to_come=1)
        assert region_threads() == 2
        short = threads.submit(engine.decode, [window], Priority.SHORT_FILE)
        whisper.wait_until_held()
        assert region_threads() == 1
        holds[1].set()
        assert short.result(60) == [alone]
        assert region_threads() == 2
        holds[0].set()
        assert file.result(60) == [alone]


def test_an_openmp_whose_threads_choose_for_themselves_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OfEachThread(threading.local):
        """As newer versions of GNU's and other OpenMPs are."""

        levels = 3

        def omp_get_max_active_levels(self) -> int:
            return self.levels

        def omp_set_max_active_levels(self, levels: int) -> None:
            self.levels = levels

    library = OfEachThread()
    monkeypatch.setattr(module, "_openmp_of_ctranslate2", lambda: library)
    cores = shared_cores.__wrapped__(2)
    with cores.computing(), cores.computing():
        assert library.levels == 3
    assert library.levels == 3
