"""What batches gain: windows of dense speech decoded one by one and together, by turns in one run.

    python -m bench.batches [--cost base] [--beams 5 1] [--sizes 1 2 4 8] [--rounds 3] [--threads 2]

The engine computes in this process as it does in a model's own, on the CPU with one worker, with the demo
model's weights at the compute cost of another Whisper. It tells which `model.max_batch` suits a machine and a
model: throughput here is what one call has, without what a server does beside it.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import soundfile

from bench.command_line import at_least_one
from bench.demo_weights import Size, widened_model
from bench.load.clips import Clip, dense_clips
from bench.load.measures import median
from bench.load.report import Result, machine_facts, render, render_facts, usable_cores
from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.types import DecodeOptions, Samples, Window
from whisper_server.engines import faster_whisper
from whisper_server.engines.isolation.heap import keep_freed_memory
from whisper_server.engines.openmp import wait_actively


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parse(words)
    wait_actively()
    keep_freed_memory()
    facts = machine_facts() | {"weights": options.cost, "threads": str(options.threads)}
    print(render_facts(facts), flush=True)
    compute = ComputeChoice(faster_whisper.NAME, "cpu", "int8", cpu_threads=options.threads, workers=1)
    with tempfile.TemporaryDirectory() as folder:
        engine = faster_whisper.load(widened_model(options.cost, Path(folder) / options.cost), compute)
        try:
            result = measure(engine, options.beams, options.sizes, options.rounds)
        finally:
            engine.close()
    print(render(result, is_quick=False))
    return 0


def measure(engine: Engine, beams: Sequence[int], sizes: Sequence[int], rounds: int) -> Result:
    """Decode as many windows as the largest size has in batches of each size, by turns.

    Args:
        engine: with the batches it takes.
        beams: numbers of beams; 1 is greedy.
        sizes: of a batch, in windows; the others are compared with the first.
        rounds: of every size; the median counts.

    Returns:
        Seconds for each size, encoding included, and throughput over that of the first size.
    """
    first, *others = sizes
    samples = [_samples(clip) for clip in dense_clips(max(sizes))]
    columns = ["beams", *(f"by {size}: s" for size in sizes), *(f"{size} ÷ {first}" for size in others)]
    result = Result("batches", columns)
    for count in beams:
        options = DecodeOptions(beam_size=count, temperatures=(0.0,))
        windows = [Window(each, language="en", options=options) for each in samples]
        engine.decode(windows[:1])  # what is allocated at the first call is not measured
        took_s: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(rounds):
            for size in sizes:
                took_s[size].append(_decode_s(engine, windows, size))
        for size in sizes:
            result.note_noise(f"{count} beams by {size}", took_s[size])
        gains = [_gain(took_s[first], took_s[size]) for size in others]
        result.rows.append([count, *(median(took_s[size]) for size in sizes), *gains])
    result.notes.append(
        f"{len(samples)} windows of about 30 s without silence; {rounds} rounds, medians; "
        "÷ is the throughput over that of the first size"
    )
    return result


def _gain(base_s: Sequence[float], taken_s: Sequence[float]) -> float:
    return median([base / taken for base, taken in zip(base_s, taken_s, strict=True)])


def _decode_s(engine: Engine, windows: Sequence[Window], size: int) -> float:
    began_s = time.perf_counter()
    for start in range(0, len(windows), size):
        engine.decode(windows[start : start + size])
    return time.perf_counter() - began_s


def _samples(clip: Clip) -> Samples:
    samples: Samples = soundfile.read(io.BytesIO(clip.flac), dtype="float32")[0]
    return samples


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.batches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cost", choices=get_args(Size), default="base", help="default: %(default)s")
    parser.add_argument("--beams", type=at_least_one, nargs="+", default=[5, 1], help="default: 5 1")
    parser.add_argument(
        "--sizes", type=at_least_one, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8"
    )
    parser.add_argument("--rounds", type=at_least_one, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=at_least_one, default=usable_cores(), help="default: all cores")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
