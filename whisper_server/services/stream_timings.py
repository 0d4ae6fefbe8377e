"""How long the decodes of live streams take, and how many there were."""

from typing import Final

from whisper_server.core.engine import Engine
from whisper_server.core.errors import ServerBusyError
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.types import Window
from whisper_server.services.scheduler import Backlog, TimedDecode
from whisper_server.services.streaming import StreamScheduler

_NEWEST_WEIGHT: Final = 0.1
"""Of the newest decode in the moving mean."""


class StreamTimings:
    """The scheduler as live streams use it, with a note of each decode. For one event loop.

    Attributes:
        asked: decodes asked for.
        refused: those that found the queue full.
    """

    def __init__(self, scheduler: StreamScheduler) -> None:
        self._scheduler = scheduler
        self._means_s: dict[Priority, float] = {}
        self.asked = 0
        self.refused = 0

    async def decode_timed(
        self, engine: Engine, window: Window, *, priority: Priority, caller: Caller | None = None
    ) -> TimedDecode:
        """Decode one window, and note how long it waited and ran; errors as `Scheduler.decode_timed`."""
        self.asked += 1
        try:
            timed = await self._scheduler.decode_timed(engine, window, priority=priority, caller=caller)
        except ServerBusyError:
            self.refused += 1
            raise
        took_s = timed.queue_wait_s + timed.inference_s
        mean_s = self._means_s.get(priority, took_s)
        self._means_s[priority] = mean_s + _NEWEST_WEIGHT * (took_s - mean_s)
        return timed

    def backlog(self) -> Backlog:
        """As the scheduler's."""
        return self._scheduler.backlog()

    def estimated_wait_s(self, priority: Priority) -> float:
        """As the scheduler's."""
        return self._scheduler.estimated_wait_s(priority)

    def mean_s(self, priority: Priority) -> float | None:
        """How long a decode of this priority took lately, waiting included; None before the first."""
        return self._means_s.get(priority)

    @property
    def waiting(self) -> int:
        """Decodes of live streams that wait."""
        waiting = self.backlog().waiting
        return waiting.get(Priority.LIVE_FINAL, 0) + waiting.get(Priority.LIVE_PARTIAL, 0)
