"""What waits to be recorded: bounded queues between the event loop and the thread that writes."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from whisper_server.core.stream_events import FinalTranscript, SessionEnded, StreamEvent
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.services.recorder import RecordedSession

_JOINED_BYTES: Final = SAMPLE_RATE * 2 // 10
"""Chunks are joined up to 100 ms: a client that sends single samples loses none of them in a busy moment."""
_MAX_WAITING_FINALS: Final = 1024


@dataclass(slots=True)
class ArchiveCounters:
    """What an archive has done since its start; read them anywhere.

    Attributes:
        started: recordings begun.
        finished: recordings that are whole, though audio may lack in those that are cut.
        failed: sessions not recorded, or not to their end, because the disk did not take it.
        dropped_chunks: pieces of audio replaced by silence, because the disk was too slow.
        dropped_bytes: the same in bytes.
        deleted: recordings deleted for their age, number or size.
    """

    started: int = 0
    finished: int = 0
    failed: int = 0
    dropped_chunks: int = 0
    dropped_bytes: int = 0
    deleted: int = 0


@dataclass(slots=True)
class Batch:
    """What one session has brought since the last look.

    Attributes:
        silence_bytes: in place of dropped audio, before `pcm`.
        pcm: samples.
        finals: with text.
        finals_left_out: those there was no room for.
        ended: its last event, once it has ended.
        ended_at: when that was, UTC.
        dropped_chunks: of the session so far.
    """

    silence_bytes: int
    pcm: bytes
    finals: list[FinalTranscript]
    finals_left_out: int
    ended: SessionEnded | None
    ended_at: datetime | None
    dropped_chunks: int


@dataclass(slots=True)
class Waiting:
    """What the queues of an archive share.

    Attributes:
        max_chunks: of one queue.
        max_bytes: of all queues.
        now: UTC.
        notify: tells the writer of a queue that has something; with True it should come at once. Called with
            the lock.
        lock: held for each access to a queue, and only for moments.
        bytes: of audio in all queues.
        counters: of the archive.
    """

    max_chunks: int
    max_bytes: int
    now: Callable[[], datetime]
    notify: Callable[["RecordingQueue", bool], None]
    lock: threading.Lock
    bytes: int = 0
    counters: ArchiveCounters = field(default_factory=ArchiveCounters)


class RecordingQueue:
    """The queue of one session; a `Recorder`. `take` and `close` are for the writer's thread.

    When it is full, the oldest chunk is dropped: what is missing is always before what waits.

    Args:
        session: whose it is.
        waiting: what all queues share.
    """

    def __init__(self, session: RecordedSession, waiting: Waiting) -> None:
        self.session = session
        self.started_at = waiting.now()
        self._waiting = waiting
        self._chunks: deque[bytearray] = deque()
        self._silence_bytes = 0
        self._dropped_chunks = 0
        self._finals: list[FinalTranscript] = []
        self._finals_left_out = 0
        self._ended: SessionEnded | None = None
        self._ended_at: datetime | None = None
        self._is_closed = False
        self.is_finished = False
        """Whether the writer has done with it."""

    def hear(self, pcm: bytes | bytearray | memoryview) -> None:
        """As `Recorder`."""
        with self._waiting.lock:
            if self._is_closed or self._ended is not None:
                return
            self._put(bytearray(pcm))
            is_filling = len(self._chunks) > self._waiting.max_chunks // 2
            self._waiting.notify(self, is_filling)

    def tell(self, event: StreamEvent) -> None:
        """As `Recorder`."""
        if isinstance(event, SessionEnded):
            with self._waiting.lock:
                self._ended, self._ended_at = event, self._waiting.now()
                self._waiting.notify(self, True)
        elif isinstance(event, FinalTranscript) and event.text:
            with self._waiting.lock:
                if len(self._finals) < _MAX_WAITING_FINALS:
                    self._finals.append(event)
                else:
                    self._finals_left_out += 1
                self._waiting.notify(self, False)

    def take(self) -> Batch:
        """All that waits."""
        with self._waiting.lock:
            chunks, self._chunks = self._chunks, deque()
            self._waiting.bytes -= sum(len(chunk) for chunk in chunks)
            batch = Batch(
                *(self._silence_bytes, b"", self._finals, self._finals_left_out),
                *(self._ended, self._ended_at, self._dropped_chunks),
            )
            self._silence_bytes = self._finals_left_out = 0
            self._finals = []
        batch.pcm = b"".join(chunks)
        return batch

    def close(self) -> bool:
        """Take no more audio; whether it did before."""
        with self._waiting.lock:
            was_open, self._is_closed = not self._is_closed, True
            self._waiting.bytes -= sum(len(chunk) for chunk in self._chunks)
            self._chunks.clear()
        return was_open

    def _put(self, chunk: bytearray) -> None:
        self._waiting.bytes += len(chunk)
        if self._chunks and len(self._chunks[-1]) + len(chunk) <= _JOINED_BYTES:
            self._chunks[-1] += chunk
        else:
            self._chunks.append(chunk)
        while self._chunks and self._is_too_much:
            self._drop()

    @property
    def _is_too_much(self) -> bool:
        return len(self._chunks) > self._waiting.max_chunks or self._waiting.bytes > self._waiting.max_bytes

    def _drop(self) -> None:
        lost_bytes = len(self._chunks.popleft())
        self._silence_bytes += lost_bytes
        self._dropped_chunks += 1
        self._waiting.bytes -= lost_bytes
        self._waiting.counters.dropped_chunks += 1
        self._waiting.counters.dropped_bytes += lost_bytes
