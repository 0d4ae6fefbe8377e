"""Loaded models: shared, limited in number and size, put away when idle, never under a user's feet."""

import asyncio
import logging
import random
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from whisper_server.core.engine import Capabilities, Engine
from whisper_server.core.errors import (
    ConfigurationError,
    ModelDownloadError,
    ModelLoadError,
    ModelUnavailableError,
    ServerBusyError,
)
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import Decoded, LanguageProbabilities, Window
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.model_manager import ModelManager, UnloadResult

pytestmark = pytest.mark.anyio

WAIT_S = 30
MB = 1_000_000


class Weights:
    """Memory that only the garbage collector can free."""

    def __init__(self) -> None:
        self.itself = self


class ScriptedEngine:
    """A loaded model that decodes nothing and knows whether it is closed."""

    def __init__(self, workshop: "Workshop", name: str) -> None:
        self._workshop = workshop
        self.name = name
        self.is_closed = False
        self.weights: Weights | None = Weights()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            engine="scripted",
            device="cpu",
            compute_type="int8",
            languages=frozenset({"en"}),
            translation=False,
            word_timestamps=False,
            hotwords=False,
            mel_bins=None,
            parallel_calls=1,
            max_batch=1,
            weights_bytes=self._workshop.sizes.get(self.name, MB),
        )

    def wait_until_ready(self) -> None:
        pass

    def abort(self) -> bool:
        raise NotImplementedError

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        raise NotImplementedError

    def detect_language(
        self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
    ) -> list[LanguageProbabilities]:
        raise NotImplementedError

    def close(self) -> None:
        self.is_closed = True
        self.weights = None
        self._workshop.closed(self)


