"""Runs the decodes that a live session asks for, and brings it the results."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from whisper_server.core.engine import Engine
from whisper_server.core.errors import EngineError, ServerBusyError, WhisperServerError
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.session_states import DecodeDone, DecodeFailed, SessionEvent, StartDecode
from whisper_server.core.stream_events import DecodeTiming
from whisper_server.services.scheduler import TimedDecode
from whisper_server.services.stream_limits import StreamTools

logger = logging.getLogger(__name__)

_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.05, 0.5


@dataclass(slots=True)
class DecodeTotals:
    """Where the time of a stream's decodes went, seconds; of those that have ended.

    Attributes:
        count: how many.
        buffer_wait_s: audio gathered before they were asked for.
        queue_wait_s: waiting for a free worker.
        inference_s: in the model.
    """

    count: int = 0
    buffer_wait_s: float = 0.0
    queue_wait_s: float = 0.0
    inference_s: float = 0.0


class DecodeJobs:
    """The decodes of one stream. For one event loop.

    Args:
        tools: scheduler, limits and clock.
        engine: for finals.
        partial_engine: for partials.
        caller: whom the decodes are for.
        tell: takes the results.
        name: of the session, for the log.
    """

    def __init__(
        self,
        tools: StreamTools,
        engine: Engine,
        partial_engine: Engine,
        *,
        caller: Caller,
        tell: Callable[[SessionEvent], object],
        name: str,
    ) -> None:
        self._tools = tools
        self._engine = engine
        self._partial_engine = partial_engine
        self._caller = caller
        self._tell = tell
        self._name = name
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.totals = DecodeTotals()

    def start(self, effect: StartDecode, preprocess_s: float) -> None:
        """Decode a window; the session is told when it is done."""
        name = f"decode-{self._name}-{effect.job}"
        task = asyncio.create_task(self._run(effect, preprocess_s), name=name)
        self._tasks[effect.job] = task
        task.add_done_callback(lambda _: self._tasks.pop(effect.job))

    def cancel(self, job: int) -> None:
        """Drop a decode; one that runs is finished, and its result is lost."""
        task = self._tasks.get(job)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Drop all of them, and wait until none uses an engine."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, effect: StartDecode, preprocess_s: float) -> None:
        self._tell(await self._result(effect, preprocess_s))

    async def _result(self, effect: StartDecode, preprocess_s: float) -> SessionEvent:
        try:
            timed = await self._decode_when_possible(effect)
        except WhisperServerError as error:
            logger.info("A decode of session %s failed: %s", self._name, error.message)
            return DecodeFailed(effect.job, error)
        except Exception as error:  # the boundary: the decode fails, the session goes on
            logger.exception("A decode of session %s failed", self._name)
            failure = EngineError("The model failed on this audio.")
            failure.__cause__ = error
            return DecodeFailed(effect.job, failure)
        totals = self.totals
        totals.count += 1
        totals.buffer_wait_s += effect.buffer_wait_s
        totals.queue_wait_s += timed.queue_wait_s
        totals.inference_s += timed.inference_s
        timing = DecodeTiming(
            preprocess_s=preprocess_s, queue_wait_s=timed.queue_wait_s, inference_s=timed.inference_s
        )
        return DecodeDone(effect.job, timed.decoded, timing)

    async def _decode_when_possible(self, effect: StartDecode) -> TimedDecode:
        """Decode; a final waits for room in the queue, a partial does not."""
        engine = self._engine if effect.is_final else self._partial_engine
        priority = Priority.LIVE_FINAL if effect.is_final else Priority.LIVE_PARTIAL
        give_up_s = self._tools.clock() + self._tools.limits.decode_queue_timeout_s
        pause_s = _FIRST_RETRY_S
        while True:
            try:
                return await self._tools.scheduler.decode_timed(
                    engine, effect.window, priority=priority, caller=self._caller
                )
            except ServerBusyError:
                if not effect.is_final or self._tools.clock() >= give_up_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
