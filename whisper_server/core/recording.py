"""A decoded recording: 16-bit samples held once, read as float windows."""

import bisect
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from whisper_server.core.types import SAMPLE_RATE, Pcm16, Samples


@dataclass(frozen=True, slots=True)
class SampleSpan:
    """Samples `start` to `stop` (exclusive) of a recording."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Recording:
    """Mono audio at `SAMPLE_RATE`, or a selection of spans of it that reads as one piece.

    The samples stay 16-bit and are never copied whole: an hour takes 115 MB, read as float32 where needed.

    Args:
        pcm: shape (n,), int16.
        spans: the parts that count, in order and disjoint; None takes everything.
        offset_samples: where `pcm` starts in the original, when silence before it was trimmed.
        original_samples: length of the original; None where nothing was trimmed.
    """

    def __init__(
        self,
        pcm: Pcm16,
        spans: tuple[SampleSpan, ...] | None = None,
        *,
        offset_samples: int = 0,
        original_samples: int | None = None,
    ) -> None:
        self._pcm = pcm
        self._is_selection = spans is not None
        self._spans = (SampleSpan(0, len(pcm)),) if spans is None else spans
        self._ends = list(accumulate(len(span) for span in self._spans))
        self._offset_samples = offset_samples
        self._original_samples = len(pcm) if original_samples is None else original_samples

    def __len__(self) -> int:
        """Samples that read as one piece."""
        return self._ends[-1] if self._ends else 0

    @property
    def duration_s(self) -> float:
        """Seconds that read as one piece."""
        return len(self) / SAMPLE_RATE

    @property
    def original_duration_s(self) -> float:
        """Seconds of the original, whatever was left out since."""
        return self._original_samples / SAMPLE_RATE

    @property
    def spans(self) -> tuple[SampleSpan, ...]:
        """The parts of the whole recording that read as one piece."""
        return self._spans

    @property
    def is_selection(self) -> bool:
        """Whether it reads only chosen spans."""
        return self._is_selection

    def select(self, spans: tuple[SampleSpan, ...]) -> "Recording":
        """These spans of the whole recording, read as one piece; times still map to the original."""
        return Recording(
            self._pcm, spans, offset_samples=self._offset_samples, original_samples=self._original_samples
        )

    def read(self, start: int, stop: int) -> Samples:
        """Samples `start` to `stop` as float32; positions outside the recording are left out.

        Returns:
            Shape (m,), m <= stop - start, dtype float32; a copy the caller may change.
        """
        start, stop = max(0, start), min(stop, len(self))
        out = np.empty(max(0, stop - start), dtype=np.float32)
        index = bisect.bisect_right(self._ends, start)
        position = start
        while position < stop:
            span, end = self._spans[index], self._ends[index]
            count = min(end, stop) - position
            begin = span.stop - (end - position)
            out[position - start : position - start + count] = self._pcm[begin : begin + count]
            position, index = position + count, index + 1
        out *= np.float32(1 / 32768)
        return out

    def original_time_s(self, time_s: float, *, is_end: bool = False, span_index: int | None = None) -> float:
        """Where a moment of the piece lies in the original, seconds; rounded to 10 ms in a selection.

        Args:
            time_s: seconds from the start of the piece.
            is_end: the moment ends something: at a seam it belongs to the span before, not after.
            span_index: the span to resolve in, as `span_index_at` gives it.

        Source of the rule: `faster_whisper.vad.SpeechTimestampsMap`.
        """
        if not self._is_selection or not self._spans:
            return time_s + self._offset_samples / SAMPLE_RATE
        index = self.span_index_at(time_s, is_end=is_end) if span_index is None else span_index
        skipped = self._spans[index].stop - self._ends[index] + self._offset_samples
        return round(skipped / SAMPLE_RATE + time_s, 2)

    def span_index_at(self, time_s: float, *, is_end: bool = False) -> int:
        """Which span holds a moment of the piece; the last one for moments beyond the end."""
        sample = int(time_s * SAMPLE_RATE)
        index = bisect.bisect_left if is_end else bisect.bisect_right
        return min(index(self._ends, sample), len(self._ends) - 1)
