"""Speak random sentences in many voices: `python -m tools.demo_model.generate 11 13000 build/a.npz`."""

import argparse
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.demo_model.corpus import LANGUAGES, sentence
from tools.demo_model.speech import SAMPLE_RATE, Synthesizer, WordStart
from tools.demo_model.utterances import Utterance, save

LANGUAGE_SHARES = (0.45, 0.3, 0.25)
VOICES = {"en": ("en-us", "en-gb-x-rp"), "pt": ("pt-br",), "de": ("de",)}
VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m7", "+f1", "+f2", "+f3", "+f4")

AUDIBLE = 3e-3
"""Amplitude at which speech begins and ends."""

MARGIN_SAMPLES = SAMPLE_RATE // 50
"""Kept before and after the speech: 20 ms."""


def utterance(rng: random.Random, synthesizer: Synthesizer) -> Utterance:
    """Draw a sentence, a language and a voice, and speak it without silence around it."""
    phrase = sentence(rng)
    language = rng.choices(LANGUAGES, LANGUAGE_SHARES)[0]
    text = phrase[LANGUAGES.index(language)]
    voice = rng.choice(VOICES[language]) + rng.choice(VARIANTS)
    spoken, words = synthesizer.speak(text, voice, rng.randrange(130, 200), rng.randrange(30, 70))
    start, end = _speech_span(spoken)
    return Utterance(
        text=text,
        english=phrase.en,
        language=language,
        voice=voice,
        words=tuple(WordStart(char, max(0.0, at_s - start / SAMPLE_RATE)) for char, at_s in words),
        pcm=np.clip(spoken[start:end] * 32767, -32768, 32767).astype(np.int16),
    )


def _speech_span(samples: NDArray[np.float32]) -> tuple[int, int]:
    audible = np.nonzero(np.abs(samples) > AUDIBLE)[0]
    return max(0, int(audible[0]) - MARGIN_SAMPLES), int(audible[-1]) + MARGIN_SAMPLES


def main() -> None:
    """Write one file of utterances."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_model.generate", description=__doc__)
    parser.add_argument("seed", type=int, help="the same seed gives the same utterances")
    parser.add_argument("count", type=int, help="number of utterances")
    parser.add_argument("output", type=Path, help="the .npz file to write")
    options = parser.parse_args()
    rng, synthesizer = random.Random(options.seed), Synthesizer()
    utterances = [utterance(rng, synthesizer) for _ in range(options.count)]
    save(utterances, options.output)
    mean_s = sum(spoken.duration_s for spoken in utterances) / len(utterances)
    print(f"{len(utterances)} utterances of {mean_s:.2f} s on average in {options.output}")


if __name__ == "__main__":
    main()
