"""Trying again, with pauses that grow, a bounded number of times."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from whisper_server.clients.grpc.errors import SttError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when to try again.

    Attributes:
        max_attempts: in a row without progress, the first included; then the error is raised.
        initial_pause_s: before the second attempt; doubled before each further one.
        max_pause_s: bounds the pauses, those that the server asks for too.
        reset_after_s: a session that held for so long counts as progress, as a final does.
    """

    max_attempts: int = 5
    initial_pause_s: float = 0.5
    max_pause_s: float = 30.0
    reset_after_s: float = 60.0

    def pause_s(self, failures: int, retry_after_s: float | None) -> float:
        """The pause after so many failures in a row.

        Args:
            failures: 1 or more.
            retry_after_s: what the server asks for.
        """
        pause_s = max(self.initial_pause_s * 2.0 ** (failures - 1), retry_after_s or 0.0)
        return min(pause_s, self.max_pause_s)


class Attempts:
    """Counts failures in a row. Belongs to one event loop.

    Args:
        policy: how often and when to try again.
        sleep: waits so many seconds.
    """

    def __init__(
        self, policy: RetryPolicy, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self._policy = policy
        self._sleep = sleep
        self._failures = 0

    def progress(self) -> None:
        """Count anew."""
        self._failures = 0

    async def pause(self, error: SttError) -> None:
        """Wait before the next attempt.

        Raises:
            SttError: the same; it is not transient, or there were enough attempts.
        """
        self._failures += 1
        if not error.is_transient or self._failures >= self._policy.max_attempts:
            raise error
        pause_s = self._policy.pause_s(self._failures, error.retry_after_s)
        logger.warning(
            "%s; trying again in %.1f s (%d of %d)",
            error,
            pause_s,
            self._failures,
            self._policy.max_attempts - 1,
        )
        await self._sleep(pause_s)
