"""From decoded pieces of audio to the segments of utterances, with no word twice where a piece was cut.

A piece is at most 30 s of an utterance. Where running speech is cut, the next piece begins a little before
the cut: words that both have heard are taken from the one that heard them whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from whisper_server.core.errors import WhisperServerError
from whisper_server.core.stream_events import DecodeTiming, StreamOptions
from whisper_server.core.types import (
    SAMPLE_RATE,
    Decoded,
    Samples,
    Segment,
    Timestamps,
    TokenLogprob,
    Window,
    Word,
)
from whisper_server.core.word_timing import attach_words

_SAME_WORD_S = 0.3
"""The middles of one word in two decodes are no farther apart than this."""

_MARKS = "\"'“¿([{-.。,，!！?？:：”)]}、"


@dataclass(slots=True, eq=False)
class Piece:
    """A stretch of an utterance that is decoded at once. Positions are samples of the session.

    Attributes:
        job: of its decode.
        start: first sample.
        stop: sample after the last.
        window: what is decoded.
        options: in effect when it was.
        speech_start: where speech starts in it.
        speech_stop: where speech ends in it.
        joins_previous: it begins before the cut that ended the piece before.
        take_until_s: words whose middle is later belong to the next piece; None takes all.
        buffer_wait_s: how long its audio was gathered.
        done_s: when the result came, by the driver's clock.
        decoded: the result.
        timing: of the decode.
        error: why there is no result.
    """

    job: int
    start: int
    stop: int
    window: Window
    options: StreamOptions
    speech_start: int
    speech_stop: int
    joins_previous: bool = False
    take_until_s: float | None = None
    buffer_wait_s: float = 0.0
    done_s: float = 0.0
    decoded: Decoded | None = None
    timing: DecodeTiming = field(default_factory=DecodeTiming)
    error: WhisperServerError | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is a result or a failure."""
        return self.decoded is not None or self.error is not None


def final_window(
    samples: Samples, options: StreamOptions, language: str | None, *, times_words: bool
) -> Window:
    """The window of a final: the whole context, decoded by the session's profile.

    Timestamp tokens are not asked for: with them a model may leave the end of a window to the next one.
    """
    decode = replace(options.final_decode, hotwords=options.hotwords or options.final_decode.hotwords)
    return Window(
        samples=samples,
        language=language,
        task=options.task,
        prompt=options.prompt,
        timestamps=Timestamps.WORD_ONLY if times_words else Timestamps.NONE,
        token_logprobs=options.token_logprobs,
        options=decode,
    )


class PieceJoiner:
    """Makes segments of pieces, in the order of their audio."""

    def __init__(self) -> None:
        self._last_words: list[Word] = []
        self._last_speech_s = 0.0

    def join(self, piece: Piece) -> list[Segment]:
        """The segments of the next piece, on the session's clock."""
        if piece.decoded is None:
            self._last_words = []
            return []
        segments = _timed(piece, piece.decoded, self._last_speech_s)
        segments = self._without_doubles(piece, segments)
        words = [word for segment in segments for word in segment.words]
        self._last_words = words[-8:]
        if segments:
            self._last_speech_s = segments[-1].end_s
        if not piece.options.word_timestamps:
            segments = [replace(segment, words=()) for segment in segments]
        return segments

    def _without_doubles(self, piece: Piece, segments: list[Segment]) -> list[Segment]:
        words = [word for segment in segments for word in segment.words]
        first, last = 0, len(words)
        if piece.joins_previous and self._last_words:
            first = _first_new(self._last_words, words)
        if piece.take_until_s is not None:
            last = sum(1 for _ in takewhile(lambda w: _middle_s(w) < (piece.take_until_s or 0.0), words))
        return _only(segments, first, max(first, last)) if words else segments


def confidence(segments: Sequence[Segment]) -> float:
    """Mean probability of the words; where there are none, that of the tokens. 0 without text."""
    words = [word.probability for segment in segments for word in segment.words]
    if words:
        return sum(words) / len(words)
    logprobs = [min(0.0, segment.avg_logprob) for segment in segments]
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


def _timed(piece: Piece, decoded: Decoded, last_speech_s: float) -> list[Segment]:
    offset_s = piece.start / SAMPLE_RATE
    end_s = piece.stop / SAMPLE_RATE
    segments = [
        replace(
            segment,
            start_s=max(offset_s, piece.speech_start / SAMPLE_RATE),
            end_s=min(end_s, piece.speech_stop / SAMPLE_RATE),
            window_start_s=offset_s,
        )
        for segment in decoded.segments
        if segment.text.strip()
    ]
    if not segments or not decoded.alignment:
        return segments
    # Only one segment: without timestamp tokens there is nothing to divide the text by.
    loose = [replace(segment, start_s=offset_s, end_s=end_s) for segment in segments]
    timed = attach_words(
        loose,
        decoded.alignment,
        offset_s=offset_s,
        last_speech_s=max(last_speech_s, offset_s),
        options=piece.window.options,
    )

    def within(time_s: float) -> float:
        # Words are timed in hundredths; the piece need not begin at one.
        return min(max(time_s, offset_s), end_s)

    return [
        replace(
            segment,
            start_s=within(segment.start_s),
            end_s=within(segment.end_s),
            words=tuple(
                replace(word, start_s=within(word.start_s), end_s=within(word.end_s))
                for word in segment.words
            ),
        )
        for segment in timed
    ]


def _first_new(before: Sequence[Word], words: Sequence[Word]) -> int:
    """The index of the first word that the piece before does not have."""
    last = before[-1]
    near = [
        index
        for index, word in enumerate(words)
        if _key(word.text) == _key(last.text) and abs(_middle_s(word) - _middle_s(last)) < _SAME_WORD_S
    ]
    if near:
        return min(near, key=lambda index: abs(_middle_s(words[index]) - _middle_s(last))) + 1
    return sum(1 for _ in takewhile(lambda word: _middle_s(word) < last.end_s, words))


def _only(segments: Sequence[Segment], first: int, last: int) -> list[Segment]:
    """The segments with their words from `first` to `last`, counted over all."""
    kept = []
    position = 0
    for segment in segments:
        begin, end = max(0, first - position), min(len(segment.words), last - position)
        position += len(segment.words)
        if begin == 0 and end == len(segment.words):
            kept.append(segment)
        elif begin < end:
            kept.append(_part(segment, begin, end))
    return kept


def _part(segment: Segment, begin: int, end: int) -> Segment:
    words = segment.words[begin:end]
    before, text = (
        "".join(word.text for word in some) for some in (segment.words[:begin], segment.words[begin:end])
    )
    tokens = _tokens_between(segment.token_logprobs, len(before.encode()), len((before + text).encode()))
    return replace(
        segment,
        text=text,
        words=words,
        start_s=words[0].start_s,
        end_s=words[-1].end_s,
        token_logprobs=tokens,
    )


def _tokens_between(tokens: Sequence[TokenLogprob], first: int, last: int) -> tuple[TokenLogprob, ...]:
    """The tokens that begin between two bytes of the text."""
    kept = []
    position = 0
    for token in tokens:
        if first <= position < last:
            kept.append(token)
        position += len(token.utf8)
    return tuple(kept)


def _key(text: str) -> str:
    return text.strip().strip(_MARKS).casefold()


def _middle_s(word: Word) -> float:
    return (word.start_s + word.end_s) / 2
