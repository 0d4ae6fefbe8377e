"""What the server sends: the events of a stream as OpenAI's events, in the shape the client speaks."""

import uuid
from collections.abc import Iterator
from typing import Any

from whisper_server.api.error_table import WIRE_ERRORS
from whisper_server.api.errors import error_body
from whisper_server.api.openai.realtime.config import LOGPROBS, WORDS, Dialect, RealtimeConfig
from whisper_server.api.openai.realtime.conversation import Conversation
from whisper_server.api.openai.realtime.deltas import SentText
from whisper_server.api.openai.responses import dump, logprob_entries, token_usage
from whisper_server.core.errors import WhisperServerError
from whisper_server.core.stream_events import (
    BufferCleared,
    FinalTranscript,
    PartialTranscript,
    SpeechStarted,
    SpeechStopped,
    SpeechTimedOut,
    StreamEvent,
    TranscriptFailed,
    UtteranceCommitted,
)
from whisper_server.core.types import Task

ServerEvent = dict[str, Any]

_TRANSCRIPTION = "conversation.item.input_audio_transcription"


def event(type_: str, **fields: Any) -> ServerEvent:
    """An event with an id of its own."""
    return {"type": type_, "event_id": f"event_{uuid.uuid4().hex}", **fields}


def error_details(error: WhisperServerError) -> ServerEvent:
    """`type`, `code`, `message` and `param` of a fault, as over HTTP."""
    wire = WIRE_ERRORS[type(error)]
    code = getattr(error, "code", None) or wire.code
    details: ServerEvent = error_body(error.message, wire.type, error.param, code)["error"]
    return details


def error_event(error: WhisperServerError, event_id: str | None = None) -> ServerEvent:
    """The event that tells a fault.

    Args:
        error: the fault.
        event_id: of the client's event at fault.
    """
    return event("error", error={**error_details(error), "event_id": event_id})


