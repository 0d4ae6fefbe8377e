"""Raw audio of live streams, in any of the formats they come in, to 16 kHz 16-bit mono.

The result does not depend on how the bytes are cut.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.types import SAMPLE_RATE, Pcm16

if TYPE_CHECKING:
    from soxr import ResampleStream

AudioBytes: TypeAlias = bytes | bytearray | memoryview

_LOWEST_RATE_HZ = 4_000
_HIGHEST_RATE_HZ = 192_000
_FULL_SCALE = 32768.0


class PcmFormat(StrEnum):
    """How a sample is written: signed 16-bit little-endian, or 8-bit G.711 by mu-law or A-law."""

    S16LE = "s16le"
    PCMU = "pcmu"
    PCMA = "pcma"


class PcmInput:
    """Converts one stream of mono audio. Not thread-safe; a second of audio takes about 0.3 ms.

    Args:
        format: of the samples.
        rate_hz: samples per second; G.711 is 8000 by convention, and any other rate is taken too.

    Raises:
        InvalidRequestError: the rate is below 4 or above 192 kHz.
    """

    def __init__(self, format: PcmFormat = PcmFormat.S16LE, rate_hz: int = SAMPLE_RATE) -> None:
        if not _LOWEST_RATE_HZ <= rate_hz <= _HIGHEST_RATE_HZ:
            raise InvalidRequestError(
                f"The sample rate must be between {_LOWEST_RATE_HZ} and {_HIGHEST_RATE_HZ} Hz.",
                param="sample_rate",
                code="invalid_value",
            )
        self._samples = _READERS[format]
        self._sample_bytes = 2 if format is PcmFormat.S16LE else 1
        self._rate_hz = rate_hz
        self._rest = b""
        self._resampler = self._new_resampler()

    def feed(self, audio: AudioBytes, *, gather_s: float = 0.0) -> Pcm16:
        """The samples that can be told so far. Half a sample waits for its other half.

        Args:
            audio: the next bytes.
            gather_s: less audio than this waits for more, since each conversion costs 30 µs.
        """
        if self.gather(audio, gather_s):
            return np.empty(0, dtype=np.int16)
        data = self._rest + bytes(audio)
        whole = len(data) - len(data) % self._sample_bytes
        self._rest = data[whole:]
        return self._resampled(self._samples(data[:whole]), is_last=False)

    def gather(self, audio: AudioBytes, gather_s: float) -> bool:
        """Keep the next bytes for later if all that waits is still less than this; false takes nothing."""
        if len(self._rest) + len(audio) >= gather_s * self._rate_hz * self._sample_bytes:
            return False
        self._rest += audio
        return True

    def flush(self) -> Pcm16:
        """What waits and what the resampler holds; half a sample is dropped. Then a new stream may follow."""
        whole = len(self._rest) - len(self._rest) % self._sample_bytes
        rest, self._rest = self._rest[:whole], b""
        tail = self._resampled(self._samples(rest), is_last=True)
        self._resampler = self._new_resampler()
        return tail

    def _new_resampler(self) -> "ResampleStream | None":
        if self._rate_hz == SAMPLE_RATE:
            return None
        from soxr import ResampleStream

        return ResampleStream(self._rate_hz, SAMPLE_RATE, 1, dtype="float32")

    def _resampled(self, samples: Pcm16, *, is_last: bool) -> Pcm16:
        if self._resampler is None:
            return samples
        # In float32, since soxr dithers 16-bit output: the same audio would not give the same samples.
        output = self._resampler.resample_chunk(samples.astype(np.float32), last=is_last)
        pcm: Pcm16 = np.clip(np.rint(output), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
        return pcm


def _from_s16le(data: bytes) -> Pcm16:
    return np.frombuffer(data, dtype="<i2").astype(np.int16, copy=False)


def _from_pcmu(data: bytes) -> Pcm16:
    return _MU_LAW[np.frombuffer(data, dtype=np.uint8)]


def _from_pcma(data: bytes) -> Pcm16:
    return _A_LAW[np.frombuffer(data, dtype=np.uint8)]


def _mu_law_table() -> Pcm16:
    """Source: ITU-T G.711, table 2; 14-bit values scaled to 16."""
    codes: NDArray[np.int32] = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = ((((codes & 0x0F) << 3) + 0x84) << ((codes & 0x70) >> 4)) - 0x84
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_law_table() -> Pcm16:
    """Source: ITU-T G.711, table 1; 13-bit values scaled to 16."""
    codes: NDArray[np.int32] = np.arange(256, dtype=np.int32) ^ 0x55
    exponent = (codes & 0x70) >> 4
    mantissa = ((codes & 0x0F) << 4) + 8
    magnitude = np.where(exponent == 0, mantissa, (mantissa + 0x100) << np.maximum(exponent - 1, 0))
    return np.where(codes & 0x80, magnitude, -magnitude).astype(np.int16)


_MU_LAW = _mu_law_table()
_A_LAW = _a_law_table()

_READERS: dict[PcmFormat, Callable[[bytes], Pcm16]] = {
    PcmFormat.S16LE: _from_s16le,
    PcmFormat.PCMU: _from_pcmu,
    PcmFormat.PCMA: _from_pcma,
}
