"""What a live stream is asked for, and what it tells: the vocabulary that every transport translates.

Times in events are seconds on the session's clock, which counts the samples received: 0 is the first sample.

For one utterance the order is SpeechStarted, PartialTranscript*, SpeechStopped, UtteranceCommitted, and then
FinalTranscript or TranscriptFailed. Utterances are settled in the order in which they were committed. With
manual endpointing there is no SpeechStarted and no SpeechStopped. SessionEnded is the last event.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from whisper_server.core.errors import InvalidRequestError, WhisperServerError
from whisper_server.core.types import (
    MAX_WINDOW_S,
    AudioContext,
    DecodeOptions,
    Segment,
    Task,
    TokenLogprob,
    Word,
)

MIN_COMMIT_MS = 100
"""A commit of less audio than this is refused."""


class Endpointing(StrEnum):
    """What ends an utterance.

    CONTINUE: silence, a commit, or the longest utterance; the session goes on. AUTO_END: the same, and after
    the first silence the session ends. MANUAL: commits alone; voice detection only keeps silence from being
    decoded.
    """

    CONTINUE = "continue"
    AUTO_END = "auto_end"
    MANUAL = "manual"


class Eagerness(StrEnum):
    """How soon an utterance ends that may go on: after 8, 4 or 2 s of silence; AUTO is MEDIUM.

    Text that ends a sentence ends the utterance after `VoiceOptions.min_silence_ms`.
    """

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    AUTO = "auto"

    @property
    def max_wait_ms(self) -> int:
        """Silence after which the utterance ends whatever its text, milliseconds."""
        return {"low": 8000, "medium": 4000, "high": 2000, "auto": 4000}[self.value]


@dataclass(frozen=True, slots=True)
class VoiceOptions:
    """How speech is told from silence.

    Attributes:
        enabled: without it all audio is speech, and utterances end by commit or length.
        threshold: speech starts at this probability, 0 to 1.
        neg_threshold: silence starts below this; None means `threshold - 0.15`, at least 0.01.
        min_speech_ms: shorter speech is no utterance.
        min_silence_ms: silence that ends an utterance.
        prefix_padding_ms: audio before the speech that belongs to the utterance.
        rms_floor_dbfs: audio quieter than this is silence whatever it sounds like; None sets no floor.
    """

    enabled: bool = True
    threshold: float = 0.5
    neg_threshold: float | None = None
    min_speech_ms: int = 250
    min_silence_ms: int = 500
    prefix_padding_ms: int = 300
    rms_floor_dbfs: float | None = None

    @property
    def silence_threshold(self) -> float:
        """`neg_threshold`, or what stands for it."""
        return max(self.threshold - 0.15, 0.01) if self.neg_threshold is None else self.neg_threshold


def _greedy() -> DecodeOptions:
    return DecodeOptions(beam_size=1, best_of=1, temperatures=(0.0,))


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a live stream is asked for. Every transport builds one from its own fields and the settings.

    Attributes:
        language: ISO 639-1 code, or None to detect it for each utterance.
        languages: codes an utterance is held to, a repeated one with more weight; empty allows all.
        keep_language: the language of the first utterance with text counts for the rest.
        task: transcribe or translate.
        prompt: text that went before, for style and vocabulary.
        hotwords: words to expect; put into both decode options.
        endpointing: what ends an utterance.
        voice: how speech is told from silence.
        eagerness: None ends an utterance after `voice.min_silence_ms`; else see `Eagerness`.
        partials: send partial transcripts.
        partial_interval_ms: least time between two; stretched while the server is busy.
        max_partial_window_s: most audio a partial is decoded from.
        max_utterance_s: a longer utterance is committed and the next one begins; None does not commit it.
        overlap_ms: audio decoded on both sides of a cut in running speech, so that no word is lost there.
        word_timestamps: finals bring words with times and probabilities.
        token_logprobs: finals bring the log-probability of each token.
        partial_audio_context: how much audio partials look at; finals look at all.
        partial_decode: how partials are decoded.
        final_decode: how finals are decoded; the session's decode profile.
        speculative_finals: begin a final at the first 200 ms of silence.
        idle_timeout_s: a session that receives no audio for so long ends; None never.
        silence_timeout_s: silence that makes one SpeechTimedOut and an empty utterance; None never.
        max_chunk_ms: longest audio of one `send`; None sets no limit.
    """

    language: str | None = None
    languages: tuple[str, ...] = ()
    keep_language: bool = False
    task: Task = Task.TRANSCRIBE
    prompt: str = ""
    hotwords: str = ""
    endpointing: Endpointing = Endpointing.CONTINUE
    voice: VoiceOptions = field(default_factory=VoiceOptions)
    eagerness: Eagerness | None = None
    partials: bool = True
    partial_interval_ms: int = 300
    max_partial_window_s: float = 8.0
    max_utterance_s: float | None = 30.0
    overlap_ms: int = 500
    word_timestamps: bool = True
    token_logprobs: bool = False
    partial_audio_context: AudioContext = AudioContext.AUTO
    partial_decode: DecodeOptions = field(default_factory=_greedy)
    final_decode: DecodeOptions = field(default_factory=_greedy)
    speculative_finals: bool = True
    idle_timeout_s: float | None = 60.0
    silence_timeout_s: float | None = None
    max_chunk_ms: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            InvalidRequestError: naming the field.
        """
        for name, value, low, high in (
            ("threshold", self.voice.threshold, 0.0, 1.0),
            ("neg_threshold", self.voice.silence_threshold, 0.0, 1.0),
            ("min_speech_ms", self.voice.min_speech_ms, 0, 10_000),
            ("min_silence_ms", self.voice.min_silence_ms, 0, 60_000),
            ("prefix_padding_ms", self.voice.prefix_padding_ms, 0, 5_000),
            ("rms_floor_dbfs", self.voice.rms_floor_dbfs, -200.0, 0.0),
            ("partial_interval_ms", self.partial_interval_ms, 1, 60_000),
            ("max_partial_window_s", self.max_partial_window_s, 1.0, MAX_WINDOW_S),
            ("max_utterance_s", self.max_utterance_s, 1.0, 86_400.0),
            ("overlap_ms", self.overlap_ms, 0, 5_000),
            ("idle_timeout_s", self.idle_timeout_s, 0.0, math.inf),
            ("silence_timeout_s", self.silence_timeout_s, 0.0, math.inf),
        ):
            if value is not None and not low <= value <= high:
                raise InvalidRequestError(
                    f"'{name}' must be between {low:g} and {high:g}.", param=name, code="invalid_value"
                )


@dataclass(frozen=True, slots=True)
class DecodeTiming:
    """Where the time of one transcript went, seconds.

    Attributes:
        buffer_wait_s: audio gathered before the decode was asked for.
        preprocess_s: making the window.
        queue_wait_s: waiting for a free worker.
        inference_s: in the model.
        postprocess_s: making the transcript of what the model said.
        waited_for_speech_end_s: a finished speculative final waiting for the silence to hold; part of no sum.
    """

    buffer_wait_s: float = 0.0
    preprocess_s: float = 0.0
    queue_wait_s: float = 0.0
    inference_s: float = 0.0
    postprocess_s: float = 0.0
    waited_for_speech_end_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The server's time: all but the gathering of audio."""
        return self.preprocess_s + self.queue_wait_s + self.inference_s + self.postprocess_s


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody began to speak. It names the utterance before it exists for good.

    Attributes:
        utterance_id: unique in the server.
        at_s: where the speech starts.
        audio_start_s: where the utterance's audio starts: prefix padding before that.
    """

    utterance_id: str
    at_s: float
    audio_start_s: float


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """The utterance is over.

    Attributes:
        utterance_id: as in its `SpeechStarted`.
        at_s: where the speech ends.
        audio_end_s: where the utterance was found to have ended: silence after that.
    """

    utterance_id: str
    at_s: float
    audio_end_s: float


@dataclass(frozen=True, slots=True)
class UtteranceCommitted:
    """The utterance takes no more audio; exactly one FinalTranscript or TranscriptFailed follows.

    Attributes:
        utterance_id: of this utterance.
        previous_utterance_id: of the one committed before; None for the first.
        audio_start_s: where its audio starts.
        audio_end_s: where it ends.
    """

    utterance_id: str
    previous_utterance_id: str | None
    audio_start_s: float
    audio_end_s: float


@dataclass(frozen=True, slots=True)
class BufferCleared:
    """What was not committed is dropped, as the client asked."""


@dataclass(frozen=True, slots=True)
class SpeechTimedOut:
    """Nobody spoke for `silence_timeout_s`; the commit of an empty utterance follows.

    Attributes:
        utterance_id: of that utterance.
        audio_start_s: where the silence starts.
        audio_end_s: where it ends.
    """

    utterance_id: str
    audio_start_s: float
    audio_end_s: float


@dataclass(frozen=True, slots=True)
class PartialTranscript:
    """The text of an utterance that goes on.

    Attributes:
        utterance_id: of the utterance.
        stable_text: never changes again before the final; every later one begins with it.
        unstable_text: what follows; it may change.
        confidence: mean probability of the words, 0 to 1.
        language: ISO 639-1 code.
        timing: of the decode.
    """

    utterance_id: str
    stable_text: str
    unstable_text: str
    confidence: float
    language: str
    timing: DecodeTiming = DecodeTiming()

    @property
    def text(self) -> str:
        """All of it."""
        return self.stable_text + self.unstable_text


@dataclass(frozen=True, slots=True)
class Replacement:
    """Stable text that the final contradicts; an empty side is text that was added or left out."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class FinalTranscript:
    """The text of a committed utterance. It does not change any more.

    Attributes:
        utterance_id: of the utterance.
        text: its text, stripped; empty where nobody spoke.
        segments: with times, and with words and token log-probabilities where asked for; one for each
            window of at most 30 s.
        language: ISO 639-1 code; None where nothing was decoded and no language was given.
        language_probability: how sure that is; 1.0 where it was given.
        confidence: mean probability of the words, 0 to 1; 0 where there is no text.
        audio_start_s: where the utterance's audio starts.
        audio_duration_s: its length.
        speech_end_s: where its speech ends.
        stable_text: what the last partial had as stable.
        continuation: what to append to `stable_text` for a client that cannot take text back. Where the final
            replaced nothing, `stable_text + continuation` is `text`.
        replaced: where `text` contradicts `stable_text`.
        timing: of the decode that ended last; inference is that of all.
    """

    utterance_id: str
    text: str
    segments: tuple[Segment, ...]
    language: str | None
    language_probability: float
    confidence: float
    audio_start_s: float
    audio_duration_s: float
    speech_end_s: float
    stable_text: str = ""
    continuation: str = ""
    replaced: tuple[Replacement, ...] = ()
    timing: DecodeTiming = DecodeTiming()

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def token_logprobs(self) -> tuple[TokenLogprob, ...]:
        """The tokens of all segments."""
        return tuple(token for segment in self.segments for token in segment.token_logprobs)


@dataclass(frozen=True, slots=True)
class TranscriptFailed:
    """A committed utterance could not be transcribed. The session goes on.

    Attributes:
        utterance_id: of the utterance.
        error: why.
        audio_duration_s: its length.
    """

    utterance_id: str
    error: WhisperServerError
    audio_duration_s: float


class EndReason(StrEnum):
    """Why a session ended.

    COMPLETED: the client ended it, or its speech did with `Endpointing.AUTO_END`. CANCELLED: the client
    called it off or left. ERROR: see the event's error. TIMEOUT: no audio came for `idle_timeout_s`.
    """

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    ERROR = "error"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The last event of a session.

    Attributes:
        reason: why.
        total_audio_s: audio received.
        utterances: how many were committed.
        error: with `EndReason.ERROR` what went wrong, with TIMEOUT a `SessionTimeoutError`.
    """

    reason: EndReason
    total_audio_s: float
    utterances: int
    error: WhisperServerError | None = None


StreamEvent: TypeAlias = (
    SpeechStarted
    | SpeechStopped
    | UtteranceCommitted
    | BufferCleared
    | SpeechTimedOut
    | PartialTranscript
    | FinalTranscript
    | TranscriptFailed
    | SessionEnded
)
"""What a live stream tells its transport."""
