"""The steps of a call to CTranslate2: windows through its encoder, then what it makes of the encodings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whisper_server.core.audio_context import encoder_frames
from whisper_server.core.mel import batch_log_mel
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import Window
from whisper_server.engines.worker_turns import WorkerTurns

if TYPE_CHECKING:
    from ctranslate2 import StorageView
    from ctranslate2.models import Whisper, WhisperGenerationResult


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """What one call of the encoder gave, and which rows of the batch that is."""

    encoded: "StorageView"
    rows: list[int]


class Encoder:
    """The encoder of a loaded model. Thread-safe.

    Args:
        whisper: the model.
        turns: of its workers.
        in_batches: windows of one length are encoded in one call, as GPUs like it. A CPU gains nothing from
            that and loses where the attention no longer fits its cache: there each window has its own call.
    """

    def __init__(self, whisper: "Whisper", turns: WorkerTurns, *, in_batches: bool) -> None:
        self._whisper = whisper
        self._turns = turns
        self._in_batches = in_batches

    def encode(self, windows: Sequence[Window], priority: Priority) -> "Encodings":
        """Encode each window once, for language detection, all temperatures and alignment."""
        chunks = [
            Chunk(self._encode([windows[row] for row in rows], priority), rows)
            for rows in self._calls(windows)
        ]
        return Encodings(self._whisper, self._turns, priority, chunks)

    def _calls(self, windows: Sequence[Window]) -> list[list[int]]:
        """Which rows are encoded in one call."""
        if not self._in_batches:
            return [[row] for row in range(len(windows))]
        by_frames: dict[int, list[int]] = {}
        for row, window in enumerate(windows):
            by_frames.setdefault(encoder_frames(window), []).append(row)
        return list(by_frames.values())

    def _encode(self, windows: Sequence[Window], priority: Priority) -> "StorageView":
        """Encode windows of one length in one call."""
        from ctranslate2 import StorageView

        features = batch_log_mel(windows, self._whisper.n_mels, encoder_frames(windows[0]))
        # Several GPUs: the next call may land on another one, so the encoding waits in host memory.
        to_cpu = self._whisper.device == "cuda" and len(self._whisper.device_index) > 1
        with self._turns.turn(priority):
            return self._whisper.encode(StorageView.from_array(features), to_cpu=to_cpu)


class Encodings:
    """The encoded windows of one call, by their row in it, and what the model makes of them.

    Args:
        whisper: the model.
        turns: of its workers.
        priority: of the call.
        chunks: the encodings.
    """

    def __init__(
        self, whisper: "Whisper", turns: WorkerTurns, priority: Priority, chunks: Sequence[Chunk]
    ) -> None:
        self._whisper = whisper
        self._turns = turns
        self._priority = priority
        self._chunk_of = {row: chunk for chunk in chunks for row in chunk.rows}

    def as_encoded(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows in the groups in which they were encoded.

        Language detection and alignment spend their time on the projection of each encoding: where the
        encoder gains nothing from batches, neither do they.
        """
        groups: dict[int, list[int]] = {}
        for row in rows:
            groups.setdefault(id(self._chunk_of[row]), []).append(row)
        return list(groups.values())

    def detect_language(self, rows: Sequence[int]) -> list[list[tuple[str, float]]]:
        """`Whisper.detect_language` of rows of one length."""
        encoded = self.take(rows)
        with self._turns.turn(self._priority):
            detected: list[list[tuple[str, float]]] = self._whisper.detect_language(encoded)
        return detected

    def generate(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], **options: Any
    ) -> "list[WhisperGenerationResult]":
        """`Whisper.generate` of rows of one length, with a prompt each."""
        encoded = self.take(rows)
        with self._turns.turn(self._priority):
            generated: list[WhisperGenerationResult] = self._whisper.generate(encoded, prompts, **options)
        return generated

    def align(
        self,
        rows: Sequence[int],
        start_sequence: Sequence[int],
        text_tokens: Sequence[Sequence[int]],
        frames: Sequence[int],
    ) -> list[Any]:
        """`Whisper.align` of rows of one length, with their text and the length of their audio each."""
        encoded = self.take(rows)
        with self._turns.turn(self._priority):
            aligned: list[Any] = self._whisper.align(encoded, start_sequence, text_tokens, frames)
        return aligned

    def take(self, rows: Sequence[int]) -> "StorageView":
        """Rows of one length as one batch: as they were encoded, or else put together in host memory."""
        from ctranslate2 import StorageView

        first = self._chunk_of[rows[0]]
        if first.rows == list(rows):
            return first.encoded
        arrays = {id(chunk): _on_host(chunk.encoded) for chunk in {self._chunk_of[row] for row in rows}}
        chosen = [(self._chunk_of[row], row) for row in rows]
        return StorageView.from_array(
            np.stack([arrays[id(chunk)][chunk.rows.index(row)] for chunk, row in chosen])
        )


def _on_host(encoded: "StorageView") -> NDArray[Any]:
    from ctranslate2 import DataType, Device

    on_host = encoded if encoded.device == "cpu" else encoded.to_device(Device.cpu)
    if on_host.dtype == DataType.bfloat16:  # numpy has none; the decoder turns them back unchanged
        on_host = on_host.to(DataType.float32)
    return np.asarray(on_host)
