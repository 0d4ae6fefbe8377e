"""Keeps loaded models: each loaded once, shared by all, and put away when the memory is wanted.

A model takes a place from before its load starts until its memory is returned; there are `max_loaded`
places. A load without a place waits in a queue, first come first served, for an idle model to be put away:
the one whose last use is longest ago. A model in use is never put away, and requests for a loaded model
never queue.
"""

import asyncio
import contextlib
import enum
import gc
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

import anyio

from whisper_server.core.engine import Capabilities, Engine
from whisper_server.core.errors import (
    ConfigurationError,
    ModelUnavailableError,
    ServerBusyError,
    WhisperServerError,
)
from whisper_server.core.heap import trim_heap
from whisper_server.services.daemon_calls import in_daemon_thread
from whisper_server.services.model_catalog import ModelReference

_logger = logging.getLogger("whisper_server.models")

_RETRY_AFTER_S: Final = 30.0
_MB: Final = 1_000_000
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


class UnloadResult(enum.Enum):
    """What became of the request to unload a model."""

    NOT_LOADED = "not_loaded"
    UNLOADED = "unloaded"
    WHEN_FREE = "when_free"
    """It is in use or loading; it goes when the last user leaves."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        id: of its `ModelReference`.
        capabilities: of its engine.
        users: requests and streams that use it or are about to.
        idle_s: seconds since the last user left; 0 while it is in use.
        loaded_at: when its load ended, UTC.
        is_unwanted: it is put away as soon as nobody uses it.
    """

    id: str
    capabilities: Capabilities
    users: int
    idle_s: float
    loaded_at: datetime
    is_unwanted: bool


@dataclass(slots=True, eq=False)
class _Slot:
    """One model from the first request for it until it is put away.

    Attributes:
        reference: the model, as the first request named it.
        users: how many hold it or wait for it.
        turn: set when it has a place and may load.
        settled: set when its load ended, well (`engine`) or not (`error`).
        engine: while it is loaded.
        error: why it did not load.
        last_used_s: when somebody came or left or the load ended, by the manager's clock.
        loaded_at: when its load ended, UTC.
        is_unwanted: to be put away as soon as nobody uses it.
        task: its load.
    """

    reference: ModelReference
    users: int = 0
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    engine: Engine | None = None
    error: Exception | None = None
    last_used_s: float = 0.0
    loaded_at: datetime = _NEVER
    is_unwanted: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        return self.engine is not None and self.users == 0


