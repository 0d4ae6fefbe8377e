"""Clips that arrive all at once: batches across requests, and what a lone request pays for them."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from bench.load.clips import dense_clips
from bench.load.measures import median
from bench.load.plan import Plan
from bench.load.report import Result, Verdict
from bench.load.targets import Target
from bench.load.turns import Rounds, compare, take_turns

_MIN_THROUGHPUT_RATIO = 1.25
_MAX_LATENCY_RATIO = 1.03


@dataclass(frozen=True, slots=True)
class _Size:
    clients: tuple[int, ...]
    rounds: int
    lone_rounds: int


async def burst(plan: Plan) -> Result:
    """Compare the server with itself at `max_batch=1` and with the library, taking turns."""
    size = (
        _Size((4,), rounds=1, lone_rounds=3)
        if plan.is_quick
        else _Size((8, 32), rounds=plan.rounds, lone_rounds=15)
    )
    clips = dense_clips(max(size.clients))
    async with AsyncExitStack() as stack:
        batched = await stack.enter_async_context(plan.server())
        single = await stack.enter_async_context(plan.server({"model.max_batch": 1}, name="max_batch=1"))
        others = await stack.enter_async_context(plan.others())
        targets: list[Target] = [batched.target, single.target, *others]
        found = await take_turns(targets, clips, size.clients, size.rounds, size.lone_rounds)
    own, lone, library = found[:3]
    result = compare("burst", found)
    for clients in size.clients:
        ratios = own.rate_ratios(lone, clients)
        result.verdicts.append(
            Verdict(
                f"throughput of {clients} clients ÷ with max_batch=1",
                median(ratios) if ratios else None,
                _MIN_THROUGHPUT_RATIO,
                is_floor=True,
            )
        )
    result.verdicts += [_lone_verdict(own, lone), _lone_verdict(own, library)]
    result.verdicts.append(Verdict("clips without transcript", own.unanswered, 0))
    result.verdicts.append(Verdict("clips whose text max_batch=1 has otherwise", own.differing(lone), 0))
    result.notes.append(
        f"clips of about 30 s without silence, no two alike; {size.rounds} rounds of each number of clients "
        f"and {size.lone_rounds} of a lone request, the targets taking turns; medians"
    )
    return result


def _lone_verdict(own: Rounds, other: Rounds) -> Verdict:
    return Verdict(
        f"latency of a lone request ÷ {other.name}", median(own.lone_ratios(other)), _MAX_LATENCY_RATIO
    )