class EventWriter:
    """Writes the events of one session. It has no clock and no connection.

    Args:
        session_id: of the session.
        expires_at_s: when it ends, seconds since the epoch.
        config: in effect; whoever changes it sets the attribute.
        dialect: of what is sent; likewise.
        task: of the transcripts.
    """

    def __init__(
        self,
        session_id: str,
        expires_at_s: int,
        config: RealtimeConfig,
        dialect: Dialect,
        *,
        task: Task = Task.TRANSCRIBE,
    ) -> None:
        self.config = config
        self.dialect = dialect
        self._id = session_id
        self._expires_at_s = expires_at_s
        self._task = task
        self._conversation = Conversation()
        self._sent: dict[str, SentText] = {}
        self._open_id: str | None = None

    def created(self) -> ServerEvent:
        """The first event of a session."""
        return event(f"{self._prefix}.created", session=self._session())

    def updated(self) -> ServerEvent:
        """The answer to an update."""
        return event(f"{self._prefix}.updated", session=self._session())

    def cleared(self) -> ServerEvent:
        """The answer to a clear."""
        return event("input_audio_buffer.cleared")

    def retrieved(self, item_id: str) -> ServerEvent:
        """The answer to a retrieve; errors as `Conversation.retrieve`."""
        item = self._conversation.retrieve(item_id)
        return event("conversation.item.retrieved", item=item.as_wire())

    def deleted(self, item_id: str) -> ServerEvent:
        """The answer to a delete; errors as `Conversation.delete`."""
        self._conversation.delete(item_id)
        return event("conversation.item.deleted", item_id=item_id)

    def translate(self, told: StreamEvent, offset_s: float = 0.0) -> Iterator[ServerEvent]:
        """The events for one event of a stream; none for its end.

        Args:
            told: by the stream.
            offset_s: audio of the session before this stream, seconds.
        """
        match told:
            case SpeechStarted(utterance_id=item_id):
                at_ms = _ms(told.audio_start_s + offset_s)
                yield event("input_audio_buffer.speech_started", audio_start_ms=at_ms, item_id=item_id)
            case SpeechStopped(utterance_id=item_id):
                at_ms = _ms(told.audio_end_s + offset_s)
                yield event("input_audio_buffer.speech_stopped", audio_end_ms=at_ms, item_id=item_id)
            case SpeechTimedOut(utterance_id=item_id):
                yield event(
                    "input_audio_buffer.timeout_triggered",
                    audio_start_ms=_ms(told.audio_start_s + offset_s),
                    audio_end_ms=_ms(told.audio_end_s + offset_s),
                    item_id=item_id,
                )
            case BufferCleared():
                # The utterance that went on is dropped, and with it what was sent of it.
                self._sent.pop(self._open_id or "", None)
                yield self.cleared()
            case UtteranceCommitted(utterance_id=item_id):
                yield from self._committed(item_id)
            case PartialTranscript(utterance_id=item_id):
                self._open_id = item_id
                sent = self._sent.setdefault(item_id, SentText())
                yield from self._delta(item_id, sent.grow(told.stable_text))
            case FinalTranscript():
                yield from self._completed(told, offset_s)
            case TranscriptFailed(utterance_id=item_id):
                self._sent.pop(item_id, None)
                yield event(
                    f"{_TRANSCRIPTION}.failed",
                    item_id=item_id,
                    content_index=0,
                    error=error_details(told.error),
                )

    @property
    def _prefix(self) -> str:
        return "transcription_session" if self.dialect is Dialect.BETA else "session"

    def _session(self) -> dict[str, Any]:
        known = {"object": "realtime.transcription_session", "id": self._id, "expires_at": self._expires_at_s}
        return known | self.config.in_shape(self.dialect)

    def _committed(self, item_id: str) -> Iterator[ServerEvent]:
        self._open_id = None
        item, previous_id = self._conversation.add(item_id)
        yield event("input_audio_buffer.committed", item_id=item_id, previous_item_id=previous_id)
        names = ("created",) if self.dialect is Dialect.BETA else ("added", "done")
        for name in names:
            yield event(f"conversation.item.{name}", previous_item_id=previous_id, item=item.as_wire())

    def _delta(self, item_id: str, delta: str, **more: Any) -> Iterator[ServerEvent]:
        if delta:
            yield event(f"{_TRANSCRIPTION}.delta", item_id=item_id, content_index=0, delta=delta, **more)

    def _completed(self, final: FinalTranscript, offset_s: float) -> Iterator[ServerEvent]:
        item_id = final.utterance_id
        delta, transcript = (self._sent.pop(item_id, None) or SentText()).finish(final)
        self._conversation.settle(item_id, transcript)
        more: dict[str, Any] = {}
        if LOGPROBS in self.config.include:
            more["logprobs"] = [dump(entry) for entry in logprob_entries(final.segments)]
        # Its log-probabilities belong to the final's tokens, so only a delta that is all of it has them.
        is_whole = delta == final.text
        yield from self._delta(item_id, delta, **(more if is_whole else {}))
        if WORDS in self.config.include:
            more["words"] = [
                {
                    "word": word.text.strip(),
                    "start": round(word.start_s + offset_s, 3),
                    "end": round(word.end_s + offset_s, 3),
                    "probability": word.probability,
                }
                for word in final.words
            ]
        if transcript != final.text:
            more["corrected_transcript"] = final.text
        yield event(
            f"{_TRANSCRIPTION}.completed",
            item_id=item_id,
            content_index=0,
            transcript=transcript,
            languages=self._languages(final),
            usage=dump(token_usage(final.segments, final.audio_duration_s)),
            **more,
        )

    def _languages(self, final: FinalTranscript) -> list[dict[str, str]]:
        """Of the text: a translation is English, whatever was spoken."""
        if not final.text or final.language is None:
            return []
        return [{"code": "en" if self._task is Task.TRANSLATE else final.language}]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
