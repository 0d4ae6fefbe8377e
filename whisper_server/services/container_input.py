"""Any container, decoded to 16 kHz 16-bit mono while it arrives.

FFmpeg reads from a bounded pipe in a thread of its own, as it blocks while nothing is there. A WAV of plain
samples needs neither.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from whisper_server.core.errors import (
    EmptyAudioError,
    InvalidAudioError,
    UnsupportedAudioFormatError,
)
from whisper_server.core.types import SAMPLE_RATE, Pcm16
from whisper_server.services.audio_decoding import (
    DECODERS,
    DEMUXERS,
    MAX_FAILURES_IN_A_ROW,
    SAMPLE_RATES_HZ,
    SUPPORTED_FORMATS,
    audio_stream,
    begins_like_media,
    frame_shape,
)
from whisper_server.services.raw_audio import MAX_CHANNELS, RawAudio
from whisper_server.services.wav_header import MAX_HEADER_BYTES, WavHeader, is_wav, read_wav_header

if TYPE_CHECKING:
    from av import AudioFrame
    from av.audio import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

logger = logging.getLogger(__name__)

_HEAD_BYTES: Final = 12

_MAX_ENCODED_BYTES: Final = 256 << 10
"""Bytes that may wait for the decoder; `feed` waits beyond that."""

_MAX_DECODED_SAMPLES: Final = 2 * SAMPLE_RATE
"""Samples that may wait to be taken; the decoder waits beyond that."""

_MAX_SILENT_BYTES: Final = 64 << 20
"""Bytes without a single sample, such as the picture in a tag, after which this is no recording."""

_READ_BYTES: Final = 4096

_PROBE_BYTES: Final = 32 << 10
"""Most that FFmpeg reads to find out what it has before it gives out samples."""

_PROBE_US: Final = 500_000
"""The same in time: a film's pictures are never decoded, so FFmpeg would wait 5 s to learn about them."""

_WAV_RATES_HZ: Final = range(4_000, 192_001)


class ContainerInput:
    """Decodes one container. For one event loop; `feed` and `finish` for one task, the samples for another.

    An async context manager: leaving it stops the decoder and waits until its thread has ended.

    async with ContainerInput() as container:
        await container.feed(data)          # from one task, then container.finish()
        async for samples in container:     # in another
            ...
    """

    def __init__(self) -> None:
        self._exchange = _Exchange(asyncio.get_running_loop())
        self._head = b""
        self._wav: _WavSamples | None = None
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            await self._exchange.wait_until_over()

    def stop(self) -> None:
        """Take no more: `feed` drops what comes, and the samples end."""
        self._exchange.stop()

    async def feed(self, data: bytes) -> None:
        """The next bytes, cut anywhere. Waits while the decoder is behind.

        What comes after the container's own end is dropped.
        """
        if self._wav is not None:
            await self._exchange.put_when_free(self._wav.feed(data))
        elif self._thread is not None:
            await self._exchange.write(data)
        else:
            self._head += data
            await self._begin(is_all=False)

    async def finish(self) -> None:
        """No more bytes follow."""
        if self._wav is not None:
            await self._exchange.put_when_free(self._wav.flush())
            self._end_wav()
        elif self._thread is None:
            await self._begin(is_all=True)
        self._exchange.finish()

    async def __aiter__(self) -> AsyncIterator[Pcm16]:
        """The samples as they are decoded, in pieces of any length.

        Raises:
            EmptyAudioError: there were no bytes, or there was no sound in them.
            UnsupportedAudioFormatError: the container or the codec is none of those read here.
            NoAudioStreamError: there are only pictures.
            InvalidAudioError: it is damaged; what could be decoded came before.
        """
        while (samples := await self._exchange.take()) is not None:
            yield samples

    async def _begin(self, *, is_all: bool) -> None:
        """Choose who decodes, once the first bytes tell."""
        head = self._head
        if len(head) < _HEAD_BYTES and not is_all:
            return
        if is_wav(head):
            header = _plain_header(head)
            if header is None and not is_all and len(head) < MAX_HEADER_BYTES:
                return
            if header is not None and header.format is not None:
                self._wav, self._head = _WavSamples(header), b""
                await self._exchange.put_when_free(self._wav.feed(head[header.size_bytes :]))
                if is_all:
                    await self._exchange.put_when_free(self._wav.flush())
                    self._end_wav()
                return
        self._head = b""
        self._thread = threading.Thread(target=self._exchange.run, name="container-input", daemon=True)
        self._thread.start()
        await self._exchange.write(head)

    def _end_wav(self) -> None:
        self._exchange.end(None if self._exchange.has_samples else _empty())


class _WavSamples:
    """The samples of a WAV, up to the length its header tells."""

    def __init__(self, header: WavHeader) -> None:
        assert header.format is not None
        self._audio = RawAudio(header.format, header.rate_hz, header.channels)
        self._remaining_bytes = header.data_bytes

    def feed(self, data: bytes) -> Pcm16:
        if self._remaining_bytes is not None:
            data = data[: self._remaining_bytes]
            self._remaining_bytes -= len(data)
        return self._audio.feed(data)

    def flush(self) -> Pcm16:
        return self._audio.flush()


