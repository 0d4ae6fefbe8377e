"""The bundled demo model and its sample recordings.

The model is a small Whisper trained on synthetic speech: a measuring stick and an offline demonstration.
On real speech it invents sentences. It is used only when asked for by its name, `demo`.
"""

from pathlib import Path
from typing import Final

MODEL_PATH: Final = Path(__file__).parent / "model"
"""A CTranslate2 folder."""

SAMPLES_PATH: Final = Path(__file__).parent / "samples"
"""Recordings, and `samples.json` with what is said in them."""
