"""Which windows go through a model together."""

from collections.abc import Hashable

from whisper_server.core.audio_context import encoder_frames
from whisper_server.core.types import Window


def batch_key(window: Window) -> Hashable:
    """What windows must have in common to be decoded in one call of the model.

    The rows of a call share the decode options, timestamp tokens or none, the length of the encoder's input
    and the length of the prompt in tokens. Language, task and the tokens themselves may differ. How many
    tokens a text has only the tokenizer knows, so here the texts are equal, and earlier tokens are as many.
    Windows that ask for words or log-probabilities share calls with windows that do not.
    """
    return (
        encoder_frames(window),
        window.timestamps.has_tokens,
        window.options,
        window.prompt,
        window.prefix,
        len(window.previous_tokens),
    )
