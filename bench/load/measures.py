"""Numbers out of measurements: percentiles, spread, growth, rates."""

from collections.abc import Sequence

import numpy as np

NOISY_SPREAD = 0.10
"""Rounds further apart than this make a ratio of a few per cent doubtful."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of them lie, interpolated linearly between neighbours.

    Source: definition 7 of Hyndman and Fan (1996), numpy's and most others' default.
    """
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def median(values: Sequence[float]) -> float:
    """The middle one, or the mean of the two in the middle."""
    return percentile(values, 50)


def spread(values: Sequence[float]) -> float:
    """How far rounds lie apart: the range between their quartiles over their median."""
    middle = median(values)
    return (percentile(values, 75) - percentile(values, 25)) / middle if middle else 0.0


def growth(samples: Sequence[float]) -> float | None:
    """By which share the last quarter lies above the second one; the first is the warm-up.

    Medians are compared, so one peak is no growth. None for fewer than eight samples.
    """
    if len(samples) < 8:
        return None
    quarter = len(samples) // 4
    return median(samples[-quarter:]) / median(samples[quarter : 2 * quarter]) - 1


def progress_rate(
    runs: Sequence[Sequence[tuple[float, float]]], start_s: float, stop_s: float
) -> float | None:
    """How fast work went on between two moments, over several runs one after the other.

    Time between runs does not count, nor does that before a run's first sign of progress.

    Args:
        runs: for each run its (moment, work done so far), rising.
        start_s: of the time that counts.
        stop_s: of the time that counts.

    Returns:
        Work per second; None where too little was seen.
    """
    done, took_s = 0.0, 0.0
    for run in runs:
        seen = [(at_s, amount) for at_s, amount in run if start_s <= at_s <= stop_s]
        if len(seen) > 1:
            done += seen[-1][1] - seen[0][1]
            took_s += seen[-1][0] - seen[0][0]
    return done / took_s if took_s > 0 else None
