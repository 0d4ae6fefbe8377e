"""Turns on a model's workers: who begins beside whom, and who is next."""

import threading
import time
from collections.abc import Iterator

import pytest

from whisper_server.core.scheduling import Priority
from whisper_server.engines.worker_turns import WorkerTurns

_WAIT_S = 10.0


class Steps:
    """Steps of calls, each on a thread of its own, that run until they are told to end."""

    def __init__(self, turns: WorkerTurns) -> None:
        self._turns = turns
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._ends: dict[str, threading.Event] = {}
        self.begun: list[str] = []

    def ask(self, name: str, priority: Priority) -> None:
        """Ask for a turn, until it is given or waited for."""
        self._ends[name] = threading.Event()
        thread = threading.Thread(target=self._run, args=(name, priority), daemon=True)
        self._threads.append(thread)
        thread.start()
        give_up_s = time.monotonic() + _WAIT_S
        while self._turns.waiting + len(self.begun) < len(self._threads):
            assert time.monotonic() < give_up_s
            time.sleep(0.001)

    def end(self, name: str) -> None:
        self._ends[name].set()

    def end_all(self) -> None:
        for end in self._ends.values():
            end.set()
        for thread in self._threads:
            thread.join(_WAIT_S)
            assert not thread.is_alive()

    def wait_for(self, *names: str) -> None:
        """Wait until these have begun, in this order; nothing else has."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= len(names), _WAIT_S)
        assert self.begun == list(names)

    def _run(self, name: str, priority: Priority) -> None:
        with self._turns.turn(priority):
            with self._changed:
                self.begun.append(name)
                self._changed.notify_all()
            assert self._ends[name].wait(_WAIT_S)


@pytest.fixture
def lone() -> Iterator[Steps]:
    """One worker and no spare."""
    steps = Steps(WorkerTurns(1, spare=0))
    yield steps
    steps.end_all()


@pytest.fixture
def spared() -> Iterator[Steps]:
    """One worker and a spare one."""
    steps = Steps(WorkerTurns(1, spare=1))
    yield steps
    steps.end_all()


def test_steps_of_one_priority_follow_each_other(spared: Steps) -> None:
    spared.ask("first", Priority.SHORT_FILE)
    spared.wait_for("first")
    spared.ask("second", Priority.SHORT_FILE)
    spared.wait_for("first")
    spared.end("first")
    spared.wait_for("first", "second")


def test_an_urgent_step_begins_beside_a_patient_one(spared: Steps) -> None:
    spared.ask("file", Priority.LONG_FILE)
    spared.wait_for("file")
    spared.ask("final", Priority.LIVE_FINAL)
    spared.wait_for("file", "final")


def test_a_patient_step_waits_for_an_urgent_one(spared: Steps) -> None:
    spared.ask("final", Priority.LIVE_FINAL)
    spared.wait_for("final")
    spared.ask("file", Priority.LONG_FILE)
    spared.wait_for("final")


def test_no_more_run_than_there_are_workers(spared: Steps) -> None:
    spared.ask("file", Priority.LONG_FILE)
    spared.ask("clip", Priority.SHORT_FILE)
    spared.wait_for("file", "clip")
    spared.ask("final", Priority.LIVE_FINAL)
    spared.wait_for("file", "clip")
    spared.end("clip")
    spared.wait_for("file", "clip", "final")


def test_without_a_spare_worker_the_urgent_are_next(lone: Steps) -> None:
    lone.ask("file", Priority.LONG_FILE)
    lone.wait_for("file")
    lone.ask("clip", Priority.SHORT_FILE)
    lone.ask("final", Priority.LIVE_FINAL)
    lone.wait_for("file")
    lone.end("file")
    lone.wait_for("file", "final")
    lone.end("final")
    lone.wait_for("file", "final", "clip")


def test_as_many_run_as_there_are_workers() -> None:
    steps = Steps(WorkerTurns(2, spare=1))
    steps.ask("first", Priority.SHORT_FILE)
    steps.wait_for("first")
    steps.ask("second", Priority.SHORT_FILE)
    steps.wait_for("first", "second")
    steps.ask("third", Priority.SHORT_FILE)
    steps.wait_for("first", "second")
    steps.ask("final", Priority.LIVE_FINAL)
    steps.wait_for("first", "second", "final")
    steps.end_all()


def test_a_step_that_fails_leaves_its_place() -> None:
    turns = WorkerTurns(1, spare=0)
    with pytest.raises(RuntimeError), turns.turn(Priority.SHORT_FILE):
        raise RuntimeError
    with turns.turn(Priority.SHORT_FILE):
        pass
