"""The microphone, through sounddevice."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

from whisper_server.clients.command.settings import UsageError
from whisper_server.clients.grpc import AudioFormat

_MAX_WAITING_S = 30.0


class Microphone:
    """Live audio in chunks.

    What is not sent, because the server is slow or there is no connection, waits for at most 30 s; after that
    the oldest is dropped and told.

    Args:
        device: number or part of the name; None is the system's.
        sample_rate_hz: samples per second.
        chunk_ms: audio of a chunk.
    """

    max_replay_s = 60.0

    def __init__(self, device: int | str | None, *, sample_rate_hz: int, chunk_ms: int) -> None:
        self.audio = AudioFormat(sample_rate_hz=sample_rate_hz)
        self._device = int(device) if isinstance(device, str) and device.isdecimal() else device
        self._chunk_samples = max(1, sample_rate_hz * chunk_ms // 1000)
        self._sounddevice: Any = None

    async def prepare(self) -> None:
        """Find sounddevice and PortAudio.

        Raises:
            UsageError: one of the two is missing.
        """
        self._sounddevice = _import_sounddevice()

    async def chunks(self, tell: Callable[[str], None]) -> AsyncGenerator[bytes]:
        """What is said, from now on and without end.

        Args:
            tell: takes what is to be told to people.

        Raises:
            UsageError: the device cannot be opened as asked for.
        """
        queue = _ChunkQueue(max(1, round(_MAX_WAITING_S * self.audio.sample_rate_hz / self._chunk_samples)))
        try:
            stream = self._sounddevice.RawInputStream(
                samplerate=self.audio.sample_rate_hz,
                blocksize=self._chunk_samples,
                device=self._device,
                channels=1,
                dtype="int16",
                callback=queue.put,
            )
            stream.start()
        except (self._sounddevice.PortAudioError, ValueError) as error:
            raise UsageError(f"the microphone cannot be opened: {error}") from error
        try:
            while True:
                chunk, dropped, overflows = await queue.get()
                if dropped:
                    dropped_s = dropped * self._chunk_samples / self.audio.sample_rate_hz
                    tell(f"{dropped_s:.1f} s of audio were dropped: the server is too slow")
                if overflows:
                    tell("the microphone lost audio: the machine was too slow")
                yield chunk
        finally:
            stream.close()


class _ChunkQueue:
    """Chunks from the thread of the audio driver to the event loop. Bounded: the oldest is dropped."""

    def __init__(self, max_chunks: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._chunks: deque[bytes] = deque(maxlen=max_chunks)
        self._dropped = 0
        self._overflows = 0
        self._is_woken = False
        self._has_chunk = asyncio.Event()

    def put(self, data: Any, frames: int, time: Any, status: Any) -> None:
        """The callback of sounddevice. It never waits."""
        with self._lock:
            if len(self._chunks) == self._chunks.maxlen:
                self._dropped += 1
            self._chunks.append(bytes(data))
            self._overflows += bool(status and status.input_overflow)
            must_wake, self._is_woken = not self._is_woken, True
        if must_wake:
            self._loop.call_soon_threadsafe(self._has_chunk.set)

    async def get(self) -> tuple[bytes, int, int]:
        """The oldest chunk, how many were dropped before it, and how often the driver lost audio."""
        while True:
            with self._lock:
                if self._chunks:
                    found = self._chunks.popleft(), self._dropped, self._overflows
                    self._dropped = self._overflows = 0
                    return found
                self._is_woken = False
                self._has_chunk.clear()
            await self._has_chunk.wait()


def _import_sounddevice() -> Any:
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise UsageError(
            'the microphone needs the package sounddevice: pip install "whisper-server[microphone]"'
        ) from error
    except OSError as error:
        raise UsageError(
            "the microphone needs the library PortAudio, such as the package libportaudio2 of Debian"
        ) from error
    return sounddevice
