"""Spoken sentences, and the file they are kept in."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.demo_model.speech import SAMPLE_RATE, WordStart


@dataclass(frozen=True, slots=True)
class Utterance:
    """One sentence, spoken.

    Attributes:
        text: the words as spoken.
        english: the same in English.
        language: "en", "pt" or "de".
        voice: the espeak-ng voice.
        words: where each word begins.
        pcm: mono samples, int16, at `SAMPLE_RATE`.
    """

    text: str
    english: str
    language: str
    voice: str
    words: tuple[WordStart, ...]
    pcm: NDArray[np.int16]

    @property
    def duration_s(self) -> float:
        """Length of the recording, seconds."""
        return len(self.pcm) / SAMPLE_RATE

    @property
    def samples(self) -> NDArray[np.float32]:
        """The recording in [-1, 1]."""
        return self.pcm.astype(np.float32) / 32768


def save(utterances: Sequence[Utterance], path: Path) -> None:
    """Write utterances to one `.npz` file: all samples in a row, and a JSON text about them."""
    about = []
    for utterance in utterances:
        entry = asdict(utterance)
        entry["samples"] = len(entry.pop("pcm"))
        about.append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, pcm=np.concatenate([u.pcm for u in utterances]), about=np.array(json.dumps(about)))


def load(path: Path) -> list[Utterance]:
    """Read the utterances that `save` wrote."""
    with np.load(path) as archive:
        pcm, about = archive["pcm"], json.loads(str(archive["about"]))
    utterances, start = [], 0
    for entry in about:
        end = start + entry.pop("samples")
        words = tuple(WordStart(*word) for word in entry.pop("words"))
        utterances.append(Utterance(**entry, words=words, pcm=pcm[start:end]))
        start = end
    return utterances
