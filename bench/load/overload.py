"""Twice as many requests as the server can answer, for minutes."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from bench.load.arrivals import (
    Answer,
    Send,
    at_random,
    cancelled_at_end,
    closed_loop,
    one_by_one,
    open_loop,
)
from bench.load.clips import Clip, short_clips
from bench.load.measures import growth, percentile
from bench.load.own_server import OwnServer
from bench.load.plan import Plan
from bench.load.report import Result, Verdict
from bench.load.targets import Reply, Target

_TIMES_CAPACITY = 2.0
_CLIPS = 20
_CLOSED_CLIENTS = 8
_REFUSALS = (429, 503)
_MAX_REFUSAL_MS = 100.0
_MAX_GROWTH = 0.03
_MAX_QUEUE_GROWTH = 0.10
_MAX_RECOVERY_S = 5.0
_MAX_WAIT_S = 3.0
"""Whoever is let in waits no longer than this, so that is about how long it takes to be normal again."""

_NORMAL = 1.5
"""Up to this many times the idle p95 a latency is normal again."""

_RECOVERY_PATIENCE_S = 120.0
_SAMPLE_S = 1.0
_SECONDS_PER_MINUTE = 60
_OTHERS_MINUTES = 0.5
"""What is loaded for longer without refusing anything takes as long again to answer it all."""


@dataclass(frozen=True, slots=True)
class _Size:
    capacity_s: float
    load_s: float
    others_s: float


@dataclass(slots=True)
class _Samples:
    """What the server held while it was loaded, sample by sample."""

    memory_mb: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)

    async def keep_looking(self, server: OwnServer) -> None:
        """Take samples until this is cancelled."""
        while True:
            started_s = time.perf_counter()
            self.inside.append(await server.requests_inside())
            self.health_ms.append((time.perf_counter() - started_s) * 1000)
            if (memory_mb := server.memory_mb()) is not None:
                self.memory_mb.append(memory_mb)
            if (counters := await server.counters()) is not None:
                self.waiting.append(counters.windows_waiting)
            await asyncio.sleep(_SAMPLE_S)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the requests of a load ended.

    Attributes:
        right: the transcript is that of the idle server.
        wrong: another transcript.
        refused_ms: how long refusals took, from sending the request.
        without_retry_after: refusals that do not say when to come back.
        failed: neither transcript nor refusal, by status; 0 for no answer.
        right_ms: latencies of the right ones, from the intended start.
    """

    right: int
    wrong: int
    refused_ms: list[float]
    without_retry_after: int
    failed: dict[int, int]
    right_ms: list[float]


