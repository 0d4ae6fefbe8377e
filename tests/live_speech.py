"""Made-up speech that can be read back: every word is a tone of its own, so a test knows what was heard.

A word is a stretch of samples of one value. `hear` reads the words of a window as an engine would, and marks
a word with `~` that it heard only in part: a lost, doubled or broken word shows in the text.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from whisper_server.core.engine import Capabilities
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import (
    SAMPLE_RATE,
    AlignedWord,
    Decoded,
    LanguageProbabilities,
    Pcm16,
    Samples,
    Segment,
    Window,
)
from whisper_server.core.voice_activity import BLOCK_SAMPLES
from whisper_server.engines.scripted import scripted_capabilities

_LEVEL = 10
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet")


@dataclass(frozen=True, slots=True)
class Speech:
    """Audio, and the words in it."""

    pcm: Pcm16
    words: tuple[str, ...]


def speech(*parts: float | str, word_s: float = 0.4, mark: str = "") -> Speech:
    """Audio of silences (seconds) and sentences (words of `WORDS`), one after the other.

    speech(0.5, "alpha bravo", 1.0)
    """
    pieces: list[Pcm16] = []
    words: list[str] = []
    for part in parts:
        if isinstance(part, str):
            for word in part.split():
                count = int(word_s * SAMPLE_RATE)
                tone = np.full(count, (WORDS.index(word) + 1) * _LEVEL, dtype=np.int16)
                tone[-count // 10 :] = 1  # a breath that is not silence: the same word may come twice
                pieces.append(tone)
                words.append(word + mark)
        else:
            pieces.append(np.zeros(int(part * SAMPLE_RATE), dtype=np.int16))
    return Speech(np.concatenate(pieces), tuple(words))


def probabilities(samples: Pcm16 | Samples) -> Samples:
    """What a perfect voice detector says of each whole block."""
    blocks = samples[: len(samples) // BLOCK_SAMPLES * BLOCK_SAMPLES].reshape(-1, BLOCK_SAMPLES)
    share: Samples = (blocks != 0).mean(axis=1).astype(np.float32)
    return np.where(share >= 0.5, np.float32(0.95), np.float32(0.02))


class PerfectDetector:
    """Hears what `probabilities` hears; a `VoiceDetector`."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def probabilities(self, samples: Samples) -> Samples:
        self.calls.append(len(samples))
        return probabilities(samples)

    def reset(self) -> None:
        self.calls.clear()


def hear(window: Window, *, word_s: float = 0.4, mark: str = "") -> Decoded:
    """The words of a window."""
    values = np.rint(window.audio * 32768).astype(np.int64)
    edges = np.flatnonzero(np.diff(values)) + 1
    starts, stops = np.r_[0, edges], np.r_[edges, len(values)]
    words = [
        (WORDS[values[start] // _LEVEL - 1], start, stop)
        for start, stop in zip(starts, stops, strict=True)
        if len(values) and values[start] >= _LEVEL
    ]
    alignment = []
    for name, start, stop in words:
        is_whole = stop - start >= 0.6 * word_s * SAMPLE_RATE
        text = f" {name}{mark}" if is_whole else f" {name}~"
        token = WORDS.index(name) + 1
        alignment.append(
            AlignedWord(text, (token,), float(start) / SAMPLE_RATE, float(stop) / SAMPLE_RATE, 0.9)
        )
    text = "".join(word.text for word in alignment)
    tokens = tuple(token for word in alignment for token in word.tokens)
    segment = Segment(0.0, window.duration_s, text, tokens, -0.2, 1.0, 0.0, 0.0, text_token_count=len(tokens))
    return Decoded(
        segments=(segment,) if alignment else (),
        language=window.language or "en",
        language_probability=1.0 if window.language else 0.9,
        consumed_s=window.duration_s,
        is_complete=True,
        temperature=0.0,
        alignment=tuple(alignment) if window.timestamps.has_words else (),
    )


@dataclass(eq=False)
class HearingEngine:
    """An engine that hears made-up speech. Thread-safe.

    Attributes:
        gate: calls wait until it is set.
        word_s: how long a whole word is.
        windows: everything it was asked to decode.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    word_s: float = 0.4
    windows: list[Window] = field(default_factory=list)
    capabilities: Capabilities = field(default_factory=lambda: scripted_capabilities(parallel_calls=2))
    error: Exception | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.gate.set()

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        with self.changed:
            self.windows += windows
            self.changed.notify_all()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return [hear(window, word_s=self.word_s) for window in windows]

    def detect_language(
        self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
    ) -> list[LanguageProbabilities]:
        return [[("en", 1.0)] for _ in windows]

    def wait_until_ready(self) -> None:
        pass

    def abort(self) -> bool:
        return False

    def close(self) -> None:
        pass
