"""The header of a WAV file that is still being written: where its samples begin, and what they are.

FFmpeg looks at 2 s of a WAV before it gives out the first sample; this reads the header alone.
Source: Multimedia Programming Interface and Data Specifications 1.0 (RIFF), and `mmreg.h` for the tags.
"""

import struct
from dataclasses import dataclass
from typing import Final

from whisper_server.services.pcm_input import PcmFormat

MAX_HEADER_BYTES: Final = 1 << 20

_CHUNK_BYTES: Final = 8
_RIFF_BYTES: Final = 12
_FORMAT_BYTES: Final = 16
_EXTENSIBLE: Final = 0xFFFE
_SUBFORMAT_OFFSET: Final = 24

_ENDLESS: Final = 0x7FFF_0000
"""Programs that cannot know the length write 0, or at least this: 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFFF."""

_FORMATS: Final = {(1, 16): PcmFormat.S16LE, (6, 8): PcmFormat.PCMA, (7, 8): PcmFormat.PCMU}
"""By tag and bits per sample."""


@dataclass(frozen=True, slots=True)
class WavHeader:
    """What a header says.

    Attributes:
        size_bytes: of the header; the samples follow.
        format: of a sample; None where it is none that is read here.
        rate_hz: samples per second and channel.
        channels: how many.
        data_bytes: of all samples; None where the header does not know.
    """

    size_bytes: int
    format: PcmFormat | None
    rate_hz: int
    channels: int
    data_bytes: int | None


def is_wav(head: bytes) -> bool:
    """Whether a file begins like a WAV; 12 bytes tell."""
    return head[:4] == b"RIFF" and head[8:_RIFF_BYTES] == b"WAVE"


def read_wav_header(head: bytes) -> WavHeader | None:
    """The header, or None where it is not all there yet.

    Raises:
        ValueError: there is no format before the samples.
    """
    position, format_chunk = _RIFF_BYTES, b""
    while position + _CHUNK_BYTES <= len(head):
        name = head[position : position + 4]
        (size,) = struct.unpack_from("<I", head, position + 4)
        position += _CHUNK_BYTES
        if name == b"data":
            return _header(position, format_chunk, size)
        end = position + size
        if name == b"fmt ":
            if end > len(head):
                return None
            format_chunk = head[position:end]
        position = end + size % 2
    return None


def _header(size_bytes: int, chunk: bytes, data_bytes: int) -> WavHeader:
    if len(chunk) < _FORMAT_BYTES:
        raise ValueError("a WAV without a format chunk")
    tag, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= _SUBFORMAT_OFFSET + 2:
        (tag,) = struct.unpack_from("<H", chunk, _SUBFORMAT_OFFSET)
    is_endless = data_bytes == 0 or data_bytes >= _ENDLESS
    return WavHeader(
        size_bytes, _FORMATS.get((tag, bits)), rate_hz, channels, None if is_endless else data_bytes
    )