def outcome_of(answers: Sequence[Answer], expected: Callable[[int], str]) -> Outcome:
    """Sort answers out; `expected` gives the text of the request of a number."""
    transcripts = [answer for answer in answers if answer.reply.is_transcript]
    right = [answer for answer in transcripts if answer.reply.text == expected(answer.number)]
    refused = [answer for answer in answers if answer.reply.status in _REFUSALS]
    others = [
        answer.reply.status
        for answer in answers
        if not answer.reply.is_transcript and answer.reply.status not in _REFUSALS
    ]
    return Outcome(
        right=len(right),
        wrong=len(transcripts) - len(right),
        refused_ms=[answer.took_s * 1000 for answer in refused],
        without_retry_after=sum(answer.reply.retry_after is None for answer in refused),
        failed=dict(Counter(others)),
        right_ms=[answer.latency_s * 1000 for answer in right],
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    capacity: float
    idle_p95_ms: float
    asked: int
    outcome: Outcome
    late_ms: float
    recovery_s: float | None


async def overload(plan: Plan) -> Result:
    """Load the server at twice its capacity, then see how long it takes to be itself again."""
    load_s = plan.minutes * _SECONDS_PER_MINUTE
    size = (
        _Size(3, 8, 3)
        if plan.is_quick
        else _Size(20, load_s, min(load_s, _OTHERS_MINUTES * _SECONDS_PER_MINUTE))
    )
    clips = short_clips(_CLIPS)
    columns = (
        "",
        "capacity clips/s",
        "asked",
        "right",
        "wrong",
        "failed",
        "refused",
        "refusal p50 ms",
        "max ms",
    )
    result = Result("overload", (*columns, "right p50 ms", "p95 ms", "idle p95 ms", "normal again s"))
    samples = _Samples()
    async with plan.server({"limits.max_estimated_wait_s": _MAX_WAIT_S}) as server:
        own = await _measure(
            server.target,
            clips,
            size.capacity_s,
            size.load_s,
            lambda: cancelled_at_end(samples.keep_looking(server)),
        )
    _report(result, server.target.name, own)
    result.verdicts += _verdicts(own, samples)
    result.notes += _sample_notes(samples)
    async with plan.others() as others:
        for target in others:
            _report(result, target.name, await _measure(target, clips, size.capacity_s, size.others_s))
    result.notes += [
        f"clips of about 3 s at {_TIMES_CAPACITY:g} × what {_CLOSED_CLIENTS} clients got in "
        f"{size.capacity_s:g} s, arriving at random for {size.load_s:g} s; for {size.others_s:g} s at the "
        "others, because without refusals a queue only grows",
        f"the server refuses what would wait longer than {_MAX_WAIT_S:g} s (limits.max_estimated_wait_s)",
        f"normal again: from the last arrival until a lone clip takes at most {_NORMAL:g} × the idle p95, "
        "while those who were let in are still served",
    ]
    return result


async def _measure(
    target: Target,
    clips: Sequence[Clip],
    capacity_s: float,
    load_s: float,
    watch: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> _Measured:
    async def send(number: int) -> Reply:
        return await target.transcribe(clips[number % len(clips)])

    await one_by_one(send, 2)
    idle = await one_by_one(send, len(clips))
    texts = [answer.reply.text for answer in idle]
    idle_p95_ms = percentile([answer.took_s * 1000 for answer in idle], 95)
    begun_s = time.perf_counter()
    answered = await closed_loop(send, _CLOSED_CLIENTS, capacity_s)
    capacity = sum(answer.reply.is_transcript for answer in answered) / (time.perf_counter() - begun_s)
    moments_s = at_random(_TIMES_CAPACITY * capacity, load_s)
    async with asyncio.TaskGroup() as group:
        loading = group.create_task(open_loop(send, moments_s))
        async with watch():
            await asyncio.sleep(load_s)
        recovery_s = await _recovery_s(send, idle_p95_ms * _NORMAL / 1000)
    answers = loading.result()
    outcome = outcome_of(answers, lambda number: texts[number % len(texts)])
    late_ms = max((answer.sent_s - answer.intended_s for answer in answers), default=0.0) * 1000
    return _Measured(capacity, idle_p95_ms, len(answers), outcome, late_ms, recovery_s)


async def _recovery_s(send: Send, normal_s: float) -> float | None:
    """Ask one clip after the other until one comes back in normal time; None if none does."""
    end_s = time.perf_counter()
    while time.perf_counter() - end_s < _RECOVERY_PATIENCE_S:
        (answer,) = await one_by_one(send, 1)
        if answer.reply.is_transcript and answer.took_s <= normal_s:
            return answer.done_s - end_s
        await asyncio.sleep(0.1)
    return None


def _report(result: Result, name: str, measured: _Measured) -> None:
    outcome = measured.outcome
    result.rows.append(
        (
            name,
            measured.capacity,
            measured.asked,
            outcome.right,
            outcome.wrong,
            sum(outcome.failed.values()),
            len(outcome.refused_ms),
            percentile(outcome.refused_ms, 50) if outcome.refused_ms else None,
            max(outcome.refused_ms, default=None),
            percentile(outcome.right_ms, 50) if outcome.right_ms else None,
            percentile(outcome.right_ms, 95) if outcome.right_ms else None,
            measured.idle_p95_ms,
            measured.recovery_s,
        )
    )
    result.notes.append(f"{name}: requests were sent up to {measured.late_ms:.0f} ms late")
    result.notes += [
        f"{name}: {count} requests ended with {f'status {status}' if status else 'no answer'}"
        for status, count in sorted(outcome.failed.items())
    ]


def _verdicts(measured: _Measured, samples: _Samples) -> list[Verdict]:
    outcome = measured.outcome
    slow = sum(took_ms >= _MAX_REFUSAL_MS for took_ms in outcome.refused_ms)
    recovery_s = _RECOVERY_PATIENCE_S if measured.recovery_s is None else measured.recovery_s
    return [
        Verdict("wrong transcripts", outcome.wrong, 0),
        Verdict("neither transcript nor refusal", sum(outcome.failed.values()), 0),
        Verdict(f"refusals of {_MAX_REFUSAL_MS:g} ms or more", slow, 0),
        Verdict("refusals without Retry-After", outcome.without_retry_after, 0),
        Verdict("growth of memory, 2nd to last quarter", growth(samples.memory_mb), _MAX_GROWTH),
        Verdict("growth of requests inside, 2nd to last quarter", growth(samples.inside), _MAX_QUEUE_GROWTH),
        Verdict("normal latency after s", recovery_s, _MAX_RECOVERY_S),
    ]


def _sample_notes(samples: _Samples) -> list[str]:
    health_ms = percentile(samples.health_ms, 95)
    notes = [f"inside at most {max(samples.inside):.0f} requests; /health p95 {health_ms:.0f} ms"]
    if samples.memory_mb:
        notes.append(f"memory {min(samples.memory_mb):.0f} to {max(samples.memory_mb):.0f} MB")
    if samples.waiting:
        notes.append(f"at most {max(samples.waiting):.0f} windows waited")
    return notes
