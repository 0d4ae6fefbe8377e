"""The server under load, side by side with faster-whisper in this process and with other servers.

    python -m bench.load [mixed burst leavers overload models isolation] [--cost base] [--quick]

Starts the server itself, with the demo model's weights at the compute cost of another Whisper, and prints a
table, the targets and PASS or FAIL for each scenario:

- mixed: 3 s clips, one every 2 s, while a 30-minute file is being transcribed.
- burst: 8 and 32 clients at once with 30 s of dense speech, against max_batch=1; and a lone request.
- leavers: 200 clients that leave before their answer is there.
- overload: minutes at twice the capacity.
- models: 1,000 requests for three models, with room for two.
- isolation: a process of its own per model, against threads.

Flags after -- go to the server: python -m bench.load burst -- --model-workers 2
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from bench.command_line import at_least_one, split_server_flags
from bench.demo_weights import Size, widened_model
from bench.load.burst import burst
from bench.load.isolation import isolation
from bench.load.leavers import leavers
from bench.load.mixed import mixed
from bench.load.models import models
from bench.load.overload import overload
from bench.load.own_server import NotMeasurableError
from bench.load.plan import Peer, Plan, Scenario, check_peer
from bench.load.report import Result, machine_facts, render, render_facts, usable_cores, write_json

SCENARIOS: Mapping[str, Scenario] = {
    "mixed": mixed,
    "burst": burst,
    "leavers": leavers,
    "overload": overload,
    "models": models,
    "isolation": isolation,
}

_NO_PEER = 2
_PEER_KEY = "PEER_API_KEY"


def main(words: Sequence[str] | None = None) -> int:
    """Run the chosen scenarios.

    Returns:
        0 if every target was measured and met, 1 if not, 2 if the peer does not transcribe.
    """
    options, server_flags = _parse(sys.argv[1:] if words is None else words)
    peer = _peer(options)
    if peer is not None:
        try:
            asyncio.run(check_peer(peer))
        except NotMeasurableError as error:
            print(error, file=sys.stderr)
            return _NO_PEER
    facts = machine_facts() | {"weights": options.cost, "library threads": str(options.threads)}
    print(render_facts(facts), flush=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            weights=widened_model(options.cost, Path(folder) / options.cost),
            threads=options.threads,
            minutes=options.minutes,
            clips=options.clips,
            rounds=options.rounds,
            is_quick=options.quick,
            peer=peer,
            server_flags=server_flags,
            scratch=Path(folder),
        )
        for name in options.scenarios or SCENARIOS:
            results.append(_run(name, plan))
            print(render(results[-1], is_quick=options.quick), flush=True)
            if options.json:  # after each scenario, so that what was measured stays if a later one is stopped
                write_json(options.json, facts, results, is_quick=options.quick)
    return 0 if all(result.is_passed for result in results) else 1


def _run(name: str, plan: Plan) -> Result:
    started_s = time.perf_counter()
    try:
        result = asyncio.run(SCENARIOS[name](plan))
    except NotMeasurableError as error:
        return Result(name, (), notes=[f"NOT MEASURED: {error}"])
    result.notes.append(f"took {time.perf_counter() - started_s:.0f} s")
    return result


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """The options, and what comes after `--`."""
    own, server_flags = split_server_flags(words)
    parser = argparse.ArgumentParser(
        prog="python -m bench.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="scenario", help=f"{', '.join(SCENARIOS)}; default: all"
    )
    parser.add_argument("--cost", choices=get_args(Size), default="tiny", help="default: %(default)s")
    parser.add_argument(
        "--threads", type=at_least_one, default=usable_cores(), help="of the library; default: all cores"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="how long the overload lasts; default: %(default)g"
    )
    parser.add_argument(
        "--clips", type=at_least_one, default=60, help="that arrive beside the file; default: %(default)s"
    )
    parser.add_argument("--rounds", type=at_least_one, default=5, help="of each burst; default: %(default)s")
    parser.add_argument(
        "--peer", metavar="URL", help=f"another OpenAI-compatible server; its key: {_PEER_KEY}"
    )
    parser.add_argument("--peer-model", default="whisper-1", help="its model's name; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument(
        "--quick", action="store_true", help="shorten everything, to try the benchmark itself"
    )
    options = parser.parse_args(own)
    if unknown := [name for name in options.scenarios if name not in SCENARIOS]:
        parser.error(f"unknown scenario {unknown[0]!r}; choose from {', '.join(SCENARIOS)}")
    if options.minutes <= 0:
        parser.error("--minutes must be above 0")
    return options, server_flags


def _peer(options: argparse.Namespace) -> Peer | None:
    if not options.peer:
        return None
    url = options.peer.rstrip("/").removesuffix("/v1")
    return Peer(url, options.peer_model, os.environ.get(_PEER_KEY))


if __name__ == "__main__":
    sys.exit(main())
