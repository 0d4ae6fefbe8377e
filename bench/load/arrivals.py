"""When requests are sent, and how long each one's answer took from then on."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.load.targets import Reply

Send = Callable[[int], Awaitable[Reply]]
"""Send the request of this number and wait for its answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply and its times, on `time.perf_counter`.

    Attributes:
        number: of the request.
        reply: what came back.
        intended_s: when it was to be sent.
        sent_s: when it was sent.
        done_s: when the whole reply was there.
    """

    number: int
    reply: Reply
    intended_s: float
    sent_s: float
    done_s: float

    @property
    def latency_s(self) -> float:
        """From the intended start: a request that could only be sent late has waited too."""
        return self.done_s - self.intended_s

    @property
    def took_s(self) -> float:
        """From the moment it was sent."""
        return self.done_s - self.sent_s


def evenly(interval_s: float, count: int) -> list[float]:
    """Moments with the same time between them, the first one at 0."""
    return [index * interval_s for index in range(count)]


def at_random(rate_per_s: float, duration_s: float, *, seed: int = 1) -> list[float]:
    """Moments that know nothing of each other (a Poisson process), `rate_per_s` on average."""
    rng = np.random.default_rng(seed)
    moments: list[float] = []
    moment_s = float(rng.exponential(1 / rate_per_s))
    while moment_s < duration_s:
        moments.append(moment_s)
        moment_s += float(rng.exponential(1 / rate_per_s))
    return moments


async def open_loop(send: Send, moments_s: Sequence[float]) -> list[Answer]:
    """Send request i at `moments_s[i]` from now, whether or not earlier ones are answered; await them all.

    Cancelling it gives up those that are under way.
    """
    begin_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_at(begin_s + moment_s, number, send))
            for number, moment_s in enumerate(moments_s)
        ]
    return [task.result() for task in tasks]


async def closed_loop(send: Send, clients: int, duration_s: float) -> list[Answer]:
    """Let so many clients send one request after the other; none is begun after `duration_s`."""
    end_s = time.perf_counter() + duration_s
    numbers = itertools.count()
    answers: list[Answer] = []

    async def client() -> None:
        while time.perf_counter() < end_s:
            answers.append(await _timed(time.perf_counter(), next(numbers), send))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return answers


async def _at(moment_s: float, number: int, send: Send) -> Answer:
    await asyncio.sleep(moment_s - time.perf_counter())
    return await _timed(moment_s, number, send)


async def _timed(intended_s: float, number: int, send: Send) -> Answer:
    sent_s = time.perf_counter()
    reply = await send(number)
    return Answer(number, reply, intended_s, sent_s, time.perf_counter())


async def one_by_one(send: Send, count: int) -> list[Answer]:
    """Send each request when the one before is answered."""
    return [await _timed(time.perf_counter(), number, send) for number in range(count)]


@asynccontextmanager
async def cancelled_at_end(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let `work` run beside the block and cancel it when the block ends; its failure ends the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        yield
        task.cancel()
