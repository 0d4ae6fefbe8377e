"""How many workers with how many threads each: what to try on a machine, and which of it to take.

Pure: `services/calibration.py` measures. The rules stand in docs/hardware.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from whisper_server.core.engine import ComputeChoice
from whisper_server.core.hardware import FASTER_WHISPER, Decision, HardwareFacts

MAX_CANDIDATES = 4
"""So many are measured at most, the default among them."""

LATENCY_TOLERANCE = 0.10
"""A candidate may be slower than the fastest for a single window by this share."""

LEAST_GAIN = 0.05
"""A challenger's throughput must exceed the default's by this share: less is noise."""

TOTAL_S = 10.0
"""What is expected to end later than this after the first candidate was loaded is not begun, seconds."""

ALONE_S = 0.5
"""How long single windows are repeated, seconds."""

TOGETHER_S = 1.0
"""How long sets of parallel calls are repeated, seconds."""

_CALLS_PER_WORKER = 2
"""In a set of parallel calls. The set keeps all workers busy to its end, whatever their number."""

_LARGEST_BATCH = 4
_SLOWEST_CALL_S = 1.0
"""With calls slower than this two candidates do not fit into `TOTAL_S`."""

_USEFUL_THREADS = 16
"""More threads than this on one window are tried last: its matrices are small."""


@dataclass(frozen=True, slots=True, order=True)
class Parallelism:
    """How a model uses the cores.

    Attributes:
        workers: calls that run in parallel on the same weights.
        cpu_threads: threads of one worker.
    """

    workers: int
    cpu_threads: int

    def __str__(self) -> str:
        workers = "worker" if self.workers == 1 else "workers"
        threads = "thread" if self.cpu_threads == 1 else "threads"
        return f"{self.workers} {workers} × {self.cpu_threads} {threads}"

    @property
    def threads(self) -> int:
        """Of all workers together."""
        return self.workers * self.cpu_threads

    def applied_to(self, compute: ComputeChoice) -> ComputeChoice:
        """The same choice with these workers and threads."""
        return replace(compute, workers=self.workers, cpu_threads=self.cpu_threads)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one candidate does.

    Attributes:
        parallelism: the candidate.
        latency_s: of one call with one window while nothing else runs.
        windows_per_s: with as many calls at once as the engine takes; None where a call took so long that
            this was not measured.
        batch: windows of each of these calls.
    """

    parallelism: Parallelism
    latency_s: float
    windows_per_s: float | None
    batch: int

    def __str__(self) -> str:
        throughput = "too slow to measure more"
        if self.windows_per_s is not None:
            throughput = f"{self.windows_per_s:.2f} windows/s in batches of {self.batch}"
        return f"{self.parallelism}: {1000 * self.latency_s:.0f} ms a window, {throughput}"


def candidates(decision: Decision, facts: HardwareFacts) -> tuple[Parallelism, ...]:
    """What to measure, the decision's own choice first; only that where nothing is left to choose.

    What the operator set stays as it is. The rest varies so that all workers together have no more threads
    than usable cores: threads are a power of two, the default, or all cores; the workers fill the machine.
    """
    compute = decision.choice
    default = Parallelism(compute.workers, compute.cpu_threads)
    if compute.device != "cpu" or compute.engine != FASTER_WHISPER:
        return (default,)
    cores = facts.usable_cores
    threads = _sizes_up_to(cores) | {default.cpu_threads}
    if decision.is_cpu_threads_set:
        threads = {default.cpu_threads}
    tried = {
        Parallelism(workers, count)
        for count in threads
        for workers in _worker_counts(decision, cores // count)
        if workers * count <= cores
    }
    challengers = sorted(tried - {default}, key=_preference)
    return (default, *challengers[: MAX_CANDIDATES - 1])


def winner(measurements: Sequence[Measurement]) -> Parallelism:
    """The best of the candidates; `measurements` begins with the default, and is not empty.

    Of those whose single window takes at most `LATENCY_TOLERANCE` more than the fastest one's, the one with
    the highest throughput; the default where that is not `LEAST_GAIN` better than it.
    """
    default = measurements[0]
    longest_s = min(m.latency_s for m in measurements) * (1 + LATENCY_TOLERANCE)
    quick = [m for m in measurements if m.latency_s <= longest_s]
    best = max(quick, key=_throughput)
    is_default_good = default in quick and _throughput(best) <= _throughput(default) * (1 + LEAST_GAIN)
    return default.parallelism if is_default_good else best.parallelism


def batch_for(call_s: float, workers: int, max_batch: int) -> int:
    """How many windows each parallel call brings, the same for all candidates.

    Args:
        call_s: what one call with one window takes on the default.
        workers: of the default.
        max_batch: the engine's.

    Returns:
        At least 1, but 0 where the model is too slow to compare candidates with.
    """
    if is_too_slow(call_s):
        return 0
    affordable = int(TOGETHER_S / 2 / max(calls_of(workers) * call_s, 1e-9))
    return max(1, min(affordable, _LARGEST_BATCH, max_batch))


def is_too_slow(call_s: float) -> bool:
    """Whether a call with one window takes too long for candidates to be compared."""
    return call_s > _SLOWEST_CALL_S


def calls_of(workers: int) -> int:
    """How many calls make a set."""
    return _CALLS_PER_WORKER * workers


def predicted_s(first: Measurement, challenger: Parallelism) -> float:
    """Seconds that measuring a challenger takes if it is as fast as the first candidate.

    A guess: one with fewer threads is slower alone, and can exceed `TOTAL_S` by a second or two.
    """
    if not first.windows_per_s:
        return TOTAL_S
    alone_s = 2 * first.latency_s + max(ALONE_S, first.latency_s)
    together_s = max(TOGETHER_S, calls_of(challenger.workers) * first.batch / first.windows_per_s)
    return alone_s + together_s


def machine_fingerprint(facts: HardwareFacts) -> str:
    """What speed depends on, in words; another machine or another limit gives another text."""
    limit = "no limit" if facts.cpu_limit is None else f"limited to {facts.cpu_limit:g}"
    parts = [
        facts.system,
        facts.architecture,
        facts.cpu_name,
        " ".join(sorted(facts.instruction_sets)),
        f"{facts.physical_cores} of {facts.logical_cores} cores",
        limit,
    ]
    return ", ".join(part for part in parts if part)


def _worker_counts(decision: Decision, most: int) -> set[int]:
    if decision.is_workers_set:
        return {decision.choice.workers}
    return _sizes_up_to(most) if decision.is_cpu_threads_set else {most} - {0}


def _sizes_up_to(most: int) -> set[int]:
    """The powers of two up to a number, and the number."""
    return {1 << exponent for exponent in range(most.bit_length())} | ({most} if most else set())


def _preference(candidate: Parallelism) -> tuple[bool, int, int]:
    """Smaller is tried first: those that use all cores, with many threads but not too many."""
    return (candidate.cpu_threads > _USEFUL_THREADS, -candidate.threads, -candidate.cpu_threads)


def _throughput(measurement: Measurement) -> float:
    return measurement.windows_per_s or 0.0
