"""Engine calls: as many at once as the engine can use, in order, dropped or waited for when cancelled."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from whisper_server.core.errors import (
    EngineCrashedError,
    EngineError,
    EngineLostError,
    EngineOutOfMemoryError,
    EngineTimeoutError,
    InvalidRequestError,
    ServerBusyError,
    UnsupportedByEngineError,
)
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.types import Decoded, DecodeOptions, LanguageProbabilities, Window
from whisper_server.engines.scripted import ScriptedEngine, Step, scripted_capabilities
from whisper_server.services.scheduler import Scheduler
from whisper_server.services.scheduler_limits import SchedulerLimits

FILE = Priority.SHORT_FILE


def window(seconds: float = 1.0) -> Window:
    return Window(np.zeros(round(seconds * 16_000), np.float32))


def texts(results: Sequence[Decoded]) -> list[str]:
    return [decoded.segments[0].text for decoded in results]


def begun(engine: ScriptedEngine, count: int) -> Any:
    return asyncio.to_thread(engine.wait_for_windows, count)


async def turns() -> None:
    """Let every task that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_results_are_in_the_order_of_the_windows() -> None:
    engine = ScriptedEngine([Step("a"), Step("b")])
    results = await Scheduler().decode(engine, [window(), window()], priority=FILE)
    assert texts(results) == [" a", " b"]
    assert engine.calls == [2]


async def test_a_language_is_detected_the_same_way() -> None:
    engine = ScriptedEngine(then=Step(language="pt"))
    assert await Scheduler().detect_language(engine, [window()], priority=FILE) == [[("pt", 1.0)]]


async def test_the_engine_is_told_how_urgent_a_call_is() -> None:
    told: list[Priority] = []

    class Listening(ScriptedEngine):
        def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
            told.append(priority)
            return super().decode(windows, priority)

        def detect_language(
            self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
        ) -> list[LanguageProbabilities]:
            told.append(priority)
            return super().detect_language(windows, priority)

    engine, scheduler = Listening(), Scheduler()
    for priority in Priority:
        await scheduler.decode(engine, [window()], priority=priority)
        await scheduler.detect_language(engine, [window()], priority=priority)
    assert told == [priority for priority in Priority for _ in range(2)]


@pytest.mark.parametrize("parallel_calls", [1, 3])
async def test_no_more_calls_run_than_the_engine_can_use(parallel_calls: int) -> None:
    gate = threading.Event()
    engine = ScriptedEngine(
        then=Step(gate=gate), capabilities=scripted_capabilities(parallel_calls=parallel_calls)
    )
    scheduler = Scheduler()
    tasks = [asyncio.create_task(scheduler.decode(engine, [window()], priority=FILE)) for _ in range(6)]
    await begun(engine, parallel_calls)
    await turns()
    assert len(engine.windows) == parallel_calls
    gate.set()
    await asyncio.gather(*tasks)
    assert engine.most_running == parallel_calls
    assert len(engine.windows) == 6


async def test_a_client_is_served_in_its_own_order() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)], capabilities=scripted_capabilities(max_batch=1))
    scheduler = Scheduler()
    tasks = []
    for seconds in (1.0, 2.0, 3.0, 4.0):
        tasks.append(asyncio.create_task(scheduler.decode(engine, [window(seconds)], priority=FILE)))
        await turns()
    gate.set()
    await asyncio.gather(*tasks)
    assert [w.duration_s for w in engine.windows] == [1.0, 2.0, 3.0, 4.0]


async def test_engines_do_not_wait_for_each_other() -> None:
    gate = threading.Event()
    held, free = ScriptedEngine([Step(gate=gate)]), ScriptedEngine()
    scheduler = Scheduler()
    waiting = asyncio.create_task(scheduler.decode(held, [window()], priority=FILE))
    await begun(held, 1)
    assert await scheduler.decode(free, [window()], priority=FILE)
    assert not waiting.done()
    gate.set()
    await waiting


