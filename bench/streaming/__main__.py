"""Live streams in real time: when text comes, when it is final, how much of it is taken back, what it costs.

    python -m bench.streaming [--streams 1 4 8 16] [--cost tiny] [--seconds 60] [--peer URL] [--json FILE]

Starts the server itself, with the demo model's weights at the compute cost of another Whisper. Speakers say
test clips with pauses of 1 to 3 s in a quiet room, each their own, in frames of 50 ms as they are spoken; the
synthesiser told when each word is said. All of it happens at both doors, one after the other:

- /v1/realtime, 24 kHz, server_vad with 500 ms, delay "minimal": its deltas bring stable text alone.
- /ws/stt, 16 kHz, 500 ms: its partials also bring the text that may still change, so the first text comes
  sooner here, and only here can text be taken back.

Columns: first text, from the start of the speech to the first delta or partial; word, from the end of a word
to when it and all before it stood there for good; final, from the true end of the speech to the final text,
the 500 ms of silence included; unstable ratio, words of partials taken back over words of finals; CPU, of the
server with all its processes. Then 50 sessions are open in which hardly anybody speaks.

With --peer another server with /v1/realtime is measured the same way instead; its key is in PEER_API_KEY.
Flags after -- go to the server: python -m bench.streaming -- --model-workers 2
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bench.command_line import at_least_one, split_server_flags
from bench.demo_weights import Size, widened_model
from bench.load.own_server import MODEL, NotMeasurableError, own_server
from bench.load.report import Result, Verdict, machine_facts, render, render_facts, write_json
from bench.streaming.doors import SILENCE_MS, STT, Address, Door, RealtimeDoor, SttDoor
from bench.streaming.rounds import COLUMNS, Round, quiet_round, streams_round

_MAX_FINAL_MS = {1: SILENCE_MS + 250, 8: SILENCE_MS + 700}
_MAX_FIRST_TEXT_MS = {8: 600}
_MAX_UNSTABLE = 0.2
_MAX_QUIET_CPU = 30
_NOT_MEASURABLE = 2
_DELAY = "minimal"
"""Asked of this server: without, it sends its deltas after the commit."""

_LATE_S = 0.05
_MOST_SHOWN = 3
_WARM_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the benchmark.

    Attributes:
        address: of the server.
        pid: of the server; None for a peer.
        doors: at which to speak.
        streams: how many at once, one number after the other.
        seconds: that each round lasts, about.
        quiet_streams: how many sessions in which hardly anybody speaks; 0 leaves that out.
        quiet_s: how long they are watched.
    """

    address: Address
    pid: int | None
    doors: tuple[Door, ...]
    streams: tuple[int, ...]
    seconds: float
    quiet_streams: int
    quiet_s: float


async def measure(plan: Plan) -> Result:
    """Do all rounds.

    Raises:
        NotMeasurableError: the server has no such door, or refuses a session.
    """
    rounds: list[Round] = []
    quiet: Round | None = None
    for door in plan.doors:
        await streams_round(door, plan.address, 1, _WARM_UP_S)
        for streams in plan.streams:
            rounds.append(await streams_round(door, plan.address, streams, plan.seconds, plan.pid))
            _progress(rounds[-1])
    if plan.quiet_streams:
        quiet = await quiet_round(plan.doors[0], plan.address, plan.quiet_streams, plan.quiet_s, plan.pid)
        _progress(quiet)
    return result_of(rounds, quiet)


def _progress(done: Round) -> None:
    print(f"{done.door}: {done.streams} streams, {done.took_s:.0f} s", file=sys.stderr, flush=True)


def result_of(rounds: Sequence[Round], quiet: Round | None) -> Result:
    """The table, and the targets that these rounds can be held against."""
    result = Result("streaming", COLUMNS)
    result.rows += [each.row() for each in rounds]
    for each in rounds:
        result.verdicts += _verdicts(each)
    if quiet is not None:
        result.rows.append(quiet.row())
        result.verdicts.append(
            Verdict(
                f"{quiet.streams} mostly silent sessions, CPU % of a core",
                None if quiet.cores is None else 100 * quiet.cores,
                _MAX_QUIET_CPU,
            )
        )
    every = [*rounds, *([] if quiet is None else [quiet])]
    result.verdicts.append(Verdict("utterances without text", sum(len(each.lost) for each in every), 0))
    for each in every:
        result.notes += _notes(each)
    result.notes.append(f"silence that ends an utterance: {SILENCE_MS} ms, part of every final's time")
    return result


