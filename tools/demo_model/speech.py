"""Speech with word start times, from espeak-ng through its C library.

Source of the calls and numbers: `espeak-ng/speak_lib.h`.
"""

import ctypes
from ctypes import c_char_p, c_int, c_short, c_uint, c_uint64, c_void_p
from typing import Any, NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of all speech made here, Hz."""

LIBRARY = "libespeak-ng.so.1"

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3
_POSITION_CHARACTER = 1
_TEXT_IS_UTF8 = 1
_EVENT_LIST_END = 0
_EVENT_WORD = 1


class WordStart(NamedTuple):
    """Where a word begins: its offset in the text, and seconds from the start of the audio."""

    char: int
    start_s: float


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", c_int),
        ("unique_identifier", c_uint),
        ("text_position", c_int),
        ("length", c_int),
        ("audio_position", c_int),
        ("sample", c_int),
        ("user_data", c_void_p),
        ("id", c_uint64),
    )


_Callback = ctypes.CFUNCTYPE(c_int, ctypes.POINTER(c_short), c_int, ctypes.POINTER(_Event))


class Synthesizer:
    """espeak-ng as a function from text to samples.

    The C library keeps one global state: use one instance per process, from one thread.
    Raises OSError when the library is not installed (Debian: `apt install espeak-ng`).
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.espeak_SetVoiceByName.argtypes = [c_char_p]
        self._source_rate = self._library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, None, 0)
        if self._source_rate <= 0:
            raise OSError("espeak-ng does not start. Check that its data files are installed.")
        # Breathy voices take noise from C's rand(), which others in the process may have drawn from.
        ctypes.CDLL(None).srand(1)
        self._chunks: list[NDArray[np.int16]] = []
        self._words: list[WordStart] = []
        self._callback = _Callback(self._receive)  # kept: the library holds only a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(
        self, text: str, voice: str, words_per_minute: int, pitch: int
    ) -> tuple[NDArray[np.float32], list[WordStart]]:
        """Speak `text` and return mono samples in [-1, 1] at `SAMPLE_RATE`, with the start of each word.

        `voice` is an espeak-ng voice with an optional variant, such as "en-us+f2"; `pitch` is 0 to 99.
        Raises ValueError when the voice is unknown, RuntimeError when the synthesis fails.
        """
        self._chunks.clear()
        self._words.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}.")
        self._library.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
        content = text.encode() + b"\0"
        failed = self._library.espeak_Synth(
            content, len(content), 0, _POSITION_CHARACTER, 0, _TEXT_IS_UTF8, None, None
        )
        if failed or self._library.espeak_Synchronize():
            raise RuntimeError(f"espeak-ng cannot speak {text!r}.")
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768
        return soxr.resample(samples, self._source_rate, SAMPLE_RATE), list(self._words)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        """Take one chunk from the library; 0 asks it to go on."""
        if count > 0 and samples:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_END:
            event = events[index]
            if event.type == _EVENT_WORD:  # positions count from 1
                self._words.append(WordStart(event.text_position - 1, event.sample / self._source_rate))
            index += 1
        return 0