async def test_a_cancelled_call_that_still_waits_never_reaches_the_engine() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    scheduler = Scheduler()
    first = asyncio.create_task(scheduler.decode(engine, [window(1.0)], priority=FILE))
    await begun(engine, 1)
    second = asyncio.create_task(scheduler.decode(engine, [window(2.0)], priority=FILE))
    third = asyncio.create_task(scheduler.decode(engine, [window(3.0)], priority=FILE))
    await turns()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    await asyncio.gather(first, third)
    assert [w.duration_s for w in engine.windows] == [1.0, 3.0]


async def test_a_cancelled_call_that_runs_holds_its_place_until_the_engine_is_free() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    scheduler = Scheduler()
    running = asyncio.create_task(scheduler.decode(engine, [window(1.0)], priority=FILE))
    await begun(engine, 1)
    following = asyncio.create_task(scheduler.decode(engine, [window(2.0)], priority=FILE))
    running.cancel()
    await turns()
    assert not running.done()
    assert len(engine.windows) == 1
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    await following
    assert engine.most_running == 1


async def test_the_failure_of_a_cancelled_call_is_nobodys_concern() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate, error=RuntimeError("late"))])
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    running = asyncio.create_task(Scheduler().decode(engine, [window()], priority=FILE))
    await begun(engine, 1)
    running.cancel()
    await turns()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    del running
    gc.collect()
    await turns()
    assert reported == []


async def test_what_an_engine_raises_fails_only_its_own_call() -> None:
    cause = RuntimeError("CUDA error at /secret/path")
    engine = ScriptedEngine([Step(error=cause), Step("fine")])
    scheduler = Scheduler()
    failed, fine = await asyncio.gather(
        scheduler.decode(engine, [window()], priority=FILE),
        scheduler.decode(engine, [window()], priority=FILE),
        return_exceptions=True,
    )
    assert isinstance(failed, EngineError)
    assert failed.__cause__ is cause
    assert "secret" not in failed.message
    assert not isinstance(fine, BaseException)
    assert fine[0].segments[0].text == " fine"


async def test_what_an_engine_refuses_keeps_its_name() -> None:
    refusal = UnsupportedByEngineError("No hotwords here.", param="hotwords")
    with pytest.raises(UnsupportedByEngineError) as caught:
        await Scheduler().decode(ScriptedEngine([Step(error=refusal)]), [window()], priority=FILE)
    assert caught.value is refusal


async def test_an_engine_nobody_holds_is_forgotten() -> None:
    engine = ScriptedEngine()
    scheduler = Scheduler()
    await scheduler.decode(engine, [window()], priority=FILE)
    reference = weakref.ref(engine)
    del engine
    await turns()
    gc.collect()
    assert reference() is None


class Patient:
    """A scheduler whose engine is busy with one window of a length of its own, so that others gather."""

    def __init__(
        self,
        engine: ScriptedEngine,
        gate: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
        **limits: Any,
    ) -> None:
        self.engine = engine
        self.gate = gate
        self.scheduler = Scheduler(SchedulerLimits(**limits), clock=clock)
        self.tasks: list[asyncio.Task[list[Decoded]]] = []

    async def hold(self) -> None:
        self.tasks.append(
            asyncio.create_task(self.scheduler.decode(self.engine, [window(29)], priority=FILE))
        )
        await begun(self.engine, 1)

    async def add(self, *windows: Window, priority: Priority = FILE, client: str = "") -> None:
        for one in windows:
            work = self.scheduler.decode(self.engine, [one], priority=priority, caller=Caller(client))
            self.tasks.append(asyncio.create_task(work))
            await turns()

    async def release(self) -> list[list[Decoded] | BaseException]:
        self.gate.set()
        return await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def patient() -> Patient:
    gate = threading.Event()
    patient = Patient(ScriptedEngine([Step(gate=gate)]), gate)
    await patient.hold()
    return patient


def durations(engine: ScriptedEngine) -> list[float]:
    return [one.duration_s for one in engine.windows]


async def test_what_waits_goes_together_when_the_engine_is_free(patient: Patient) -> None:
    await patient.add(*(window(seconds) for seconds in (1, 2, 3)))
    await patient.release()
    assert patient.engine.calls == [1, 3]


