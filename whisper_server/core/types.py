"""What the parts of the server say to each other: audio windows in, decoded segments out.

Times are seconds as floats; audio is mono float32 in [-1, 1] at `SAMPLE_RATE` unless a name says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of all audio inside the server, Hz."""

MAX_WINDOW_S = 30
"""The longest stretch of audio a Whisper decodes at once, seconds."""

FRAME_SAMPLES = 160
"""Samples per mel frame: 10 ms."""

FRAMES_PER_SECOND = SAMPLE_RATE // FRAME_SAMPLES

Samples: TypeAlias = NDArray[np.float32]
"""Mono audio, shape (n,), dtype float32, in [-1, 1], at `SAMPLE_RATE`."""

Pcm16: TypeAlias = NDArray[np.int16]
"""Mono audio, shape (n,), dtype int16, at `SAMPLE_RATE`; divided by 32768 it is `Samples`."""


class Task(StrEnum):
    """What to write down: the words as spoken, or their English translation."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Timestamps(StrEnum):
    """How finely a window's text is timed.

    SEGMENT lets the model sample timestamp tokens, WORD adds one more decoder pass that places each word.
    WORD_ONLY places words without timestamp tokens: a window is then one segment.
    """

    NONE = "none"
    SEGMENT = "segment"
    WORD = "word"
    WORD_ONLY = "word_only"

    @property
    def has_tokens(self) -> bool:
        """Whether timestamp tokens are sampled."""
        return self in (Timestamps.SEGMENT, Timestamps.WORD)

    @property
    def has_words(self) -> bool:
        """Whether words are placed."""
        return self in (Timestamps.WORD, Timestamps.WORD_ONLY)


class AudioContext(StrEnum):
    """How much audio the encoder looks at.

    FULL is the 30 s the model was trained on. AUTO is the window's speech and a margin: it costs a fraction
    for short windows and can change or lose words, so it is for partials.
    """

    FULL = "full"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """How one window is decoded. The defaults are faster-whisper's.

    Source of the names and rules: `faster_whisper.WhisperModel.transcribe`.

    Attributes:
        beam_size: beams at temperature 0; 1 is greedy.
        best_of: candidates drawn at a temperature above 0.
        patience: beam search patience (arXiv:2204.05424).
        length_penalty: exponent of the length in the score of a hypothesis.
        repetition_penalty: above 1, tokens already said become less likely.
        no_repeat_ngram_size: n-grams of this size never repeat; 0 allows them.
        temperatures: tried in order until a result passes the thresholds below.
        compression_ratio_threshold: text that zlib shrinks more than this has failed: it repeats itself.
        log_prob_threshold: a mean token log-probability below this has failed.
        no_speech_threshold: above this no-speech probability a window that also misses
            `log_prob_threshold` is silence.
        suppress_blank: no blank as the first token.
        suppress_tokens: token ids never sampled; -1 stands for the tokenizer's non-speech symbols.
        max_initial_timestamp_s: the first timestamp of a window is no later than this.
        max_new_tokens: tokens per window; None leaves it to the model.
        hotwords: words put before the prompt of every window, without effect beside a prefix.
        prepend_punctuations: marks that join the word after them.
        append_punctuations: marks that join the word before them.
    """

    beam_size: int = 5
    best_of: int = 5
    patience: float = 1.0
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    log_prob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    suppress_blank: bool = True
    suppress_tokens: tuple[int, ...] = (-1,)
    max_initial_timestamp_s: float = 1.0
    max_new_tokens: int | None = None
    hotwords: str = ""
    prepend_punctuations: str = "\"'“¿([{-"
    append_punctuations: str = "\"'.。,，!！?？:：”)]}、"


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The unit of work: at most `MAX_WINDOW_S` of audio, and how to decode it.

    Attributes:
        samples: the window's audio with its margins. Margins are neighbouring audio that only the edge
            frames of the spectrogram look into; they make a window of a recording see what the whole
            recording's spectrogram shows there.
        margin_before: samples at the front that lie before the window.
        margin_after: samples at the end that lie after it.
        mel_peak: the largest log10 mel power of the recording the window is part of; quieter than
            8 below it is clamped. None takes the window's own.
        language: ISO 639-1 code, or None to detect it.
        task: transcribe or translate.
        prompt: text that went before, for style and vocabulary.
        previous_tokens: tokens of the windows before this one, by the same engine; they follow `prompt`.
        prefix: text the transcript of this window must begin with.
        timestamps: none, segments, or words too.
        token_logprobs: tell how likely each token of the text was; costs the pass that places words.
        audio_context: how much audio the encoder looks at.
        options: decode options.
    """

    samples: Samples
    margin_before: int = 0
    margin_after: int = 0
    mel_peak: float | None = None
    language: str | None = None
    task: Task = Task.TRANSCRIBE
    prompt: str = ""
    previous_tokens: tuple[int, ...] = ()
    prefix: str = ""
    timestamps: Timestamps = Timestamps.SEGMENT
    token_logprobs: bool = False
    audio_context: AudioContext = AudioContext.FULL
    options: DecodeOptions = field(default_factory=DecodeOptions)

    @property
    def audio(self) -> Samples:
        """The window's own audio, without its margins."""
        return self.samples[self.margin_before : len(self.samples) - self.margin_after]

    @property
    def duration_s(self) -> float:
        """Seconds of audio without the margins."""
        return (len(self.samples) - self.margin_before - self.margin_after) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its punctuation, its time and the mean probability of its tokens.

    `text` keeps the leading space that separates it from the word before.
    """

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class AlignedWord:
    """A word as the engine aligned it, before punctuation is merged; times are from the window's start."""

    text: str
    tokens: tuple[int, ...]
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the text, its bytes, and its natural log-probability given the audio and the text before.

    A token need not end at a character's end; `text` then has a replacement character.
    """

    text: str
    utf8: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech with its text and how sure the model was.

    From an engine, times are from the window's start; from long form, from the recording's start.

    Attributes:
        start_s: where it starts.
        end_s: where it ends.
        text: its text, usually with a leading space.
        tokens: token ids, timestamps included.
        avg_logprob: mean log-probability of the tokens of the segment's window.
        compression_ratio: of the text of the segment's window, see `DecodeOptions`.
        no_speech_prob: probability that the segment's window holds no speech.
        temperature: at which the window was decoded.
        words: its words, when asked for.
        window_start_s: where its window started.
        text_token_count: how many of `tokens` are text.
        token_logprobs: of the text's tokens, when asked for.
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    temperature: float
    words: tuple[Word, ...] = ()
    window_start_s: float = 0.0
    text_token_count: int = 0
    token_logprobs: tuple[TokenLogprob, ...] = ()


LanguageProbabilities: TypeAlias = Sequence[tuple[str, float]]
"""(ISO 639-1 code, probability), most likely first."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What an engine made of one window.

    Attributes:
        segments: in order of time; empty where there was no speech.
        language: of the window, as given or as detected.
        language_probability: 1.0 where the language was given.
        consumed_s: how far into the window the text reaches; the next window starts there.
        is_complete: the model said that nothing follows the last segment in this window.
        temperature: of the result that was taken.
        alignment: the window's words, when word timestamps were asked for.
    """

    segments: tuple[Segment, ...]
    language: str
    language_probability: float
    consumed_s: float
    is_complete: bool
    temperature: float
    alignment: tuple[AlignedWord, ...] = ()
