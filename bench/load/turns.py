"""Several targets under the same load by turns, so that what drifts on the machine hits all of them."""

import asyncio
import time
from collections.abc import Sequence

from bench.load.clips import Clip
from bench.load.measures import median
from bench.load.report import Cell, Result
from bench.load.targets import Target


class Rounds:
    """What one target did, round by round.

    Args:
        target: the one.
    """

    def __init__(self, target: Target) -> None:
        self.name = target.name
        self.unanswered = 0
        self.rates: dict[int, list[float]] = {}
        """Clients at once to seconds of audio per second, of each round."""
        self.latencies_ms: list[float] = []
        """Of lone requests."""
        self._target = target
        self._texts: dict[str, set[str]] = {}

    def lone_ratios(self, other: "Rounds") -> list[float]:
        """Latency of a lone request over that of another target, for each round: both sent the same clip."""
        return [own / its for own, its in zip(self.latencies_ms, other.latencies_ms, strict=True)]

    def added_ms(self, other: "Rounds") -> list[float]:
        """Latency of a lone request above that of another target, for each round."""
        return [own - its for own, its in zip(self.latencies_ms, other.latencies_ms, strict=True)]

    def rate_ratios(self, other: "Rounds", clients: int) -> list[float]:
        """Throughput over that of another target, for each round in which the other had any."""
        rates = zip(self.rates[clients], other.rates[clients], strict=True)
        return [own / its for own, its in rates if its]

    def differing(self, other: "Rounds") -> int:
        """How many clips did not get the same text from both in all rounds."""
        names = self._texts.keys() & other._texts.keys()
        return sum(len(self._texts[name] | other._texts[name]) > 1 for name in names)

    async def together(self, clips: Sequence[Clip]) -> None:
        """Send these clips at once."""
        started_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(self._send(clip)) for clip in clips]
        took_s = time.perf_counter() - started_s
        done_s = sum(clip.seconds for clip, sent in zip(clips, sending, strict=True) if sent.result())
        self.rates.setdefault(len(clips), []).append(done_s / took_s)

    async def alone(self, clip: Clip) -> None:
        """Send one clip."""
        started_s = time.perf_counter()
        await self._send(clip)
        self.latencies_ms.append((time.perf_counter() - started_s) * 1000)

    async def warm_up(self, clip: Clip) -> None:
        """Have the model loaded."""
        await self._target.transcribe(clip)

    async def _send(self, clip: Clip) -> bool:
        """Send a clip; whether a transcript came back."""
        reply = await self._target.transcribe(clip)
        if reply.is_transcript:
            self._texts.setdefault(clip.name, set()).add(reply.text)
        else:
            self.unanswered += 1
        return reply.is_transcript


async def take_turns(
    targets: Sequence[Target],
    clips: Sequence[Clip],
    clients: Sequence[int],
    rounds: int,
    lone_rounds: int,
) -> list[Rounds]:
    """Load the targets one after the other, round by round; another one begins each round.

    Args:
        targets: whom.
        clips: the first n of them are sent by n clients.
        clients: how many at once, one number after the other.
        rounds: of each number of clients.
        lone_rounds: of a lone request.
    """
    found = [Rounds(target) for target in targets]
    for each in found:
        await each.warm_up(clips[0])
        await each.warm_up(clips[-1])
    for index in range(lone_rounds):
        for each in _turned(found, index):
            await each.alone(clips[index % len(clips)])
    for count in clients:
        for index in range(rounds):
            for each in _turned(found, index):
                await each.together(clips[:count])
    return found


def _turned(found: Sequence[Rounds], index: int) -> list[Rounds]:
    first = index % len(found)
    return [*found[first:], *found[:first]]


def compare(scenario: str, found: Sequence[Rounds]) -> Result:
    """The table of all targets, each beside the first: medians, and medians of each round's ratio."""
    own = found[0]
    clients = list(own.rates)
    columns = ["", "lone request ms", "first ÷ this"]
    for count in clients:
        columns += [f"{count} clients: audio s per s", "first ÷ this"]
    result = Result(scenario, columns)
    for each in found:
        lone_ratios = own.lone_ratios(each)
        result.note_noise(f"lone request, {own.name} ÷ {each.name}", lone_ratios)
        row: list[Cell] = [each.name, median(each.latencies_ms), median(lone_ratios)]
        for count in clients:
            ratios = own.rate_ratios(each, count)
            result.note_noise(f"{count} clients, {own.name} ÷ {each.name}", ratios)
            row += [median(each.rates[count]), median(ratios) if ratios else None]
        result.rows.append(row)
        if each.unanswered:
            result.notes.append(f"{each.name}: {each.unanswered} requests got no transcript")
    return result
