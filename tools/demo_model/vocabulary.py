"""The tokens the demo model learns: a small part of Whisper's vocabulary, numbered without gaps."""

from collections.abc import Iterable, Sequence

from whisper.tokenizer import get_tokenizer

from tools.demo_model.corpus import LANGUAGES
from tools.demo_model.tokenizer import LANGUAGE_COUNT
from tools.demo_model.utterances import Utterance

VOCABULARY_SIZE = 51_865
"""Tokens of a multilingual Whisper."""

TIMESTAMP_STEP_S = 0.02
TIMESTAMP_COUNT = 1501


class WhisperTokens:
    """Whisper's own token numbers for texts, times and tasks."""

    def __init__(self) -> None:
        self.whisper = get_tokenizer(True, num_languages=LANGUAGE_COUNT, language="en", task="transcribe")
        self.languages = {name: self.whisper.to_language_token(name) for name in LANGUAGES}
        self.tasks = {"transcribe": self.whisper.transcribe, "translate": self.whisper.translate}
        self._texts: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """Return the tokens of a text, which Whisper begins with a space."""
        if text not in self._texts:
            self._texts[text] = self.whisper.encode(" " + text)
        return self._texts[text]

    def time(self, seconds: float) -> int:
        """Return the timestamp token nearest to `seconds` from the start of the window."""
        return self.whisper.timestamp_begin + min(TIMESTAMP_COUNT - 1, round(seconds / TIMESTAMP_STEP_S))


class Vocabulary:
    """The learnt tokens. All others share one embedding."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.index = {token: index for index, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, utterances: Iterable[Utterance], tokens: WhisperTokens) -> "Vocabulary":
        """Collect the tokens of all texts, of their beginnings up to any word, and of Whisper's controls."""
        whisper = tokens.whisper
        used = {
            whisper.sot,
            whisper.eot,
            whisper.transcribe,
            whisper.translate,
            whisper.sot_prev,
            whisper.no_speech,
            whisper.no_timestamps,
            *tokens.languages.values(),
            *range(whisper.timestamp_begin, whisper.timestamp_begin + TIMESTAMP_COUNT),
        }
        for utterance in utterances:
            used.update(tokens.text(utterance.text), tokens.text(utterance.english))
            for word in utterance.words:
                used.update(whisper.encode(" " + utterance.text[: word.char].rstrip()))
        return cls(sorted(used))
