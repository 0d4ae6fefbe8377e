"""The messages of `/ws/stt`, in both directions."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from whisper_server.api.openai.fields import shown
from whisper_server.api.streams.options import (
    LEAST_UTTERANCE_S,
    MAX_ID_CHARS,
    MAX_INTERVAL_MS,
    MAX_PADDING_MS,
    MAX_SILENCE_MS,
    MAX_TEXT_CHARS,
    MAX_VOICE_MS,
    MOST_UTTERANCE_S,
    StreamWishes,
)
from whisper_server.core.stream_events import (
    DecodeTiming,
    Eagerness,
    Endpointing,
    FinalTranscript,
    PartialTranscript,
)
from whisper_server.core.types import SAMPLE_RATE, Task, Word
from whisper_server.services.pcm_input import PcmFormat
from whisper_server.services.raw_audio import MAX_CHANNELS, RawAudio

# From the client

_Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]
_Name = Annotated[str, StringConstraints(max_length=MAX_ID_CHARS)]


class _ClientPart(BaseModel):
    """Unknown fields are ignored; the types are JSON's own, so that `"16000"` is no number."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


class SessionConfig(_ClientPart):
    """`config` of `start_session`. What is absent or null is as the settings say."""

    lang_code: _Name | None = None
    sample_rate: int | None = Field(None, ge=4_000, le=192_000)
    vad_enabled: bool | None = None
    vad_threshold: float | None = Field(None, ge=0, le=1)
    partial_results: bool | None = None
    word_timestamps: bool | None = None
    # From here on more than the protocol has had.
    model: _Name | None = None
    task: Literal["transcribe", "translate"] | None = None
    prompt: _Text | None = None
    hotwords: _Text | None = None
    decode_profile: _Name | None = None
    endpointing: Literal["continue", "auto_end", "manual"] | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    min_speech_ms: int | None = Field(None, ge=0, le=MAX_VOICE_MS)
    min_silence_ms: int | None = Field(None, ge=0, le=MAX_SILENCE_MS)
    prefix_padding_ms: int | None = Field(None, ge=0, le=MAX_PADDING_MS)
    partial_interval_ms: int | None = Field(None, ge=1, le=MAX_INTERVAL_MS)
    max_utterance_s: float | None = Field(None, ge=LEAST_UTTERANCE_S, le=MOST_UTTERANCE_S)
    encoding: Literal["s16le", "pcmu", "pcma"] | None = None
    channels: int | None = Field(None, ge=1, le=MAX_CHANNELS)

    def wishes(self) -> StreamWishes:
        """The same in the words that all transports share."""
        return StreamWishes(
            language=self.lang_code,
            model=self.model,
            task=None if self.task is None else Task(self.task),
            prompt=self.prompt,
            hotwords=self.hotwords,
            decode_profile=self.decode_profile,
            endpointing=None if self.endpointing is None else Endpointing(self.endpointing),
            eagerness=None if self.eagerness is None else Eagerness(self.eagerness),
            vad_enabled=self.vad_enabled,
            vad_threshold=self.vad_threshold,
            min_speech_ms=self.min_speech_ms,
            min_silence_ms=self.min_silence_ms,
            prefix_padding_ms=self.prefix_padding_ms,
            partials=self.partial_results,
            partial_interval_ms=self.partial_interval_ms,
            word_timestamps=self.word_timestamps,
            max_utterance_s=self.max_utterance_s,
        )

    def audio(self) -> RawAudio:
        """What converts the audio of the session."""
        encoding = PcmFormat(self.encoding or PcmFormat.S16LE)
        default_rate_hz = SAMPLE_RATE if encoding is PcmFormat.S16LE else G711_RATE_HZ
        return RawAudio(encoding, self.sample_rate or default_rate_hz, self.channels or 1)


G711_RATE_HZ = 8_000
"""Of G.711 where the client names no rate."""


class StartSession(_ClientPart):
    """Begin a session. Without an id the server makes one."""

    type: Literal["start_session"]
    session_id: Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)] | None = None
    config: SessionConfig | None = None


class Flush(_ClientPart):
    """End the utterance here."""

    type: Literal["flush"]


class EndSession(_ClientPart):
    """End the session once everything is transcribed."""

    type: Literal["end_session"]


class Cancel(_ClientPart):
    """End the session at once."""

    type: Literal["cancel"]


ClientMessage = StartSession | Flush | EndSession | Cancel

_CLIENT_MESSAGES: Mapping[str, type[ClientMessage]] = MappingProxyType(
    {"start_session": StartSession, "flush": Flush, "end_session": EndSession, "cancel": Cancel}
)