async def test_a_batch_is_no_larger_than_the_engine_likes() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)], capabilities=scripted_capabilities(max_batch=2))
    patient = Patient(engine, gate)
    await patient.hold()
    await patient.add(*(window() for _ in range(5)))
    await patient.release()
    assert engine.calls == [1, 2, 2, 1]


async def test_a_batch_is_no_larger_than_the_settings_say() -> None:
    gate = threading.Event()
    patient = Patient(ScriptedEngine([Step(gate=gate)]), gate, max_batch=3)
    await patient.hold()
    await patient.add(*(window() for _ in range(5)))
    await patient.release()
    assert patient.engine.calls == [1, 3, 2]


async def test_windows_with_other_options_go_apart(patient: Patient) -> None:
    greedy = DecodeOptions(beam_size=1)
    await patient.add(window(1), Window(window(2).samples, options=greedy), window(3))
    await patient.release()
    assert patient.engine.calls == [1, 2, 1]
    assert durations(patient.engine)[1:] == [1, 3, 2]


async def test_the_urgent_is_decoded_first(patient: Patient) -> None:
    await patient.add(window(1), priority=Priority.LONG_FILE)
    await patient.add(window(2), priority=Priority.SHORT_FILE)
    await patient.add(window(3), priority=Priority.LIVE_FINAL)
    await patient.release()
    assert durations(patient.engine)[1:] == [3, 2, 1]


async def test_the_call_that_only_prepares_is_no_more_patient_than_what_runs() -> None:
    gate = threading.Event()
    engine = ScriptedEngine(then=Step(gate=gate), capabilities=scripted_capabilities(parallel_calls=2))
    patient = Patient(engine, gate)
    await patient.hold()
    await patient.add(window(1), priority=Priority.LONG_FILE)
    assert len(engine.windows) == 1
    await patient.add(window(2))
    await begun(engine, 2)
    assert durations(engine) == [29, 2]
    await patient.release()
    assert durations(engine) == [29, 2, 1]


async def test_the_call_that_only_prepares_gathers_files_as_long_as_it_is_not_needed() -> None:
    now_s = 0.0
    gates = [threading.Event() for _ in range(2)]
    capabilities = scripted_capabilities(parallel_calls=2)
    engine = ScriptedEngine([Step(gate=gate) for gate in gates], capabilities=capabilities)
    patient = Patient(engine, gates[1], clock=lambda: now_s)
    await patient.add(window(10))
    await begun(engine, 1)
    now_s = 10.0
    gates[0].set()
    await asyncio.wait(patient.tasks)
    await patient.add(window(10), window(1), window(2))
    await begun(engine, 2)
    assert durations(engine) == [10, 10], "it is expected to take ten seconds"
    now_s = 11.0
    await begun(engine, 4)
    assert engine.calls == [1, 1, 2]
    await patient.release()


def patient_with(parallel_calls: int) -> Patient:
    """Nothing runs yet; what begins is held until `release`."""
    gate = threading.Event()
    capabilities = scripted_capabilities(parallel_calls=parallel_calls)
    return Patient(ScriptedEngine(then=Step(gate=gate), capabilities=capabilities), gate)


async def test_nothing_begins_beside_finals_on_the_call_that_only_prepares() -> None:
    patient = patient_with(parallel_calls=2)
    await patient.add(*(window(seconds) for seconds in (1, 2, 3)), priority=Priority.LIVE_FINAL)
    await patient.add(window(4), priority=Priority.LIVE_PARTIAL)
    await begun(patient.engine, 1)
    assert durations(patient.engine) == [1]
    await patient.release()
    assert durations(patient.engine) == [1, 2, 3, 4]
    assert patient.engine.calls == [1, 2, 1]


async def test_a_final_begins_beside_what_is_more_patient() -> None:
    patient = patient_with(parallel_calls=2)
    await patient.add(window(1), priority=Priority.LIVE_PARTIAL)
    await patient.add(window(2), priority=Priority.LIVE_FINAL)
    await begun(patient.engine, 2)
    assert sorted(durations(patient.engine)) == [1, 2]
    await patient.release()


def overtaking(calls: int, gate: threading.Event) -> ScriptedEngine:
    """Takes one call, one that prepares, and so many that overtake."""
    capabilities = scripted_capabilities(parallel_calls=2, overtaking_calls=calls)
    return ScriptedEngine(then=Step(gate=gate), capabilities=capabilities)


