"""The rules around one window's tokens that every token-based engine shares.

Source: `faster_whisper.WhisperModel` (`generate_with_fallback`, `_split_segments_by_timestamps`).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from whisper_server.core.types import DecodeOptions

TIMESTAMP_STEP_S = 0.02
"""Seconds from one timestamp token to the next."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One result of decoding a window at one temperature."""

    tokens: tuple[int, ...]
    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float

    @property
    def compression_ratio(self) -> float:
        """How much zlib shrinks the text: repetition gives large values."""
        return compression_ratio(self.text.strip())

    def is_too_repetitive(self, options: DecodeOptions) -> bool:
        """Whether the text fails `compression_ratio_threshold`."""
        threshold = options.compression_ratio_threshold
        return threshold is not None and self.compression_ratio > threshold

    def is_too_unlikely(self, options: DecodeOptions) -> bool:
        """Whether the tokens fail `log_prob_threshold`."""
        return options.log_prob_threshold is not None and self.avg_logprob < options.log_prob_threshold

    def is_silence(self, options: DecodeOptions) -> bool:
        """Whether the window holds no speech: the model says so and is not sure of its tokens either."""
        is_sure = options.log_prob_threshold is not None and self.avg_logprob > options.log_prob_threshold
        return self._hears_nothing(options) and not is_sure

    def needs_fallback(self, options: DecodeOptions) -> bool:
        """Whether the next temperature should be tried. Silence is not: it has no better text."""
        if self.is_too_unlikely(options) and self._hears_nothing(options):
            return False
        return self.is_too_repetitive(options) or self.is_too_unlikely(options)

    def _hears_nothing(self, options: DecodeOptions) -> bool:
        return options.no_speech_threshold is not None and self.no_speech_prob > options.no_speech_threshold


def best_attempt(attempts: Sequence[Attempt], options: DecodeOptions) -> Attempt:
    """The result to keep when every temperature failed: the likeliest that does not repeat itself.

    It carries the last temperature, which decides whether the prompt is reset.
    """
    candidates = attempts
    if options.compression_ratio_threshold is not None:
        candidates = [a for a in attempts if not a.is_too_repetitive(options)] or attempts
    likeliest = max(candidates, key=lambda attempt: attempt.avg_logprob)
    return replace(likeliest, temperature=attempts[-1].temperature)


def compression_ratio(text: str) -> float:
    """Bytes of UTF-8 over bytes after zlib."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))


class TimedTokens(NamedTuple):
    """Tokens between two timestamps; seconds from the window's start."""

    start_s: float
    end_s: float
    tokens: tuple[int, ...]


class TimestampSplit(NamedTuple):
    """A window's tokens as segments, how far they reach, and whether nothing follows them."""

    segments: list[TimedTokens]
    consumed_s: float
    is_complete: bool


def split_by_timestamps(tokens: Sequence[int], timestamp_begin: int, duration_s: float) -> TimestampSplit:
    """Cut a window's tokens into segments at its timestamp tokens.

    Two timestamps in a row end one segment and begin the next. Text after the last such pair is unfinished:
    it is left to the next window, which starts at that pair. A single timestamp at the end says that nothing
    was said after it.

    Args:
        tokens: sampled tokens without the end-of-text token.
        timestamp_begin: token id of 0.00 s; greater ids are later.
        duration_s: audio in the window, seconds.
    """
    is_complete = len(tokens) >= 2 and tokens[-2] < timestamp_begin <= tokens[-1]
    cuts = [
        i for i in range(1, len(tokens)) if tokens[i] >= timestamp_begin and tokens[i - 1] >= timestamp_begin
    ]
    if not cuts:
        end_s = _last_timestamp_s(tokens, timestamp_begin) or duration_s
        return TimestampSplit([TimedTokens(0.0, end_s, tuple(tokens))], duration_s, is_complete)
    if is_complete:
        cuts.append(len(tokens))
    segments = []
    for start, stop in zip([0, *cuts[:-1]], cuts, strict=True):
        part = tuple(tokens[start:stop])
        first, last = (token - timestamp_begin for token in (part[0], part[-1]))
        segments.append(TimedTokens(first * TIMESTAMP_STEP_S, last * TIMESTAMP_STEP_S, part))
    consumed_s = duration_s if is_complete else segments[-1].end_s
    return TimestampSplit(segments, consumed_s, is_complete)


def _last_timestamp_s(tokens: Sequence[int], timestamp_begin: int) -> float:
    timestamps = [token for token in tokens if token >= timestamp_begin]
    return (timestamps[-1] - timestamp_begin) * TIMESTAMP_STEP_S if timestamps else 0.0
