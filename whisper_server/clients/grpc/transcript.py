"""The transcript of a whole recording."""

from dataclasses import dataclass

from whisper_server.clients.grpc.events import Word


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech.

    Attributes:
        text: its text.
        start_s: where it starts.
        end_s: where it ends.
        words: with times.
        avg_logprob: mean log-probability of the tokens of its window.
        no_speech_prob: probability that its window holds no speech.
    """

    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...]
    avg_logprob: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """A transcript.

    Attributes:
        text: all of it.
        segments: its segments.
        language: ISO 639-1 code; empty where nobody spoke.
        language_probability: how sure that is, 0 to 1.
        duration_s: length of the recording.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str
    language_probability: float
    duration_s: float
