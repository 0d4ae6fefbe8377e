"""Percentiles of many values in little memory."""

import math
from collections import Counter

_BUCKETS_PER_OCTAVE = 128

RELATIVE_ERROR = 1 / (2 * _BUCKETS_PER_OCTAVE)
"""Most that a percentile may differ from the recorded value that it stands for, as a share of that value."""


class Histogram:
    """Counts values in buckets of constant relative width, as HDR histograms do. Not thread-safe.

    Each octave is divided into 128 buckets of equal width, so a bucket's middle is within 0.4 % of all values
    in it, whatever their size. Memory depends on how many buckets are used, not on how many values came.

    Its own, because the package hdrhistogram has no types, takes setuptools and pbr along at run time, and
    has no wheels for Linux on ARM, where it wants a compiler.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, int]] = Counter()
        self._count = 0
        self._sum = 0.0
        self._min = math.inf
        self._max = 0.0

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return self._count

    @property
    def buckets(self) -> int:
        """How many are in use, which is what memory depends on."""
        return len(self._counts)

    @property
    def mean(self) -> float | None:
        """Exact up to rounding; None where there are no values."""
        return self._sum / self._count if self._count else None

    @property
    def max(self) -> float | None:
        """Exact; None where there are no values."""
        return self._max if self._count else None

    def record(self, value: float) -> None:
        """Add a value.

        Raises:
            ValueError: it is negative or not finite.
        """
        if not 0 <= value < math.inf:
            raise ValueError(f"{value} cannot be recorded: values are finite and not negative")
        self._counts[_bucket(value)] += 1
        self._count += 1
        self._sum += value
        self._min = min(self._min, value)
        self._max = max(self._max, value)

    def percentile(self, percent: float) -> float | None:
        """The smallest value that `percent` of all values do not exceed (nearest rank).

        Args:
            percent: 0 to 100.

        Returns:
            That value, within `RELATIVE_ERROR`; None where there are no values.
        """
        rank = max(1, math.ceil(self._count * percent / 100))
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= rank:
                return min(max(_middle(bucket), self._min), self._max)
        return None


def _bucket(value: float) -> tuple[int, int]:
    """Octave and place in it; they sort as the values do, but for 0, which `frexp` puts into the octave 0."""
    if value == 0:
        return _LOWEST
    mantissa, octave = math.frexp(value)  # 0.5 <= mantissa < 1
    return octave, int((mantissa - 0.5) * 2 * _BUCKETS_PER_OCTAVE)


def _middle(bucket: tuple[int, int]) -> float:
    octave, place = bucket
    if bucket == _LOWEST:
        return 0.0
    return math.ldexp(0.5 + (place + 0.5) / (2 * _BUCKETS_PER_OCTAVE), octave)


_LOWEST = (-2000, 0)
"""Of 0 alone: no float has so low an octave."""