async def test_what_is_more_urgent_than_all_that_runs_begins_beside_it() -> None:
    gate = threading.Event()
    patient = Patient(overtaking(1, gate), gate)
    await patient.add(window(1), window(2), window(3), priority=Priority.LONG_FILE)
    await begun(patient.engine, 2)
    await patient.add(window(4), priority=Priority.SHORT_FILE)
    await begun(patient.engine, 3)
    assert durations(patient.engine)[2:] == [4]
    await patient.add(window(5), priority=Priority.SHORT_FILE)
    await patient.add(window(6), priority=Priority.LIVE_FINAL)
    assert len(patient.engine.windows) == 3
    await patient.release()
    assert durations(patient.engine)[3:] == [6, 5, 3]


async def test_who_speaks_overtakes_what_has_overtaken() -> None:
    gate = threading.Event()
    patient = Patient(overtaking(2, gate), gate)
    await patient.add(window(1), window(2), priority=Priority.LONG_FILE)
    await patient.add(window(3), priority=Priority.SHORT_FILE)
    await patient.add(window(4), priority=Priority.LIVE_FINAL)
    await begun(patient.engine, 4)
    await patient.release()


async def test_what_has_waited_too_long_does_not_overtake() -> None:
    now_s = 0.0
    gate = threading.Event()
    engine = ScriptedEngine(
        [*[Step() for _ in range(3)], Step(gate=gate), Step(gate=gate)],
        capabilities=scripted_capabilities(parallel_calls=1, overtaking_calls=1),
    )
    patient = Patient(engine, gate, ageing_s=1.0, clock=lambda: now_s)
    for _ in range(3):  # the turn after the next belongs to what has waited too long
        await patient.scheduler.decode(engine, [window()], priority=FILE)
    await patient.add(window(1), window(2), priority=Priority.SHORT_FILE)
    await begun(engine, 4)
    now_s = 5.0
    await patient.add(window(3), priority=Priority.LIVE_FINAL)
    await begun(engine, 5)
    assert durations(engine)[3:] == [1, 3]
    await patient.release()


async def test_a_call_has_its_time_without_that_of_those_that_overtake_it() -> None:
    gate = threading.Event()
    capabilities = scripted_capabilities(parallel_calls=1, overtaking_calls=1)
    engine = ScriptedEngine(then=Step(gate=gate), capabilities=capabilities)
    scheduler = Scheduler(SchedulerLimits(call_timeout_s=0.5))
    file = asyncio.create_task(scheduler.decode(engine, [window()], priority=Priority.LONG_FILE))
    await begun(engine, 1)
    with pytest.raises(EngineTimeoutError):  # after a second, as there are two calls
        await scheduler.decode(engine, [window()], priority=Priority.SHORT_FILE)
    gate.set()
    assert texts(await file) == [" as scripted"]


async def test_what_can_be_overtaken_is_not_waited_for() -> None:
    now_s = 0.0
    gates = [threading.Event() for _ in range(2)]
    capabilities = scripted_capabilities(parallel_calls=1, overtaking_calls=1)
    engine = ScriptedEngine([Step(gate=gate) for gate in gates], capabilities=capabilities)
    scheduler = Scheduler(clock=lambda: now_s)
    first = asyncio.create_task(scheduler.decode(engine, [window(10)], priority=FILE))
    await begun(engine, 1)
    now_s = 5.0
    gates[0].set()
    await first
    file = asyncio.create_task(scheduler.decode(engine, [window(10)], priority=FILE))
    await begun(engine, 2)
    assert scheduler.estimated_wait_s(FILE) == pytest.approx(2.5)
    assert scheduler.estimated_wait_s(Priority.LIVE_FINAL) == 0.0
    gates[1].set()
    await file


async def test_workers_share_the_finals_that_wait() -> None:
    patient = patient_with(parallel_calls=3)
    await patient.add(*(window() for _ in range(6)), priority=Priority.LIVE_FINAL)
    await begun(patient.engine, 2)
    await patient.release()
    assert sorted(patient.engine.calls) == [1, 1, 1, 1, 2]


