"""Training windows: sentences placed in noise, with the tokens Whisper should write for them."""

import random
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tools.demo_model.corpus import LANGUAGES
from tools.demo_model.speech import SAMPLE_RATE
from tools.demo_model.utterances import Utterance
from tools.demo_model.vocabulary import WhisperTokens

LANGUAGE_SHARES = (0.42, 0.3, 0.28)
TRANSLATE_SHARE = 0.25
SILENCE_SHARE = 0.06
PROMPT_SHARE = 0.25
NO_TIMESTAMPS_SHARE = 0.35
CUT_SHARE = 0.12
NOISE_SHARE = 0.85

PROMPT_SENTENCES = (1, 1, 2, 4, 8, 14)
PROMPT_MAX_TOKENS = 200

SHORT_WINDOW_S = 8
"""Below this a window holds one sentence, which may be cut as if the speaker were still talking."""

LONG_WINDOW_S = 20
"""From this on a sentence that does not fit is left for the next window: only its start time is written."""

MIN_SPEECH_SAMPLES = SAMPLE_RATE // 10


class Segment(NamedTuple):
    """A sentence in a window; `end_s` is None when it goes on behind the window's end."""

    start_s: float
    end_s: float | None
    text: str


class Window(NamedTuple):
    """Samples, the decoder's tokens, and what it should answer at each of them; None asks for nothing."""

    samples: NDArray[np.float32]
    tokens: list[int]
    targets: list[int | None]


