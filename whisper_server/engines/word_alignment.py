"""From CTranslate2's alignment of tokens to timed words and to the tokens' probabilities.

Source of the words: `faster_whisper.WhisperModel.find_alignment`.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from whisper_server.core.types import AlignedWord, Decoded, TokenLogprob, Window

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

_ENCODER_STEPS_PER_SECOND = 50
_SMALLEST_PROBABILITY = 1e-30
"""JSON has no minus infinity."""


def with_alignment(
    window: Window, decoded: Decoded, tokenizer: "Tokenizer", text_tokens: list[int], result: Any
) -> Decoded:
    """A decoded window with what it asks for: the times of its words, the probabilities of its tokens.

    Args:
        window: what was decoded.
        decoded: the result so far.
        tokenizer: of the window's language.
        text_tokens: all text tokens of the segments; these were aligned.
        result: a `ctranslate2.models.WhisperAlignmentResult`.
    """
    segments = decoded.segments
    if window.token_logprobs:
        logprobs = token_logprobs(tokenizer, text_tokens, result)
        segments = tuple(
            replace(s, token_logprobs=tuple(islice(logprobs, s.text_token_count))) for s in segments
        )
    has_words = window.timestamps.has_words
    words = tuple(aligned_words(tokenizer, text_tokens, result)) if has_words else ()
    return replace(decoded, segments=segments, alignment=words)


def aligned_words(tokenizer: "Tokenizer", text_tokens: list[int], result: Any) -> Iterator[AlignedWord]:
    """The words of one window, timed from its start.

    Args:
        tokenizer: of the window's language, which decides where words end.
        text_tokens: the tokens that were aligned.
        result: a `ctranslate2.models.WhisperAlignmentResult`.
    """
    if not result.alignments:
        return
    words, tokens = tokenizer.split_to_word_tokens([*text_tokens, tokenizer.eot])
    words, tokens = words[:-1], tokens[:-1]  # the last one is the end of text
    token_indices = np.array([pair[0] for pair in result.alignments])
    encoder_steps = np.array([pair[1] for pair in result.alignments])
    # A token starts where the path first reaches it.
    is_first = np.pad(np.diff(token_indices), (1, 0), constant_values=1).astype(bool)
    starts_s = encoder_steps[is_first] / _ENCODER_STEPS_PER_SECOND
    bounds = list(accumulate((len(part) for part in tokens), initial=0))
    # In a window of a few frames the path ends before the text does.
    starts_s = np.pad(starts_s, (0, max(0, bounds[-1] + 1 - len(starts_s))), mode="edge")
    for word, part, first, last in zip(words, tokens, bounds, bounds[1:], strict=False):
        yield AlignedWord(
            text=word,
            tokens=tuple(part),
            start_s=float(starts_s[first]),
            end_s=float(starts_s[last]),
            probability=float(np.mean(result.text_token_probs[first:last])),
        )


def token_logprobs(tokenizer: "Tokenizer", text_tokens: list[int], result: Any) -> Iterator[TokenLogprob]:
    """How likely each token of the text was, given the audio and the tokens before it.

    The alignment pass runs the decoder over the finished text without timestamps: the model's own
    probabilities, whatever search found the text.

    Args:
        tokenizer: of the window.
        text_tokens: the tokens that were aligned.
        result: a `ctranslate2.models.WhisperAlignmentResult`.
    """
    for token, probability in zip(text_tokens, result.text_token_probs, strict=False):
        symbols = tokenizer.tokenizer.id_to_token(token) or ""
        utf8 = bytes(_byte_by_symbol()[symbol] for symbol in symbols if symbol in _byte_by_symbol())
        logprob = math.log(max(probability, _SMALLEST_PROBABILITY))
        yield TokenLogprob(utf8.decode(errors="replace"), utf8, logprob)


@cache
def _byte_by_symbol() -> dict[str, int]:
    """The byte behind each printable symbol of a byte-level BPE vocabulary.

    Source: the GPT-2 encoder's `bytes_to_unicode`.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