def _plain_header(head: bytes) -> WavHeader | None:
    """The header where all of it is there and says what FFmpeg is not needed for, or nothing of the sort."""
    try:
        header = read_wav_header(head)
    except ValueError:
        return WavHeader(0, None, 0, 0, None)
    if header is None or header.format is None:
        return header
    is_plain = header.rate_hz in _WAV_RATES_HZ and 1 <= header.channels <= MAX_CHANNELS
    return header if is_plain else WavHeader(0, None, 0, 0, None)


class _Exchange:
    """Between the event loop and the decoder's thread: bytes one way, samples the other, both bounded."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = threading.Condition()
        self._news = asyncio.Event()  # for whoever takes samples
        self._room = asyncio.Event()  # for whoever brings bytes
        self._is_over_event = asyncio.Event()
        self._encoded: deque[bytes] = deque()
        self._encoded_bytes = 0
        self._silent_bytes = 0
        self._decoded: list[Pcm16] = []
        self._decoded_samples = 0
        self._is_finished = False
        self._is_stopped = False
        self._is_over = False
        self._error: InvalidAudioError | None = None
        self.has_samples = False

    # On the event loop

    async def write(self, data: bytes) -> None:
        """Bytes for the decoder; waits for room."""
        with self._changed:
            if data and not self._is_over and not self._is_stopped:
                self._encoded.append(data)
                self._encoded_bytes += len(data)
                self._changed.notify_all()
        await self._wait(self._room, lambda: self._encoded_bytes < _MAX_ENCODED_BYTES)

    async def put_when_free(self, samples: Pcm16) -> None:
        """Samples that were decoded here; waits for room."""
        self._add(samples)
        self._news.set()
        await self._wait(self._room, lambda: self._decoded_samples < _MAX_DECODED_SAMPLES)

    async def take(self) -> Pcm16 | None:
        """All samples there are; waits for some. None at the end.

        Raises:
            InvalidAudioError: the end was one.
        """
        await self._wait(self._news, lambda: bool(self._decoded))
        with self._changed:
            taken, self._decoded, self._decoded_samples = self._decoded, [], 0
            self._changed.notify_all()
        self._room.set()
        if taken:
            return np.concatenate(taken)
        if self._error is not None:
            raise self._error
        return None

    def finish(self) -> None:
        """No more bytes follow."""
        with self._changed:
            self._is_finished = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody wants the samples any more: whoever waits here goes on, and what comes is dropped."""
        with self._changed:
            self._is_stopped = True
            self._encoded.clear()
            self._encoded_bytes = 0
            self._changed.notify_all()
        self._news.set()
        self._room.set()

    async def wait_until_over(self) -> None:
        """Wait until the thread is done with its work."""
        await self._is_over_event.wait()

    async def _wait(self, event: asyncio.Event, is_so: Callable[[], bool]) -> None:
        while True:
            event.clear()
            with self._changed:
                if is_so() or self._is_over or self._is_stopped:
                    return
            await event.wait()

    # In the decoder's thread

    def run(self) -> None:
        """Decode all that comes."""
        error: InvalidAudioError | None = None
        try:
            for samples in _decode(self):
                self._put(samples)
                if self._is_stopped:
                    break
        except InvalidAudioError as failure:
            error = failure
        except Exception as failure:  # the end of a thread: PyAV raises a dozen kinds over damaged files
            logger.debug("A container could not be decoded", exc_info=failure)
            error = _damaged()
        self.end(error)

    def read(self, size: int) -> bytes:
        """What FFmpeg reads: as much as is there, at least one byte, none at the end. Raises nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._encoded or self._is_finished or self._is_stopped)
            if self._is_stopped or not self._encoded or self._silent_bytes > _MAX_SILENT_BYTES:
                return b""
            block = self._encoded.popleft()
            if len(block) > size:
                self._encoded.appendleft(block[size:])
                block = block[:size]
            self._encoded_bytes -= len(block)
            self._silent_bytes += len(block)
        self._call(self._room.set)
        return block

    @property
    def is_cut_short(self) -> bool:
        """Whether the decoder was told of an end before there was one."""
        return self._silent_bytes > _MAX_SILENT_BYTES

    @property
    def is_at_end(self) -> bool:
        """Whether the decoder has seen every byte."""
        with self._changed:
            return self._is_finished and not self._encoded

    def _put(self, samples: Pcm16) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._decoded_samples < _MAX_DECODED_SAMPLES or self._is_stopped)
        self._add(samples)
        self._call(self._news.set)

    def end(self, error: InvalidAudioError | None) -> None:
        """Nothing more will be decoded; also on the event loop, where there is no thread."""
        with self._changed:
            self._error = error
            self._is_over = True
            self._encoded.clear()
            self._encoded_bytes = 0
        for event in (self._news, self._room, self._is_over_event):
            self._call(event.set)

    def _add(self, samples: Pcm16) -> None:
        if not len(samples):
            return
        with self._changed:
            if self._is_stopped:
                return
            self._decoded.append(samples)
            self._decoded_samples += len(samples)
            self._silent_bytes = 0
            self.has_samples = True

    def _call(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens
            self._loop.call_soon_threadsafe(function)


class _Reader:
    """What PyAV reads from: without `seek`, so that FFmpeg takes it for a pipe."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self.head = b""

    def read(self, size: int) -> bytes:
        block = self._exchange.read(size)
        if len(self.head) < _HEAD_BYTES:
            self.head = (self.head + block)[:_HEAD_BYTES]
        return block

    @property
    def is_mp4(self) -> bool:
        """Whether it begins like an MP4."""
        return self.head[4:8] == b"ftyp"