async def test_files_come_one_at_a_time_while_somebody_speaks(patient: Patient) -> None:
    await patient.add(window(1), window(2), window(3))
    await patient.add(window(4), priority=Priority.LIVE_PARTIAL)
    await patient.release()
    assert patient.engine.calls == [1, 1, 1, 1, 1]
    assert durations(patient.engine)[1] == 4


async def test_clients_take_turns() -> None:
    gate = threading.Event()
    patient = Patient(ScriptedEngine([Step(gate=gate)]), gate, max_batch=1)
    await patient.hold()
    await patient.add(window(1), window(2), window(3), client="a")
    await patient.add(window(11), client="b")
    await patient.release()
    assert durations(patient.engine)[1:] == [1, 11, 2, 3]


async def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    gate = threading.Event()
    patient = Patient(ScriptedEngine([Step(gate=gate)]), gate, max_waiting=2)
    await patient.hold()
    await patient.add(window(1), window(2), window(3))
    outcomes = await patient.release()
    assert [isinstance(one, ServerBusyError) for one in outcomes] == [False, False, False, True]
    assert patient.scheduler.counters.windows_refused == 1


async def test_a_window_called_off_in_a_waiting_batch_is_never_decoded(patient: Patient) -> None:
    await patient.add(window(1), window(2), window(3))
    patient.tasks[2].cancel()
    await turns()
    assert patient.scheduler.backlog().waiting[FILE] == 2
    await patient.release()
    assert durations(patient.engine) == [29, 1, 3]
    assert patient.scheduler.counters.windows_dropped == 1
    assert patient.scheduler.counters.windows_wasted == 0


async def test_a_row_called_off_while_its_batch_runs_takes_no_other_with_it() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(), Step("stays", gate=gate)])
    scheduler = Scheduler()
    both = asyncio.create_task(scheduler.decode(engine, [window(1), window(2)], priority=FILE))
    await begun(engine, 2)
    waiting = asyncio.create_task(scheduler.decode(engine, [window(3)], priority=FILE))
    await turns()
    waiting.cancel()
    gate.set()
    assert texts(await both) == [" as scripted", " stays"]
    assert len(engine.windows) == 2


async def test_how_long_a_window_waited_and_ran_is_told() -> None:
    now_s = [100.0]
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate), Step("second")])
    scheduler = Scheduler(clock=lambda: now_s[0])
    first = asyncio.create_task(scheduler.decode(engine, [window()], priority=FILE))
    await begun(engine, 1)
    second = asyncio.create_task(scheduler.decode_timed(engine, window(), priority=Priority.LIVE_FINAL))
    await turns()
    now_s[0] += 2.5
    gate.set()
    await first
    timed = await second
    assert (timed.queue_wait_s, timed.inference_s) == (2.5, 0.0)
    assert texts([timed.decoded]) == [" second"]


async def test_the_estimated_wait_follows_what_was_measured() -> None:
    now_s = [0.0]
    gates = [threading.Event(), threading.Event()]
    engine = ScriptedEngine([Step(gate=gates[0]), Step(gate=gates[1])])
    scheduler = Scheduler(clock=lambda: now_s[0])
    assert scheduler.estimated_wait_s(FILE) == 0.0
    first = asyncio.create_task(scheduler.decode(engine, [window(10)], priority=FILE))
    await begun(engine, 1)
    now_s[0] += 5.0
    gates[0].set()
    await first
    assert scheduler.backlog().compute_per_audio_s == pytest.approx(0.5)
    tasks = [asyncio.create_task(scheduler.decode(engine, [window(10)], priority=FILE))]
    await begun(engine, 2)
    tasks.append(asyncio.create_task(scheduler.decode(engine, [window(20)], priority=Priority.LONG_FILE)))
    await turns()
    assert scheduler.estimated_wait_s(Priority.LIVE_FINAL) == pytest.approx(2.5)  # half of what runs
    assert scheduler.estimated_wait_s(Priority.LONG_FILE) == pytest.approx(12.5)
    backlog = scheduler.backlog()
    assert (backlog.waiting_audio_s, backlog.running) == (20.0, 1)
    gates[1].set()
    await asyncio.gather(*tasks)