class Gate:
    """Holds a thread until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()


@dataclass
class Workshop:
    """Makes engines as scripted, in the manager's threads, and writes down what happens.

    Attributes:
        sizes: bytes of a model's weights; 1 MB where not said.
        gates: a `load x` goes on, and a `close x` happens, only once its gate is open.
        failures: what the next loads of a model raise, in order.
        close_failures: engines of these models raise on closing.
        events: `load x` when a load starts, `close x` when an engine is closed.
        engines: all made so far.
        most_alive: the largest number of models that were loading or loaded at one time.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    close_failures: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)
    engines: list[ScriptedEngine] = field(default_factory=list)
    most_alive: int = 0
    _alive: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def load(self, reference: ModelReference) -> Engine:
        name = reference.id
        with self._changed:
            self.events.append(f"load {name}")
            self._alive += 1
            self.most_alive = max(self.most_alive, self._alive)
            self._changed.notify_all()
        self._pass_gate(f"load {name}")
        with self._changed:
            if self.failures.get(name):
                self._alive -= 1
                raise self.failures[name].pop(0)
            engine = ScriptedEngine(self, name)
            self.engines.append(engine)
            return engine

    def closed(self, engine: ScriptedEngine) -> None:
        self._pass_gate(f"close {engine.name}")
        with self._changed:
            self.events.append(f"close {engine.name}")
            self._alive -= 1
            self._changed.notify_all()
        if engine.name in self.close_failures:
            raise RuntimeError("the engine is stuck")

    def shut(self, *events: str) -> None:
        """Put a gate before these events."""
        self.gates |= {event: Gate() for event in events}

    async def reached(self, event: str) -> None:
        """Wait until a thread stands at the gate."""
        assert await asyncio.to_thread(self.gates[event].reached.wait, WAIT_S), f"nobody came to {event!r}"

    def open(self, event: str) -> None:
        """Let the event happen."""
        self.gates[event].opened.set()

    def _pass_gate(self, event: str) -> None:
        if gate := self.gates.get(event):
            gate.reached.set()
            assert gate.opened.wait(WAIT_S), f"the gate of {event!r} stayed shut"

    async def until(self, event: str, times: int = 1) -> None:
        """Wait until something has happened so many times."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.events.count(event) >= times, WAIT_S)

        assert await asyncio.to_thread(wait), f"{event!r} did not happen"

    def manager(
        self, *, max_loaded: int = 2, max_loaded_bytes: int = 0, idle_ttl_s: float = 0, **options: Any
    ) -> ModelManager:
        return ModelManager(
            self.load,
            max_loaded=max_loaded,
            max_loaded_bytes=max_loaded_bytes,
            idle_ttl_s=idle_ttl_s,
            **options,
        )


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


class User:
    """A request that holds a model until it is told to leave."""

    def __init__(self, manager: ModelManager, name: str) -> None:
        self.name = name
        self.has_engine = asyncio.Event()
        self._may_leave = asyncio.Event()
        self.task = asyncio.create_task(self._use(manager))

    async def _use(self, manager: ModelManager) -> Engine:
        async with manager.acquire(model(self.name)) as engine:
            self.has_engine.set()
            await self._may_leave.wait()
            assert isinstance(engine, ScriptedEngine)
            assert not engine.is_closed
            return engine

    async def leave(self) -> Engine:
        self._may_leave.set()
        return await self.task


def model(name: str) -> ModelReference:
    return ModelReference(id=name, repo_id=f"acme/{name}", requested=name)


async def use(manager: ModelManager, name: str) -> Engine:
    """One short request."""
    async with manager.acquire(model(name)) as engine:
        return engine


async def user_of(manager: ModelManager, name: str) -> User:
    """A request that has its engine."""
    user = User(manager, name)
    await user.has_engine.wait()
    return user


async def all_that_can_run() -> None:
    """Let every task go as far as it can without an outside event."""
    for _ in range(20):
        await asyncio.sleep(0)


def ids(manager: ModelManager) -> list[str]:
    return [loaded.id for loaded in manager.loaded()]


async def test_fifty_requests_at_once_load_a_model_once_and_share_it(workshop: Workshop) -> None:
    workshop.shut("load a")
    async with workshop.manager() as manager:
        users = [User(manager, "a") for _ in range(50)]
        await workshop.until("load a")
        workshop.open("load a")
        engines = {await user.leave() for user in users}
        assert len(engines) == 1
    assert workshop.events == ["load a", "close a"]


async def test_different_models_load_at_the_same_time(workshop: Workshop) -> None:
    workshop.shut("load a", "load b")
    async with workshop.manager() as manager:
        first, second = User(manager, "a"), User(manager, "b")
        await workshop.until("load a")
        await workshop.until("load b")
        workshop.open("load b")
        await second.leave()
        assert not first.has_engine.is_set()
        workshop.open("load a")
        await first.leave()


async def test_the_model_unused_for_longest_makes_room(workshop: Workshop) -> None:
    async with workshop.manager(max_loaded=2) as manager:
        for name in ("a", "b", "a", "c"):
            await use(manager, name)
        assert ids(manager) == ["a", "c"]
        assert workshop.events == ["load a", "load b", "close b", "load c"]
    assert workshop.most_alive == 2


async def test_a_model_in_use_is_never_put_away_however_long_ago_its_use_began(workshop: Workshop) -> None:
    async with workshop.manager(max_loaded=2) as manager:
        user = await user_of(manager, "a")
        for name in ("b", "c", "d"):
            await use(manager, name)
        assert ids(manager) == ["a", "d"]
        await user.leave()


async def test_loads_wait_while_all_models_are_in_use_and_go_in_the_order_they_came(
    workshop: Workshop,
) -> None:
    async with workshop.manager(max_loaded=2) as manager:
        first, second = await user_of(manager, "a"), await user_of(manager, "b")
        third, fourth = User(manager, "c"), User(manager, "d")
        await all_that_can_run()
        assert workshop.events == ["load a", "load b"]

        await second.leave()
        await third.has_engine.wait()
        assert workshop.events[2:] == ["close b", "load c"]

        await first.leave()
        await fourth.has_engine.wait()
        assert workshop.events[4:] == ["close a", "load d"]
        await third.leave()
        await fourth.leave()
    assert workshop.most_alive == 2


async def test_one_waiting_load_puts_away_one_model_only(workshop: Workshop) -> None:
    workshop.shut("close a")
    async with workshop.manager(max_loaded=2) as manager:
        for name in ("a", "b"):
            await use(manager, name)
        waiting = User(manager, "c")
        await workshop.reached("close a")
        await use(manager, "b")
        await all_that_can_run()
        assert ids(manager) == ["b"]
        workshop.open("close a")
        await waiting.leave()
        assert workshop.events == ["load a", "load b", "close a", "load c"]
    assert workshop.most_alive == 2


async def test_requests_for_a_loaded_model_do_not_queue_behind_a_waiting_load(workshop: Workshop) -> None:
    async with workshop.manager(max_loaded=1) as manager:
        first = await user_of(manager, "a")
        waiting = User(manager, "b")
        await all_that_can_run()
        await use(manager, "a")
        assert not waiting.has_engine.is_set()
        await first.leave()
        await waiting.leave()


async def test_a_load_that_gets_no_place_in_time_is_refused_and_may_be_tried_again(
    workshop: Workshop,
) -> None:
    async with workshop.manager(max_loaded=1, room_timeout_s=0.01) as manager:
        user = await user_of(manager, "a")
        with pytest.raises(ServerBusyError, match="taken by models in use") as caught:
            await use(manager, "b")
        assert caught.value.retry_after_s > 0
        await user.leave()
        await manager.unload(model("a"))
        await use(manager, "b")
        assert ids(manager) == ["b"]


async def test_idle_models_are_put_away_until_the_weights_fit_the_limit(workshop: Workshop) -> None:
    workshop.sizes = {"a": 30 * MB, "b": 30 * MB, "c": 30 * MB, "d": 50 * MB}
    async with workshop.manager(max_loaded=9, max_loaded_bytes=100 * MB) as manager:
        for name in ("a", "b", "c"):
            await use(manager, name)
        assert ids(manager) == ["a", "b", "c"]
        await use(manager, "d")
        assert ids(manager) == ["c", "d"]


async def test_models_in_use_may_exceed_the_byte_limit_until_one_is_free(workshop: Workshop) -> None:
    workshop.sizes = {"a": 80 * MB, "b": 80 * MB}
    async with workshop.manager(max_loaded=9, max_loaded_bytes=100 * MB) as manager:
        first, second = await user_of(manager, "a"), await user_of(manager, "b")
        assert ids(manager) == ["a", "b"]
        await second.leave()
        assert ids(manager) == ["a", "b"], "the model used last stays"
        await first.leave()
        assert ids(manager) == ["a"]


async def test_a_model_larger_than_the_limit_is_served_and_kept_with_a_warning(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    workshop.sizes = {"huge": 500 * MB}
    async with workshop.manager(max_loaded_bytes=100 * MB) as manager:
        await use(manager, "huge")
        await use(manager, "huge")
        assert workshop.events == ["load huge"]
        assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
            "Model huge: larger by itself than the limit of 100 MB for all models"
        ]
        await use(manager, "small")
        assert ids(manager) == ["small"]


async def test_models_idle_for_too_long_are_put_away(workshop: Workshop) -> None:
    now_s = 100.0
    async with workshop.manager(max_loaded=3, idle_ttl_s=1000, clock=lambda: now_s) as manager:
        await use(manager, "a")
        user = await user_of(manager, "in-use")
        now_s = 600.0
        await use(manager, "b")
        now_s = 1099.0
        assert await manager.reap_idle() == 0
        now_s = 1100.0
        assert await manager.reap_idle() == 1
        assert workshop.events[-1] == "close a"
        assert {loaded.id: loaded.idle_s for loaded in manager.loaded()} == {"in-use": 0.0, "b": 500.0}
        now_s = 5000.0
        assert await manager.reap_idle() == 1
        await user.leave()
        assert await manager.reap_idle() == 0, "its idle time starts when the user leaves"


async def test_the_reaper_runs_by_itself(workshop: Workshop) -> None:
    async with workshop.manager(idle_ttl_s=0.01) as manager:
        await use(manager, "a")
        await workshop.until("close a")
        await use(manager, "a")


async def test_without_a_time_to_live_nothing_is_put_away(workshop: Workshop) -> None:
    now_s = 0.0
    async with workshop.manager(clock=lambda: now_s) as manager:
        await use(manager, "a")
        now_s = 1e9
        await all_that_can_run()
        assert ids(manager) == ["a"]


async def test_a_failed_load_fails_for_all_who_wait_and_leaves_no_trace(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    workshop.shut("load a")
    error = ModelDownloadError("The download of the model 'a' broke off. Try again.")
    workshop.failures["a"] = [error]
    async with workshop.manager(max_loaded=1) as manager:
        users = [User(manager, "a") for _ in range(10)]
        await workshop.until("load a")
        workshop.open("load a")
        outcomes = await asyncio.gather(*(user.task for user in users), return_exceptions=True)
        assert outcomes == [error] * 10
        assert manager.loaded() == []
        assert caplog.text.count("Model a: the load failed: The download of the model 'a' broke off.") == 1
        await use(manager, "a")
        assert ids(manager) == ["a"]


async def test_a_failed_load_gives_its_place_to_the_next_in_the_queue(workshop: Workshop) -> None:
    workshop.shut("load a")
    workshop.failures["a"] = [ModelLoadError("broken")]
    async with workshop.manager(max_loaded=1) as manager:
        broken, waiting = User(manager, "a"), User(manager, "b")
        await workshop.until("load a")
        workshop.open("load a")
        with pytest.raises(ModelLoadError):
            await broken.task
        await waiting.leave()
    assert workshop.events == ["load a", "load b", "close b"]


async def test_an_error_that_is_no_fault_of_ours_to_name_reaches_the_caller_too(workshop: Workshop) -> None:
    workshop.failures["a"] = [ZeroDivisionError()]
    async with workshop.manager() as manager:
        with pytest.raises(ZeroDivisionError):
            await use(manager, "a")
        await use(manager, "a")


async def test_a_cancelled_waiter_does_not_end_the_load_for_the_others(workshop: Workshop) -> None:
    workshop.shut("load a")
    async with workshop.manager() as manager:
        first, second = User(manager, "a"), User(manager, "a")
        await workshop.until("load a")
        first.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first.task
        workshop.open("load a")
        await second.leave()
    assert workshop.events == ["load a", "close a"]


async def test_a_load_that_nobody_waits_for_any_more_leaves_an_idle_model(workshop: Workshop) -> None:
    workshop.shut("load a")
    async with workshop.manager() as manager:
        user = User(manager, "a")
        await workshop.until("load a")
        user.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await user.task
        workshop.open("load a")
        await use(manager, "a")
        assert workshop.events == ["load a"]


async def test_a_load_without_a_place_that_nobody_waits_for_is_given_up(workshop: Workshop) -> None:
    async with workshop.manager(max_loaded=1) as manager:
        holder = await user_of(manager, "a")
        waiting = User(manager, "b")
        await all_that_can_run()
        waiting.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting.task
        late = User(manager, "b")
        await all_that_can_run()
        late.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late.task
        await holder.leave()
        await all_that_can_run()
        assert ids(manager) == ["a"]
    assert workshop.events == ["load a", "close a"]


async def test_unload_returns_when_the_memory_is_free(workshop: Workshop) -> None:
    async with workshop.manager() as manager:
        assert await manager.unload(model("a")) is UnloadResult.NOT_LOADED
        engine = await use(manager, "a")
        assert isinstance(engine, ScriptedEngine)
        weights = weakref.ref(engine.weights or Weights())
        assert await manager.unload(model("a")) is UnloadResult.UNLOADED
        assert engine.is_closed
        assert weights() is None
        assert manager.loaded() == []


async def test_a_model_in_use_is_unloaded_when_its_last_user_leaves(workshop: Workshop) -> None:
    async with workshop.manager() as manager:
        first = await user_of(manager, "a")
        assert await manager.unload(model("a")) is UnloadResult.WHEN_FREE
        second = await user_of(manager, "a")
        assert await first.leave() is workshop.engines[0]
        assert workshop.events == ["load a"], "whoever comes before it is free shares it"
        await second.leave()
        await workshop.until("close a")
        assert await use(manager, "a") is workshop.engines[1]


async def test_a_model_that_is_kept_after_all_stays(workshop: Workshop) -> None:
    async with workshop.manager() as manager:
        assert not manager.keep(model("a"))
        user = await user_of(manager, "a")
        assert not manager.keep(model("a")), "nobody has asked for it to be unloaded"
        await manager.unload(model("a"))
        assert [one.is_unwanted for one in manager.loaded()] == [True]
        assert manager.keep(model("a"))
        assert [one.is_unwanted for one in manager.loaded()] == [False]
        await user.leave()
        await all_that_can_run()
        assert ids(manager) == ["a"]


async def test_nothing_is_kept_once_the_manager_closes(workshop: Workshop) -> None:
    async with workshop.manager() as manager:
        user = await user_of(manager, "a")
        closing = asyncio.create_task(manager.close())
        await all_that_can_run()
        assert not manager.keep(model("a"))
        await user.leave()
        await closing
    assert workshop.events == ["load a", "close a"]


async def test_a_model_unloaded_while_it_loads_goes_after_its_load(workshop: Workshop) -> None:
    workshop.shut("load a")
    async with workshop.manager() as manager:
        user = User(manager, "a")
        await workshop.until("load a")
        assert await manager.unload(model("a")) is UnloadResult.WHEN_FREE
        workshop.open("load a")
        await user.leave()
        await workshop.until("close a")


async def test_an_engine_that_fails_to_close_gives_up_its_place_all_the_same(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    workshop.close_failures = {"a"}
    async with workshop.manager(max_loaded=1) as manager:
        await use(manager, "a")
        await use(manager, "b")
        assert ids(manager) == ["b"]
    assert "did not close" in caplog.text
    assert "the engine is stuck" in caplog.text


async def test_preload_loads_all_in_order(workshop: Workshop) -> None:
    async with workshop.manager(max_loaded=3) as manager:
        await manager.preload([model("a"), model("b"), model("c")])
        assert ids(manager) == ["a", "b", "c"]
        assert [loaded.users for loaded in manager.loaded()] == [0, 0, 0]


async def test_a_failed_preload_is_raised(workshop: Workshop) -> None:
    workshop.failures["b"] = [ModelLoadError("broken")]
    async with workshop.manager() as manager:
        with pytest.raises(ModelLoadError):
            await manager.preload([model("a"), model("b")])
        assert ids(manager) == ["a"]


async def test_close_waits_for_running_loads_and_closes_everything(workshop: Workshop) -> None:
    workshop.shut("load b")
    manager = workshop.manager(max_loaded=2)
    holder = await user_of(manager, "a")
    loading, queued = User(manager, "b"), User(manager, "c")
    await workshop.until("load b")
    closing = asyncio.create_task(manager.close())
    with pytest.raises(ModelUnavailableError, match="shutting down"):
        await queued.task
    with pytest.raises(ModelUnavailableError, match="shutting down"):
        await use(manager, "a")
    await holder.leave()
    await workshop.until("close a")
    assert not closing.done()
    workshop.open("load b")
    await closing
    with pytest.raises(ModelUnavailableError, match="shutting down"):
        await loading.task
    assert Counter(workshop.events) == Counter(["load a", "load b", "close a", "close b"])
    await manager.close()


async def test_leaving_the_manager_while_being_called_off_still_closes_everything(workshop: Workshop) -> None:
    workshop.shut("close a")

    async def open_when_reached() -> None:
        await workshop.reached("close a")
        workshop.open("close a")

    opening = asyncio.create_task(open_when_reached())
    with anyio.CancelScope() as scope:
        async with workshop.manager() as manager:
            await use(manager, "a")
            scope.cancel()
    assert workshop.events == ["load a", "close a"]
    await opening


async def test_close_never_closes_an_engine_in_use_and_does_not_wait_for_ever(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    manager = workshop.manager()
    user = await user_of(manager, "a")
    await use(manager, "b")
    await manager.close(grace_s=0.01)
    assert "Still in use or loading at shutdown: a" in caplog.text
    assert "close a" not in workshop.events
    await user.leave()
    await workshop.until("close a")


async def test_the_log_tells_what_was_loaded_and_why_it_went(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="whisper_server.models")
    workshop.sizes = {"a": 75 * MB}
    now_s = 0.0
    async with workshop.manager(max_loaded=1, idle_ttl_s=60, clock=lambda: now_s) as manager:
        await use(manager, "a")
        await use(manager, "b")
        now_s = 60.0
        await manager.reap_idle()
        await use(manager, "c")
        await manager.unload(model("c"))
        await use(manager, "d")
    assert [record.message for record in caplog.records] == [
        "Model a: loading",
        "Model a: loaded in 0.0 s (cpu, int8, 75 MB)",
        "Model a: unloaded (lru)",
        "Model b: loading",
        "Model b: loaded in 0.0 s (cpu, int8, 1 MB)",
        "Model b: unloaded (idle)",
        "Model c: loading",
        "Model c: loaded in 0.0 s (cpu, int8, 1 MB)",
        "Model c: unloaded (asked)",
        "Model d: loading",
        "Model d: loaded in 0.0 s (cpu, int8, 1 MB)",
        "Model d: unloaded (shutdown)",
    ]


async def test_an_engine_given_up_is_loaded_anew_and_never_closed(workshop: Workshop) -> None:
    async with workshop.manager(max_loaded=1) as manager:
        user = await user_of(manager, "a")
        manager.retire(workshop.engines[0])
        assert manager.loaded() == []
        again = await user_of(manager, "a")  # there is a place, though the first user has not left
        assert [engine.name for engine in workshop.engines] == ["a", "a"]
        assert manager.loads == 2
        await user.leave()
        await again.leave()
    assert [engine.is_closed for engine in workshop.engines] == [False, True]


async def test_loaded_tells_users_age_and_capabilities(workshop: Workshop) -> None:
    before = datetime.now(UTC)
    async with workshop.manager() as manager:
        users = [await user_of(manager, "a") for _ in range(3)]
        [loaded] = manager.loaded()
        assert (loaded.id, loaded.users, loaded.idle_s) == ("a", 3, 0.0)
        assert loaded.capabilities == workshop.engines[0].capabilities
        assert before <= loaded.loaded_at <= datetime.now(UTC)
        for user in users:
            await user.leave()
        assert manager.loaded()[0].users == 0


def test_a_manager_without_a_place_is_a_configuration_error(workshop: Workshop) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        workshop.manager(max_loaded=0)


@pytest.mark.parametrize("seed", range(5))
async def test_in_a_crowd_limits_hold_and_everyone_is_served(workshop: Workshop, seed: int) -> None:
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()

    async def request(manager: ModelManager, name: str, steps: int) -> None:
        async with manager.acquire(model(name)) as engine:
            assert isinstance(engine, ScriptedEngine)
            for _ in range(steps):
                assert not engine.is_closed
                await asyncio.sleep(0)
        outcomes["served"] += 1

    workshop.sizes = {name: dice.randint(1, 60) * MB for name in "abcde"}
    workshop.failures = {name: [ModelLoadError("broken")] for name in "ab"}
    async with workshop.manager(max_loaded=2, max_loaded_bytes=70 * MB) as manager:
        tasks = []
        for _ in range(200):
            tasks.append(asyncio.create_task(request(manager, dice.choice("abcde"), dice.randint(0, 5))))
            if dice.random() < 0.3:
                await asyncio.sleep(0)
            if dice.random() < 0.2:
                dice.choice(tasks).cancel()
            if dice.random() < 0.1:
                await manager.unload(model(dice.choice("abcde")))
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(loaded.users == 0 for loaded in manager.loaded())
    kinds = Counter(type(result) for result in results)
    assert set(kinds) <= {type(None), asyncio.CancelledError, ModelLoadError}
    assert outcomes["served"] == kinds[type(None)] > 50
    assert workshop.most_alive <= 2
    assert all(engine.is_closed for engine in workshop.engines)
    assert Counter(e.split()[0] for e in workshop.events)["close"] == len(workshop.engines)
