"""How many words the network gets wrong."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tools.demo_model.model import DemoWhisper, log_mel
from tools.demo_model.speech import SAMPLE_RATE
from tools.demo_model.utterances import Utterance
from tools.demo_model.vocabulary import Vocabulary, WhisperTokens

MAX_TEXT_TOKENS = 40


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Count the words to insert, delete or replace (Levenshtein distance)."""
    costs = list(range(len(heard) + 1))
    for row, word in enumerate(reference, start=1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(heard, start=1):
            replaced = diagonal + (word != other)
            diagonal = costs[column]
            costs[column] = min(costs[column] + 1, costs[column - 1] + 1, replaced)
    return costs[-1]


@torch.no_grad()
def word_error_rate(
    model: DemoWhisper,
    vocabulary: Vocabulary,
    tokens: WhisperTokens,
    utterances: Sequence[Utterance],
    window_s: int = 5,
    per_language: int = 64,
) -> float:
    """Transcribe the first utterances of each language greedily, without timestamps; print one of each.

    The rate counts case and punctuation.
    """
    model.eval()
    errors = words = 0
    for language in tokens.languages:
        chosen = [utterance for utterance in utterances if utterance.language == language][:per_language]
        transcripts = _transcribe(model, vocabulary, tokens, chosen, language, window_s)
        for utterance, transcript in zip(chosen, transcripts, strict=True):
            reference = utterance.text.split()
            errors += word_errors(reference, transcript.split())
            words += len(reference)
        print(f"  {language}: {chosen[0].text} | {transcripts[0]}")
    model.train()
    return errors / words


def _transcribe(
    model: DemoWhisper,
    vocabulary: Vocabulary,
    tokens: WhisperTokens,
    utterances: Sequence[Utterance],
    language: str,
    window_s: int,
) -> list[str]:
    whisper = tokens.whisper
    audio = model.encoder(log_mel(torch.from_numpy(_stacked(utterances, window_s))))
    head = (whisper.sot, tokens.languages[language], whisper.transcribe, whisper.no_timestamps)
    indices = torch.tensor([[vocabulary.index[token] for token in head]] * len(utterances))
    for _ in range(MAX_TEXT_TOKENS):
        logits = model.decoder(indices, audio)[:, -1, : len(vocabulary)]
        indices = torch.cat([indices, logits.argmax(-1, keepdim=True)], 1)
    transcripts = []
    for row in indices[:, len(head) :].tolist():
        written = [vocabulary.tokens[index] for index in row]
        if whisper.eot in written:
            written = written[: written.index(whisper.eot)]
        transcripts.append(whisper.decode([token for token in written if token < whisper.eot]).strip())
    return transcripts


def _stacked(utterances: Sequence[Utterance], window_s: int) -> NDArray[np.float32]:
    samples = np.zeros((len(utterances), window_s * SAMPLE_RATE), np.float32)
    for row, utterance in zip(samples, utterances, strict=True):
        speech = utterance.samples[: len(row)]
        row[: len(speech)] = speech
    return samples
