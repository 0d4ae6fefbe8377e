"""Transcripts as OpenAI's clients read them."""

from typing import Any, Literal

from pydantic import BaseModel

from whisper_server.api.openai.transcription_request import Granularity
from whisper_server.core.languages import language_name
from whisper_server.core.types import FRAMES_PER_SECOND, Segment
from whisper_server.services.transcription import Transcription

UNKNOWN_LANGUAGE = "unknown"
"""Where there is no speech there is no language, but the field is required."""


class DurationUsage(BaseModel):
    """What was transcribed, by time."""

    type: Literal["duration"] = "duration"
    seconds: float


class JsonTranscript(BaseModel):
    """`response_format=json`."""

    text: str
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


def json_transcript(transcription: Transcription) -> JsonTranscript:
    """The text alone."""
    return JsonTranscript(text=transcription.text, usage=_usage(transcription))


def verbose_transcript(
    transcription: Transcription, granularities: frozenset[Granularity]
) -> VerboseTranscript:
    """The text with its times, as finely as asked for."""
    code = transcription.language
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
