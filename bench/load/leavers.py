"""Clients that connect, send, and leave before their answer is there."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from bench.load.arrivals import one_by_one
from bench.load.clips import Clip, dense_clips, short_clips
from bench.load.measures import median
from bench.load.own_server import Counters, NotMeasurableError, OwnServer
from bench.load.plan import Plan
from bench.load.report import Result, Verdict
from bench.load.targets import Reply

_AT_ONCE = 25
_SETTLE_S = 8.0
"""A model's process gives back what its calls have used once none has come for 5 s."""

_MAX_GROWTH = 0.03
_MAX_NEXT_RATIO = 1.5
_LOOK_S = 0.02
_UPLOADERS = 4
"""Every so manieth client leaves while it still sends."""


@dataclass(frozen=True, slots=True)
class _Size:
    """How many come, and how many of them before memory is compared.

    The memory that audio takes on its way to the model's process is claimed as more calls meet, up to a fixed
    size: it takes the first hundred to reach that.
    """

    clients: int
    warm_up: int
    clip_s: float
    longest_stay_s: float


@dataclass(slots=True)
class _Seen:
    """What the server did for those who left.

    Attributes:
        decoded: windows, in all.
        after: windows begun when the last client of a wave had left, the largest of all waves.
        memory_mb: when all had left and the server had settled.
    """

    decoded: int = 0
    after: int = 0
    memory_mb: float | None = None


async def leavers(plan: Plan) -> Result:
    """Count the windows decoded for those who have left, and serve one who stays."""
    size = _Size(20, 10, 60, 1.0) if plan.is_quick else _Size(200, 100, 120, 3.0)
    clip, stayer = dense_clips(1, seconds=size.clip_s)[0], short_clips(1)[0]
    result = Result(
        "leavers", ("clients", "windows of each clip", "windows decoded", "if all had stayed", "MB")
    )
    async with plan.server() as server:

        async def send(_: int) -> Reply:
            return await server.target.transcribe(stayer)

        idle = (await one_by_one(send, 5))[1:]
        before = await _decoded(server)
        await server.target.transcribe(clip)
        windows = await _decoded(server) - before
        warm = await _waves(server, clip, size.warm_up, size.longest_stay_s)
        seen = await _waves(server, clip, size.clients, size.longest_stay_s)
        (after,) = await one_by_one(send, 1)
    result.rows.append(
        (
            size.clients,
            windows,
            seen.decoded,
            size.clients * windows,
            seen.memory_mb,
        )
    )
    result.verdicts = [
        Verdict("windows begun after all had left", seen.after, 0),
        Verdict("memory above that after the warm-up, share", _grown(warm, seen), _MAX_GROWTH),
        Verdict(
            f"latency of client {size.clients + 1} ÷ idle",
            after.took_s / median([answer.took_s for answer in idle]) if after.reply.is_transcript else None,
            _MAX_NEXT_RATIO,
        ),
        Verdict("its text is another than before", float(after.reply.text != idle[0].reply.text), 0),
    ]
    result.notes += [
        f"{_AT_ONCE} at once, each with a clip of {size.clip_s:g} s; every {_UPLOADERS}th leaves "
        f"in mid-upload, all of them up to {size.longest_stay_s:g} s after the last byte they send",
        "the library and other servers are left out: nobody can leave the one, and the others count nothing",
    ]
    return result


async def _waves(server: OwnServer, clip: Clip, clients: int, longest_stay_s: float) -> _Seen:
    seen = _Seen()
    start = await _decoded(server)
    rng = np.random.default_rng(1)
    for first in range(0, clients, _AT_ONCE):
        async with asyncio.TaskGroup() as group:
            for number in range(first, min(first + _AT_ONCE, clients)):
                stay_s = float(rng.uniform(0, longest_stay_s))
                group.create_task(_come_and_go(server, clip, stay_s, is_uploader=number % _UPLOADERS == 0))
        seen.after = max(seen.after, await _begun_from_now(server))
    await asyncio.sleep(_SETTLE_S)
    seen.memory_mb = server.memory_mb()
    seen.decoded = await _decoded(server) - start
    return seen


async def _come_and_go(server: OwnServer, clip: Clip, stay_s: float, *, is_uploader: bool) -> None:
    """Connect, send a whole request or half of one, stay a while, and close the connection."""
    request = server.target.request(clip)
    content = await request.aread()
    head = f"POST {request.url.raw_path.decode()} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    _, writer = await asyncio.open_connection(request.url.host, request.url.port)
    try:
        with suppress(ConnectionError):  # refused and closed by the server: that client has left too
            writer.write(f"{head}\r\n".encode() + content[: len(content) // (2 if is_uploader else 1)])
            await writer.drain()
            await asyncio.sleep(stay_s)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _begun_from_now(server: OwnServer) -> int:
    """How many windows are begun from now until nobody is inside and nothing is decoded any more."""
    before = await _counters(server)
    now = await _when_idle(server)
    return now.windows_decoded - before.windows_decoded - before.windows_running


async def _when_idle(server: OwnServer) -> Counters:
    """The counters when nobody is inside and nothing is decoded any more."""
    while True:
        inside, counters = await server.requests_inside(), await _counters(server)
        if not (inside or counters.windows_running or counters.windows_waiting):
            return counters
        await asyncio.sleep(_LOOK_S)


async def _counters(server: OwnServer) -> Counters:
    counters = await server.counters()
    if counters is None:
        raise NotMeasurableError("this version of the server has no GET /debug/scheduler to count windows")
    return counters


async def _decoded(server: OwnServer) -> int:
    return (await _counters(server)).windows_decoded


def _grown(warm: _Seen, seen: _Seen) -> float | None:
    """By which share the memory after the last waves lies above that after the warm-up."""
    if warm.memory_mb is None or seen.memory_mb is None:
        return None
    return seen.memory_mb / warm.memory_mb - 1
