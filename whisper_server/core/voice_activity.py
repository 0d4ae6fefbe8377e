"""Where a recording holds speech, from the voice detector's probabilities.

Source of the rules: the Silero project's `get_speech_timestamps` as `faster_whisper.vad` has it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from whisper_server.core.engine import VoiceDetector
from whisper_server.core.recording import Recording, SampleSpan
from whisper_server.core.types import SAMPLE_RATE, Samples

BLOCK_SAMPLES = 512
"""Samples behind one probability: 32 ms."""

_CUT_SILENCE_SAMPLES = SAMPLE_RATE * 98 // 1000
_PIECE_SAMPLES = BLOCK_SAMPLES * 256


@dataclass(frozen=True, slots=True)
class VadOptions:
    """How probabilities become spans of speech. The defaults are faster-whisper's.

    Attributes:
        threshold: speech starts at this probability.
        neg_threshold: speech may end below this; None means `threshold - 0.15`, at least 0.01.
        min_speech_duration_ms: shorter speech is dropped.
        max_speech_duration_s: longer speech is cut, at a silence over 98 ms where there is one.
        min_silence_duration_ms: silence that ends speech.
        speech_pad_ms: silence kept at either side.
    """

    threshold: float = 0.5
    neg_threshold: float | None = None
    min_speech_duration_ms: int = 0
    max_speech_duration_s: float = math.inf
    min_silence_duration_ms: int = 2000
    speech_pad_ms: int = 400


def for_batches(options: VadOptions, window_s: float) -> VadOptions:
    """The options for windows that are decoded side by side: no span longer than a window."""
    shorter_silence = min(options.min_silence_duration_ms, 160)
    return replace(options, max_speech_duration_s=window_s, min_silence_duration_ms=shorter_silence)


def speech_probabilities(recording: Recording, detector: VoiceDetector) -> Samples:
    """The probability of speech in each block of a recording.

    The end is filled with silence to a whole block, or by a block where it is whole already.

    Returns:
        Shape (samples // 512 + 1,), float32.
    """
    parts = [piece_probabilities(recording, detector, start, stop) for start, stop in pieces(recording)]
    return np.concatenate(parts)


def pieces(recording: Recording) -> Iterator[tuple[int, int]]:
    """The pieces, as (start, stop) samples, in which to detect speech: about 8 s, the last one filled up."""
    end = (len(recording) // BLOCK_SAMPLES + 1) * BLOCK_SAMPLES
    for start in range(0, end, _PIECE_SAMPLES):
        yield start, min(start + _PIECE_SAMPLES, end)


def piece_probabilities(recording: Recording, detector: VoiceDetector, start: int, stop: int) -> Samples:
    """The probability of speech in each block of a piece; `detector` has heard the pieces before it."""
    piece = recording.read(start, stop)
    return detector.probabilities(np.pad(piece, (0, stop - start - len(piece))))


def find_speech(
    probabilities: Iterable[float], options: VadOptions, total_samples: int
) -> tuple[SampleSpan, ...]:
    """The spans of speech in a recording of `total_samples`, padded, in order and disjoint."""
    scan = _Scan(options)
    for index, probability in enumerate(probabilities):
        scan.feed(index * BLOCK_SAMPLES, float(probability))
    return _padded(scan.finish(total_samples), options, total_samples)


@dataclass(slots=True)
class _Scan:
    """One pass over the probabilities. Positions are samples; 0 means none for all but `start`."""

    options: VadOptions
    spans: list[SampleSpan] = field(default_factory=list)
    start: int | None = None
    silence_start: int = 0
    cut_end: int = 0  # where the last silence long enough to cut at began …
    cut_resume: int = 0  # … and where speech went on after it

    @property
    def neg_threshold(self) -> float:
        given = self.options.neg_threshold
        return max(self.options.threshold - 0.15, 0.01) if given is None else given

    @property
    def min_speech_samples(self) -> float:
        return SAMPLE_RATE * self.options.min_speech_duration_ms / 1000

    @property
    def max_speech_samples(self) -> float:
        pad = SAMPLE_RATE * self.options.speech_pad_ms / 1000
        return SAMPLE_RATE * self.options.max_speech_duration_s - BLOCK_SAMPLES - 2 * pad

    def feed(self, position: int, probability: float) -> None:
        is_speech = probability >= self.options.threshold
        if is_speech and self.silence_start:
            self.silence_start = 0
            if self.cut_resume < self.cut_end:
                self.cut_resume = position
        if self.start is None:
            if is_speech:
                self.start = position
            return
        if position - self.start > self.max_speech_samples:
            if not self.cut_end:
                self._close(position)
                return
            self._cut()
        if probability < self.neg_threshold and self.start is not None:
            self._hear_silence(position)

    def _cut(self) -> None:
        resume = self.cut_resume if self.cut_resume >= self.cut_end else None
        self._close(self.cut_end)
        self.start = resume

    def _hear_silence(self, position: int) -> None:
        if not self.silence_start:
            self.silence_start = position
        silence = position - self.silence_start
        if silence > _CUT_SILENCE_SAMPLES:
            self.cut_end = self.silence_start
        if silence >= SAMPLE_RATE * self.options.min_silence_duration_ms / 1000:
            self._close(self.silence_start, shortest=self.min_speech_samples)

    def _close(self, end: int, shortest: float = -1) -> None:
        if self.start is not None and end - self.start > shortest:
            self.spans.append(SampleSpan(self.start, end))
        self.start = None
        self.silence_start = self.cut_end = self.cut_resume = 0

    def finish(self, total_samples: int) -> list[SampleSpan]:
        self._close(total_samples, shortest=self.min_speech_samples)
        return self.spans


def _padded(spans: list[SampleSpan], options: VadOptions, total_samples: int) -> tuple[SampleSpan, ...]:
    """Each span with its padding; neighbours closer than two paddings share the silence between them."""
    pad = int(SAMPLE_RATE * options.speech_pad_ms / 1000)
    starts = [span.start for span in spans]
    stops = [span.stop for span in spans]
    if spans:
        starts[0] = max(0, starts[0] - pad)
        stops[-1] = min(total_samples, stops[-1] + pad)
    for i in range(len(spans) - 1):
        silence = starts[i + 1] - stops[i]
        share = silence // 2 if silence < 2 * pad else pad
        stops[i] = min(total_samples, stops[i] + share)
        starts[i + 1] = max(0, starts[i + 1] - share)
    return tuple(SampleSpan(start, stop) for start, stop in zip(starts, stops, strict=True))
