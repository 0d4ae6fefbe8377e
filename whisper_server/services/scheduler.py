"""Which windows an engine decodes next, and together: fair, in batches, and safe from each other's faults."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from anyio import CancelScope

from whisper_server.core.engine import Engine
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.types import Decoded, LanguageProbabilities, Window
from whisper_server.services.engine_jobs import Job, language_job, text_job
from whisper_server.services.engine_lane import EngineLane
from whisper_server.services.scheduler_counters import SchedulerCounters
from whisper_server.services.scheduler_limits import SchedulerLimits


@dataclass(frozen=True, slots=True)
class TimedDecode:
    """A decoded window, and how long it took.

    Attributes:
        decoded: what the engine made of it.
        queue_wait_s: from when it was given to the scheduler until its batch began.
        inference_s: from then until its batch was done.
    """

    decoded: Decoded
    queue_wait_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits and runs, of all models together.

    Attributes:
        waiting: windows by priority.
        waiting_audio_s: seconds of audio in them.
        running: windows in running calls.
        compute_per_audio_s: measured seconds of computing per second of audio (RTF), of all workers of a
            model together; None before anything was decoded.
    """

    waiting: dict[Priority, int]
    waiting_audio_s: float
    running: int
    compute_per_audio_s: float | None


class Scheduler:
    """Runs engine calls on threads of its own, no more at once than each engine can use.

    For one event loop. Cancelling the task that waits for a window drops the window if it waits, and loses
    its result if it runs: the caller comes free when the running call is over, so that an engine is never
    closed under it.

    Args:
        limits: batch size, ageing, queue bound and time-out.
        on_lost: told of an engine that has hung and cannot be used on.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limits: SchedulerLimits | None = None,
        *,
        on_lost: Callable[[Engine], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits or SchedulerLimits()
        self._on_lost = on_lost
        self._clock = clock
        self._lanes: WeakKeyDictionary[Engine, EngineLane] = WeakKeyDictionary()
        self.counters = SchedulerCounters()

    async def decode(
        self,
        engine: Engine,
        windows: Sequence[Window],
        *,
        priority: Priority,
        caller: Caller | None = None,
    ) -> list[Decoded]:
        """Decode windows with an engine that the caller holds; each queues by itself.

        Raises:
            WhisperServerError: what the engine says is wrong with a window.
            ServerBusyError: the queue is full.
            EngineError: the engine failed; its subclasses tell a crash, a hang and want of memory.
        """
        jobs = [text_job(window) for window in windows]
        await self._finish(engine, jobs, priority, caller or Caller())
        return [job.result.result() for job in jobs]

    async def decode_timed(
        self, engine: Engine, window: Window, *, priority: Priority, caller: Caller | None = None
    ) -> TimedDecode:
        """Decode one window, and tell how long it waited and ran; errors as `decode`."""
        job = text_job(window)
        entered_s = self._clock()
        await self._finish(engine, [job], priority, caller or Caller())
        return TimedDecode(job.result.result(), job.started_s - entered_s, job.ended_s - job.started_s)

    async def detect_language(
        self,
        engine: Engine,
        windows: Sequence[Window],
        *,
        priority: Priority,
        caller: Caller | None = None,
    ) -> list[LanguageProbabilities]:
        """Detect the language of windows with an engine that the caller holds; errors as `decode`."""
        jobs = [language_job(window) for window in windows]
        await self._finish(engine, jobs, priority, caller or Caller())
        return [job.result.result() for job in jobs]

    def backlog(self) -> Backlog:
        """What waits and runs now."""
        lanes = list(self._lanes.values())
        costs = [cost for lane in lanes if (cost := lane.compute_per_audio_s) is not None]
        return Backlog(
            waiting={priority: sum(lane.waiting(priority) for lane in lanes) for priority in Priority},
            waiting_audio_s=sum(lane.waiting_audio_s for lane in lanes),
            running=sum(lane.running_windows for lane in lanes),
            compute_per_audio_s=max(costs, default=None),
        )

    def estimated_wait_s(self, priority: Priority) -> float:
        """How long a window of this priority would wait now, by what was measured; 0 before that."""
        return max((lane.estimated_wait_s(priority) for lane in self._lanes.values()), default=0.0)

    async def _finish(
        self, engine: Engine, jobs: Sequence[Job[Any]], priority: Priority, caller: Caller
    ) -> None:
        """Have jobs done; the first failure calls off the others."""
        lane = self._lane(engine)
        lane.submit(jobs, priority, caller)
        try:
            await asyncio.gather(*(job.result for job in jobs))
        finally:
            lane.call_off(jobs)
            if any(job.is_running for job in jobs):
                with CancelScope(shield=True):  # the engine is in use until the running calls are over
                    await asyncio.gather(*(job.left_engine.wait() for job in jobs if job.is_running))

    def _lane(self, engine: Engine) -> EngineLane:
        lane = self._lanes.get(engine)
        if lane is None:
            lane = EngineLane(engine, self._limits, self.counters, self._clock, self._on_lost)
            self._lanes[engine] = lane
        return lane
