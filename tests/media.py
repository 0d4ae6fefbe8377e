"""Media files made in memory, for tests of whatever takes an upload.

Signals are float32 in [-1, 1]: shape (n,) for mono, (n, channels) for more. Encoders pad and delay, so lossy
files give back a little more or less than went in.
"""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

Signal: TypeAlias = NDArray[np.float32]

_PICTURES_PER_SECOND = 5
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def tone(seconds: float, rate: int = 16_000, hz: float = 440.0, amplitude: float = 0.5) -> Signal:
    """A sine, shape (seconds * rate,)."""
    times_s = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * hz * times_s)).astype(np.float32)


def silence(seconds: float, rate: int = 16_000) -> Signal:
    """Zeros, shape (seconds * rate,); read-only, and without memory however long."""
    return np.broadcast_to(np.float32(0), round(seconds * rate))


def noise(seconds: float, rate: int = 16_000, amplitude: float = 0.5, seed: int = 0) -> Signal:
    """White noise, the same for the same seed, shape (seconds * rate,)."""
    uniform = np.random.default_rng(seed).uniform(-amplitude, amplitude, round(seconds * rate))
    return uniform.astype(np.float32)


def wav(samples: Signal, rate: int = 16_000, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    """A WAV file, or another container of libsndfile.

    Args:
        samples: floats beyond [-1, 1] are clipped, except with FLOAT and DOUBLE.
        rate: samples per second.
        subtype: libsndfile's name: PCM_U8, PCM_16, PCM_24, PCM_32, FLOAT, DOUBLE, ULAW, ALAW and more.
        container: libsndfile's name: WAV, WAVEX, RF64, AIFF, CAF, FLAC, OGG (with VORBIS) and more.
    """
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def wav_from_bytes(
    data: bytes, *, rate: int = 16_000, channels: int = 1, bits: int = 16, tag: int = 1
) -> bytes:
    """A WAV file with a 16-byte format chunk around `data`, however little sense it makes.

    Args:
        data: the sample bytes.
        rate: samples per second, up to 2**32 - 1.
        channels: up to 65535.
        bits: per sample.
        tag: 1 is PCM, 3 is float.
    """
    frame_bytes = channels * bits // 8
    bytes_per_s = rate * frame_bytes & 0xFFFF_FFFF
    header = struct.pack("<HHIIHH", tag, channels, rate, bytes_per_s, frame_bytes & 0xFFFF, bits)
    chunks = b"WAVEfmt " + struct.pack("<I", 16) + header + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def encode(
    samples: Signal,
    rate: int,
    container: str,
    codec: str,
    *,
    more_tracks: Sequence[Signal] = (),
    has_picture: bool = False,
    sample_format: str | None = None,
    bit_rate: int | None = None,
    frame_samples: int | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """A file made by FFmpeg.

    Args:
        samples: the first audio track.
        rate: samples per second; Opus takes 8000 to 48000 in steps, MP3 and AAC the usual ones.
        container: FFmpeg's muxer: mp3, adts, ipod (M4A), mp4, webm, matroska, ogg, flac, mpeg and more.
        codec: FFmpeg's encoder: libmp3lame, mp2, aac, alac, libopus, flac, pcm_s16le and more; for
            Vorbis see `wav`.
        more_tracks: audio tracks after the first, at the same rate.
        has_picture: add a video track of a grey picture.
        sample_format: FFmpeg's name; None takes the encoder's first. s32 makes 24-bit FLAC.
        bit_rate: bits per second; None leaves it to the encoder.
        frame_samples: samples per packet, with encoders that let one choose.
        container_options: FFmpeg's muxer options, such as {"movflags": "faststart"}.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=container_options or {}) as output:
        tracks = [samples, *more_tracks]
        streams = [output.add_stream(codec, rate=rate, layout=_LAYOUTS[_channels(t)]) for t in tracks]
        for stream in streams:
            assert isinstance(stream, av.AudioStream)
            if sample_format:
                stream.codec_context.format = av.AudioFormat(sample_format)
            if bit_rate:
                stream.codec_context.bit_rate = bit_rate
        if has_picture:
            _mux_picture(output, len(samples) / rate)
        for stream, track in zip(streams, tracks, strict=True):
            assert isinstance(stream, av.AudioStream)
            _mux_sound(output, stream, track, rate, frame_samples or rate)
    return file.getvalue()


def pictures(seconds: float, container: str = "mp4") -> bytes:
    """A film without sound."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        _mux_picture(output, seconds)
    return file.getvalue()


def _channels(samples: Signal) -> int:
    return 1 if samples.ndim == 1 else samples.shape[1]


def _mux_sound(output: Any, stream: av.AudioStream, samples: Signal, rate: int, step: int) -> None:
    columns = samples.reshape(len(samples), _channels(samples))
    for start in range(0, len(samples), step):
        part = np.ascontiguousarray(columns[start : start + step].T)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=_LAYOUTS[len(part)])
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def _mux_picture(output: Any, seconds: float) -> None:
    stream = output.add_stream("mpeg4", rate=_PICTURES_PER_SECOND)
    stream.width = stream.height = 32
    stream.pix_fmt = "yuv420p"
    for _ in range(max(1, round(seconds * _PICTURES_PER_SECOND))):
        picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        output.mux(stream.encode(picture))
    output.mux(stream.encode(None))
