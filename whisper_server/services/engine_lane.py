"""The queue in front of one engine, and the calls that run on it."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import ref

from whisper_server.core.compute_cost import ComputeCost
from whisper_server.core.engine import Engine
from whisper_server.core.errors import (
    EngineCrashedError,
    EngineError,
    EngineLostError,
    EngineOutOfMemoryError,
    EngineTimeoutError,
    ServerBusyError,
    WhisperServerError,
)
from whisper_server.core.scheduling import Caller, FairQueue, Priority, Waiting
from whisper_server.services.daemon_calls import in_daemon_thread
from whisper_server.services.engine_jobs import Job, still_wanted
from whisper_server.services.scheduler_counters import SchedulerCounters
from whisper_server.services.scheduler_limits import SchedulerLimits

logger = logging.getLogger("whisper_server.scheduler")

_LIVE_MEMORY_S = 10.0
"""So long after a live window the next is expected, and files come in small calls."""

_GATHER_SHARE, _GATHER_S = 0.5, 1.0
"""A call of files is prepared once this share of the running one, or this time, is over: more may come."""

_CALM_CALLS = 64
"""After so many calls that fitted into memory, twice the batch is tried again."""


class EngineLane:
    """Brings the windows for one engine into batches and runs them. For one event loop.

    A window whose batch fails runs again in halves of the batch, until only what is wrong fails. A window
    whose process has died runs once more, alone, so that it takes nobody with it a second time.

    Args:
        engine: held by whoever submits; the lane does not keep it alive.
        limits: of the queue.
        counters: where to count.
        clock: seconds, monotonic.
        on_lost: told when the engine has hung and cannot be used on.
    """

    def __init__(
        self,
        engine: Engine,
        limits: SchedulerLimits,
        counters: SchedulerCounters,
        clock: Callable[[], float],
        on_lost: Callable[[Engine], None] | None,
    ) -> None:
        self._engine = ref(engine)
        self._limits = limits
        self._counters = counters
        self._clock = clock
        self._on_lost = on_lost
        can = engine.capabilities
        self._parallel_calls = can.parallel_calls
        self._most_calls = can.most_calls
        self._most_windows = min(can.max_batch, limits.max_batch or can.max_batch)
        self._max_batch = self._most_windows
        self._calm_calls = 0
        self._queue: FairQueue[Job[Any]] = FairQueue(limits.ageing_s)
        self._tickets: dict[Job[Any], Waiting[Job[Any]]] = {}
        self._suspects: deque[Job[Any]] = deque()
        self._running: dict[asyncio.Task[None], list[Job[Any]]] = {}
        self._turnover: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._prepare_at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_suspect_running = False
        self._is_lost = False
        self._live_seen_s = -_LIVE_MEMORY_S
        self._cost = ComputeCost()

    @property
    def running_windows(self) -> int:
        """Windows in running calls."""
        return sum(map(len, self._running.values()))

    @property
    def _running_jobs(self) -> Iterator[Job[Any]]:
        return (job for jobs in self._running.values() for job in jobs)

    @property
    def waiting_audio_s(self) -> float:
        """Seconds of audio that wait."""
        return sum(waiting.item.window.duration_s for waiting in self._queue)

    @property
    def compute_per_audio_s(self) -> float | None:
        """Seconds the engine was busy for each second of audio, lately."""
        return self._cost.per_audio_s

    def waiting(self, priority: Priority) -> int:
        """How many windows wait with a priority."""
        return self._queue.count(priority)

    def estimated_wait_s(self, priority: Priority) -> float:
        """How long a window of this priority would wait now; 0 before anything was measured."""
        waiting_s = sum(w.item.window.duration_s for w in self._queue if w.priority <= priority)
        # What can be overtaken is not waited for.
        most_patient = priority if self._most_calls > self._parallel_calls else Priority.LONG_FILE
        running_s = sum(job.window.duration_s for job in self._running_jobs if job.priority <= most_patient)
        ahead_s = waiting_s + running_s / 2  # what runs is half done, on average
        return ahead_s * (self._cost.per_audio_s or 0.0)

    def submit(self, jobs: Sequence[Job[Any]], priority: Priority, caller: Caller) -> None:
        """Let jobs wait for their turn.

        Raises:
            ServerBusyError: too many wait.
            EngineLostError: the engine has hung; the model must be acquired anew.
        """
        if self._is_lost:
            raise _lost()
        if len(self._queue) + len(jobs) > self._limits.max_waiting:
            self._counters.windows_refused += len(jobs)
            raise ServerBusyError(
                f"{len(self._queue)} windows wait for this model already. Try again later.",
                retry_after_s=max(1.0, self.estimated_wait_s(Priority.LONG_FILE)),
            )
        now_s = self._clock()
        if priority.is_live:
            self._live_seen_s = now_s
        for job in jobs:
            job.priority = priority
            self._tickets[job] = Waiting(job, priority, caller, job.batch_key, job.compute_share, now_s)
            self._queue.put(self._tickets[job])
        self._advance()

    def call_off(self, jobs: Sequence[Job[Any]]) -> None:
        """Drop what of these still waits, and forget the results of the rest; done ones are left alone."""
        for job in jobs:
            if job.result.done() and not job.result.cancelled():
                job.result.exception()  # seen: asyncio would report it, and the caller may have left
            ticket = self._tickets.pop(job, None)
            if ticket is not None and self._queue.discard(ticket):
                self._counters.windows_dropped += 1
            elif job in self._suspects:
                self._suspects.remove(job)
                self._counters.windows_dropped += 1
            elif job.is_running:
                self._counters.windows_wasted += 1
            job.result.cancel()

    def _advance(self) -> None:
        """Start calls while the engine can take them."""
        while not self._is_suspect_running:
            if self._suspects and self._running:
                return
            jobs = [self._suspects.popleft()] if self._suspects else self._next_batch()
            if not jobs:
                return
            self._is_suspect_running = jobs[0].crashes > 0
            self._start(jobs)

    def _next_batch(self) -> list[Job[Any]]:
        """What may start beside the calls that run; empty where nothing may."""
        count = len(self._running)
        if not count or count < self._parallel_calls - 1:
            return self._take(Priority.LONG_FILE)
        running = [job.priority for job in self._running_jobs]
        if count < self._parallel_calls:
            # All workers have a call: another one prepares its input until one is free, or overtakes them.
            if all(priority is Priority.LIVE_FINAL for priority in running):
                return []  # beside finals another one would only make all of them late
            return [] if self._gathers(min(running)) else self._take(min(running))
        more_urgent = [priority for priority in Priority if priority < min(running)]
        if count < self._most_calls and more_urgent:
            return self._take(max(more_urgent), even_aged=False)
        return []

    def _gathers(self, priority: Priority) -> bool:
        """Whether a call beside one of this priority would have few windows, and is not needed yet."""
        is_overtaken = any(self._queue.count(other) for other in Priority if other < priority)
        if priority.is_live or is_overtaken or self._queue.count(priority) >= self._batch_limit(priority):
            return False
        early_s = self._prepare_at_s - self._clock()
        if early_s <= 0:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(early_s, self._stop_gathering)
        return True

    def _stop_gathering(self) -> None:
        self._timer = None
        self._advance()

    def _take(self, most_patient: Priority, *, even_aged: bool = True) -> list[Job[Any]]:
        batch = self._queue.take(
            self._clock(), self._batch_limit, most_patient=most_patient, even_aged=even_aged
        )
        for waiting in batch:
            self._tickets.pop(waiting.item, None)
        return [waiting.item for waiting in batch]

    def _batch_limit(self, priority: Priority) -> int:
        if not priority.is_live and self._clock() - self._live_seen_s < _LIVE_MEMORY_S:
            return 1  # a call cannot be interrupted, and whoever speaks shares the processor with it
        if priority is Priority.LIVE_FINAL:  # each worker takes its part; the first of them is taken already
            waiting = 1 + self._queue.count(priority)
            return min(self._max_batch, math.ceil(waiting / max(1, self._parallel_calls - 1)))
        return self._max_batch

    def _start(self, jobs: list[Job[Any]]) -> None:
        for job in jobs:
            job.is_running = True
            job.left_engine.clear()
        now_s = self._clock()
        self._cost.start(now_s)
        expected_s = sum(job.window.duration_s for job in jobs) * (self._cost.per_audio_s or 0.0)
        self._prepare_at_s = now_s + min(_GATHER_SHARE * expected_s, _GATHER_S)
        task = asyncio.create_task(self._serve(jobs))
        self._running[task] = jobs
        self._turn_over()

    async def _serve(self, jobs: list[Job[Any]]) -> None:
        """One turn of the engine, from taking a batch to the end of all it led to."""
        task = asyncio.current_task()
        assert task is not None
        try:
            await self._run(jobs)
        finally:
            del self._running[task]
            self._turn_over()
            self._is_suspect_running = False
            audio_s = sum(job.window.duration_s for job in jobs)
            self._cost.stop(self._clock(), audio_s, is_idle=not self._running)
            for job in jobs:
                job.leave_engine()
            self._advance()

    async def _run(self, jobs: Sequence[Job[Any]]) -> None:
        """Give each job its result; jobs whose process died go back to wait."""
        jobs = still_wanted(jobs)
        engine = self._engine()
        if not jobs or engine is None:
            return
        if self._is_lost:
            self._fail(jobs, _lost())
            return
        started_s = self._clock()
        for job in jobs:
            job.started_s = started_s
        try:
            results = await self._call(engine, jobs)
        except EngineTimeoutError as error:
            self._fail(jobs, error)
        except EngineCrashedError as error:
            self._after_crash(jobs, error)
        except Exception as error:  # an engine is foreign code: what it raises fails its own rows alone
            await self._after_failure(jobs, error)
        else:
            self._counters.windows_decoded += len(jobs)
            self._grow_batch()
            for job, result in zip(jobs, results, strict=True):
                job.succeed(result, self._clock())

    async def _call(self, engine: Engine, jobs: Sequence[Job[Any]]) -> Sequence[Any]:
        """Call the engine on a thread of its own, and give it up if it hangs."""
        self._counters.calls += 1
        running, began = self._begin(engine, jobs)
        # While the engine is started anew no time of the call passes.
        either: list[asyncio.Future[Any]] = [running, began]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # The engine may be at the windows of other calls first.
        timeout_s = self._limits.call_timeout_s * max(len(jobs), self.running_windows)
        await self._wait_for(running, jobs[0].priority, timeout_s)
        if running.done():
            results = running.result()
            if len(results) != len(jobs):
                raise ValueError(f"{len(results)} results for {len(jobs)} windows")
            return results
        self._counters.calls_hung += 1
        logger.error("A call with %d windows did not return in %.0f s and is given up", len(jobs), timeout_s)
        running.add_done_callback(lambda late: late.exception())
        if not await in_daemon_thread(engine.abort):
            self._lose(engine)
        raise _hung()

    async def _wait_for(self, call: asyncio.Future[Any], priority: Priority, timeout_s: float) -> None:
        """Wait until a call is over or has had its time, which stands still while it is overtaken."""
        now_s = asyncio.get_running_loop().time
        left_s = timeout_s
        while left_s > 0 and not call.done():
            is_overtaken = any(job.priority < priority for job in self._running_jobs)
            since_s = now_s()
            either: list[asyncio.Future[Any]] = [call, self._turnover]
            await asyncio.wait(
                either, timeout=None if is_overtaken else left_s, return_when=asyncio.FIRST_COMPLETED
            )
            left_s -= 0.0 if is_overtaken else now_s() - since_s

    def _turn_over(self) -> None:
        """Other calls run now."""
        self._turnover.set_result(None)
        self._turnover = asyncio.get_running_loop().create_future()

    @staticmethod
    def _begin(
        engine: Engine, jobs: Sequence[Job[Any]]
    ) -> tuple[asyncio.Future[Sequence[Any]], asyncio.Future[None]]:
        """The call on its way, and what is done once the engine has taken it."""
        windows, call, priority = [job.window for job in jobs], jobs[0].call, jobs[0].priority
        loop = asyncio.get_running_loop()
        began: asyncio.Future[None] = loop.create_future()

        def run() -> Sequence[Any]:
            engine.wait_until_ready()
            loop.call_soon_threadsafe(began.set_result, None)
            return call(engine, windows, priority)

        return in_daemon_thread(run), began

    def _lose(self, engine: Engine) -> None:
        self._is_lost = True
        waiting = list(self._queue)
        for ticket in waiting:
            self._queue.discard(ticket)
            del self._tickets[ticket.item]
        self._fail([ticket.item for ticket in waiting], _lost())
        if self._on_lost is not None:
            self._on_lost(engine)

    def _after_crash(self, jobs: Sequence[Job[Any]], error: EngineCrashedError) -> None:
        self._counters.calls_crashed += 1
        for job in jobs:
            job.crashes += 1
        self._fail([job for job in jobs if job.crashes > 1], error)
        again = [job for job in jobs if job.crashes == 1 and not job.result.done()]
        for job in again:
            job.leave_engine()
        self._counters.windows_retried += len(again)
        self._suspects += again
        logger.warning("The process of a model died: %d windows run once more", len(again))

    async def _after_failure(self, jobs: Sequence[Job[Any]], error: Exception) -> None:
        middle = len(jobs) // 2
        if isinstance(error, EngineOutOfMemoryError):
            self._counters.calls_out_of_memory += 1
            self._max_batch = min(self._max_batch, max(1, middle))
            self._calm_calls = 0
            logger.warning("No memory for %d windows: at most %d from now on", len(jobs), self._max_batch)
        if middle:
            self._counters.calls_split += 1
            await self._run(jobs[:middle])
            rest = jobs[middle:]
            while rest:  # in what fits by now, if it was memory that lacked
                await self._run(rest[: self._max_batch])
                rest = rest[self._max_batch :]
        elif isinstance(error, WhisperServerError):
            self._fail(jobs, error)
        else:
            logger.error("The engine raised %s", type(error).__name__, exc_info=error)
            failed = EngineError("The model failed on this audio.")
            failed.__cause__ = error
            self._fail(jobs, failed)

    def _grow_batch(self) -> None:
        if self._max_batch < self._most_windows:
            self._calm_calls += 1
            if self._calm_calls >= _CALM_CALLS:
                self._calm_calls = 0
                self._max_batch = min(2 * self._max_batch, self._most_windows)

    def _fail(self, jobs: Sequence[Job[Any]], error: WhisperServerError) -> None:
        self._counters.windows_failed += len(jobs)
        for job in jobs:
            job.fail(error, self._clock())


def _hung() -> EngineTimeoutError:
    return EngineTimeoutError("The model did not answer in time. Try again.")


def _lost() -> EngineLostError:
    return EngineLostError("The model has stopped answering and is being loaded anew. Try again.")
