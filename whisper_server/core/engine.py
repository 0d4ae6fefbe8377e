"""The seam between the server and whatever turns audio into text.

Engines are synchronous; services own the threads. An engine that cannot do what a window asks raises
`UnsupportedByEngineError`: it never falls back to something else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from whisper_server.core.scheduling import Priority
from whisper_server.core.types import Decoded, LanguageProbabilities, Samples, Window


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine with its loaded model can do.

    Attributes:
        engine: the engine's name, such as `faster-whisper`.
        device: where it computes: `cpu`, `cuda`, `mps`.
        compute_type: number format of the weights in use, such as `int8`.
        languages: ISO 639-1 codes it can transcribe.
        translation: it can translate to English.
        word_timestamps: it can time words.
        hotwords: it honours `DecodeOptions.hotwords`.
        mel_bins: height of its spectrogram, where it honours `Window.mel_peak` and margins; else None.
        parallel_calls: how many threads may call `decode` at once with profit.
        max_batch: how many windows one call to `decode` may bring with profit.
        weights_bytes: size of the loaded weights.
        overtaking_calls: how many more may, each for what is more urgent than all that runs. An engine that
            takes one call in all need not be thread-safe.
    """

    engine: str
    device: str
    compute_type: str
    languages: frozenset[str]
    translation: bool
    word_timestamps: bool
    hotwords: bool
    mel_bins: int | None
    parallel_calls: int
    max_batch: int
    weights_bytes: int
    overtaking_calls: int = 0

    @property
    def most_calls(self) -> int:
        """How many calls run at once at most."""
        return self.parallel_calls + self.overtaking_calls

    @property
    def is_multilingual(self) -> bool:
        """Whether there is a language to detect."""
        return len(self.languages) > 1


class Engine(Protocol):
    """One loaded model."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; constant while it is loaded."""

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        """Decode each window; the results are in the order of the windows.

        Args:
            windows: to decode.
            priority: beside calls that are more patient this one is computed first, where the engine can.

        Raises:
            UnsupportedByEngineError: a window asks for what the engine cannot do.
            InvalidRequestError: a window's options contradict the model, such as a prompt that
                leaves no room for `max_new_tokens`.
            EngineOutOfMemoryError: the device cannot hold so many windows at once.
            EngineCrashedError: the process that ran the call has died.
        """

    def detect_language(
        self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
    ) -> list[LanguageProbabilities]:
        """The probabilities of all languages for each window, most likely first."""

    def wait_until_ready(self) -> None:
        """Block while the engine takes no calls, such as while it is started anew after a crash.

        Raises:
            EngineCrashedError: it cannot be started.
        """

    def abort(self) -> bool:
        """Give up the calls that run now, which never returned in time.

        Returns:
            Whether the engine can be used on; if not, it must be replaced, and is never closed.
        """

    def close(self) -> None:
        """Give back the model's memory; no call may follow. Closing twice is harmless."""


@dataclass(frozen=True, slots=True)
class ComputeChoice:
    """Where and how a model computes.

    Attributes:
        engine: `faster-whisper` or another registered engine.
        device: `cpu`, `cuda` or `mps`.
        compute_type: CTranslate2's name of the number format, such as `int8` or `float16`.
        cpu_threads: threads of one worker.
        workers: calls that run in parallel on the same weights.
        device_index: which GPU.
        cores: whole cores of the CPU that all calls share, or 0 where nobody has counted them.
    """

    engine: str
    device: str
    compute_type: str
    cpu_threads: int
    workers: int
    device_index: int = 0
    cores: int = 0


EngineLoader = Callable[[Path, ComputeChoice], Engine]
"""Load the model in a folder. Blocking. Raises `ModelLoadError`."""


class VoiceDetector(Protocol):
    """Tells speech from silence, a block at a time; one per recording or stream, not thread-safe."""

    def probabilities(self, samples: Samples) -> Samples:
        """The speech probability of each 512-sample block, shape (len(samples) // 512,).

        `len(samples)` is a multiple of 512. Blocks follow those of the call before.
        """


VoiceDetectorFactory = Callable[[], VoiceDetector]
