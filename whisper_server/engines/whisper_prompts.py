"""The tokens around a window's text: what a Whisper is started with, and what it never says."""

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.types import DecodeOptions, Task, Window

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from faster_whisper.tokenizer import Tokenizer

_LEAST_NEW_TOKENS = 64
"""Room that prompts leave for the text of a window."""

_SUPPRESSIONS_KEPT = 64

_CONTROL_TOKEN = re.compile(r"<\|[^|<>]*\|>")


class Prompts:
    """Makes the prompts of one model's windows. Thread-safe.

    Args:
        model: the loaded model.
    """

    def __init__(self, model: "WhisperModel") -> None:
        self._model = model
        self._max_length: int = model.max_length
        self.tokenizer = cache(self._make_tokenizer)
        self.suppressed = lru_cache(_SUPPRESSIONS_KEPT)(self._suppressed_tokens)

    def tokens(self, window: Window, tokenizer: "Tokenizer") -> list[int]:
        """The tokens the model is started with: hotwords, earlier text, what to do, a forced beginning.

        How many they are does not depend on language and task.
        """
        longest = self._max_length // 2 - 1
        start = list(tokenizer.sot_sequence)
        if not window.timestamps.has_tokens:
            start.append(tokenizer.no_timestamps)
        if window.prefix:
            if window.timestamps.has_tokens:
                start.append(tokenizer.timestamp_begin)
            start += _text_tokens(tokenizer, window.prefix)[:longest]
        hotwords: list[int] = []
        if window.options.hotwords and not window.prefix:
            hotwords = _text_tokens(tokenizer, window.options.hotwords)[:longest]
        previous = _text_tokens(tokenizer, window.prompt) + list(window.previous_tokens)
        # The text before gives way: long hotwords or a long prefix would leave nothing to write into.
        room = self._max_length - _LEAST_NEW_TOKENS - len(start) - len(hotwords) - 1
        previous = previous[-min(longest, room) :] if room > 0 else []
        if not previous and not hotwords:
            return start
        return [tokenizer.sot_prev, *hotwords, *previous, *start]

    def length_limit(self, prompt_tokens: int, options: DecodeOptions) -> int:
        """Tokens a window may have, its prompt included.

        Raises:
            InvalidRequestError: the prompt leaves no room for `max_new_tokens`.
        """
        if options.max_new_tokens is None:
            return self._max_length
        limit = prompt_tokens + options.max_new_tokens
        if limit > self._max_length:
            raise InvalidRequestError(
                f"The prompt takes {prompt_tokens} tokens and max_new_tokens is {options.max_new_tokens}: "
                f"together more than the model's {self._max_length}. Shorten one of them.",
                param="max_new_tokens",
                code="context_length_exceeded",
            )
        return limit

    def _make_tokenizer(self, language: str, task: Task) -> "Tokenizer":
        from faster_whisper.tokenizer import Tokenizer

        multilingual = self._model.model.is_multilingual
        return Tokenizer(self._model.hf_tokenizer, multilingual, task=task.value, language=language)

    def _suppressed_tokens(self, asked: tuple[int, ...]) -> list[int]:
        from faster_whisper.transcribe import get_suppressed_tokens

        if not asked:
            return []
        tokenizer = self.tokenizer("en", Task.TRANSCRIBE)
        return list(get_suppressed_tokens(tokenizer, list(asked)))


def _text_tokens(tokenizer: "Tokenizer", text: str) -> list[int]:
    """The tokens of a client's text. What looks like a control token is left out: it would act as one."""
    text = _CONTROL_TOKEN.sub("", text).strip()
    return list(tokenizer.encode(" " + text)) if text else []