def _verdicts(done: Round) -> list[Verdict]:
    where = f"{done.streams} stream{'s' * (done.streams > 1)} at {done.door}"
    verdicts: list[Verdict] = []
    if done.streams in _MAX_FINAL_MS:
        limit = _MAX_FINAL_MS[done.streams]
        verdicts.append(Verdict(f"{where}: final after end of speech, ms p95", done.final_ms(95), limit))
    if done.door == STT:  # elsewhere only stable text is told
        if done.streams in _MAX_FIRST_TEXT_MS:
            limit = _MAX_FIRST_TEXT_MS[done.streams]
            verdicts.append(Verdict(f"{where}: first partial, ms p50", done.first_text_ms(50), limit))
        verdicts.append(Verdict(f"{where}: unstable ratio", done.unstable_ratio, _MAX_UNSTABLE))
    return verdicts


def _notes(done: Round) -> list[str]:
    where = f"{done.streams} at {done.door}"
    notes: list[str] = []
    for what, texts in (
        ("faults", done.faults),
        ("without text", done.lost),
        ("where nobody spoke", done.strays),
    ):
        if texts:
            more = f" and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
            notes.append(f"{where}, {what}: {' | '.join(texts[:_MOST_SHOWN])}{more}")
    if done.most_late_s > _LATE_S:
        notes.append(f"{where}: a frame was spoken but not sent for {1000 * done.most_late_s:.0f} ms")
    return notes


def main(words: Sequence[str] | None = None) -> int:
    """Measure.

    Returns:
        0 if every target was measured and met, 1 if not, 2 if the server cannot be measured.
    """
    options, server_flags = _parse(sys.argv[1:] if words is None else words)
    facts = machine_facts()
    facts |= {"server": options.peer} if options.peer else {"weights": options.cost}
    print(render_facts(facts), flush=True)
    try:
        result = asyncio.run(_run(options, server_flags))
    except NotMeasurableError as error:
        print(error, file=sys.stderr)
        return _NOT_MEASURABLE
    print(render(result, is_quick=options.quick), flush=True)
    if options.json:
        write_json(options.json, facts, [result], is_quick=options.quick)
    return 0 if result.is_passed else 1


async def _run(options: argparse.Namespace, server_flags: tuple[str, ...]) -> Result:
    async with _server(options, server_flags) as (address, pid):
        model = options.peer_model if options.peer else MODEL
        delay = options.peer_delay if options.peer else _DELAY
        doors: dict[str, Door] = {"realtime": RealtimeDoor(model, delay=delay), "stt": SttDoor(model)}
        names = ["realtime"] if options.peer else options.doors
        plan = Plan(
            address=address,
            pid=pid,
            doors=tuple(doors[name] for name in names),
            streams=tuple(options.streams),
            seconds=options.seconds,
            quiet_streams=0 if options.peer else options.quiet_streams,
            quiet_s=options.quiet_seconds,
        )
        return await measure(plan)


@asynccontextmanager
async def _server(
    options: argparse.Namespace, server_flags: tuple[str, ...]
) -> AsyncIterator[tuple[Address, int | None]]:
    if options.peer:
        url = options.peer.rstrip("/").removesuffix("/v1")
        yield Address(url, os.environ.get("PEER_API_KEY")), None
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = widened_model(options.cost, Path(folder) / options.cost)
        async with own_server(weights, {}, server_flags) as server:
            yield Address(server.process.url), server.process.pid


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The options, and what comes after `--`."""
    own, server_flags = split_server_flags(words)
    parser = argparse.ArgumentParser(
        prog="python -m bench.streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--streams", type=at_least_one, nargs="+", default=[1, 4, 8, 16], metavar="N")
    parser.add_argument("--cost", choices=get_args(Size), default="tiny", help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of each round, about; default: %(default)g"
    )
    parser.add_argument(
        "--doors", nargs="+", choices=("realtime", "stt"), default=["realtime", "stt"], help="default: both"
    )
    parser.add_argument(
        "--quiet-streams", type=int, default=50, metavar="N", help="mostly silent; default: %(default)s"
    )
    parser.add_argument(
        "--quiet-seconds", type=float, default=30.0, help="that they are watched; default: %(default)g"
    )
    parser.add_argument("--peer", metavar="URL", help="measure this server instead")
    parser.add_argument("--peer-model", default="whisper-1", help="its model's name; default: %(default)s")
    parser.add_argument("--peer-delay", help="`delay` to ask it for; default: none is asked for")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument(
        "--quick", action="store_true", help="shorten everything, to try the benchmark itself"
    )
    options = parser.parse_args(own)
    if options.quick:
        options.streams, options.seconds = [1, 2], 8.0
        options.quiet_streams, options.quiet_seconds = min(5, options.quiet_streams), 6.0
    return options, server_flags


if __name__ == "__main__":
    sys.exit(main())
