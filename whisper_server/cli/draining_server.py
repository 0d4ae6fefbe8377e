"""How the server stops: it finishes what it has, then cuts off what is left; a second signal ends it at once.

uvicorn itself closes its port first, so that clients are refused without a word, and waits for connections
rather than for work.
"""

import asyncio
import logging
import math
import os
import socket
import time
from types import FrameType
from typing import NoReturn, cast

import uvicorn

from whisper_server.api.services import Services

logger = logging.getLogger(__name__)

_CLOSE = (b"connection", b"close")

_ANSWER_S = 5.0
"""What was cut off is answered in this time: a model may still be at its last window."""

_TICK_S = 1.0
_SIGNAL_EXIT = 128
"""The exit code of a process that a signal has ended is the signal's number above this."""


class DrainingServer(uvicorn.Server):
    """Drains when it is told to stop: new work is refused with 503 while the port stays open.

    When the requests inside are finished, or after the grace period, the port is closed. The first signal
    lets the process end as uvicorn does; a second one ends it at once with the exit code of that signal.

    Args:
        config: of uvicorn; the app's lifespan yields `services`.
        grace_s: how long requests may take to finish, seconds.
    """

    def __init__(self, config: uvicorn.Config, *, grace_s: float) -> None:
        super().__init__(config)
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_at_s = 0.0
        self.stopped_by: int | None = None
        """The first signal that told it to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first drains, the second stops at once."""
        if self.should_exit and self._loop is not None:
            # A signal handler may not log: it may have come in the middle of a log line.
            self._loop.call_soon_threadsafe(self._stop_at_once, sig)
        self._asked_at_s = self._asked_at_s or time.monotonic()
        self.stopped_by = self.stopped_by or sig
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        """Serve until told to stop, then until what runs is finished."""
        await super().main_loop()
        await self._drain()

    async def on_tick(self, counter: int) -> bool:
        """Renew the headers of every answer: while the server drains, each connection has one last answer."""
        should_exit = await super().on_tick(counter)
        headers = self.server_state.default_headers
        if self.should_exit and _CLOSE not in headers:
            self.server_state.default_headers = [*headers, _CLOSE]
        return should_exit

    async def _drain(self) -> None:
        began_s = self._asked_at_s or time.monotonic()
        requests, streams = self._services.requests, self._services.streams
        requests.drain(self._grace_s)
        logger.info(
            "Stopping: %d requests inside and %d live streams have %g s to finish, new ones are refused",
            len(requests),
            streams.registry.active,
            self._grace_s,
        )
        left_s = await self._wait_until_empty(began_s + self._grace_s)
        unfinished = requests.cut() + streams.registry.active
        if unfinished:
            self._log_cut(unfinished)
        else:
            logger.info("Drained: everything is finished, after %.1f s", time.monotonic() - began_s)
        # Answers that are still being sent have the rest of the time.
        self.config.timeout_graceful_shutdown = math.ceil(max(left_s, _ANSWER_S))

    async def _wait_until_empty(self, until_s: float) -> float:
        """Wait until nobody is inside, or the time has come; what is left of it."""
        services = self._services
        empty = asyncio.gather(services.requests.wait_until_empty(), services.streams.drain())
        left_s = until_s - time.monotonic()
        while not empty.done() and left_s > 0:
            await self.on_tick(0)
            await asyncio.wait([empty], timeout=min(left_s, _TICK_S))
            left_s = until_s - time.monotonic()
        empty.cancel()
        return left_s

    def _stop_at_once(self, sig: int) -> NoReturn:
        services = self._services if self.started else None
        unfinished = len(services.requests) + services.streams.registry.active if services else 0
        if unfinished:
            self._log_cut(unfinished)
        logger.warning("Stopped at once by a second signal")
        logging.shutdown()
        # Not sys.exit: that would wait for running windows.
        os._exit(_SIGNAL_EXIT + sig)

    def _log_cut(self, count: int) -> None:
        logger.warning(
            "Cut off %d unfinished requests and streams, %.1f s after the server was told to stop",
            count,
            time.monotonic() - self._asked_at_s,
        )

    @property
    def _services(self) -> Services:
        return cast("Services", self.lifespan.state["services"])
