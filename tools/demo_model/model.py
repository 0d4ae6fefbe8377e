"""The network: Whisper's architecture, 128 wide with 2 + 2 layers, on openai-whisper's building blocks."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from whisper.audio import mel_filters
from whisper.model import ResidualAttentionBlock, sinusoids

from tools.demo_model.vocabulary import VOCABULARY_SIZE, Vocabulary

WIDTH = 128
HEADS = 4
LAYERS = 2
MELS = 80
AUDIO_POSITIONS = 1500
TEXT_POSITIONS = 448

FFT_SAMPLES = 400
HOP_SAMPLES = 160


def log_mel(samples: Tensor) -> Tensor:
    """Turn samples (batch, n) into Whisper's log-mel spectrogram (batch, MELS, n / HOP_SAMPLES).

    Unlike openai-whisper's own, it clamps each window by that window's maximum.
    """
    window = torch.hann_window(FFT_SAMPLES)
    spectrum = torch.stft(samples, FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    power = spectrum[..., :-1].abs() ** 2
    mel = (mel_filters("cpu", MELS) @ power).clamp(min=1e-10).log10()
    mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0)
    return (mel + 4) / 4


class Encoder(nn.Module):
    """Log-mel frames to audio features, one for every two frames. Windows may be shorter than 30 s."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(AUDIO_POSITIONS, WIDTH))
        self.blocks = nn.ModuleList(ResidualAttentionBlock(WIDTH, HEADS) for _ in range(LAYERS))
        self.ln_post = nn.LayerNorm(WIDTH)

    def forward(self, mel: Tensor) -> Tensor:
        """Encode (batch, MELS, frames) as (batch, frames / 2, WIDTH)."""
        hidden = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).permute(0, 2, 1)
        hidden = hidden + self.positional_embedding[: hidden.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.ln_post(hidden)


class Decoder(nn.Module):
    """Token indices and audio features to the next token's logits.

    The output has a column for each learnt token and a last one for all others together: they share one
    embedding, so their joint probability is that of one of them times their number.
    """

    def __init__(self, learnt_tokens: int) -> None:
        super().__init__()
        self.learnt_embeddings = nn.Parameter(torch.randn(learnt_tokens, WIDTH) * 0.02)
        self.unknown_embedding = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.positional_embedding = nn.Parameter(torch.randn(TEXT_POSITIONS, WIDTH) * 0.01)
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(WIDTH, HEADS, cross_attention=True) for _ in range(LAYERS)
        )
        self.ln = nn.LayerNorm(WIDTH)
        mask = torch.full((TEXT_POSITIONS, TEXT_POSITIONS), float("-inf")).triu_(1)
        self.register_buffer("mask", mask, persistent=False)
        self.log_unknown_count = math.log(VOCABULARY_SIZE - learnt_tokens)

    def forward(self, indices: Tensor, audio: Tensor) -> Tensor:
        """Return logits (batch, positions, learnt tokens + 1) for indices (batch, positions)."""
        hidden = self.learnt_embeddings[indices] + self.positional_embedding[: indices.shape[1]]
        for block in self.blocks:
            hidden = block(hidden, audio, mask=self.mask)
        hidden = self.ln(hidden)
        unknown = (hidden @ self.unknown_embedding)[..., None] + self.log_unknown_count
        return torch.cat([hidden @ self.learnt_embeddings.T, unknown], -1)


class DemoWhisper(nn.Module):
    """The whole network."""

    def __init__(self, learnt_tokens: int) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder(learnt_tokens)

    def forward(self, mel: Tensor, indices: Tensor) -> Tensor:
        """Return the decoder's logits."""
        return self.decoder(indices, self.encoder(mel))


def save_checkpoint(model: DemoWhisper, vocabulary: Vocabulary, path: Path) -> None:
    """Write the weights with the tokens they belong to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": model.state_dict(), "tokens": vocabulary.tokens}, path)


def load_checkpoint(path: Path) -> tuple[DemoWhisper, Vocabulary]:
    """Read what `save_checkpoint` wrote."""
    checkpoint = torch.load(path, weights_only=True)
    vocabulary = Vocabulary(checkpoint["tokens"])
    model = DemoWhisper(len(vocabulary))
    model.load_state_dict(checkpoint["weights"])
    return model, vocabulary
