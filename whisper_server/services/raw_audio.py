"""Samples without a container, of any rate, byte order and number of channels, to 16 kHz 16-bit mono."""

from typing import Final

import numpy as np

from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.types import SAMPLE_RATE, Pcm16
from whisper_server.services.pcm_input import AudioBytes, PcmFormat, PcmInput

MAX_CHANNELS: Final = 8


class RawAudio:
    """Converts one stream; several channels become their mean. Not thread-safe.

    The result does not depend on how the bytes are cut. A frame that is cut in two waits for its other half,
    across `flush` too, so that what follows stays in step.

    Args:
        format: of a sample.
        rate_hz: samples per second and channel.
        channels: how many, a sample of each in turn.
        is_big_endian: 16-bit samples have their high byte first.

    Raises:
        InvalidRequestError: the rate or the number of channels is out of range.
    """

    def __init__(
        self,
        format: PcmFormat = PcmFormat.S16LE,
        rate_hz: int = SAMPLE_RATE,
        channels: int = 1,
        *,
        is_big_endian: bool = False,
    ) -> None:
        if not 1 <= channels <= MAX_CHANNELS:
            raise InvalidRequestError(
                f"'channels' must be between 1 and {MAX_CHANNELS}.", param="channels", code="invalid_value"
            )
        self._channels = channels
        self._sample_bytes = 2 if format is PcmFormat.S16LE else 1
        self._is_swapped = is_big_endian and self._sample_bytes > 1
        # Before channels can be mixed their samples must be numbers; the mean is 16-bit whatever they were.
        self._expander = PcmInput(format) if channels > 1 and format is not PcmFormat.S16LE else None
        self._input = PcmInput(PcmFormat.S16LE if channels > 1 else format, rate_hz)
        self._rate_hz = rate_hz
        self._rest = b""

    def duration_s(self, size_bytes: int) -> float:
        """How long so many bytes last, seconds."""
        return size_bytes / (self._sample_bytes * self._channels * self._rate_hz)

    def feed(self, audio: AudioBytes) -> Pcm16:
        """The samples that can be told so far."""
        data = self._rest + bytes(audio) if self._rest else bytes(audio)
        whole = len(data) - len(data) % (self._sample_bytes * self._channels)
        self._rest = data[whole:]
        return self._input.feed(self._mixed(data[:whole]))

    def flush(self) -> Pcm16:
        """What the resampler still holds; then more may follow."""
        return self._input.flush()

    def _mixed(self, data: bytes) -> bytes:
        if self._is_swapped:
            data = np.frombuffer(data, dtype=">i2").astype("<i2").tobytes()
        if self._channels == 1:
            return data
        samples = np.frombuffer(data, dtype="<i2") if self._expander is None else self._expander.feed(data)
        mean = samples.reshape(-1, self._channels).mean(axis=1, dtype=np.float32)
        mixed: bytes = np.rint(mean).astype("<i2").tobytes()
        return mixed