class Faulty(ScriptedEngine):
    """An engine on which what a window's language names happens to the whole call, after one that waits."""

    def __init__(
        self,
        *,
        can_go_on: bool = True,
        parallel_calls: int = 1,
        most_rows: int = 99,
        then: Sequence[Step] = (),
    ) -> None:
        self.gate = threading.Event()
        capabilities = scripted_capabilities(parallel_calls=parallel_calls)
        super().__init__([Step(gate=self.gate), *then], then=Step("right"), capabilities=capabilities)
        self.can_go_on = can_go_on
        self.most_rows = most_rows
        self.was_aborted = threading.Event()

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        decoded = super().decode(windows, priority)
        languages = [one.language for one in windows]
        if "poison" in languages:
            raise RuntimeError("a poisoned row")
        if "wrong" in languages:
            raise InvalidRequestError("Wrong.", param="language")
        if "killer" in languages or ("killed" in languages and len(windows) > 1):
            raise EngineCrashedError("The process died.")
        if len(windows) > self.most_rows and None not in languages:
            raise EngineOutOfMemoryError("No memory.")
        if "hang" in languages:
            self.was_aborted.wait(30)
            raise EngineCrashedError("The process was killed.")
        return decoded

    def abort(self) -> bool:
        self.was_aborted.set()
        return self.can_go_on

    async def outcomes(self, scheduler: Scheduler, *languages: str) -> list[str | type[BaseException]]:
        """What becomes of windows of these languages that have gathered while the engine was busy."""
        held = asyncio.create_task(scheduler.decode(self, [window()], priority=FILE))
        await begun(self, len(self.windows) + 1)
        tasks = [
            asyncio.create_task(
                scheduler.decode(self, [Window(window().samples, language=one)], priority=FILE)
            )
            for one in languages
        ]
        await turns()
        self.gate.set()
        await held
        done = await asyncio.gather(*tasks, return_exceptions=True)
        return [type(one) if isinstance(one, BaseException) else texts(one)[0].strip() for one in done]


@pytest.mark.parametrize(("language", "error"), [("poison", EngineError), ("wrong", InvalidRequestError)])
@pytest.mark.parametrize("place", range(5))
async def test_a_poisoned_row_fails_alone(language: str, error: type[Exception], place: int) -> None:
    languages = ["en"] * 5
    languages[place] = language
    scheduler = Scheduler()
    outcomes = await Faulty().outcomes(scheduler, *languages)
    assert outcomes == [error if one == language else "right" for one in languages]
    assert scheduler.counters.windows_failed == 1
    assert scheduler.counters.windows_decoded == 5  # and the one before
    assert scheduler.counters.calls_split >= 2


async def test_rows_whose_process_died_run_once_more_each_alone() -> None:
    engine, scheduler = Faulty(), Scheduler()
    assert await engine.outcomes(scheduler, "en", "killed", "pt") == ["right"] * 3
    assert engine.calls == [1, 3, 1, 1, 1]
    assert scheduler.counters.windows_retried == 3
    assert scheduler.counters.windows_failed == 0


@pytest.mark.parametrize("parallel_calls", [1, 3])
async def test_a_row_that_kills_its_process_twice_fails_and_takes_nobody_with_it(parallel_calls: int) -> None:
    engine, scheduler = Faulty(parallel_calls=parallel_calls), Scheduler()
    outcomes = await engine.outcomes(scheduler, "en", "killer", "pt", "de")
    assert outcomes == ["right", EngineCrashedError, "right", "right"]
    assert scheduler.counters.windows_failed == 1


async def test_a_row_called_off_before_its_second_run_has_none() -> None:
    again = threading.Event()
    engine, scheduler = Faulty(then=[Step(), Step(), Step(gate=again)]), Scheduler()
    held = asyncio.create_task(scheduler.decode(engine, [window()], priority=FILE))
    await begun(engine, 1)
    killer, other = (Window(window().samples, language=language) for language in ("killer", "de"))
    tasks = [asyncio.create_task(scheduler.decode(engine, [one], priority=FILE)) for one in (killer, other)]
    await turns()
    engine.gate.set()
    await held
    await begun(engine, 4)  # both have crashed together, and the first runs again
    tasks[1].cancel()
    await turns()
    again.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in outcomes] == [EngineCrashedError, asyncio.CancelledError]
    assert [one.language for one in engine.windows] == [None, "killer", "de", "killer"]
    assert scheduler.backlog().running == 0


