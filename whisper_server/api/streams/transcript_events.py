"""A live stream as events with the names of OpenAI's transcription streams, and some more."""

import json
from collections import deque
from typing import Any

from whisper_server.api.errors import error_content
from whisper_server.api.openai.responses import token_usage
from whisper_server.api.streams.messages import word
from whisper_server.core.errors import WhisperServerError
from whisper_server.core.stream_events import (
    FinalTranscript,
    PartialTranscript,
    SpeechStarted,
    SpeechStopped,
    StreamEvent,
    StreamOptions,
    TranscriptFailed,
)

MAX_TEXT_CHARS = 1 << 20
"""Of the text in the last event, about a day of talk; of a longer stream it has the end."""

_UNSPACED = frozenset(("bo", "ja", "km", "lo", "my", "th", "yue", "zh"))
"""Languages that put no space between sentences."""


class TranscriptEvents:
    """Makes the events of one stream.

    Args:
        max_text_chars: of the text that the last event repeats.
    """

    def __init__(self, max_text_chars: int = MAX_TEXT_CHARS) -> None:
        self._max_text_chars = max_text_chars
        self._deltas: deque[str] = deque()
        self._chars = 0
        self._is_cut = False
        self._has_text = False
        self._output_tokens = 0
        self._speech_starts_s: dict[str, float] = {}

    def of(self, event: StreamEvent) -> list[dict[str, Any]]:
        """What to tell of an event; nothing for those that clients of an upload need not know."""
        match event:
            case SpeechStarted():
                self._speech_starts_s[event.utterance_id] = event.at_s
                return [_vad("started", event.utterance_id, event.at_s)]
            case SpeechStopped():
                return [_vad("stopped", event.utterance_id, event.at_s)]
            case PartialTranscript() if event.text.strip():
                return [_partial(event)]
            case FinalTranscript():
                return self._final(event)
            case TranscriptFailed():
                self._speech_starts_s.pop(event.utterance_id, None)
                return [
                    {
                        "type": "transcript.text.failed",
                        "segment_id": event.utterance_id,
                        **json.loads(error_content(event.error)),
                    }
                ]
        return []

    def done(self, total_audio_s: float) -> dict[str, Any]:
        """The last event of a stream that ended well."""
        usage = token_usage((), total_audio_s)
        usage = usage.model_copy(
            update={
                "output_tokens": self._output_tokens,
                "total_tokens": usage.input_tokens + self._output_tokens,
            }
        )
        event = {"type": "transcript.text.done", "text": "".join(self._deltas), "usage": usage.model_dump()}
        return {**event, "is_cut": True} if self._is_cut else event

    def _final(self, event: FinalTranscript) -> list[dict[str, Any]]:
        start_s = self._speech_starts_s.pop(event.utterance_id, event.audio_start_s)
        self._output_tokens += sum(segment.text_token_count for segment in event.segments)
        if not event.text:
            return []
        delta = event.text if not self._has_text or event.language in _UNSPACED else f" {event.text}"
        self._remember(delta)
        segment = {
            "type": "transcript.text.segment",
            "id": event.utterance_id,
            "start": round(start_s, 3),
            "end": round(max(start_s, event.speech_end_s), 3),
            "text": event.text,
            "language": event.language,
            "confidence": round(event.confidence, 4),
            "words": [word(each) for each in event.words],
        }
        if event.replaced:
            segment["replaced"] = [{"before": each.before, "after": each.after} for each in event.replaced]
        return [
            {"type": "transcript.text.delta", "delta": delta, "segment_id": event.utterance_id},
            segment,
        ]

    def _remember(self, delta: str) -> None:
        self._has_text = True
        self._deltas.append(delta)
        self._chars += len(delta)
        while self._chars > self._max_text_chars and len(self._deltas) > 1:
            self._is_cut = True
            self._chars -= len(self._deltas.popleft())


def created(session_id: str, model: str, options: StreamOptions) -> dict[str, Any]:
    """The first event: the stream is open, and audio is taken."""
    return {
        "type": "session.created",
        "session": {
            "id": session_id,
            "model": model,
            "language": options.language,
            "task": options.task.value,
        },
    }


def failed(error: WhisperServerError) -> dict[str, Any]:
    """The last event of a stream that failed: OpenAI's error object, which the SDKs raise."""
    content: dict[str, Any] = json.loads(error_content(error))
    return content


def _vad(what: str, utterance_id: str, at_s: float) -> dict[str, Any]:
    return {"type": f"vad.speech_{what}", "segment_id": utterance_id, "at": round(at_s, 3)}


def _partial(event: PartialTranscript) -> dict[str, Any]:
    return {
        "type": "transcript.text.partial",
        "segment_id": event.utterance_id,
        "text": event.text.strip(),
        "stable_text": event.stable_text.strip(),
        "confidence": round(event.confidence, 4),
        "language": event.language,
    }