class WindowMaker:
    """Draws training windows. `rng` and `noise_rng` decide everything."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        tokens: WhisperTokens,
        rng: random.Random,
        noise_rng: np.random.RandomState,
    ) -> None:
        self._pools = {
            language: [utterance for utterance in utterances if utterance.language == language]
            for language in LANGUAGES
        }
        self._tokens = tokens
        self._rng = rng
        self._noise_rng = noise_rng

    def draw(self, window_s: int) -> Window:
        """Draw one window of `window_s` seconds."""
        rng = self._rng
        samples = np.zeros(window_s * SAMPLE_RATE, np.float32)
        if rng.random() < SILENCE_SHARE:
            if rng.random() < 0.8:
                samples = self._noise(len(samples)) * 10 ** rng.uniform(-4, -0.5)
            return self._no_speech(samples)
        language = rng.choices(LANGUAGES, LANGUAGE_SHARES)[0]
        task = "translate" if language != "en" and rng.random() < TRANSLATE_SHARE else "transcribe"
        segments = self._speak(samples, self._pools[language], task, window_s)
        if rng.random() < NOISE_SHARE:
            samples += self._noise(len(samples)) * 10 ** rng.uniform(-4, -1.5)
        samples *= 10 ** rng.uniform(-0.7, 0.2)
        if not segments:
            return self._no_speech(samples)
        return self._labelled(samples, segments, language, task)

    def _noise(self, count: int) -> NDArray[np.float32]:
        """Draw noise with a peak of 1: white, brownish, or a tone."""
        kind = self._rng.random()
        noise = self._noise_rng.randn(count).astype(np.float32)
        if kind < 0.3:
            noise = np.cumsum(noise)
            noise -= np.linspace(noise[0], noise[-1], count)
        elif kind < 0.4:
            noise = np.sin(np.arange(count) * self._rng.uniform(0.02, 0.6)).astype(np.float32)
        return noise / (np.abs(noise).max() + 1e-9)

    def _no_speech(self, samples: NDArray[np.float32]) -> Window:
        """Label a window without speech.

        <|nospeech|> is the answer at the first step; with language and task forced, the end comes at once.
        """
        whisper = self._tokens.whisper
        if self._rng.random() < 0.7:
            language = self._rng.choice(list(self._tokens.languages.values()))
            task = self._rng.choice((whisper.transcribe, whisper.translate))
            tokens = [whisper.sot, language, task, whisper.no_timestamps, whisper.eot]
            return Window(samples, tokens, [whisper.no_speech, None, None, whisper.eot, None])
        tokens = [whisper.sot, whisper.no_speech, whisper.eot]
        return Window(samples, tokens, [*tokens[1:], None])

    def _speak(
        self, samples: NDArray[np.float32], pool: Sequence[Utterance], task: str, window_s: int
    ) -> list[Segment]:
        """Put sentences into `samples` one after the other, until there is no room or enough are said."""
        rng = self._rng
        start_s = rng.uniform(0, 0.9 if window_s < 10 else 2.0)
        wanted = 1 if window_s < SHORT_WINDOW_S else rng.randint(1, 4 if window_s < 15 else 12)
        segments: list[Segment] = []
        for _ in range(wanted):
            utterance = rng.choice(pool)
            speech = utterance.samples * 10 ** rng.uniform(-1.0, 0.1)
            start = int(start_s * SAMPLE_RATE)
            room = min(len(speech), len(samples) - start)
            if room < MIN_SPEECH_SAMPLES:
                break
            said_s = self._said_s(len(speech), room, wanted == 1, task)
            if said_s is not None:
                said = int(said_s * SAMPLE_RATE)
                samples[start : start + said] += speech[:said]
                segments += _cut_segment(utterance, start_s, said_s, task, window_s)
                break
            samples[start : start + room] += speech
            end_s = start_s + room / SAMPLE_RATE
            text = utterance.english if task == "translate" else utterance.text
            segments.append(Segment(start_s, end_s, text))
            start_s += room / SAMPLE_RATE + rng.uniform(0.15, 1.2 if window_s < 15 else 2.5)
            if start_s > window_s - 1:
                break
        return segments

    def _said_s(self, length: int, room: int, is_only: bool, task: str) -> float | None:
        """Return how many seconds of a sentence are said before it is cut; None when all of it is."""
        if room < length:
            return room / SAMPLE_RATE
        if is_only and self._rng.random() < CUT_SHARE and task == "transcribe":
            return self._rng.uniform(0.3, 1) * room / SAMPLE_RATE
        return None

    def _labelled(
        self, samples: NDArray[np.float32], segments: Sequence[Segment], language: str, task: str
    ) -> Window:
        whisper = self._tokens.whisper
        head = [whisper.sot, self._tokens.languages[language], self._tokens.tasks[task]]
        is_open = segments[-1].end_s is None
        if self._rng.random() < NO_TIMESTAMPS_SHARE and not is_open:
            body = [whisper.no_timestamps, *self._texts(segment.text for segment in segments)]
        else:
            body = self._timed(segments)
        prompt = self._prompt(self._pools[language]) if self._rng.random() < PROMPT_SHARE else []
        tokens = [*prompt, *head, *body, whisper.eot]
        targets: list[int | None] = [*tokens[1:], None]
        targets[: len(prompt)] = [None] * len(prompt)
        return Window(samples, tokens, targets)

    def _timed(self, segments: Sequence[Segment]) -> list[int]:
        """Return texts between their timestamps; an open segment gives text only when it is alone."""
        body: list[int] = []
        for start_s, end_s, text in segments:
            body.append(self._tokens.time(start_s))
            if end_s is not None:
                body += [*self._tokens.text(text), self._tokens.time(end_s)]
            elif len(segments) == 1 and text:
                body += self._tokens.text(text)
        return body

    def _prompt(self, pool: Sequence[Utterance]) -> list[int]:
        """Return a previous text of unrelated sentences."""
        count = min(self._rng.choice(PROMPT_SENTENCES), len(pool))
        said = self._texts(utterance.text for utterance in self._rng.sample(pool, count))
        return [self._tokens.whisper.sot_prev, *said[-PROMPT_MAX_TOKENS:]]

    def _texts(self, texts: Iterable[str]) -> list[int]:
        return list(chain.from_iterable(map(self._tokens.text, texts)))


def _cut_segment(
    utterance: Utterance, start_s: float, said_s: float, task: str, window_s: int
) -> list[Segment]:
    """Return the segment of a sentence cut after `said_s`: its words that are whole, or none."""
    text = _whole_words(utterance, said_s)
    if task == "translate" or window_s >= LONG_WINDOW_S:
        return [Segment(start_s, None, text)]
    return [Segment(start_s, start_s + said_s, text)] if text else []


def _whole_words(utterance: Utterance, said_s: float) -> str:
    word_ends_s = [*(word.start_s for word in utterance.words[1:]), utterance.duration_s]
    whole = sum(end_s <= said_s - 0.02 for end_s in word_ends_s)
    if whole == len(utterance.words):
        return utterance.text
    return utterance.text[: utterance.words[whole].char].rstrip()
