"""What a process of its own per model costs, against a thread in the server."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench.load.clips import short_clips
from bench.load.measures import median
from bench.load.plan import Plan
from bench.load.report import Result, Verdict
from bench.load.targets import Target
from bench.load.turns import compare, take_turns

_SETTING = "model.engine_isolation"
_CLIENTS = 8
_MIN_THROUGHPUT_RATIO = 0.95
_MAX_ADDED_MS = 5.0


@dataclass(frozen=True, slots=True)
class _Size:
    rounds: int
    lone_rounds: int


async def isolation(plan: Plan) -> Result:
    """Compare two servers, taking turns."""
    size = _Size(rounds=2, lone_rounds=6) if plan.is_quick else _Size(rounds=25, lone_rounds=60)
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(plan.server({_SETTING: "process"}, name="process"))
        thread = await stack.enter_async_context(plan.server({_SETTING: "thread"}, name="thread"))
        targets: list[Target] = [process.target, thread.target]
        clips = short_clips(_CLIENTS)
        found = await take_turns(targets, clips, (_CLIENTS,), size.rounds, size.lone_rounds)
    isolated, plain = found
    result = compare("isolation", found)
    ratios = isolated.rate_ratios(plain, _CLIENTS)
    result.verdicts = [
        Verdict(
            "throughput ÷ with threads",
            median(ratios) if ratios else None,
            _MIN_THROUGHPUT_RATIO,
            is_floor=True,
        ),
        Verdict("added latency ms", median(isolated.added_ms(plain)), _MAX_ADDED_MS),
        Verdict("clips without transcript", isolated.unanswered + plain.unanswered, 0),
    ]
    result.notes.append(
        f"clips of about 3 s; {size.lone_rounds} rounds of one request, {size.rounds} of {_CLIENTS} at once"
    )
    return result
