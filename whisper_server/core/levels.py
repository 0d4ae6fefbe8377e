"""How loud a recording is."""

import math
from dataclasses import dataclass

import numpy as np

from whisper_server.core.recording import Recording

_BLOCK_SAMPLES = 1 << 16


@dataclass(frozen=True, slots=True)
class Levels:
    """Loudness in dB against full scale, where a sample of 1.0 is 0; None for silence, which has none.

    Attributes:
        peak_dbfs: of the largest sample.
        rms_dbfs: of the root of the mean square over the whole recording; a full-scale sine has -3.01.
    """

    peak_dbfs: float | None
    rms_dbfs: float | None


def levels(recording: Recording) -> Levels:
    """Measure a recording, a block at a time."""
    peak, energy = 0.0, 0.0
    for start in range(0, len(recording), _BLOCK_SAMPLES):
        block = recording.read(start, start + _BLOCK_SAMPLES)
        peak = max(peak, float(np.abs(block).max()))
        energy += float(np.dot(block, block))
    if not peak:
        return Levels(None, None)
    return Levels(20 * math.log10(peak), 10 * math.log10(energy / len(recording)))
