"""What the sessions of a load test say: one recording, decoded once and shared by all of them."""

import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whisper_server.core.errors import ConfigurationError, InvalidAudioError
from whisper_server.core.types import SAMPLE_RATE, Pcm16
from whisper_server.demo import SAMPLES_PATH
from whisper_server.services.audio_decoding import decode_pcm

DEFAULT_SAMPLE = "kitchen_en.wav"

_MAX_AUDIO_S = 4 * 3600.0
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Speech:
    """A recording.

    Attributes:
        name: of the file.
        pcm: shape (n,), int16, 16 kHz.
        text: what is said in it; None where that is not known.
    """

    name: str
    pcm: Pcm16
    text: str | None

    @property
    def duration_s(self) -> float:
        """Its length."""
        return len(self.pcm) / SAMPLE_RATE

    def chunks(self, chunk_ms: int, rate_hz: int = SAMPLE_RATE) -> list[bytes]:
        """Signed 16-bit little-endian samples at `rate_hz`, cut every `chunk_ms`; the last may be shorter."""
        pcm = self.pcm if rate_hz == SAMPLE_RATE else _resampled(self.pcm, rate_hz)
        data = pcm.astype("<i2", copy=False).tobytes()
        size = rate_hz * chunk_ms // 1000 * 2
        return [data[start : start + size] for start in range(0, len(data), size)]


def load_speech(name: str, text: str | None = None) -> Speech:
    """Decode a recording.

    Args:
        name: path of a file, or the name of a bundled sample.
        text: what is said in it; None takes the known text of a bundled sample.

    Raises:
        ConfigurationError: there is no such file, or no audio in it.
    """
    known = {
        sample["file"]: " ".join(segment["text"] for segment in sample["segments"])
        for sample in json.loads((SAMPLES_PATH / "samples.json").read_text(encoding="utf-8"))
    }
    path = Path(name)
    if not path.exists() and name in known:
        path = SAMPLES_PATH / name
    if text is None and path.parent.resolve() == SAMPLES_PATH.resolve():
        text = known.get(path.name)
    try:
        with path.open("rb") as file:
            pcm = decode_pcm(file, max_audio_s=_MAX_AUDIO_S, stop=threading.Event())
    except OSError as error:
        raise ConfigurationError(
            f"--audio '{name}' cannot be read: {error.strerror or type(error).__name__}. "
            f"Name a file, or one of the bundled {', '.join(known)}."
        ) from error
    except InvalidAudioError as error:
        raise ConfigurationError(f"--audio '{name}': {error.message}") from error
    return Speech(path.name, pcm, text)


def same_words(text: str, other: str) -> bool:
    """Whether two texts have the same words in the same order; case and punctuation do not count."""
    return _WORD.findall(text.casefold()) == _WORD.findall(other.casefold())


def _resampled(pcm: Pcm16, rate_hz: int) -> Pcm16:
    import soxr

    samples: Pcm16 = np.asarray(soxr.resample(pcm, SAMPLE_RATE, rate_hz), dtype=np.int16)
    return samples
