"""Train the network: `python -m tools.demo_model.train --help`. README.md has the bundled model's stages."""

import argparse
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.demo_model import utterances
from tools.demo_model.evaluation import word_error_rate
from tools.demo_model.model import DemoWhisper, load_checkpoint, log_mel, save_checkpoint
from tools.demo_model.utterances import Utterance
from tools.demo_model.vocabulary import Vocabulary, WhisperTokens
from tools.demo_model.windows import Window, WindowMaker

SEED = 0
IGNORED = -100
"""Marks a target that is no part of the loss, as in torch's cross entropy."""

WARM_UP_STEPS = 100
PRINT_STEPS = 50
EVALUATION_S = 240
GRADIENT_NORM = 1.0
MIXED_SHARES = (0.15, 0.2, 0.65)


class Stage(NamedTuple):
    """A stretch of training; a `window_s` of 0 mixes windows of 5, 12 and 30 s."""

    minutes: float
    window_s: int
    batch_size: int
    first_rate: float
    last_rate: float

    def draw_batch(self, rng: random.Random) -> tuple[int, int]:
        """Return the next batch's window length in seconds and its size."""
        if self.window_s:
            return self.window_s, self.batch_size
        return rng.choices(((5, 40), (12, 20), (30, self.batch_size)), MIXED_SHARES)[0]

    def learning_rate(self, done: float) -> float:
        """Return the rate, on half a cosine, after the fraction `done` of the stage."""
        return self.last_rate + (self.first_rate - self.last_rate) * 0.5 * (1 + math.cos(math.pi * done))


class Batch(NamedTuple):
    """Spectrograms (batch, mels, frames); token and target indices (batch, positions)."""

    mel: Tensor
    indices: Tensor
    targets: Tensor


def collate(windows: Sequence[Window], vocabulary: Vocabulary) -> Batch:
    """Pad windows of one length to a batch."""
    positions = max(len(window.tokens) for window in windows)
    indices = torch.zeros(len(windows), positions, dtype=torch.long)
    targets = torch.full((len(windows), positions), IGNORED)
    for row, window in enumerate(windows):
        index = vocabulary.index
        indices[row, : len(window.tokens)] = torch.tensor([index[token] for token in window.tokens])
        targets[row, : len(window.targets)] = torch.tensor(
            [IGNORED if target is None else index[target] for target in window.targets]
        )
    samples = torch.from_numpy(np.stack([window.samples for window in windows]))
    return Batch(log_mel(samples), indices, targets)


class Trainer:
    """One run of training, over one or more stages."""

    def __init__(
        self,
        model: DemoWhisper,
        vocabulary: Vocabulary,
        tokens: WhisperTokens,
        training: Sequence[Utterance],
        held_out: Sequence[Utterance],
        checkpoint: Path,
        use_bfloat16: bool,
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._held_out = held_out
        self._checkpoint = checkpoint
        self._use_bfloat16 = use_bfloat16
        self._rng = random.Random(SEED)
        self._windows = WindowMaker(training, tokens, self._rng, np.random.RandomState(SEED))
        self._optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
        self._steps = 0
        self._mean_loss: float | None = None

    def run(self, stage: Stage) -> None:
        """Train for the stage's minutes; save and evaluate on the way and at the end."""
        start_s = evaluated_s = time.monotonic()
        self._mean_loss = None
        while (elapsed_s := time.monotonic() - start_s) < stage.minutes * 60:
            rate = stage.learning_rate(elapsed_s / (stage.minutes * 60))
            loss = self.step(stage, rate)
            self._mean_loss = loss if self._mean_loss is None else 0.98 * self._mean_loss + 0.02 * loss
            if self._steps % PRINT_STEPS == 0:
                print(
                    f"step {self._steps}, {elapsed_s:.0f} s: loss {self._mean_loss:.3f}, rate {rate:.2e}",
                    flush=True,
                )
            if time.monotonic() - evaluated_s > EVALUATION_S:
                evaluated_s = time.monotonic()
                self._save_and_evaluate()
        self._save_and_evaluate()

    def step(self, stage: Stage, rate: float) -> float:
        """Learn from one batch and return its loss. The first steps of a run go at a lower rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * min(1, (self._steps + 1) / WARM_UP_STEPS)
        window_s, batch_size = stage.draw_batch(self._rng)
        batch = collate([self._windows.draw(window_s) for _ in range(batch_size)], self._vocabulary)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._use_bfloat16):
            logits = self._model(batch.mel, batch.indices)
        loss = functional.cross_entropy(
            logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED
        )
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), GRADIENT_NORM)
        self._optimizer.step()
        self._steps += 1
        return loss.item()

    def _save_and_evaluate(self) -> None:
        save_checkpoint(self._model, self._vocabulary, self._checkpoint)
        short = word_error_rate(self._model, self._vocabulary, self._tokens, self._held_out)
        full = word_error_rate(self._model, self._vocabulary, self._tokens, self._held_out, 30, 24)
        print(f"word error rate: {short:.3f} in windows of 5 s, {full:.3f} of 30 s", flush=True)


def stage_argument(text: str) -> Stage:
    """Read a stage from the command line."""
    minutes, window_s, batch_size, first_rate, last_rate = text.split(",")
    return Stage(float(minutes), int(window_s), int(batch_size), float(first_rate), float(last_rate))


def load_all(paths: Sequence[Path]) -> list[Utterance]:
    """Read several files of utterances, in order."""
    return [utterance for path in paths for utterance in utterances.load(path)]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_model.train", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="utterances to learn from")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="utterances to evaluate on")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to write, every four minutes")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from, made with the same data")
    parser.add_argument(
        "--stage",
        type=stage_argument,
        action="append",
        required=True,
        metavar="MINUTES,WINDOW_S,BATCH,FIRST_RATE,LAST_RATE",
        help="may be given several times; a window of 0 s mixes 5, 12 and 30 s",
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="compute in bfloat16: faster where the CPU has it"
    )
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    return parser.parse_args()


def main() -> None:
    """Train from the command line."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    training, held_out = load_all(options.data), load_all(options.held_out)
    tokens = WhisperTokens()
    vocabulary = Vocabulary.of([*training, *held_out], tokens)
    model = DemoWhisper(len(vocabulary))
    if options.resume:
        model, resumed = load_checkpoint(options.resume)
        if resumed.tokens != vocabulary.tokens:
            raise SystemExit("The checkpoint was made with other data: its vocabulary differs.")
    print(f"{len(vocabulary)} tokens, {sum(weights.numel() for weights in model.parameters())} weights")
    trainer = Trainer(model, vocabulary, tokens, training, held_out, options.checkpoint, options.bfloat16)
    for stage in options.stage:
        trainer.run(stage)


if __name__ == "__main__":
    main()
