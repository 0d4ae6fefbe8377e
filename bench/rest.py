"""The REST path against in-process faster-whisper: same weights, same options, one run.

    python -m bench.rest [--size tiny] [--scenarios one four hour] [--rounds 15]

The weights are the demo model's at the compute cost of whisper-tiny. Prints times, throughputs and memory
side by side, with ratios, for the scenarios

- one: one client, a 3 s clip; server and library take turns.
- four: four clients at once with 3 s clips, against four threads on one `WhisperModel`.
- hour: a one-hour recording, with the memory it takes above the loaded model.

Each is measured with the library's defaults for files (beam 5) but without conditioning on earlier text, with
the voice filter, in English; `auto` rows leave the language to be detected.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import soundfile
from faster_whisper import WhisperModel, decode_audio

from bench.demo_weights import Size, widened_model
from bench.server_process import ServerProcess, memory_mb, reset_peak_memory, server_process
from bench.word_errors import WordErrors

ROOT = Path(__file__).parent.parent
TEST_SET = ROOT / "tests" / "assets" / "demo_test_set"
CLIP = TEST_SET / "t001.flac"
"""3.1 s of English."""

HOUR_S = 3600
THREADS = min(2, os.cpu_count() or 1)
OPTIONS: dict[str, Any] = {"vad_filter": True, "condition_on_previous_text": False}
_TIMEOUT_S = 1800.0


def main() -> None:
    """Run the chosen scenarios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=get_args(Size), default="tiny")
    parser.add_argument(
        "--scenarios", nargs="+", choices=("one", "four", "hour"), default=["one", "four", "hour"]
    )
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds of the short scenarios")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {THREADS} threads, int8")
    with tempfile.TemporaryDirectory() as folder:
        weights = widened_model(arguments.size, Path(folder) / arguments.size)
        for scenario in arguments.scenarios:
            {"one": one, "four": four, "hour": hour}[scenario](weights, arguments.rounds)


def one(weights: Path, rounds: int) -> None:
    """One client: what HTTP and the server add to a short clip."""
    model = load(weights)
    with server(weights) as (process, client):
        for label, language in (("en", "en"), ("auto", None)):
            library_ms, server_ms = [], []
            for index in range(rounds + 2):
                theirs_ms = timed_ms(partial(in_process, model, CLIP, language))
                ours_ms = timed_ms(partial(over_http, client, process, CLIP, language))
                if index >= 2:  # the first rounds warm both up
                    library_ms.append(theirs_ms)
                    server_ms.append(ours_ms)
            row(f"one client, 3 s clip, {label}: p50", library_ms, server_ms, "ms")
            added = [ours - theirs for ours, theirs in zip(server_ms, library_ms, strict=True)]
            print(f"  added p50 {statistics.median(added):+.1f} ms")


