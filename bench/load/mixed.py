"""Short clips that arrive while a long recording is being transcribed."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from statistics import fmean

from bench.load.arrivals import Answer, cancelled_at_end, evenly, one_by_one, open_loop
from bench.load.clips import Clip, long_clip, short_clips
from bench.load.measures import percentile, progress_rate
from bench.load.plan import Plan
from bench.load.report import Result, Verdict, ratio
from bench.load.targets import Reply, Target

_INTERVAL_S = 2.0
_WARM_UP = 3
_LATE_MS = 50.0
_MAX_LATENCY_RATIO = 3.0
_SHARE_TOLERANCE = 0.10
"""Of the machine: reading files and answering overlaps with decoding, so shares add up to a little over 1."""


@dataclass(frozen=True, slots=True)
class _Size:
    clips: int
    file_s: float
    alone_s: float


@dataclass(slots=True)
class _File:
    """A recording that is sent again whenever it is through.

    Attributes:
        runs: for each time it was sent (moment, words so far).
        whole_s: for each time it came to its end (moment it was sent, moment it ended).
    """

    clip: Clip
    runs: list[list[tuple[float, float]]] = field(default_factory=list)
    whole_s: list[tuple[float, float]] = field(default_factory=list)
    is_under_way: asyncio.Event = field(default_factory=asyncio.Event)

    async def keep_going(self, target: Target) -> None:
        """Transcribe it again and again, until this is cancelled."""
        while True:
            started_s = time.perf_counter()
            run: list[tuple[float, float]] = []
            self.runs.append(run)
            words = 0
            async with aclosing(target.follow(self.clip)) as pieces:
                async for piece in pieces:
                    words += len(piece.split())
                    run.append((time.perf_counter(), words))
                    self.is_under_way.set()
            self.whole_s.append((started_s, time.perf_counter()))

    def took_s(self, start_s: float, stop_s: float) -> float | None:
        """Mean time of the runs that lie between two moments as a whole; None if there is none."""
        spans = [stop - start for start, stop in self.whole_s if start_s <= start and stop <= stop_s]
        return fmean(spans) if spans else None


@dataclass(frozen=True, slots=True)
class _Measured:
    idle: list[Answer]
    loaded: list[Answer]
    rate_alone: float | None
    rate_together: float | None
    file_alone_s: float | None
    file_together_s: float | None


async def mixed(plan: Plan) -> Result:
    """Compare clips alone with clips beside a file, and the file alone with the file beside clips."""
    size = (
        _Size(clips=5, file_s=300, alone_s=4)
        if plan.is_quick
        else _Size(clips=plan.clips, file_s=1800, alone_s=60)
    )
    file, clips = long_clip(size.file_s), short_clips(20)
    columns: tuple[str, ...] = (
        "",
        "idle p50 ms",
        "idle p95 ms",
        "loaded p50 ms",
        "loaded p95 ms",
        "p95 ratio",
    )
    columns += ("file alone words/s", "together words/s", "ratio", "file alone s", "together s")
    result = Result("mixed", columns)
    async with plan.server() as server:
        own = await _measure(server.target, file, clips, size)
    _report(result, server.target.name, own)
    result.verdicts += _verdicts(own)
    async with plan.others() as others:
        for target in others:
            _report(result, target.name, await _measure(target, file, clips, size))
    result.notes += [
        f"{size.clips} clips of about 3 s, one every {_INTERVAL_S:g} s, latency from the intended start; "
        f"the file has {size.file_s / 60:g} minutes and is sent again when it is through.",
        "words/s: how fast the file's text grows. The ratio is the share of its speed that clips leave it.",
    ]
    return result


async def _measure(target: Target, file: Clip, clips: list[Clip], size: _Size) -> _Measured:
    async def send(number: int) -> Reply:
        return await target.transcribe(clips[number % len(clips)])

    await one_by_one(send, _WARM_UP)
    moments_s = evenly(_INTERVAL_S, size.clips)
    idle = await open_loop(send, moments_s)
    progress = _File(file)
    begin_s = time.perf_counter()
    async with cancelled_at_end(progress.keep_going(target)):
        await progress.is_under_way.wait()
        alone_s = time.perf_counter()
        await asyncio.sleep(size.alone_s)
        together_s = time.perf_counter()
        loaded = await open_loop(send, moments_s)
        end_s = time.perf_counter()
    return _Measured(
        idle,
        loaded,
        progress_rate(progress.runs, alone_s, together_s),
        progress_rate(progress.runs, together_s, end_s),
        progress.took_s(begin_s, together_s),
        progress.took_s(together_s, end_s),
    )


def _report(result: Result, name: str, measured: _Measured) -> None:
    idle_ms, loaded_ms = (_latencies_ms(answers) for answers in (measured.idle, measured.loaded))
    result.rows.append(
        (
            name,
            *(_percentile(idle_ms, percent) for percent in (50, 95)),
            *(_percentile(loaded_ms, percent) for percent in (50, 95)),
            ratio(_percentile(loaded_ms, 95), _percentile(idle_ms, 95)),
            measured.rate_alone,
            measured.rate_together,
            ratio(measured.rate_together, measured.rate_alone),
            measured.file_alone_s,
            measured.file_together_s,
        )
    )
    for phase, answers in (("idle", measured.idle), ("loaded", measured.loaded)):
        if refused := sum(not answer.reply.is_transcript for answer in answers):
            result.notes.append(f"{name}: {refused} of {len(answers)} clips got no transcript ({phase})")
        if (late_ms := max(answer.sent_s - answer.intended_s for answer in answers) * 1000) > _LATE_MS:
            result.notes.append(
                f"{name}: a clip was sent {late_ms:.0f} ms late ({phase}): the client was short of time"
            )


def _verdicts(measured: _Measured) -> list[Verdict]:
    idle_ms, loaded_ms = (_latencies_ms(answers) for answers in (measured.idle, measured.loaded))
    latency_ratio = ratio(_percentile(loaded_ms, 95), _percentile(idle_ms, 95))
    unanswered = sum(not answer.reply.is_transcript for answer in measured.loaded)
    file_share = ratio(measured.rate_together, measured.rate_alone)
    clips_share = (_percentile(idle_ms, 50) or 0.0) / 1000 / _INTERVAL_S
    left_share = max(0.0, 1 - clips_share)
    return [
        Verdict("clips beside the file without transcript", unanswered, 0),
        Verdict("p95 latency beside the file ÷ idle", latency_ratio, _MAX_LATENCY_RATIO),
        Verdict(
            "file's speed beside clips ÷ alone: what they leave it", file_share, left_share + _SHARE_TOLERANCE
        ),
        Verdict("… and no less than half of that", file_share, left_share / 2, is_floor=True),
    ]


def _latencies_ms(answers: list[Answer]) -> list[float]:
    return [answer.latency_s * 1000 for answer in answers if answer.reply.is_transcript]


def _percentile(values: list[float], percent: float) -> float | None:
    return percentile(values, percent) if values else None
