"""Any upload as 16-bit samples: the blocking part, on PyAV (FFmpeg).

An upload is hostile until it is decoded. So FFmpeg gets neither its name nor a way to open anything else,
may use only the containers and codecs listed here, and its errors become errors of the client's.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

import numpy as np

from whisper_server.core.errors import (
    AudioTooLongError,
    EmptyAudioError,
    InvalidAudioError,
    NoAudioStreamError,
    UnsupportedAudioFormatError,
    WhisperServerError,
)
from whisper_server.core.types import SAMPLE_RATE, Pcm16

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

SUPPORTED_FORMATS: Final = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")
"""What OpenAI's API names as supported, in its order; more is read than is named."""

# FFmpeg's names. None of these demuxers opens a second file or URL; playlists, which do, are not among them.
DEMUXERS: Final = "aac,aiff,amr,caf,flac,matroska,mov,mp3,mpeg,ogg,wav"

# Only sound: FFmpeg would otherwise run its video decoders too, to learn about a film's pictures.
DECODERS: Final = (
    "aac,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,eac3,flac,gsm,gsm_ms,mp1,mp1float,mp2,"
    "mp2float,mp3,mp3float,opus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,"
    "pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,speex,vorbis"
)

# How each container may begin: (offset, bytes). It tells a damaged file from one of another kind.
_SIGNATURES: Final = (
    *((0, mark) for mark in (b"ID3", b"fLaC", b"OggS", b"caff", b"#!AMR", b"\x1aE\xdf\xa3", b"\0\0\1\xba")),
    *((8, mark) for mark in (b"WAVE", b"AIFF", b"AIFC")),
    *((4, mark) for mark in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
)
_HEAD_BYTES: Final = 12

_PIECE_SAMPLES: Final = 16_384
"""Samples per channel resampled at once, at the upload's rate; the size does not change the result."""

_MAX_FRAME_SAMPLES: Final = 1 << 20
"""A packet that claims to hold more is refused: a few bytes could otherwise ask for gigabytes."""

MAX_FAILURES_IN_A_ROW: Final = 1000

SAMPLE_RATES_HZ: Final = range(1_000, 768_001)
"""Above, the resampler's filter grows without bound; below, a few bytes become minutes."""


DECODING_PIECE_S: Final = 30
"""Seconds of audio decoded, 1 MB, before somebody is asked whether there is room for more."""

_DECODING_PIECE_BYTES: Final = DECODING_PIECE_S * SAMPLE_RATE * 2


def decode_pcm(
    source: BinaryIO,
    *,
    max_audio_s: float,
    stop: threading.Event,
    on_decoded: Callable[[float], None] | None = None,
) -> Pcm16:
    """Decode the first audio stream to mono at `SAMPLE_RATE`; what kind of file it is, its content says.

    The samples equal those of `faster_whisper.decode_audio`, which converts the same way. Damaged parts
    are skipped: what can be decoded of a truncated file is decoded.

    Args:
        source: seekable; read from its start.
        max_audio_s: decoding ends with an error as soon as more seconds than this are decoded.
        stop: set from another thread, it makes this end soon, with a result or an error that means nothing.
        on_decoded: called after each `DECODING_PIECE_S` of audio with the seconds that are decoded by then.
            A `WhisperServerError` from it ends decoding.

    Returns:
        Shape (n,), dtype int16, writable; n > 0.

    Raises:
        EmptyAudioError: there are no bytes, or there is no sound in them.
        UnsupportedAudioFormatError: the container, the codec or the sample rate is none of those read here.
        NoAudioStreamError: there are only pictures or subtitles.
        InvalidAudioError: nothing can be decoded.
        AudioTooLongError: there is more than `max_audio_s`.
        WhisperServerError: from `on_decoded`.
        Exception: whatever `source` raises.
    """
    reader = _Reader(source, stop)
    head = reader.read(_HEAD_BYTES)
    reader.seek(0)
    try:
        pcm = _decode(reader, head, max_audio_s, on_decoded or _ignore)
    finally:
        # A failing source looks like a short file to FFmpeg; what it did with that does not matter.
        reader.check()
    return np.frombuffer(pcm, dtype=np.int16)


class StreamFacts(NamedTuple):
    """What a file says of itself and of its first audio stream.

    Attributes:
        container: FFmpeg's name, which may name several that it tells apart no further.
        codec: FFmpeg's name of the format, whichever decoder reads it.
        rate_hz: samples per second.
        channels: how many.
        bit_rate_bps: of the audio stream, or of the file where the stream has none; None where neither says.
    """

    container: str
    codec: str
    rate_hz: int
    channels: int
    bit_rate_bps: int | None


def read_facts(source: BinaryIO) -> StreamFacts:
    """Look into a file without decoding it whole; errors as `decode_pcm`, as far as they show there.

    Args:
        source: seekable; read from its start.
    """
    reader = _Reader(source, threading.Event())
    head = reader.read(_HEAD_BYTES)
    reader.seek(0)
    try:
        return _facts(reader, head)
    finally:
        reader.check()


class FrameShape(NamedTuple):
    """What a resampler is made for."""

    sample_format: str
    rate_hz: int
    layout: str
    channels: int


class _Reader:
    """What FFmpeg reads from: the source without its name, and without exceptions.

    PyAV keeps an exception that comes up inside FFmpeg for whatever call of the thread is next, which
    may be another upload's. So the reader keeps it instead and reports the end of the file.
    """

    def __init__(self, source: BinaryIO, stop: threading.Event) -> None:
        self._source = source
        self._failure: Exception | None = None
        self.stop = stop
        source.seek(0)

    def read(self, size: int) -> bytes:
        """The next bytes; none at the end, after a failure, and once it shall stop."""
        if self.stop.is_set() or self._failure:
            return b""
        try:
            return self._source.read(size)
        except Exception as error:  # kept for `check`, whatever it is
            self._failure = error
            return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new position, or a negative number: a damaged file may point anywhere."""
        try:
            return self._source.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1

    def tell(self) -> int:
        """The position; PyAV wants the method and does not call it."""
        return self._source.tell()

    def check(self) -> None:
        """Raise what the source raised."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure


def _facts(reader: _Reader, head: bytes) -> StreamFacts:
    container = _open(reader, head)
    try:
        with container:
            stream = audio_stream(container)
            context = stream.codec_context
            return StreamFacts(
                container=container.format.name,
                codec=context.codec.canonical_name,
                rate_hz=context.sample_rate,
                channels=context.layout.nb_channels,
                bit_rate_bps=stream.bit_rate or container.bit_rate or None,
            )
    except InvalidAudioError:
        raise
    except Exception as error:  # as in `_decode`
        raise _damaged() from error


def _ignore(_: float) -> None:
    """Nobody asks how far decoding has come."""


def _decode(
    reader: _Reader, head: bytes, max_audio_s: float, on_decoded: Callable[[float], None]
) -> bytearray:
    container = _open(reader, head)
    pcm = bytearray()
    told_bytes = 0
    try:
        with container:
            frames = _decoded(container, audio_stream(container), reader.stop)
            for frame in _resampled(_within(frames, max_audio_s)):
                pcm += memoryview(frame.planes[0])[: frame.samples * 2]
                if len(pcm) - told_bytes >= _DECODING_PIECE_BYTES:
                    told_bytes = len(pcm)
                    on_decoded(told_bytes / 2 / SAMPLE_RATE)
    except WhisperServerError:
        pcm.clear()  # the error leads to this frame, and may live for a while
        raise
    except Exception as error:  # PyAV raises a dozen kinds over damaged files, all for the same reason
        raise _damaged() from error
    if not pcm:
        raise EmptyAudioError(
            "The file has no sound in it. Send a recording.", param="file", code="empty_audio"
        )
    return pcm


def _open(reader: _Reader, head: bytes) -> "InputContainer":
    import av

    if not head:
        raise EmptyAudioError("The file is empty. Send a recording.", param="file", code="empty_audio")
    # Given to the container alone: with `options` for streams too, PyAV 13 crashes on MPEG films.
    options = {
        "format_whitelist": DEMUXERS,
        "codec_whitelist": DECODERS,
        "protocol_whitelist": "none",
        # FFmpeg searches the samples of a WAV for DTS, at ten times the cost of everything else.
        "max_probe_packets": "1",
    }
    try:
        return av.open(reader, mode="r", metadata_errors="ignore", container_options=options)
    except Exception as error:  # as in `_decode`
        raise (_damaged() if begins_like_media(head) else _unsupported()) from error


def audio_stream(container: "InputContainer") -> "AudioStream":
    """The first stream with sound, guarded against packets that claim to be huge.

    Raises:
        InvalidAudioError: there is none, or none that is decoded here.
    """
    if not len(container.streams):
        raise _damaged()
    if not container.streams.audio:
        raise NoAudioStreamError(
            "The file has no audio stream. Send a file with sound.", param="file", code="no_audio_stream"
        )
    stream = container.streams.audio[0]
    # An encrypted or unknown codec has no decoder and so no context, whatever PyAV's types say.
    context: object = stream.codec_context
    if context is None or stream.codec_context.name not in DECODERS.split(","):
        raise _unsupported()
    stream.codec_context.options = {"max_samples": str(_MAX_FRAME_SAMPLES)}
    return stream


def _decoded(
    container: "InputContainer", stream: "AudioStream", stop: threading.Event
) -> Iterator["AudioFrame"]:
    """The frames that can be decoded, until `stop`.

    Raises:
        InvalidAudioError: there are packets, or ought to be, and none can be decoded.
    """
    from av.error import FFmpegError

    failures = failures_in_a_row = 0
    has_frames = False
    # `InputContainer.decode` does the same, but ends at the first damaged packet.
    for packet in _packets(container, stream):
        if stop.is_set() or failures_in_a_row > MAX_FAILURES_IN_A_ROW:
            break
        try:
            frames = stream.codec_context.decode(packet)
        except FFmpegError:
            failures += 1
            failures_in_a_row += 1
            continue
        if frames:
            has_frames, failures_in_a_row = True, 0
            yield from frames
    # `stream.frames` is how many packets an MP4's index promises; 0 where a container does not say.
    if not has_frames and (failures or stream.frames):
        raise _damaged()


def _packets(container: "InputContainer", stream: "AudioStream") -> Iterator["Packet[AudioStream] | None"]:
    """The stream's packets, and last what flushes the decoder: an empty packet or None."""
    from av.error import FFmpegError

    try:
        yield from container.demux(stream)
    except FFmpegError:
        # The rest cannot be read; what came before it counts.
        yield None


def _within(frames: Iterable["AudioFrame"], max_audio_s: float) -> Iterator["AudioFrame"]:
    """The same frames, as long as they are no more than `max_audio_s` together."""
    earlier_s, samples, rate = 0.0, 0, 1
    for frame in frames:
        if frame.sample_rate not in SAMPLE_RATES_HZ:
            raise UnsupportedAudioFormatError(
                f"The audio has {frame.sample_rate} samples per second. Send it with 8000 to 192000.",
                param="file",
                code="unsupported_format",
            )
        if frame.sample_rate != rate:
            earlier_s, samples, rate = earlier_s + samples / rate, 0, frame.sample_rate
        samples += frame.samples
        if earlier_s + samples / rate > max_audio_s:
            raise AudioTooLongError(
                f"The audio is longer than {max_audio_s:.10g} seconds, the most this server takes. "
                "Send a shorter recording, or split it.",
                param="file",
                code="audio_too_long",
            )
        yield frame


def _resampled(frames: Iterable["AudioFrame"]) -> Iterator["AudioFrame"]:
    """Mono 16-bit frames at `SAMPLE_RATE`.

    Rate, layout and format may change anywhere, as in joined MP3s; each run has its own resampler.
    """
    for shape, run in itertools.groupby(frames, key=frame_shape):
        yield from _resampled_run(run, shape)


def frame_shape(frame: "AudioFrame") -> FrameShape:
    """What a resampler is made for."""
    return FrameShape(frame.format.name, frame.sample_rate, frame.layout.name, frame.layout.nb_channels)


def _resampled_run(frames: Iterable["AudioFrame"], shape: FrameShape) -> Iterator["AudioFrame"]:
    """The same for frames of one shape. Small frames are joined first: each resampler call has a price."""
    import av

    if shape.sample_format == "s16" and shape.rate_hz == SAMPLE_RATE and shape.channels == 1:
        yield from frames
        return
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    fifo = av.AudioFifo()
    for frame in frames:
        frame.pts = None  # samples follow each other, whatever a damaged file's time stamps say
        fifo.write(frame)
        if fifo.samples >= _PIECE_SAMPLES:
            yield from resampler.resample(fifo.read())
    if fifo.samples:
        yield from resampler.resample(fifo.read())
    yield from resampler.resample(None)


def begins_like_media(head: bytes) -> bool:
    """Whether the file begins like one of the containers read here, or like MP3 or AAC frames."""
    is_frame = len(head) > 1 and head[0] == 0xFF and head[1] >= 0xE0
    return is_frame or any(head.startswith(mark, offset) for offset, mark in _SIGNATURES)


def _unsupported() -> UnsupportedAudioFormatError:
    return UnsupportedAudioFormatError(
        f"Invalid file format. Supported formats: {list(SUPPORTED_FORMATS)}",
        param="file",
        code="unsupported_format",
    )


def _damaged() -> InvalidAudioError:
    return InvalidAudioError(
        "The file cannot be decoded: it is damaged or incomplete. Send it again, or convert it first.",
        param="file",
        code="invalid_audio",
    )
