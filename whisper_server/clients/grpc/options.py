"""What a session is asked for, and what is in effect for it. None and empty leave it to the server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from whisper_server.stt_v1 import stt_pb2


class Task(StrEnum):
    """What is to be done with speech."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class VadMode(StrEnum):
    """What ends an utterance: silence, silence that ends the session too, or a commit."""

    CONTINUE = "continue"
    AUTO = "auto"
    MANUAL = "manual"


class Eagerness(StrEnum):
    """How long an utterance that may not be over is waited for: up to 8, 4 or 2 s."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Encoding(StrEnum):
    """How samples are written: signed 16-bit little-endian, or G.711."""

    LINEAR16 = "linear16"
    MULAW = "mulaw"
    ALAW = "alaw"


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """How raw audio is written.

    Attributes:
        sample_rate_hz: samples per second and channel.
        channels: interleaved, which the server mixes down.
        encoding: of a sample.
    """

    sample_rate_hz: int = 16_000
    channels: int = 1
    encoding: Encoding = Encoding.LINEAR16

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * (2 if self.encoding is Encoding.LINEAR16 else 1)

    @property
    def bytes_per_s(self) -> int:
        """Bytes of one second."""
        return self.sample_rate_hz * self.frame_bytes


@dataclass(frozen=True, slots=True)
class RecognitionOptions:
    """What is asked of the model.

    Attributes:
        model: its name.
        language: ISO 639-1 code or a name; "auto" detects it.
        task: transcribe or translate.
        decode_profile: named set of decode options, such as "realtime" or "accurate".
        decode_options: changes to it.
        prompt: text that went before.
        hotwords: words to expect.
        word_timestamps: whether finals bring words.
    """

    model: str = ""
    language: str = ""
    task: Task | None = None
    decode_profile: str = ""
    decode_options: stt_pb2.DecodeOptions | None = None
    prompt: str = ""
    hotwords: tuple[str, ...] = ()
    word_timestamps: bool | None = None


@dataclass(frozen=True, slots=True)
class VadOptions:
    """How speech is told from silence.

    Attributes:
        mode: what ends an utterance.
        enabled: without it all audio is speech.
        threshold: speech starts at this probability, 0 to 1.
        silence_ms: silence that ends an utterance.
        min_speech_ms: shorter speech is no utterance.
        prefix_padding_ms: audio before the speech that belongs to it.
        eagerness: None does not wait longer than `silence_ms`.
        max_utterance_s: a longer utterance is made final.
    """

    mode: VadMode = VadMode.CONTINUE
    enabled: bool | None = None
    threshold: float | None = None
    silence_ms: int | None = None
    min_speech_ms: int | None = None
    prefix_padding_ms: int | None = None
    eagerness: Eagerness | None = None
    max_utterance_s: float | None = None


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """A session to open.

    Attributes:
        session_id: the client's name for it; empty makes one.
        attributes: what is to be found again in logs and recordings.
        recognition: what is asked of the model.
        vad: how speech is told from silence.
        audio: how the chunks are written.
        partials: whether partial results are sent.
        partial_interval_ms: least time between two.
        require_token: have the server issue a token and check it with each message.
    """

    session_id: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    recognition: RecognitionOptions = field(default_factory=RecognitionOptions)
    vad: VadOptions = field(default_factory=VadOptions)
    audio: AudioFormat = field(default_factory=AudioFormat)
    partials: bool | None = None
    partial_interval_ms: int | None = None
    require_token: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """An open session, and what is in effect for it.

    Attributes:
        session_id: as taken by the server: the one asked for, or with "-2", "-3"… from the second attempt on.
        options: what was asked for, with its id.
        attempt: which attempt this is, from 1.
        token: for each message; empty where none was asked for.
        attributes: as taken.
        recognition: in effect.
        vad: in effect.
        audio: in effect.
        partials: whether partial results are sent.
        partial_interval_ms: least time between two.
        session_timeout_s: it ends when no audio comes for so long; 0 never.
        max_chunk_ms: longest audio of a message; 0 sets no limit.
        max_message_bytes: largest message; 0 sets no limit.
    """

    session_id: str
    options: SessionOptions
    attempt: int
    token: str = field(repr=False)
    attributes: Mapping[str, str]
    recognition: RecognitionOptions
    vad: VadOptions
    audio: AudioFormat
    partials: bool
    partial_interval_ms: int
    session_timeout_s: float
    max_chunk_ms: int
    max_message_bytes: int
