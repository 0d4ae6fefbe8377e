"""From the words an engine aligned to the words of segments.

Cross-attention places words well in the middle of speech and badly around pauses, so words next to a pause
are shortened by rules of thumb. Source: `faster_whisper.WhisperModel.add_word_timestamps`, which has them
from openai-whisper.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whisper_server.core.types import AlignedWord, DecodeOptions, Segment, Word

_SENTENCE_END_MARKS = ".。!！?？"
_LONGEST_MEDIAN_S = 0.7


@dataclass(slots=True)
class _Timing:
    """A word while its times are still being mended; seconds on the recording's clock."""

    text: str
    start_s: float
    end_s: float
    probability: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def attach_words(
    segments: Sequence[Segment],
    alignment: Sequence[AlignedWord],
    *,
    offset_s: float,
    last_speech_s: float,
    options: DecodeOptions,
) -> list[Segment]:
    """Give each segment its words, and fit the segment's times to them.

    Args:
        segments: one window's segments on the recording's clock.
        alignment: that window's words on the window's clock, in order.
        offset_s: the window's start on the recording's clock.
        last_speech_s: where the speech before this window ended.
        options: which punctuation joins which word.
    """
    median_s = _median_duration_s(alignment)
    words = _merge_punctuation(_shorten_around_sentence_ends(alignment, 2 * median_s), options)
    remaining = iter(words)
    result = []
    for segment in segments:
        timings = _take(remaining, segment.text_token_count, offset_s)
        if timings:
            _shorten_after_pause(timings, last_speech_s, median_s)
            segment = _fit(segment, timings, median_s)
            last_speech_s = segment.end_s
        own = tuple(Word(t.text, t.start_s, t.end_s, t.probability) for t in timings)
        result.append(replace(segment, words=own))
    return result


def last_word_end_s(segments: Sequence[Segment]) -> float | None:
    """Where the last word ends; the last segment's end where no segment has words."""
    for segment in reversed(segments):
        if segment.words:
            return segment.words[-1].end_s
    return segments[-1].end_s if segments else None


def _median_duration_s(alignment: Sequence[AlignedWord]) -> float:
    durations = [word.end_s - word.start_s for word in alignment if word.end_s != word.start_s]
    return min(_LONGEST_MEDIAN_S, float(np.median(durations))) if durations else 0.0


def _shorten_around_sentence_ends(alignment: Sequence[AlignedWord], longest_s: float) -> list[AlignedWord]:
    """Words that a pause at a sentence's end has stretched, cut to `longest_s`."""
    words = list(alignment)
    if not longest_s:
        return words
    for i in range(1, len(words)):
        word = words[i]
        if word.end_s - word.start_s <= longest_s:
            continue
        if word.text in _SENTENCE_END_MARKS:
            words[i] = replace(word, end_s=word.start_s + longest_s)
        elif words[i - 1].text in _SENTENCE_END_MARKS:
            words[i] = replace(word, start_s=word.end_s - longest_s)
    return words


def _merge_punctuation(words: list[AlignedWord], options: DecodeOptions) -> list[AlignedWord]:
    """Join marks to the word they belong to; the mark's place stays, empty, where it was."""
    words = list(words)
    following = len(words) - 1
    for i in range(len(words) - 2, -1, -1):
        word = words[i]
        if word.text.startswith(" ") and word.text.strip() in options.prepend_punctuations:
            words[following] = _join(words[following], before=word)
            words[i] = replace(word, text="", tokens=())
        else:
            following = i
    previous = 0
    for i in range(1, len(words)):
        if not words[previous].text.endswith(" ") and words[i].text in options.append_punctuations:
            words[previous] = _join(words[previous], after=words[i])
            words[i] = replace(words[i], text="", tokens=())
        else:
            previous = i
    return words


def _join(
    word: AlignedWord, *, before: AlignedWord | None = None, after: AlignedWord | None = None
) -> AlignedWord:
    parts = [part for part in (before, word, after) if part is not None]
    return replace(
        word,
        text="".join(part.text for part in parts),
        tokens=tuple(token for part in parts for token in part.tokens),
    )


def _take(words: Iterable[AlignedWord], token_count: int, offset_s: float) -> list[_Timing]:
    """The next words that make up `token_count` tokens, on the recording's clock."""
    timings: list[_Timing] = []
    taken = 0
    while taken < token_count and (word := next(iter(words), None)) is not None:
        taken += len(word.tokens)
        if word.text:
            start_s, end_s = (round(offset_s + time_s, 2) for time_s in (word.start_s, word.end_s))
            timings.append(_Timing(word.text, start_s, end_s, word.probability))
    return timings


def _shorten_after_pause(words: list[_Timing], last_speech_s: float, median_s: float) -> None:
    """The first two words after a pause are at most twice the median long."""
    longest_s = 2 * median_s
    first = words[0]
    second = words[1] if len(words) > 1 else None
    if first.end_s - last_speech_s <= median_s * 4:
        return
    is_pair_long = second is not None and second.end_s - first.start_s > longest_s * 2
    if first.duration_s <= longest_s and not is_pair_long:
        return
    if second is not None and second.duration_s > longest_s:
        first.end_s = second.start_s = max(second.end_s / 2, second.end_s - longest_s)
    first.start_s = max(0, first.end_s - longest_s)


def _fit(segment: Segment, words: list[_Timing], median_s: float) -> Segment:
    """The segment's times as its words give them, unless a word is too long to be believed."""
    start_s, end_s = segment.start_s, segment.end_s
    first, last = words[0], words[-1]
    if start_s < first.end_s and start_s - 0.5 > first.start_s:
        first.start_s = max(0, min(first.end_s - median_s, start_s))
    else:
        start_s = first.start_s
    if end_s > last.start_s and end_s + 0.5 < last.end_s:
        last.end_s = max(last.start_s + median_s, end_s)
    else:
        end_s = last.end_s
    return replace(segment, start_s=start_s, end_s=end_s)