class ModelManager:
    """The loaded models. Not thread-safe: for one event loop. An async context manager.

    Args:
        load: brings a model onto the disk and into memory; blocking, called in a worker thread.
        max_loaded: places for models, loading ones included.
        max_loaded_bytes: limit for the weights of all models together, 0 for none. A model's size is known
            only once it is loaded; then idle ones go, longest unused first, until the rest fits. The one
            used last stays even if it is too large by itself.
        idle_ttl_s: a model unused for this long is put away; 0 never.
        clock: seconds, monotonic.
        room_timeout_s: a load that gets no place for so long fails with `ServerBusyError`.

    Raises:
        ConfigurationError: there is no place for any model.
    """

    def __init__(
        self,
        load: Callable[[ModelReference], Engine],
        *,
        max_loaded: int,
        max_loaded_bytes: int,
        idle_ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        room_timeout_s: float = 60.0,
    ) -> None:
        if max_loaded < 1:
            raise ConfigurationError("The server must be allowed to load at least one model.")
        self._load = load
        self._max_loaded = max_loaded
        self._max_loaded_bytes = max_loaded_bytes
        self._idle_ttl_s = idle_ttl_s
        self._clock = clock
        self._room_timeout_s = room_timeout_s
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # the longest unused first
        self._queue: deque[_Slot] = deque()
        self._closing: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.Task[None] | None = None
        self._is_closed = False
        self._is_empty = asyncio.Event()  # after closing: nothing is loaded, loading or being put away
        self._loads = 0

    async def __aenter__(self) -> Self:
        if self._idle_ttl_s > 0:
            self._reaper = asyncio.create_task(self._reap_for_ever(), name="model-reaper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also where the program is being called off: a model must not be left half put away.
        with anyio.CancelScope(shield=True):
            await self.close()

    @contextlib.asynccontextmanager
    async def acquire(self, reference: ModelReference) -> AsyncIterator[Engine]:
        """The model's engine, loaded first where necessary; it stays loaded until the block ends.

        However many ask at the same time, it is loaded once. Who is cancelled while waiting does not end
        the load for the others; a load that nobody waits for any more ends if it has no place yet, and else
        goes on and leaves an idle model. A failed load fails for all who wait for it, and the next request
        tries again.

        Raises:
            WhisperServerError: whatever `load` raises.
            ServerBusyError: all places stay taken by models in use.
            ModelUnavailableError: the manager is closed.
        """
        slot = self._enter(reference)
        try:
            await slot.settled.wait()
            if slot.error is not None:
                raise slot.error
            if slot.engine is None or self._is_closed:
                raise _closed_error()
            yield slot.engine
        finally:
            self._leave(slot)

    async def preload(self, references: Iterable[ModelReference]) -> None:
        """Load these models, one after the other; more than there are places push the first ones out again.

        Raises:
            WhisperServerError: whatever `load` raises, for the first that fails.
        """
        for reference in references:
            async with self.acquire(reference):
                pass

    async def unload(self, reference: ModelReference) -> UnloadResult:
        """Put a model away; when it was idle, its memory is returned before this returns.

        A model in use goes when its last user leaves. Whoever asks for it before that shares the loaded one.
        """
        slot = self._slots.get(reference.id)
        if slot is None:
            return UnloadResult.NOT_LOADED
        if not slot.is_idle:
            slot.is_unwanted = True
            return UnloadResult.WHEN_FREE
        await asyncio.wait([self._put_away(slot, "asked")])
        return UnloadResult.UNLOADED

    def keep(self, reference: ModelReference) -> bool:
        """Take back an `unload` that waits for the model's users; whether there was one."""
        slot = self._slots.get(reference.id)
        if slot is None or not slot.is_unwanted or self._is_closed:
            return False
        slot.is_unwanted = False
        return True

    def retire(self, engine: Engine) -> None:
        """Give up an engine that has hung: the next request for its model loads it anew.

        It is not closed, since a call still runs on it; its memory is lost until that returns.
        """
        for slot in self._slots.values():
            if slot.engine is engine:
                _logger.error("Model %s: given up, since a call on it has hung", slot.reference.id)
                slot.engine = None
                self._forget(slot)
                return

    async def reap_idle(self) -> int:
        """Put away the models idle for `idle_ttl_s` or longer; how many there were."""
        latest_s = self._clock() - self._idle_ttl_s
        closing = [self._put_away(s, "idle") for s in self._idle_slots() if s.last_used_s <= latest_s]
        if closing:
            await asyncio.wait(closing)
        return len(closing)

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, the longest unused first."""
        now_s = self._clock()
        return [
            LoadedModel(
                id=model_id,
                capabilities=slot.engine.capabilities,
                users=slot.users,
                idle_s=0.0 if slot.users else now_s - slot.last_used_s,
                loaded_at=slot.loaded_at,
                is_unwanted=slot.is_unwanted,
            )
            for model_id, slot in self._slots.items()
            if slot.engine is not None
        ]

    @property
    def loads(self) -> int:
        """How many models were loaded since the start."""
        return self._loads

    async def close(self, *, grace_s: float = 30.0) -> None:
        """Put all models away; no new request is served. Closing twice is harmless.

        Waits for running loads and for users to leave, but no longer than `grace_s`. An engine in use is
        never closed: what is still used or loading then is put away when its user leaves or its load ends.
        """
        self._is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        for slot in list(self._queue):
            self._abandon(slot)
        for slot in list(self._slots.values()):
            slot.is_unwanted = True
            if slot.is_idle:
                self._put_away(slot, "shutdown")
        self._note_if_empty()
        try:
            async with asyncio.timeout(grace_s):
                await self._is_empty.wait()
        except TimeoutError:
            _logger.warning("Still in use or loading at shutdown: %s", ", ".join(self._slots))

    def _enter(self, reference: ModelReference) -> _Slot:
        """Count the caller as a user of the model, whose load starts or queues if this is the first."""
        if self._is_closed:
            raise _closed_error()
        slot = self._slots.get(reference.id)
        if slot is None:
            slot = self._slots[reference.id] = _Slot(reference)
            slot.task = asyncio.create_task(self._bring(slot), name=f"load {reference.id}")
            self._queue.append(slot)
            self._advance()
        slot.users += 1
        self._touch(slot)
        return slot

    def _leave(self, slot: _Slot) -> None:
        slot.users -= 1
        self._touch(slot)
        if slot.users:
            return
        if slot in self._queue:
            self._abandon(slot)
        elif slot.engine is not None:
            self._settle(slot)

    def _touch(self, slot: _Slot) -> None:
        slot.last_used_s = self._clock()
        if self._slots.get(slot.reference.id) is slot:
            self._slots.move_to_end(slot.reference.id)

    async def _bring(self, slot: _Slot) -> None:
        """The load of one model, from the queue to its end."""
        try:
            await self._wait_for_turn(slot)
            await self._load_engine(slot)
        except Exception as error:  # a boundary: it is raised to each one who waits
            slot.error = error
            _log_failure(slot.reference, error)
            self._forget(slot)
        else:
            self._settle(slot)
        finally:
            slot.settled.set()

    async def _wait_for_turn(self, slot: _Slot) -> None:
        try:
            async with asyncio.timeout(self._room_timeout_s):
                await slot.turn.wait()
        except TimeoutError as error:
            raise ServerBusyError(
                "All places for models are taken by models in use. Try again later, or use a loaded model.",
                retry_after_s=_RETRY_AFTER_S,
            ) from error

    async def _load_engine(self, slot: _Slot) -> None:
        model_id = slot.reference.id
        _logger.info("Model %s: loading", model_id)
        started_s = self._clock()
        slot.engine = await in_daemon_thread(lambda: self._load(slot.reference))
        self._loads += 1
        slot.loaded_at = datetime.now(UTC)
        self._touch(slot)
        capabilities = slot.engine.capabilities
        _logger.info(
            "Model %s: loaded in %.1f s (%s, %s, %d MB)",
            model_id,
            slot.last_used_s - started_s,
            capabilities.device,
            capabilities.compute_type,
            capabilities.weights_bytes // _MB,
        )
        if 0 < self._max_loaded_bytes < capabilities.weights_bytes:
            _logger.warning(
                "Model %s: larger by itself than the limit of %d MB for all models",
                model_id,
                self._max_loaded_bytes // _MB,
            )

    def _settle(self, slot: _Slot) -> None:
        """Decide what stays, after a load has ended or a model has become idle."""
        if slot.is_idle and slot.is_unwanted:
            self._put_away(slot, "shutdown" if self._is_closed else "asked")
        self._advance()
        self._trim()

    def _advance(self) -> None:
        """Give free places to the head of the queue, and make room for the rest as far as models are idle."""
        taken = len(self._closing) + sum(slot.turn.is_set() for slot in self._slots.values())
        for _ in range(min(self._max_loaded - taken, len(self._queue))):
            self._queue.popleft().turn.set()
        still_wanted = max(0, len(self._queue) - len(self._closing))
        for slot in self._idle_slots()[:still_wanted]:
            self._put_away(slot, "lru")

    def _trim(self) -> None:
        """Put idle models away until the weights fit the limit; the model used last stays."""
        loaded = [
            (slot, slot.engine.capabilities.weights_bytes) for slot in self._slots.values() if slot.engine
        ]
        excess_bytes = sum(size for _, size in loaded) - self._max_loaded_bytes
        for slot, size in loaded[:-1] if self._max_loaded_bytes else ():
            if excess_bytes > 0 and slot.is_idle:
                self._put_away(slot, "lru")
                excess_bytes -= size

    def _idle_slots(self) -> list[_Slot]:
        return [slot for slot in self._slots.values() if slot.is_idle]

    def _put_away(self, slot: _Slot, reason: str) -> asyncio.Task[None]:
        """Unload an idle model; its place is free when the task is done."""
        del self._slots[slot.reference.id]
        task = asyncio.create_task(self._close_engine(slot, reason), name=f"unload {slot.reference.id}")
        self._closing.add(task)
        task.add_done_callback(self._after_closing)
        return task

    async def _close_engine(self, slot: _Slot, reason: str) -> None:
        await in_daemon_thread(lambda: _return_memory(slot))
        _logger.info("Model %s: unloaded (%s)", slot.reference.id, reason)

    def _after_closing(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("An engine did not close", exc_info=error)
        self._advance()
        self._note_if_empty()

    def _abandon(self, slot: _Slot) -> None:
        """Give up a load that has no place yet."""
        slot.error = _closed_error()
        slot.settled.set()
        self._forget(slot)
        if slot.task is not None:
            slot.task.cancel()

    def _forget(self, slot: _Slot) -> None:
        """Leave no trace of a model that is not loaded."""
        if slot in self._queue:
            self._queue.remove(slot)
        if self._slots.get(slot.reference.id) is slot:
            del self._slots[slot.reference.id]
        self._advance()
        self._note_if_empty()

    def _note_if_empty(self) -> None:
        if self._is_closed and not self._slots and not self._closing:
            self._is_empty.set()

    async def _reap_for_ever(self) -> None:
        while True:
            await asyncio.sleep(max(0.05, min(self._idle_ttl_s / 4, 30.0)))
            await self.reap_idle()


def _log_failure(reference: ModelReference, error: Exception) -> None:
    if isinstance(error, ServerBusyError):
        return  # nothing was tried
    if isinstance(error, WhisperServerError):
        _logger.error("Model %s: the load failed: %s (%s)", reference.id, error.message, error.causes)
    else:
        _logger.error("Model %s: the load failed", reference.id, exc_info=error)


def _return_memory(slot: _Slot) -> None:
    """Close the slot's engine and give its memory back to the system; blocking."""
    engine, slot.engine = slot.engine, None
    if engine is not None:
        engine.close()
    del engine
    gc.collect()
    trim_heap()


def _closed_error() -> ModelUnavailableError:
    return ModelUnavailableError("The server is shutting down and uses no more models.")
