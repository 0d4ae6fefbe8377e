"""Recordings as 16-bit mono at 16 kHz."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, suppress
from itertools import chain
from pathlib import Path

from whisper_server.clients.command.settings import UsageError
from whisper_server.clients.grpc import AudioFormat

AUDIO = AudioFormat()
_BLOCK_BYTES = AUDIO.bytes_per_s
_MAX_REPLAY_S = 3600.0


class PacedFile:
    """A recording in chunks.

    Args:
        path: of the recording.
        chunk_ms: audio of a chunk.
        realtime: hand it out as fast as it was spoken, not as fast as it is asked for.
        clock: monotonic, seconds.
        sleep: waits so many seconds.
    """

    audio = AUDIO
    max_replay_s = _MAX_REPLAY_S

    def __init__(
        self,
        path: Path,
        *,
        chunk_ms: int,
        realtime: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._path = path
        self._chunk_ms = chunk_ms
        self._realtime = realtime
        self._clock = clock
        self._sleep = sleep

    async def prepare(self) -> None:
        """Decode the beginning: a session would wait in vain for audio that is none.

        Raises:
            UsageError: it holds no audio that can be read.
        """
        _check(self._path)
        async with aclosing(read_pcm(self._path)) as blocks:
            await anext(blocks, None)

    async def chunks(self, tell: Callable[[str], None]) -> AsyncGenerator[bytes]:
        """The recording.

        Raises:
            UsageError: it cannot be read to its end.
        """
        began_s = self._clock()
        chunk_bytes = AUDIO.bytes_per_s * self._chunk_ms // 1000 // AUDIO.frame_bytes * AUDIO.frame_bytes
        async with aclosing(read_pcm(self._path)) as blocks:
            async for number, chunk in _numbered(blocks, chunk_bytes):
                if self._realtime:
                    # A chunk can be sent when its last sample was spoken.
                    spoken_s = began_s + (number + 1) * self._chunk_ms / 1000
                    await self._sleep(max(0.0, spoken_s - self._clock()))
                yield chunk


class WholeFile:
    """A recording in one chunk, which the client library cuts where the server's limits make it.

    Args:
        path: of the recording.
    """

    audio = AUDIO
    max_replay_s = float("inf")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pcm = b""

    async def prepare(self) -> None:
        """Decode it.

        Raises:
            UsageError: it holds no audio that can be read.
        """
        _check(self._path)
        async with aclosing(read_pcm(self._path)) as blocks:
            self._pcm = b"".join([block async for block in blocks])

    async def chunks(self, tell: Callable[[str], None]) -> AsyncGenerator[bytes]:
        """The recording."""
        yield self._pcm


async def read_pcm(path: Path) -> AsyncGenerator[bytes]:
    """Decode a recording on worker threads, about a second at a time.

    Raises:
        UsageError: it holds no audio that can be read.
    """
    blocks = _decode(path)
    try:
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            yield block
    finally:
        with suppress(ValueError):  # a thread is still decoding; the file is closed when that ends
            blocks.close()


async def _numbered(blocks: AsyncGenerator[bytes], chunk_bytes: int) -> AsyncGenerator[tuple[int, bytes]]:
    pending = bytearray()
    number = 0
    async for block in blocks:
        pending += block
        while len(pending) >= chunk_bytes:
            yield number, bytes(pending[:chunk_bytes])
            del pending[:chunk_bytes]
            number += 1
    if pending:
        yield number, bytes(pending)


def _check(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")


def _decode(path: Path) -> Generator[bytes]:
    import av

    try:
        # Playlists may name other files, but not addresses.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            if not container.streams.audio:
                raise UsageError(f"{path}: holds no audio")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=AUDIO.sample_rate_hz)
            pending = bytearray()
            for frame in chain(container.decode(audio=0), (None,)):
                for resampled in resampler.resample(frame):
                    pending += resampled.to_ndarray().tobytes()
                if len(pending) >= _BLOCK_BYTES:
                    yield bytes(pending)
                    pending.clear()
            if pending:
                yield bytes(pending)
    except av.FFmpegError as error:
        raise UsageError(f"{path}: cannot be read as audio: {error.strerror}") from error
