"""A transcript as OpenAI's stream events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel

from whisper_server.api.openai.responses import (
    LogprobEntry,
    TokenUsage,
    logprob_entries,
    token_usage,
)
from whisper_server.core.types import Segment
from whisper_server.services.transcription import Progress


class TextDelta(BaseModel):
    """New text. The deltas of a stream joined are the text of its last event."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str
    logprobs: list[LogprobEntry] | None = None


class TextDone(BaseModel):
    """The whole text; the last event."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    logprobs: list[LogprobEntry] | None = None
    usage: TokenUsage


async def text_events(
    steps: AsyncGenerator[Progress, None], duration_s: float, *, has_logprobs: bool
) -> AsyncGenerator[str, None]:
    """The events of a transcript as it grows, as JSON texts.

    Args:
        steps: of the transcription.
        duration_s: of the recording, for the usage.
        has_logprobs: list the tokens' log-probabilities.
    """
    segments: list[Segment] = []
    text = ""
    async with aclosing(steps):
        async for progress in steps:
            segments += progress.segments
            # White space at the end waits for what follows, since the final text ends without it.
            grown = "".join(segment.text for segment in segments).strip()
            if len(grown) > len(text):
                logprobs = logprob_entries(progress.segments) if has_logprobs else None
                yield _json(TextDelta(delta=grown[len(text) :], logprobs=logprobs))
                text = grown
    logprobs = logprob_entries(segments) if has_logprobs else None
    yield _json(TextDone(text=text, logprobs=logprobs, usage=token_usage(segments, duration_s)))


def _json(event: Any) -> str:
    text: str = event.model_dump_json(exclude_none=True)
    return text
