"""How many requests may be inside at once: the rest is turned away before its upload is read."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from whisper_server.core.errors import ServerBusyError

_SMOOTHING = 0.2
"""Weight of the newest interval in the moving average."""


class Admission:
    """Counts the requests inside. For one event loop.

    Args:
        max_requests: how many may be inside, running or waiting.
        clock: seconds, monotonic.
    """

    def __init__(self, max_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_requests = max_requests
        self._clock = clock
        self._inside = 0
        self._last_leave_s: float | None = None
        self._mean_interval_s = 1.0

    @property
    def inside(self) -> int:
        """Requests running or waiting now."""
        return self._inside

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside while the block runs.

        Raises:
            ServerBusyError: no room; `retry_after_s` is how long it takes at present until one leaves.
        """
        if self._inside >= self._max_requests:
            raise ServerBusyError(
                f"The server is busy with {self._inside} requests. Try again later.",
                retry_after_s=max(1, math.ceil(self._mean_interval_s)),
            )
        self._inside += 1
        entered_s = self._clock()
        try:
            yield
        finally:
            self._inside -= 1
            self._note_leave(entered_s)

    def _note_leave(self, entered_s: float) -> None:
        now_s = self._clock()
        # Idle time before this request came is not time it took.
        since_s = entered_s if self._last_leave_s is None else max(entered_s, self._last_leave_s)
        self._mean_interval_s += _SMOOTHING * (now_s - since_s - self._mean_interval_s)
        self._last_leave_s = now_s
