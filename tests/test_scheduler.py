"""Engine calls: as many at once as the engine can use, in order, dropped or waited for when cancelled."""

import asyncio
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from whisper_server.core.errors import EngineError, UnsupportedByEngineError
from whisper_server.core.types import Window
from whisper_server.engines.scripted import ScriptedEngine, Step, scripted_capabilities
from whisper_server.services.scheduler import Scheduler


def window(seconds: float = 1.0) -> Window:
    return Window(np.zeros(round(seconds * 16_000), np.float32))


def begun(engine: ScriptedEngine, count: int) -> Any:
    return asyncio.to_thread(engine.wait_for_windows, count)


async def turns() -> None:
    """Let every task that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_results_are_in_the_order_of_the_windows() -> None:
    engine = ScriptedEngine([Step("a"), Step("b")])
    results = await Scheduler().decode(engine, [window(), window()])
    assert [d.segments[0].text for d in results] == [" a", " b"]
    assert engine.calls == [2]


async def test_a_language_is_detected_the_same_way() -> None:
    engine = ScriptedEngine(then=Step(language="pt"))
    assert await Scheduler().detect_language(engine, [window()]) == [[("pt", 1.0)]]


@pytest.mark.parametrize("parallel_calls", [1, 3])
async def test_no_more_calls_run_than_the_engine_can_use(parallel_calls: int) -> None:
    gate = threading.Event()
    engine = ScriptedEngine(
        then=Step(gate=gate), capabilities=scripted_capabilities(parallel_calls=parallel_calls)
    )
    scheduler = Scheduler()
    tasks = [asyncio.create_task(scheduler.decode(engine, [window()])) for _ in range(6)]
    await begun(engine, parallel_calls)
    await turns()
    assert len(engine.windows) == parallel_calls
    gate.set()
    await asyncio.gather(*tasks)
    assert engine.most_running == parallel_calls
    assert len(engine.windows) == 6


async def test_first_come_first_served() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    scheduler = Scheduler()
    tasks = []
    for seconds in (1.0, 2.0, 3.0, 4.0):
        tasks.append(asyncio.create_task(scheduler.decode(engine, [window(seconds)])))
        await turns()
    gate.set()
    await asyncio.gather(*tasks)
    assert [w.duration_s for w in engine.windows] == [1.0, 2.0, 3.0, 4.0]


async def test_engines_do_not_wait_for_each_other() -> None:
    gate = threading.Event()
    held, free = ScriptedEngine([Step(gate=gate)]), ScriptedEngine()
    scheduler = Scheduler()
    waiting = asyncio.create_task(scheduler.decode(held, [window()]))
    await begun(held, 1)
    assert await scheduler.decode(free, [window()])
    assert not waiting.done()
    gate.set()
    await waiting


async def test_a_cancelled_call_that_still_waits_never_reaches_the_engine() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    scheduler = Scheduler()
    first = asyncio.create_task(scheduler.decode(engine, [window(1.0)]))
    await begun(engine, 1)
    second = asyncio.create_task(scheduler.decode(engine, [window(2.0)]))
    third = asyncio.create_task(scheduler.decode(engine, [window(3.0)]))
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
    running = asyncio.create_task(scheduler.decode(engine, [window(1.0)]))
    await begun(engine, 1)
    following = asyncio.create_task(scheduler.decode(engine, [window(2.0)]))
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
    running = asyncio.create_task(Scheduler().decode(engine, [window()]))
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
        scheduler.decode(engine, [window()]), scheduler.decode(engine, [window()]), return_exceptions=True
    )
    assert isinstance(failed, EngineError)
    assert failed.__cause__ is cause
    assert "secret" not in failed.message
    assert not isinstance(fine, BaseException)
    assert fine[0].segments[0].text == " fine"


async def test_what_an_engine_refuses_keeps_its_name() -> None:
    refusal = UnsupportedByEngineError("No hotwords here.", param="hotwords")
    with pytest.raises(UnsupportedByEngineError) as caught:
        await Scheduler().decode(ScriptedEngine([Step(error=refusal)]), [window()])
    assert caught.value is refusal


async def test_an_engine_nobody_holds_is_forgotten() -> None:
    engine = ScriptedEngine()
    scheduler = Scheduler()
    await scheduler.decode(engine, [window()])
    reference = weakref.ref(engine)
    del engine
    await turns()
    gc.collect()
    assert reference() is None
