"""What speakers say: test clips with silences between, and the true time of every word."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
import soundfile

from bench.load.clips import TEST_SET
from whisper_server.core.types import SAMPLE_RATE, Samples

TAIL_S = 2.0
"""Silence after the last word: longer than what ends an utterance."""

_PAUSES_S = (1.0, 3.0)
_LEADS_S = (0.5, 3.0)
_ROOM_NOISE = 0.0005
"""Of full scale, RMS: no microphone gives zeros, and a voice detector must not be helped by them."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, and when its sound ends, seconds."""

    text: str
    end_s: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is said without a pause.

    Attributes:
        text: the words.
        start_s: of the first sound.
        end_s: of the last sound.
        words: each with its end.
    """

    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...]

    def later(self, by_s: float) -> "Utterance":
        """The same, said later."""
        words = tuple(replace(word, end_s=word.end_s + by_s) for word in self.words)
        return Utterance(self.text, self.start_s + by_s, self.end_s + by_s, words)


@dataclass(frozen=True, slots=True)
class Recording:
    """Audio, 16 kHz, and what is said in it."""

    samples: Samples
    utterances: tuple[Utterance, ...]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE


@cache
def clips(language: str | None = "en") -> tuple[Recording, ...]:
    """The test clips of a language, or all of them.

    The synthesiser told when each word starts and when the speech ends; a word ends where the next one
    starts. In the clips the last sound above -40 dBFS lies 0 to 60 ms before that end.
    """
    entries = json.loads((TEST_SET / "clips.json").read_text(encoding="utf-8"))
    return tuple(_clip(entry) for entry in entries if language in (None, entry["language"]))


def _clip(entry: dict[str, Any]) -> Recording:
    samples, _ = soundfile.read(TEST_SET / entry["file"], dtype="float32")
    text, (start_s, end_s) = entry["text"], entry["speech"]
    firsts = [word["char"] for word in entry["words"]]
    ends_s = [word["start"] for word in entry["words"][1:]] + [end_s]
    words = tuple(
        Word(text[first:last].strip(), word_end_s)
        for first, last, word_end_s in zip(firsts, [*firsts[1:], len(text)], ends_s, strict=True)
    )
    return Recording(samples, (Utterance(text, start_s, end_s, words),))


def joined(parts: Iterable[Recording], pauses_s: Iterator[float], *, seed: int = 1) -> Recording:
    """Recordings one after the other in a quiet room, a pause before each and `TAIL_S` after the last.

    Args:
        parts: what is said.
        pauses_s: how long each pause is.
        seed: of the room's noise.
    """
    pieces: list[Samples] = []
    utterances: list[Utterance] = []
    at = 0
    for part in parts:
        pause = np.zeros(int(next(pauses_s) * SAMPLE_RATE), np.float32)
        at += len(pause)
        utterances += [utterance.later(at / SAMPLE_RATE) for utterance in part.utterances]
        at += len(part.samples)
        pieces += [pause, part.samples]
    pieces.append(np.zeros(int(TAIL_S * SAMPLE_RATE), np.float32))
    samples = np.concatenate(pieces)
    return Recording(samples + room_noise(len(samples), seed), tuple(utterances))


def room_noise(count: int, seed: int = 1) -> Samples:
    """So many samples of a quiet room."""
    noise: Samples = np.random.default_rng(seed).standard_normal(count, np.float32) * np.float32(_ROOM_NOISE)
    return noise


def speakers(count: int, seconds: float, *, seed: int = 1) -> list[Recording]:
    """People who say English sentences with pauses, for about `seconds`; no two share a clip.

    Each says at least one sentence. Who has said all of his own begins anew.
    """
    rng = np.random.default_rng(seed)
    deck = rng.permutation(len(clips()))
    return [
        _speaker([clips()[index] for index in deck[number::count]], seconds, rng) for number in range(count)
    ]


def _speaker(own: Sequence[Recording], seconds: float, rng: np.random.Generator) -> Recording:
    pauses_s = [float(rng.uniform(*_LEADS_S))]
    said: list[Recording] = []
    taken_s = 0.0
    for clip in cycle(own):
        taken_s += pauses_s[-1] + clip.seconds
        if said and taken_s + TAIL_S > seconds:
            break
        said.append(clip)
        pauses_s.append(float(rng.uniform(*_PAUSES_S)))
    return joined(said, iter(pauses_s), seed=int(rng.integers(1 << 30)))