async def test_want_of_memory_halves_the_batch_from_then_on() -> None:
    engine, scheduler = Faulty(most_rows=2), Scheduler()
    assert await engine.outcomes(scheduler, *["en"] * 8) == ["right"] * 8
    assert engine.calls == [1, 8, 4, 2, 2, 2, 2]
    assert scheduler.counters.calls_out_of_memory == 2
    assert scheduler.counters.windows_failed == 0


async def test_after_a_while_larger_batches_are_tried_again() -> None:
    engine, scheduler = Faulty(most_rows=2), Scheduler()
    await engine.outcomes(scheduler, *["en"] * 4)
    engine.most_rows = 99
    for _ in range(64):
        await scheduler.decode(engine, [window()], priority=FILE)
    await scheduler.decode(engine, [window() for _ in range(4)], priority=FILE)
    assert engine.calls[-1] == 4


async def test_one_row_without_memory_for_it_fails_by_that_name() -> None:
    assert await Faulty(most_rows=0).outcomes(Scheduler(), "en") == [EngineOutOfMemoryError]


async def test_a_call_that_hangs_is_given_up_and_the_engine_goes_on() -> None:
    engine, scheduler = Faulty(), Scheduler(SchedulerLimits(max_batch=1, call_timeout_s=0.05))
    engine.gate.set()
    assert await engine.outcomes(scheduler, "hang", "en") == [EngineTimeoutError, "right"]
    assert engine.was_aborted.is_set()
    assert scheduler.counters.calls_hung == 1


async def test_an_engine_that_cannot_go_on_is_reported_and_used_no_more() -> None:
    lost: list[Any] = []
    engine = Faulty(can_go_on=False)
    engine.gate.set()
    scheduler = Scheduler(SchedulerLimits(max_batch=1, call_timeout_s=0.05), on_lost=lost.append)
    assert await engine.outcomes(scheduler, "hang", "en") == [EngineTimeoutError, EngineLostError]
    assert lost == [engine]
    with pytest.raises(EngineLostError):
        await scheduler.decode(engine, [window()], priority=FILE)
    assert len(engine.windows) == 2


async def test_the_time_of_a_call_begins_when_the_engine_takes_it() -> None:
    class Restarting(Faulty):
        is_up = threading.Event()

        def wait_until_ready(self) -> None:
            assert self.is_up.wait(30)

    engine, scheduler = Restarting(), Scheduler(SchedulerLimits(call_timeout_s=0.05))
    engine.gate.set()
    waiting = asyncio.create_task(scheduler.decode(engine, [window()], priority=FILE))
    await asyncio.sleep(0.1)  # longer than a call may take
    engine.is_up.set()
    assert texts(await waiting) == [" as scripted"]
    assert scheduler.counters.calls_hung == 0


async def test_a_call_behind_another_in_the_engine_has_the_time_of_both() -> None:
    gate = threading.Event()
    engine = ScriptedEngine(then=Step(gate=gate), capabilities=scripted_capabilities(parallel_calls=2))
    scheduler = Scheduler(SchedulerLimits(call_timeout_s=0.2))
    windows = [window() for _ in range(8)]
    first = asyncio.create_task(scheduler.decode(engine, windows, priority=FILE))
    await begun(engine, 8)
    second = asyncio.create_task(scheduler.decode(engine, [window()], priority=Priority.LIVE_FINAL))
    await begun(engine, 9)
    await asyncio.sleep(0.3)  # longer than the second call may take by itself
    gate.set()
    assert texts(await second) == [" as scripted"]
    await first
    assert scheduler.counters.calls_hung == 0


async def test_an_engine_that_loses_a_result_fails_by_name() -> None:
    class Short(ScriptedEngine):
        def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
            return super().decode(windows, priority)[1:]

    with pytest.raises(EngineError):
        await Scheduler().decode(Short(), [window()], priority=FILE)
