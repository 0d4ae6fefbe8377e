"""Recordings longer than a window, as generators that yield windows and are sent what was decoded.

The generators know nothing of engines, threads or queues, so whoever drives them may decode another
request's window between two of theirs, decode windows of several together, or stop at any window.

`sequential` follows the timestamps the model writes: the next window starts where the text of the last one
ends. It gives what `faster_whisper.WhisperModel.transcribe()` gives on the same weights and options.
`batched` cuts at silences first and decodes the pieces side by side, which is faster and forgets the text
before each piece. Source of the rules: `faster_whisper.transcribe`.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from whisper_server.core.mel import EDGE_SAMPLES
from whisper_server.core.recording import Recording, SampleSpan
from whisper_server.core.types import (
    FRAME_SAMPLES,
    FRAMES_PER_SECOND,
    MAX_WINDOW_S,
    SAMPLE_RATE,
    AudioContext,
    Decoded,
    DecodeOptions,
    Samples,
    Segment,
    Task,
    Timestamps,
    Window,
    Word,
)
from whisper_server.core.word_timing import attach_words, last_word_end_s

MAX_PREVIOUS_TOKENS = 223
"""Tokens of earlier text a Whisper can be given: half its context, less the token that announces them."""

_WHOLE: tuple[tuple[float, float | None], ...] = ((0.0, None),)
_FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
_MARKS = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True, slots=True)
class LongFormOptions:
    """How a recording is cut into windows, and how each is decoded.

    Attributes:
        language: ISO 639-1 code, or None: then that of the first window counts for all.
        multilingual: detect the language of every window.
        task: transcribe or translate.
        prompt: text that went before the recording.
        prefix: text the transcript begins with.
        timestamps: how finely the text is timed.
        token_logprobs: tell how likely each token was.
        audio_context: how much audio the encoder looks at.
        decode: options of every window.
        window_s: longest window, at most 30.
        condition_on_previous_text: the text of a window is the prompt of the next.
        prompt_reset_on_temperature: a window decoded above this temperature is no prompt.
        clips_s: (start, end) of the parts to transcribe, seconds; an end of None is the recording's end.
        hallucination_silence_threshold_s: with words: text that looks invented is dropped where it is
            surrounded by this much silence; None keeps it.
    """

    language: str | None = None
    multilingual: bool = False
    task: Task = Task.TRANSCRIBE
    prompt: str = ""
    prefix: str = ""
    timestamps: Timestamps = Timestamps.SEGMENT
    token_logprobs: bool = False
    audio_context: AudioContext = AudioContext.FULL
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    window_s: int = MAX_WINDOW_S
    condition_on_previous_text: bool = True
    prompt_reset_on_temperature: float = 0.5
    clips_s: tuple[tuple[float, float | None], ...] = _WHOLE
    hallucination_silence_threshold_s: float | None = None

    @property
    def has_clips(self) -> bool:
        """Whether only parts of the recording are to be transcribed."""
        return self.clips_s != _WHOLE


@dataclass(frozen=True, slots=True)
class Step:
    """What a generator has finished, and what it needs next.

    Attributes:
        segments: finished since the step before, on the original recording's clock.
        windows: to be decoded and sent back in order; none in the last step.
        position_s: how far into the original the finished text reaches.
    """

    segments: tuple[Segment, ...]
    windows: tuple[Window, ...]
    position_s: float


Steps: TypeAlias = Generator[Step, Sequence[Decoded], None]


def sequential(recording: Recording, options: LongFormOptions, *, mel_peak: float | None = None) -> Steps:
    """Decode window after window, each starting where the text of the one before ends.

    Args:
        recording: what to transcribe.
        options: how.
        mel_peak: of the recording, see `Window.mel_peak`.
    """
    return _Sequential(recording, options, mel_peak).steps()


def batched(recording: Recording, options: LongFormOptions, *, batch_size: int) -> Steps:
    """Decode the recording's spans side by side, packed into windows, `batch_size` windows a step.

    Every span fits a window: see `voice_activity.for_batches`. Each window has the prompt, none the text of
    another, and none is clamped by another's loudness.
    """
    packs = list(_pack(recording.spans, options.window_s * SAMPLE_RATE))
    finished: tuple[Segment, ...] = ()
    position_s = last_speech_s = 0.0
    language = None if options.multilingual else options.language
    for first in range(0, len(packs), batch_size):
        batch = packs[first : first + batch_size]
        windows = tuple(
            _window(options, recording.read(start, stop), language, prompt=options.prompt)
            for start, stop in batch
        )
        results = yield Step(finished, windows, position_s)
        segments: list[Segment] = []
        for (start, stop), decoded in zip(batch, results, strict=True):
            offset_s = start / SAMPLE_RATE
            own = _placed(decoded, offset_s)
            if options.timestamps.has_words:
                own = attach_words(
                    own,
                    decoded.alignment,
                    offset_s=offset_s,
                    last_speech_s=last_speech_s,
                    options=options.decode,
                )
                last_speech_s = last_word_end_s(own) or last_speech_s
            segments += own
            position_s = recording.original_time_s(stop / SAMPLE_RATE, is_end=True)
        if language is None and not options.multilingual and results:
            language = results[0].language
        finished = tuple(_restored(segment, recording) for segment in segments if segment.text.strip())
    yield Step(finished, (), position_s)


class _Sequential:
    """The state of one sequential transcription. Positions are frames of 10 ms."""

    def __init__(self, recording: Recording, options: LongFormOptions, mel_peak: float | None) -> None:
        self._recording = recording
        self._options = options
        self._mel_peak = mel_peak
        self._content_frames = len(recording) // FRAME_SAMPLES
        self._language = options.language
        self._prompt = options.prompt
        self._previous_tokens: tuple[int, ...] = ()
        self._last_speech_s = 0.0

    def steps(self) -> Steps:
        finished: tuple[Segment, ...] = ()
        position_s = 0.0
        for clip_start, clip_end in self._clips():
            seek = clip_start
            while seek < clip_end:
                size = min(self._options.window_s * FRAMES_PER_SECOND, clip_end - seek)
                (decoded,) = yield Step(finished, (self._window(seek, size),), position_s)
                finished, next_seek = self._accept(decoded, seek, size)
                # A window that does not move on would be decoded for ever.
                seek = next_seek if next_seek > seek else seek + size
                position_s = self._recording.original_time_s(seek * _FRAME_S, is_end=True)
        yield Step(finished, (), position_s)

    def _clips(self) -> Iterator[tuple[int, int]]:
        for start_s, end_s in self._options.clips_s:
            end = self._content_frames if end_s is None else round(end_s * FRAMES_PER_SECOND)
            yield round(start_s * FRAMES_PER_SECOND), min(end, self._content_frames)

    def _window(self, seek: int, size: int) -> Window:
        start, stop = seek * FRAME_SAMPLES, (seek + size) * FRAME_SAMPLES
        samples = self._recording.read(start - EDGE_SAMPLES, stop + EDGE_SAMPLES)
        margin_before = min(start, EDGE_SAMPLES)
        return _window(
            self._options,
            samples,
            None if self._options.multilingual else self._language,
            prompt=self._prompt,
            previous_tokens=self._previous_tokens,
            prefix=self._options.prefix if seek == 0 else "",
            margin_before=margin_before,
            margin_after=len(samples) - margin_before - (stop - start),
            mel_peak=self._mel_peak,
        )

    def _accept(self, decoded: Decoded, seek: int, size: int) -> tuple[tuple[Segment, ...], int]:
        """The finished segments of a window, and where the next window starts."""
        self._language = self._language or decoded.language
        if not decoded.segments:
            return (), seek + size
        offset_s = seek * _FRAME_S
        segments = _placed(decoded, offset_s)
        next_seek = seek + round(decoded.consumed_s * FRAMES_PER_SECOND)
        if self._options.timestamps.has_words:
            segments, next_seek, is_refused = self._time_words(decoded, segments, seek, size, next_seek)
            if is_refused:
                return (), next_seek
        segments = [s for s in segments if s.start_s != s.end_s and s.text.strip()]
        self._remember(segments, decoded.temperature)
        return tuple(_restored(segment, self._recording) for segment in segments), next_seek

    def _time_words(
        self, decoded: Decoded, segments: list[Segment], seek: int, size: int, next_seek: int
    ) -> tuple[list[Segment], int, bool]:
        """The segments with their words, the next position, and whether the window is to be dropped."""
        offset_s = seek * _FRAME_S
        segments = attach_words(
            segments,
            decoded.alignment,
            offset_s=seek / FRAMES_PER_SECOND,
            last_speech_s=self._last_speech_s,
            options=self._options.decode,
        )
        end_s = last_word_end_s(segments)
        if not decoded.is_complete and end_s is not None and end_s > offset_s:
            next_seek = round(end_s * FRAMES_PER_SECOND)
        threshold_s = self._options.hallucination_silence_threshold_s
        if threshold_s is not None:
            guard = _HallucinationGuard(threshold_s, offset_s, size * _FRAME_S, self._last_speech_s)
            gap_s = guard.leading_gap_s(segments)
            if gap_s is not None:
                return [], seek + round(gap_s * FRAMES_PER_SECOND), True
            cut = guard.first_invented(segments)
            if cut is not None:
                start_s, end_s = segments[cut].start_s, segments[cut].end_s
                next_seek = round(max(offset_s + 1, start_s) * FRAMES_PER_SECOND)
                if self._content_frames * _FRAME_S - end_s < threshold_s:
                    next_seek = self._content_frames
                segments = segments[:cut]
        end_s = last_word_end_s(segments)
        self._last_speech_s = self._last_speech_s if end_s is None else end_s
        return segments, next_seek, False

    def _remember(self, segments: Sequence[Segment], temperature: float) -> None:
        """Make the text the prompt of the next window, or forget all of it."""
        options = self._options
        if not options.condition_on_previous_text or temperature > options.prompt_reset_on_temperature:
            self._prompt, self._previous_tokens = "", ()
            return
        tokens = (token for segment in segments for token in segment.tokens)
        self._previous_tokens = (*self._previous_tokens, *tokens)[-MAX_PREVIOUS_TOKENS:]


@dataclass(frozen=True, slots=True)
class _HallucinationGuard:
    """Finds text that was invented in silence: improbable or oddly long words with nothing around them."""

    threshold_s: float
    offset_s: float
    window_s: float
    last_speech_s: float

    def leading_gap_s(self, segments: Sequence[Segment]) -> float | None:
        """The silence before the first words, when they look invented and it is long enough to skip."""
        first = _first_with_words(segments)
        if first is None or not _is_anomalous(first):
            return None
        gap_s = first.start_s - self.offset_s
        return gap_s if gap_s > self.threshold_s else None

    def first_invented(self, segments: Sequence[Segment]) -> int | None:
        """The index of the first segment that looks invented and stands between silences."""
        previous_end_s = self.last_speech_s
        for index, segment in enumerate(segments):
            if not segment.words:
                continue
            following = _first_with_words(segments[index + 1 :])
            if (
                _is_anomalous(segment)
                and self._is_silent_before(segment, previous_end_s)
                and self._is_silent_after(segment, following)
            ):
                return index
            previous_end_s = segment.end_s
        return None

    def _is_silent_before(self, segment: Segment, previous_end_s: float) -> bool:
        return (
            segment.start_s - previous_end_s > self.threshold_s
            or segment.start_s < self.threshold_s
            or segment.start_s - self.offset_s < 2.0
        )

    def _is_silent_after(self, segment: Segment, following: Segment | None) -> bool:
        next_start_s = following.words[0].start_s if following else self.offset_s + self.window_s
        return (
            next_start_s - segment.end_s > self.threshold_s
            or (following is not None and _is_anomalous(following))
            or self.offset_s + MAX_WINDOW_S - segment.end_s < 2.0
        )


def _first_with_words(segments: Sequence[Segment]) -> Segment | None:
    return next((segment for segment in segments if segment.words), None)


def _is_anomalous(segment: Segment) -> bool:
    words = [word for word in segment.words if word.text not in _MARKS][:8]
    score = sum(_anomaly(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)


def _anomaly(word: Word) -> float:
    duration_s = word.end_s - word.start_s
    improbable = 1.0 if word.probability < 0.15 else 0.0
    return improbable + max(0.0, 0.133 - duration_s) * 15 + max(0.0, duration_s - 2.0)


def _window(
    options: LongFormOptions,
    samples: Samples,
    language: str | None,
    *,
    prompt: str,
    previous_tokens: tuple[int, ...] = (),
    prefix: str = "",
    margin_before: int = 0,
    margin_after: int = 0,
    mel_peak: float | None = None,
) -> Window:
    return Window(
        samples=samples,
        margin_before=margin_before,
        margin_after=margin_after,
        mel_peak=mel_peak,
        language=language,
        task=options.task,
        prompt=prompt,
        previous_tokens=previous_tokens,
        prefix=prefix,
        timestamps=options.timestamps,
        token_logprobs=options.token_logprobs,
        audio_context=options.audio_context,
        options=options.decode,
    )


def _pack(spans: Sequence[SampleSpan], longest_samples: int) -> Iterator[tuple[int, int]]:
    """Neighbouring spans put together while they fit a window, as (start, stop) of the piece they form."""
    start = stop = 0
    for span in spans:
        if stop > start and stop - start + len(span) > longest_samples:
            yield start, stop
            start = stop
        stop += len(span)
    if stop > start:
        yield start, stop


def _placed(decoded: Decoded, offset_s: float) -> list[Segment]:
    """The segments on the recording's clock."""
    return [
        replace(
            segment,
            start_s=offset_s + segment.start_s,
            end_s=offset_s + segment.end_s,
            window_start_s=offset_s,
        )
        for segment in decoded.segments
    ]


def _restored(segment: Segment, recording: Recording) -> Segment:
    """The segment on the original's clock."""
    start_s = recording.original_time_s(segment.start_s)
    end_s = recording.original_time_s(segment.end_s, is_end=True)
    words = []
    for word in segment.words:
        # A word lies in the span that holds its middle, whatever its ends say.
        span = recording.span_index_at((word.start_s + word.end_s) / 2)
        first_s, last_s = (recording.original_time_s(t, span_index=span) for t in (word.start_s, word.end_s))
        words.append(replace(word, start_s=first_s, end_s=last_s))
    if words and recording.is_selection:
        start_s, end_s = words[0].start_s, words[-1].end_s
    return replace(segment, start_s=start_s, end_s=end_s, words=tuple(words))
