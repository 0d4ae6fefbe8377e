"""Transcripts as OpenAI's clients read them."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel

from whisper_server.api.openai.transcription_request import Granularity
from whisper_server.core.languages import language_name
from whisper_server.core.types import FRAMES_PER_SECOND, Segment, Task
from whisper_server.services.transcription import Transcription

_ENCODER_STEPS_PER_SECOND = 50

UNKNOWN_LANGUAGE = "unknown"
"""Where there is no speech there is no language, but the field is required."""


class DurationUsage(BaseModel):
    """What was transcribed, by time."""

    type: Literal["duration"] = "duration"
    seconds: float


class TokenDetails(BaseModel):
    """What the input tokens were."""

    text_tokens: int
    audio_tokens: int


class TokenUsage(BaseModel):
    """What was transcribed, by tokens: the form the SDKs know in streams.

    Audio counts by Whisper's own measure, 50 encoder steps a second; a prompt is not counted.
    """

    type: Literal["tokens"] = "tokens"
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: TokenDetails


class LogprobEntry(BaseModel):
    """A token of the text with its bytes and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class JsonTranscript(BaseModel):
    """`response_format=json`."""

    text: str
    logprobs: list[LogprobEntry] | None = None
    usage: DurationUsage


class VerboseWord(BaseModel):
    """A word of a verbose transcript; times in seconds."""

    word: str
    start: float
    end: float
    probability: float


class VerboseSegment(BaseModel):
    """A segment of a verbose transcript; times in seconds, `seek` in frames of 10 ms.

    All ten fields of OpenAI's are always there: strict clients refuse a segment without one.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseTranscript(BaseModel):
    """`response_format=verbose_json`. `language` is a lower-case English name."""

    task: str
    language: str
    duration: float
    text: str
    words: list[VerboseWord] | None = None
    segments: list[VerboseSegment] | None = None
    usage: DurationUsage


def json_transcript(transcription: Transcription, *, has_logprobs: bool) -> JsonTranscript:
    """The text alone, or with the log-probability of each token."""
    logprobs = logprob_entries(transcription.segments) if has_logprobs else None
    return JsonTranscript(text=transcription.text, logprobs=logprobs, usage=_usage(transcription))


def logprob_entries(segments: Iterable[Segment]) -> list[LogprobEntry]:
    """The tokens of the text in order."""
    return [
        LogprobEntry(token=token.text, logprob=token.logprob, bytes=list(token.utf8))
        for segment in segments
        for token in segment.token_logprobs
    ]


def token_usage(segments: Iterable[Segment], duration_s: float) -> TokenUsage:
    """The usage of a stream."""
    audio_tokens = math.ceil(duration_s * _ENCODER_STEPS_PER_SECOND)
    output_tokens = sum(segment.text_token_count for segment in segments)
    return TokenUsage(
        input_tokens=audio_tokens,
        output_tokens=output_tokens,
        total_tokens=audio_tokens + output_tokens,
        input_token_details=TokenDetails(text_tokens=0, audio_tokens=audio_tokens),
    )


def verbose_transcript(
    transcription: Transcription, granularities: frozenset[Granularity]
) -> VerboseTranscript:
    """The text with its times, as finely as asked for."""
    # The language of the text: a translation is English, whatever was spoken.
    code = "en" if transcription.task is Task.TRANSLATE else transcription.language
    words = segments = None
    if Granularity.WORD in granularities:
        words = [
            VerboseWord(word=w.text.strip(), start=w.start_s, end=w.end_s, probability=w.probability)
            for segment in transcription.segments
            for w in segment.words
        ]
    if Granularity.SEGMENT in granularities:
        segments = [_segment(index, segment) for index, segment in enumerate(transcription.segments)]
    return VerboseTranscript(
        task=transcription.task.value,
        language=UNKNOWN_LANGUAGE if code is None else language_name(code),
        duration=round(transcription.duration_s, 3),
        text=transcription.text,
        words=words,
        segments=segments,
        usage=_usage(transcription),
    )


def dump(body: BaseModel) -> dict[str, Any]:
    """A body as JSON has it, without the parts that were not asked for."""
    return body.model_dump(exclude_none=True)


def _usage(transcription: Transcription) -> DurationUsage:
    return DurationUsage(seconds=round(transcription.duration_s, 3))


def _segment(index: int, segment: Segment) -> VerboseSegment:
    return VerboseSegment(
        id=index,
        seek=round(segment.window_start_s * FRAMES_PER_SECOND),
        start=round(segment.start_s, 3),
        end=round(segment.end_s, 3),
        text=segment.text,
        tokens=list(segment.tokens),
        temperature=segment.temperature,
        avg_logprob=segment.avg_logprob,
        compression_ratio=segment.compression_ratio,
        no_speech_prob=segment.no_speech_prob,
    )
