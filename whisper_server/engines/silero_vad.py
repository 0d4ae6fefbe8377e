"""The Silero voice detector from faster-whisper's wheel, fed a piece at a time.

The network looks at 512 new samples after 64 old ones and carries its state from block to block, so pieces of
any length give what the whole recording at once would give.
"""

import threading
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whisper_server.core.types import Samples

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_BLOCK_SAMPLES = 512
_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (1, 1, 128)

_loading = threading.Lock()


class SileroVad:
    """One recording's or stream's detector, see `core.engine.VoiceDetector`. The network itself is shared."""

    def __init__(self) -> None:
        with _loading:
            self._session = _session()
        self.reset()

    def reset(self) -> None:
        """Forget what was heard, as if it were new."""
        self._context: NDArray[np.float32] = np.zeros(_CONTEXT_SAMPLES, dtype=np.float32)
        self._hidden: NDArray[np.float32] = np.zeros(_STATE_SHAPE, dtype=np.float32)
        self._cell: NDArray[np.float32] = np.zeros(_STATE_SHAPE, dtype=np.float32)

    def probabilities(self, samples: Samples) -> Samples:
        """The speech probability of each 512-sample block; `len(samples)` is a multiple of 512."""
        if not len(samples):
            return np.empty(0, dtype=np.float32)
        blocks = samples.reshape(-1, _BLOCK_SAMPLES)
        contexts = np.vstack([self._context[None], blocks[:-1, -_CONTEXT_SAMPLES:]])
        output, self._hidden, self._cell = self._session.run(
            None, {"input": np.hstack([contexts, blocks]), "h": self._hidden, "c": self._cell}
        )
        self._context = blocks[-1, -_CONTEXT_SAMPLES:].copy()
        speech: Samples = np.asarray(output, dtype=np.float32).reshape(-1)
        return speech


@cache
def _session() -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread: a block takes 0.1 ms, and the cores belong to the model.
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        _package_folder("faster_whisper") / "assets" / "silero_vad_v6.onnx",
        options,
        providers=["CPUExecutionProvider"],
    )


def _package_folder(name: str) -> Path:
    """Where a package is, without importing it: CTranslate2 belongs into the processes of models alone."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed", name=name)
    return Path(spec.submodule_search_locations[0])
