"""Recordings to send, made of the test clips."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from whisper_server.core.types import SAMPLE_RATE, Samples

TEST_SET = Path(__file__).parents[2] / "tests" / "assets" / "demo_test_set"

_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording and what is said in it.

    Attributes:
        name: to tell it from others.
        text: what is said.
        seconds: its length.
        flac: the file.
    """

    name: str
    text: str
    seconds: float
    flac: bytes


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    samples: Samples
    speech: Samples


def short_clips(count: int, *, seconds: float = 3.0) -> list[Clip]:
    """The English test clips whose length is nearest to `seconds`."""
    sentences = sorted(_sentences(), key=lambda each: abs(len(each.samples) / SAMPLE_RATE - seconds))
    return [
        _clip(f"short {index}", [sentence.text], [sentence.samples])
        for index, sentence in enumerate(sentences[:count])
    ]


def dense_clips(count: int, *, seconds: float = 30.0, seed: int = 1) -> list[Clip]:
    """Clips of nothing but speech, each a little shorter than `seconds`, and no two alike."""
    rng = np.random.default_rng(seed)
    return [_dense_clip(f"dense {index}", seconds, rng) for index in range(count)]


def long_clip(seconds: float, *, seed: int = 1) -> Clip:
    """Sentences with pauses, `seconds` long."""
    rng = np.random.default_rng(seed)
    sentences = _sentences()
    texts: list[str] = []
    parts: list[Samples] = []
    missing = int(seconds * SAMPLE_RATE)
    while missing > 0:
        sentence = sentences[rng.integers(len(sentences))]
        pause = np.zeros(int(rng.uniform(0.2, _LONGEST_PAUSE_S) * SAMPLE_RATE), np.float32)
        texts.append(sentence.text)
        for part in (sentence.samples, pause):
            parts.append(part[:missing])
            missing -= len(parts[-1])
    return _clip(f"{seconds:.0f} s", texts, parts)


def _dense_clip(name: str, seconds: float, rng: np.random.Generator) -> Clip:
    sentences = _sentences()
    room = int(seconds * SAMPLE_RATE)
    chosen: list[_Sentence] = []
    while True:
        sentence = sentences[rng.integers(len(sentences))]
        room -= len(sentence.speech)
        if room < 0:
            return _clip(name, [each.text for each in chosen], [each.speech for each in chosen])
        chosen.append(sentence)


def _clip(name: str, texts: Sequence[str], parts: Sequence[Samples]) -> Clip:
    samples = np.concatenate(parts)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return Clip(name, " ".join(texts), len(samples) / SAMPLE_RATE, file.getvalue())


@cache
def _sentences() -> tuple[_Sentence, ...]:
    """All English test clips."""
    entries = json.loads((TEST_SET / "clips.json").read_text(encoding="utf-8"))
    return tuple(_sentence(entry) for entry in entries if entry["language"] == "en")


def _sentence(entry: dict[str, Any]) -> _Sentence:
    samples, _ = soundfile.read(TEST_SET / entry["file"], dtype="float32")
    start, stop = (int(moment_s * SAMPLE_RATE) for moment_s in entry["speech"])
    return _Sentence(entry["text"], samples, samples[start:stop])
