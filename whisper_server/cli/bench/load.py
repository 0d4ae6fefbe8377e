"""Runs sessions on many channels at once."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from whisper_server.cli.bench.drivers.driver import Channel, Driver
from whisper_server.cli.bench.session import Clock, SessionFailedError, SessionRecord, SessionTrace

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How much load.

    Attributes:
        channels: connections at once, at least 1.
        iterations: sessions of each, one after the other.
        warmup_iterations: sessions of each before that, which do not count.
        ramp_steps: batches in which the channels begin, 1 to `channels`.
        ramp_interval_s: between two batches.
        timeout_s: longest session.
    """

    channels: int = 1
    iterations: int = 1
    warmup_iterations: int = 0
    ramp_steps: int = 1
    ramp_interval_s: float = 1.0
    timeout_s: float = 120.0

    def ramp_delays_s(self) -> list[float]:
        """When each channel begins; the batches differ by one channel at most."""
        return [
            (number * self.ramp_steps // self.channels) * self.ramp_interval_s
            for number in range(self.channels)
        ]


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told of sessions as they end.

    Attributes:
        on_record: of each that counts.
        on_warmup: of each that does not.
    """

    on_record: Callable[[SessionRecord], None]
    on_warmup: Callable[[SessionRecord], None]


class LoadTest:
    """A load test. For one event loop.

    All channels are done with their warm-up before the first session that counts begins; both ramp up. A
    session that fails is a record like others, and its channel goes on.

    Args:
        driver: speaks to the server.
        plan: how much.
        listeners: who is told.
        audio_s: length of what each session says.
        is_right: whether a text is what was to be heard.
        clock: tells the time.
        sleep: waits, seconds.
    """

    def __init__(
        self,
        driver: Driver,
        plan: LoadPlan,
        listeners: Listeners,
        *,
        audio_s: float,
        is_right: Callable[[str], bool] = lambda _: True,
        clock: Clock = time.perf_counter,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._driver = driver
        self._plan = plan
        self._listeners = listeners
        self._audio_s = audio_s
        self._is_right = is_right
        self._clock = clock
        self._sleep = sleep
        self._run_id = secrets.token_hex(4)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopped = False
        self._begin_s: float | None = None
        self._end_s: float | None = None
        self._interrupted = 0

    @property
    def elapsed_s(self) -> float:
        """From the first session that counts to the end of the last one, seconds."""
        if self._begin_s is None:
            return 0.0
        return (self._clock() if self._end_s is None else self._end_s) - self._begin_s

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._is_stopped

    @property
    def interrupted(self) -> int:
        """Sessions that count and were broken off by `stop`."""
        return self._interrupted

    async def run(self) -> None:
        """Run all sessions, or those that `stop` leaves."""
        plan = self._plan
        async with AsyncExitStack() as stack:
            channels = [await stack.enter_async_context(self._driver.channel()) for _ in range(plan.channels)]
            await self._phase(channels, "w", plan.warmup_iterations, self._listeners.on_warmup)
            self._begin_s = self._clock()
            self._interrupted = 0
            await self._phase(channels, "", plan.iterations, self._listeners.on_record)
            self._end_s = self._clock()

    def stop(self) -> None:
        """Break the sessions off, have them called off at the server, and let `run` return."""
        self._is_stopped = True
        for task in self._tasks:
            task.cancel()

    async def _phase(
        self,
        channels: Sequence[Channel],
        prefix: str,
        iterations: int,
        on_record: Callable[[SessionRecord], None],
    ) -> None:
        if not iterations or self._is_stopped:
            return

        async def work(number: int, channel: Channel, delay_s: float) -> None:
            if delay_s:
                await self._sleep(delay_s)
            for iteration in range(1, iterations + 1):
                name = f"bench-{self._run_id}-{number}-{prefix}{iteration}"
                on_record(await self._session(channel, number, iteration, name))

        async with asyncio.TaskGroup() as group:
            delays_s = self._plan.ramp_delays_s()
            self._tasks = [
                group.create_task(work(number, channel, delay_s))
                for number, (channel, delay_s) in enumerate(zip(channels, delays_s, strict=True), 1)
            ]

    async def _session(self, channel: Channel, number: int, iteration: int, name: str) -> SessionRecord:
        trace = SessionTrace(name, self._clock)
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                await channel.run_session(trace)
        except SessionFailedError as error:
            trace.fail(error.code, error.message)
        except TimeoutError:
            trace.fail("TIMEOUT", f"The session was not over after {self._plan.timeout_s:g} s.")
        except asyncio.CancelledError:
            self._interrupted += 1
            raise
        except Exception as error:  # one session must not take the others with it, whatever it is
            logger.exception("Session %s failed", name)
            trace.fail("CLIENT_ERROR", f"This command failed with {type(error).__name__}.")
        return trace.finish(
            channel=number, iteration=iteration, audio_s=self._audio_s, is_right=self._is_right
        )