class MessageError(Exception):
    """A message that is none.

    Attributes:
        message: for the client.
        session_id: the session it names, if it names one.
    """

    def __init__(self, message: str, session_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.session_id = session_id


def parse_message(text: str) -> ClientMessage:
    """Read a text message.

    Raises:
        MessageError: it is no JSON object, of no known type, or a field is wrong; the error names it.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise MessageError("The message is not JSON.") from None
    if not isinstance(value, dict):
        raise MessageError("The message must be a JSON object.")
    session_id = value.get("session_id")
    named = session_id if isinstance(session_id, str) and len(session_id) <= MAX_ID_CHARS else None
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _CLIENT_MESSAGES:
        given = f"not '{shown(kind)}'" if isinstance(kind, str) else "and is missing or no string"
        raise MessageError(f"'type' must be one of {', '.join(_CLIENT_MESSAGES)}, {given}.", named)
    try:
        return _CLIENT_MESSAGES[kind].model_validate(value)
    except ValidationError as error:
        raise MessageError(_first_problem(error), named) from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    problem = first["msg"].removeprefix("Input ").removeprefix("String ")
    return f"'{field}' {problem}."


# From the server


def started(session_id: str) -> dict[str, Any]:
    """The session takes audio."""
    return {"type": "session_started", "session_id": session_id}


def vad_event(session_id: str, state: Literal["speech_start", "speech_end"], at_s: float) -> dict[str, Any]:
    """Speech begins or ends."""
    return {"type": "vad_event", "session_id": session_id, "state": state, "t_ms": round(at_s * 1000, 2)}


def partial(session_id: str, event: PartialTranscript) -> dict[str, Any]:
    """An utterance as far as it is heard; `stable_text`, its beginning, changes no more."""
    return {
        "type": "partial_transcript",
        "session_id": session_id,
        "segment_id": event.utterance_id,
        "text": event.text.strip(),
        "stable_text": event.stable_text.strip(),
        "confidence": round(event.confidence, 4),
        "is_final": False,
        "timing": timing(event.timing),
    }


def final(session_id: str, event: FinalTranscript) -> dict[str, Any]:
    """A whole utterance. `replaced` is there where it contradicts the stable text of a partial."""
    message = {
        "type": "final_transcript",
        "session_id": session_id,
        "segment_id": event.utterance_id,
        "text": event.text,
        "confidence": round(event.confidence, 4),
        "is_final": True,
        "words": [word(each) for each in event.words],
        "language": event.language,
        "audio_start_ms": milliseconds(event.audio_start_s),
        "audio_duration_ms": milliseconds(event.audio_duration_s),
        "timing": timing(event.timing),
    }
    if event.replaced:
        message["replaced"] = [{"before": each.before, "after": each.after} for each in event.replaced]
    return message


def failure(code: str, message: str, session_id: str | None, segment_id: str | None = None) -> dict[str, Any]:
    """Something went wrong; `segment_id` is there where one utterance is lost and the session goes on."""
    content = {"type": "error", "code": code, "message": message, "session_id": session_id}
    return content if segment_id is None else {**content, "segment_id": segment_id}


def ended(session_id: str, reason: str, total_audio_s: float, segments: int) -> dict[str, Any]:
    """The last message of a session."""
    return {
        "type": "session_ended",
        "session_id": session_id,
        "reason": reason,
        "total_audio_ms": milliseconds(total_audio_s),
        "total_segments": segments,
    }


def timing(timing: DecodeTiming) -> dict[str, float]:
    """Where the time of a transcript went, milliseconds."""
    return {
        "preprocess_ms": milliseconds(timing.preprocess_s),
        "queue_wait_ms": milliseconds(timing.queue_wait_s),
        "inference_ms": milliseconds(timing.inference_s),
        "postprocess_ms": milliseconds(timing.postprocess_s),
        "server_total_ms": milliseconds(timing.total_s),
    }


def word(word: Word) -> dict[str, Any]:
    """A word; times in seconds on the session's clock."""
    return {
        "word": word.text.strip(),
        "start": round(word.start_s, 3),
        "end": round(word.end_s, 3),
        "probability": round(word.probability, 4),
    }


def milliseconds(seconds: float) -> float:
    """Rounded to a tenth."""
    return round(seconds * 1000, 1)


INVALID_MESSAGE = "INVALID_MESSAGE"
SESSION_EXISTS = "SESSION_EXISTS"
INTERNAL_ERROR = "INTERNAL_ERROR"