def four(weights: Path, rounds: int) -> None:
    """Four clients: throughput, the two sides taking turns."""
    model = load(weights)
    with server(weights) as (process, client), ThreadPoolExecutor(4) as pool:
        library_rate, server_rate = [], []
        for index in range(max(3, rounds // 3) + 1):
            theirs_ms = timed_ms(lambda: list(pool.map(lambda _: in_process(model, CLIP, "en"), range(16))))
            ours_ms = timed_ms(
                lambda: list(pool.map(lambda _: over_http(client, process, CLIP, "en"), range(16)))
            )
            if index:
                library_rate.append(16_000 / theirs_ms)
                server_rate.append(16_000 / ours_ms)
        row("four clients, 3 s clips: throughput", library_rate, server_rate, "clips/s")


def hour(weights: Path, _: int) -> None:
    """One hour of audio: time, and memory above the loaded model."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "hour.flac"
        spoken = write_hour(recording)
        size_mb = recording.stat().st_size / 1e6
        theirs_s, theirs_mb, expected = in_own_process(hour_in_process, weights, recording)
        with server(weights) as (process, client):
            over_http(client, process, CLIP, "en")
            before_mb = memory_mb(process.pid)
            reset_peak_memory(process.pid)
            started_s = time.perf_counter()
            text = over_http(client, process, recording, "en")
            ours_s = time.perf_counter() - started_s
            ours_mb = memory_mb(process.pid, peak=True) - before_mb
    print(f"one hour ({size_mb:.0f} MB of FLAC), {len(spoken.split())} words")
    row("  word error rate", [word_error_rate(spoken, expected)], [word_error_rate(spoken, text)], "")
    row("  time", [theirs_s], [ours_s], "s")
    row("  peak memory above the loaded model", [theirs_mb], [ours_mb], "MB")


def hour_in_process(weights: Path, recording: Path) -> tuple[float, float, str]:
    """Seconds, MB above the loaded model, and the text, by faster-whisper alone in this process."""
    model = load(weights)
    in_process(model, CLIP, "en")
    before_mb = memory_mb(os.getpid())
    reset_peak_memory(os.getpid())
    started_s = time.perf_counter()
    text = in_process(model, recording, "en")
    return time.perf_counter() - started_s, memory_mb(os.getpid(), peak=True) - before_mb, text


def in_own_process(call: Callable[..., Any], *arguments: object) -> Any:
    """Call in a fresh process, so that its memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def load(weights: Path) -> WhisperModel:
    """The library's model, as the server loads it."""
    return WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=THREADS)


def in_process(model: WhisperModel, path: Path, language: str | None) -> str:
    """Transcribe a file with the library."""
    segments, _ = model.transcribe(str(path), language=language, **OPTIONS)
    return "".join(segment.text for segment in segments).strip()


def over_http(client: httpx.Client, process: ServerProcess, path: Path, language: str | None) -> str:
    """Transcribe a file with the server."""
    data = {"model": "bench", "response_format": "json"} | ({"language": language} if language else {})
    data |= {name: str(value).lower() for name, value in OPTIONS.items()}
    with path.open("rb") as file:
        response = client.post(f"{process.url}/v1/audio/transcriptions", data=data, files={"file": file})
    response.raise_for_status()
    text: str = response.json()["text"]
    return text


@contextmanager
def server(weights: Path) -> Iterator[tuple[ServerProcess, httpx.Client]]:
    """A server whose model `bench` is these weights."""
    flags: tuple[str, ...] = ("--model", str(weights), "--model-aliases", f'{{"bench": "{weights}"}}')
    flags += ("--model-cpu-threads", str(THREADS))
    flags += ("--limits-max-audio-file-size-mb", "500", "--log-level", "INFO")
    with server_process(*flags) as process, httpx.Client(timeout=_TIMEOUT_S) as client:
        yield process, client


def write_hour(path: Path) -> str:
    """Test clips one after the other, with pauses, until an hour is full; returns what is said."""
    rng = np.random.default_rng(1)
    entries = [c for c in json.loads((TEST_SET / "clips.json").read_text()) if c["language"] == "en"]
    clips = [decode_audio(str(TEST_SET / entry["file"])) for entry in entries]
    texts: list[str] = []
    parts: list[Any] = []
    seconds = 0.0
    while seconds < HOUR_S:
        pause = np.zeros(int(rng.uniform(0.2, 4) * 16_000), dtype=np.float32)
        chosen = int(rng.integers(len(clips)))
        parts += [clips[chosen], pause]
        texts.append(entries[chosen]["text"])
        seconds += (len(parts[-2]) + len(pause)) / 16_000
    soundfile.write(path, np.concatenate(parts)[: HOUR_S * 16_000], 16_000, subtype="PCM_16")
    return " ".join(texts)


def word_error_rate(spoken: str, text: str) -> float:
    """Of a transcript."""
    errors = WordErrors()
    errors.add(spoken, text)
    return errors.rate


def timed_ms(call: Callable[[], object]) -> float:
    """Milliseconds a call takes."""
    started_s = time.perf_counter()
    call()
    return (time.perf_counter() - started_s) * 1000


def row(label: str, library: list[float], ours: list[float], unit: str) -> None:
    """Print two medians and the ratio of server to library."""
    theirs, own = statistics.median(library), statistics.median(ours)
    print(f"{label}: faster-whisper {theirs:.3g} {unit}, server {own:.3g} {unit}, ratio {own / theirs:.3f}")


if __name__ == "__main__":
    main()
