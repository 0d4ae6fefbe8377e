"""Which window an engine decodes next: first come, first served, a window at a time.

A long recording queues one window after another, so the windows of other requests come in between.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

from anyio import CancelScope, CapacityLimiter, to_thread

from whisper_server.core.engine import Engine
from whisper_server.core.errors import EngineError, WhisperServerError
from whisper_server.core.types import Decoded, LanguageProbabilities, Window

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


class Scheduler:
    """Runs engine calls on worker threads, no more at once than each engine can use.

    For one event loop. A cancelled call is dropped if it still waits; one that runs is waited for, so that
    an engine is never closed under it.
    """

    def __init__(self) -> None:
        self._limiters: WeakKeyDictionary[Engine, CapacityLimiter] = WeakKeyDictionary()
        # The engines' own limiters bound the threads; anyio's default would make engines wait for each other.
        self._threads = CapacityLimiter(math.inf)

    async def decode(self, engine: Engine, windows: Sequence[Window]) -> list[Decoded]:
        """Decode windows with an engine that the caller holds.

        Raises:
            WhisperServerError: what the engine says is wrong with a window.
            EngineError: the engine failed.
        """
        return await self._run(engine, lambda: engine.decode(windows))

    async def detect_language(self, engine: Engine, windows: Sequence[Window]) -> list[LanguageProbabilities]:
        """Detect the language of windows with an engine that the caller holds; errors as `decode`."""
        return await self._run(engine, lambda: engine.detect_language(windows))

    async def _run(self, engine: Engine, call: Callable[[], _Result]) -> _Result:
        if engine not in self._limiters:
            self._limiters[engine] = CapacityLimiter(engine.capabilities.parallel_calls)
        async with self._limiters[engine]:
            work = asyncio.ensure_future(to_thread.run_sync(call, limiter=self._threads))
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                with CancelScope(shield=True):  # the engine is in use until the running call is over
                    await asyncio.wait([work])
                if not work.cancelled():
                    work.exception()  # seen, so that asyncio does not report it: whoever asked has gone
                raise
        try:
            return work.result()
        except WhisperServerError:
            raise
        except Exception as error:  # an engine is foreign code: what it raises fails this request alone
            logger.exception("The engine raised %s", type(error).__name__)
            raise EngineError("The model failed on this audio.") from error
