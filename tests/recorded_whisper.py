"""The faster-whisper engine on a real model whose calls to CTranslate2 are noted, or fail when told to."""

import threading
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from faster_whisper import WhisperModel

from whisper_server.core.engine import ComputeChoice
from whisper_server.engines.faster_whisper import FasterWhisperEngine

_WAIT_S = 60.0


class Call(NamedTuple):
    """One call to CTranslate2: the method, and the batch it was given."""

    method: str
    rows: int
    frames: int


class RecordedWhisper:
    """Passes everything on to a `ctranslate2.models.Whisper`.

    Attributes:
        calls: the calls since they were last cleared.
        fault: raised by the next `generate`.
        holds: what each `generate` still to come waits for before it begins, the next one first.
    """

    def __init__(self, whisper: Any) -> None:
        self._whisper = whisper
        self.calls: list[Call] = []
        self.fault: BaseException | None = None
        self.holds: deque[threading.Event] = deque()
        self._held = threading.Condition()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whisper, name)

    def encode(self, features: Any, **options: Any) -> Any:
        self.calls.append(Call("encode", features.shape[0], features.shape[2]))
        return self._whisper.encode(features, **options)

    def generate(self, encoded: Any, prompts: list[list[int]], **options: Any) -> Any:
        self._note("generate", encoded)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        with self._held:
            hold = self.holds.popleft() if self.holds else None
            self._held.notify_all()
        assert hold is None or hold.wait(_WAIT_S)
        return self._whisper.generate(encoded, prompts, **options)

    def detect_language(self, encoded: Any) -> Any:
        self._note("detect_language", encoded)
        return self._whisper.detect_language(encoded)

    def align(self, encoded: Any, *arguments: Any) -> Any:
        self._note("align", encoded)
        return self._whisper.align(encoded, *arguments)

    def wait_until_held(self, *, to_come: int = 0) -> None:
        """Wait until a `generate` waits for each of `holds` but these."""
        with self._held:
            assert self._held.wait_for(lambda: len(self.holds) <= to_come, _WAIT_S)

    def of(self, method: str) -> list[Call]:
        """The calls of one method."""
        return [call for call in self.calls if call.method == method]

    def _note(self, method: str, encoded: Any) -> None:
        rows, steps, _ = encoded.shape
        self.calls.append(Call(method, rows, steps * 2))


def recorded_engine(
    folder: Path, *, compute_type: str = "int8", as_if_on: str = "cpu", cores: int = 0
) -> tuple[FasterWhisperEngine, RecordedWhisper]:
    """An engine on the CPU, and its calls.

    Args:
        folder: the model.
        compute_type: CTranslate2's number format.
        as_if_on: whose way of batching the engine takes: `cpu` or `cuda`.
        cores: that its calls share, if they are to.
    """
    model = WhisperModel(str(folder), device="cpu", compute_type=compute_type, cpu_threads=1)
    recorded = RecordedWhisper(model.model)
    model.model = recorded
    compute = ComputeChoice("faster-whisper", as_if_on, compute_type, cpu_threads=1, workers=1, cores=cores)
    return FasterWhisperEngine(model, compute, weights_bytes=1), recorded
