"""What a stream tells. Times are seconds of all audio that was put into it, over reconnections too."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeAlias


@dataclass(frozen=True, slots=True)
class Word:
    """A word.

    Attributes:
        text: with its punctuation.
        start_s: where it starts.
        end_s: where it ends.
        probability: mean of its tokens, 0 to 1.
    """

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Replacement:
    """Stable text that the final contradicts.

    Attributes:
        before: what was told.
        after: what counts.
    """

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class DecodeTiming:
    """Where the server's time for one result went, seconds.

    Attributes:
        buffer_wait_s: gathering audio.
        queue_wait_s: waiting for the model.
        inference_s: in the model.
    """

    buffer_wait_s: float
    queue_wait_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Speech begins.

    Attributes:
        utterance_id: of the utterance.
        at_s: when.
    """

    utterance_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The utterance is over.

    Attributes:
        utterance_id: of the utterance.
        at_s: when.
    """

    utterance_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Partial:
    """The text of an utterance so far.

    Attributes:
        utterance_id: of the utterance.
        text: all of it.
        stable_text: its beginning; changes no more before the final.
        unstable_text: the rest, without the space between the two.
        confidence: mean probability of the words, 0 to 1.
        language: ISO 639-1 code, or empty.
        timing: where the server's time went.
    """

    utterance_id: str
    text: str
    stable_text: str
    unstable_text: str
    confidence: float
    language: str
    timing: DecodeTiming


@dataclass(frozen=True, slots=True)
class Final:
    """The text of an utterance. It is never told twice.

    Attributes:
        utterance_id: of the utterance.
        text: all of it; empty where noise sounded like speech.
        start_s: where its audio starts.
        end_s: where its speech ends.
        language: ISO 639-1 code, or empty.
        language_probability: how sure that is, 0 to 1.
        confidence: mean probability of the words, 0 to 1.
        words: with times.
        replaced: where it contradicts stable text.
        timing: where the server's time went.
    """

    utterance_id: str
    text: str
    start_s: float
    end_s: float
    language: str
    language_probability: float
    confidence: float
    words: tuple[Word, ...]
    replaced: tuple[Replacement, ...]
    timing: DecodeTiming


@dataclass(frozen=True, slots=True)
class Failure:
    """An utterance that could not be transcribed. The stream goes on, and raises an SttError at its end.

    Attributes:
        utterance_id: of the utterance.
        code: such as ERR2002.
        message: for people.
    """

    utterance_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The connection broke, and another session goes on.

    Utterances without a final are heard again under other ids.

    Attributes:
        session_id: of the new session.
        resumed_at_s: from here on audio is sent again.
        reason: what went wrong.
    """

    session_id: str
    resumed_at_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class AudioLost:
    """Audio that had no final when the connection broke, and was not kept.

    Attributes:
        start_s: where it starts.
        end_s: where it ends.
    """

    start_s: float
    end_s: float


class EndReason(StrEnum):
    """Why a session ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    ERROR = "error"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event.

    Attributes:
        reason: why.
        audio_s: audio received, over all sessions.
        utterances: that were committed, over all sessions.
    """

    reason: EndReason
    audio_s: float
    utterances: int


Event: TypeAlias = SpeechStarted | SpeechStopped | Partial | Final | Failure | Reconnected | AudioLost | Ended


@dataclass(frozen=True, slots=True)
class DecodeTotals:
    """Where the server's time went over all decodes of a stream, seconds; its trailing metadata.

    Attributes:
        buffer_wait_s: gathering audio before a decode was asked for.
        queue_wait_s: waiting for the model.
        inference_s: in the model.
        response_emit_s: handing results to the call.
        total_s: the sum.
        count: of decodes.
    """

    buffer_wait_s: float = 0.0
    queue_wait_s: float = 0.0
    inference_s: float = 0.0
    response_emit_s: float = 0.0
    total_s: float = 0.0
    count: int = 0

    def __add__(self, other: "DecodeTotals") -> "DecodeTotals":
        return DecodeTotals(
            self.buffer_wait_s + other.buffer_wait_s,
            self.queue_wait_s + other.queue_wait_s,
            self.inference_s + other.inference_s,
            self.response_emit_s + other.response_emit_s,
            self.total_s + other.total_s,
            self.count + other.count,
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str | bytes]) -> Self | None:
        """Read `stt-decode-*`; None where they are missing or malformed."""
        try:
            return cls(
                buffer_wait_s=float(metadata["stt-decode-buffer-wait-sec"]),
                queue_wait_s=float(metadata["stt-decode-queue-wait-sec"]),
                inference_s=float(metadata["stt-decode-inference-sec"]),
                response_emit_s=float(metadata["stt-decode-response-emit-sec"]),
                total_s=float(metadata["stt-decode-total-sec"]),
                count=int(metadata["stt-decode-count"]),
            )
        except (KeyError, ValueError):
            return None