def _decode(exchange: _Exchange) -> Iterator[Pcm16]:
    """The samples of the first audio stream.

    Raises:
        InvalidAudioError: as `ContainerInput` says.
    """
    reader = _Reader(exchange)
    container = _open(reader)
    with container:
        stream = audio_stream(container)
        try:
            yield from _resampled(_frames(container, stream, exchange))
        except InvalidAudioError:
            if exchange.has_samples or not reader.is_mp4:
                raise
    if exchange.is_cut_short:
        raise _damaged()
    if not exchange.has_samples:
        raise _not_fragmented() if reader.is_mp4 else _empty()


def _open(reader: _Reader) -> "InputContainer":
    import av

    options = {
        "format_whitelist": DEMUXERS,
        "codec_whitelist": DECODERS,
        "protocol_whitelist": "none",
        "max_probe_packets": "1",
        "probesize": str(_PROBE_BYTES),
        "analyzeduration": str(_PROBE_US),
    }
    try:
        return av.open(
            reader, mode="r", metadata_errors="ignore", container_options=options, buffer_size=4096
        )
    except Exception as error:  # PyAV raises a dozen kinds over damaged files, all for the same reason
        if not reader.head:
            raise _empty() from error
        if reader.is_mp4:
            raise _not_fragmented() from error
        raise (_damaged() if begins_like_media(reader.head) else _unsupported()) from error


def _frames(
    container: "InputContainer", stream: "AudioStream", exchange: _Exchange
) -> Iterator["AudioFrame"]:
    """The frames that can be decoded. Damaged packets are skipped.

    Raises:
        InvalidAudioError: nothing can be decoded any more, though bytes are coming.
    """
    from av.error import FFmpegError

    failures_in_a_row = 0
    for packet in _packets(container, stream, exchange):
        try:
            frames = stream.codec_context.decode(packet)
        except FFmpegError:
            failures_in_a_row += 1
            if failures_in_a_row > MAX_FAILURES_IN_A_ROW:
                raise _damaged() from None
            continue
        if frames:
            failures_in_a_row = 0
            yield from frames


def _packets(
    container: "InputContainer", stream: "AudioStream", exchange: _Exchange
) -> Iterator["Packet[AudioStream] | None"]:
    """The stream's packets, and last what flushes the decoder: an empty packet or None.

    Raises:
        InvalidAudioError: the container is damaged before its end.
    """
    from av.error import FFmpegError

    try:
        yield from container.demux(stream)
    except FFmpegError as error:
        if not exchange.is_at_end:
            raise _damaged() from error
        yield None  # the end is missing; what came before it counts


def _resampled(frames: Iterator["AudioFrame"]) -> Iterator[Pcm16]:
    """The same as `SAMPLE_RATE` mono. Rate, layout and format may change anywhere."""
    import av

    for shape, run in itertools.groupby(frames, key=frame_shape):
        if shape.rate_hz not in SAMPLE_RATES_HZ:
            raise UnsupportedAudioFormatError(
                f"The audio has {shape.rate_hz} samples per second. Send it with 8000 to 192000.",
                code="unsupported_format",
            )
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        for frame in itertools.chain(run, [None]):
            if frame is not None:
                frame.pts = None  # samples follow each other, whatever a damaged file's time stamps say
            for out in resampler.resample(frame):
                yield np.frombuffer(memoryview(out.planes[0])[: out.samples * 2], dtype=np.int16).copy()


def _empty() -> EmptyAudioError:
    return EmptyAudioError("There is no sound in the body. Send a recording.", code="empty_audio")


def _damaged() -> InvalidAudioError:
    return InvalidAudioError(
        "The recording cannot be decoded any further: it is damaged.", code="invalid_audio"
    )


def _not_fragmented() -> InvalidAudioError:
    return InvalidAudioError(
        "This MP4 cannot be decoded while it arrives: its index comes last. Send a fragmented one, such as "
        "FFmpeg makes with -movflags empty_moov+default_base_moof, or another container.",
        code="invalid_audio",
    )


def _unsupported() -> UnsupportedAudioFormatError:
    return UnsupportedAudioFormatError(
        f"The body is in no format that can be read. Supported formats: {', '.join(SUPPORTED_FORMATS)}; for "
        "samples without a container say so, with Content-Type: audio/pcm;rate=16000 or format=s16le.",
        code="unsupported_format",
    )
