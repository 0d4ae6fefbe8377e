"""From CTranslate2's alignment of tokens to timed words.

Source: `faster_whisper.WhisperModel.find_alignment`.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from whisper_server.core.types import AlignedWord

if TYPE_CHECKING:
    from faster_whisper.tokenizer import Tokenizer

_ENCODER_STEPS_PER_SECOND = 50


def aligned_words(tokenizer: "Tokenizer", text_tokens: list[int], result: Any) -> Iterator[AlignedWord]:
    """The words of one window, timed from its start.

    Args:
        tokenizer: of the window's language, which decides where words end.
        text_tokens: the tokens that were aligned.
        result: a `ctranslate2.models.WhisperAlignmentResult`.
    """
    words, tokens = tokenizer.split_to_word_tokens([*text_tokens, tokenizer.eot])
    words, tokens = words[:-1], tokens[:-1]  # the last one is the end of text
    token_indices = np.array([pair[0] for pair in result.alignments])
    encoder_steps = np.array([pair[1] for pair in result.alignments])
    # A token starts where the path first reaches it.
    is_first = np.pad(np.diff(token_indices), (1, 0), constant_values=1).astype(bool)
    starts_s = encoder_steps[is_first] / _ENCODER_STEPS_PER_SECOND
    bounds = list(accumulate((len(part) for part in tokens), initial=0))
    for word, part, first, last in zip(words, tokens, bounds, bounds[1:], strict=False):
        yield AlignedWord(
            text=word,
            tokens=tuple(part),
            start_s=float(starts_s[first]),
            end_s=float(starts_s[last]),
            probability=float(np.mean(result.text_token_probs[first:last])),
        )
