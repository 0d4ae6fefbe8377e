"""Records live sessions: a WAV and a JSON file for each, written by one thread, deleted by age and number.

The event loop only puts into queues. What a session says and hears goes to disk about ten times a second, so
a process that is killed leaves all but the last moment, in a file that can be played.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from whisper_server.core.retention import RetentionLimits
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.services.archive_folder import ArchiveFolder
from whisper_server.services.recorder import NO_RECORDER, RecordedSession, Recorder
from whisper_server.services.recording_file import RecordingFile, complete_leftover
from whisper_server.services.recording_queue import ArchiveCounters, Batch, RecordingQueue, Waiting

_logger = logging.getLogger("whisper_server.recordings")

DEFAULT_QUEUE_CHUNKS: Final = 256

_MAX_WAITING_BYTES: Final = 64 << 20
_GATHER_S: Final = 0.1
_CLOSE_TIMEOUT_S: Final = 10.0
_BYTES_PER_S: Final = SAMPLE_RATE * 2


class AudioArchive:
    """Records live sessions into a folder; an `Archive`. For one event loop.

    An async context manager: entering it starts the writer, which first completes what a killed server has
    left behind. Leaving it writes what waits, for `close_timeout_s` at most; the rest is lost, and logged.

    Args:
        folder: prepared.
        limits: of what is kept; looked at when the writer starts and after each session.
        queue_max_chunks: of one session's audio that wait to be written; 100 ms to 500 ms each where the
            sender is quick.
        max_waiting_bytes: the same of all sessions.
        close_timeout_s: see above.
        now: UTC.
    """

    def __init__(
        self,
        folder: ArchiveFolder,
        limits: RetentionLimits | None = None,
        *,
        queue_max_chunks: int = DEFAULT_QUEUE_CHUNKS,
        max_waiting_bytes: int = _MAX_WAITING_BYTES,
        close_timeout_s: float = _CLOSE_TIMEOUT_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._limits = limits or RetentionLimits()
        self._close_timeout_s = close_timeout_s
        self._now = now
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._waiting = Waiting(queue_max_chunks, max_waiting_bytes, now, self._notify, lock)
        self._filled: dict[RecordingQueue, None] = {}
        self._is_urgent = False
        self._is_closing = False
        self._files: dict[RecordingQueue, RecordingFile | None] = {}
        """Of the sessions that go on, for the writer alone; None where nothing can be recorded."""
        # A disk that hangs must not keep the program from ending.
        self._writer = threading.Thread(target=self._write, name="recordings", daemon=True)

    @property
    def counters(self) -> ArchiveCounters:
        """What it has done since its start."""
        return self._waiting.counters

    @property
    def waiting_bytes(self) -> int:
        """Audio that waits to be written."""
        return self._waiting.bytes

    def begin(self, session: RecordedSession) -> Recorder:
        """As `Archive`."""
        if self._is_closing:
            return NO_RECORDER
        queue = RecordingQueue(session, self._waiting)
        with self._waiting.lock:
            self._notify(queue, True)
        return queue

    async def __aenter__(self) -> Self:
        self._writer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        await asyncio.to_thread(self._writer.join, self._close_timeout_s)
        if self._writer.is_alive():
            _logger.error(
                "The disk did not take the recordings within %g s: %d are not finished, and at least %.1f s "
                "of audio is lost",
                *(self._close_timeout_s, len(self._files), self.waiting_bytes / _BYTES_PER_S),
            )

    def _notify(self, queue: RecordingQueue, is_urgent: bool) -> None:
        is_first = not self._filled
        self._filled[queue] = None
        self._is_urgent |= is_urgent
        if is_first or is_urgent:
            self._changed.notify()

    # The writer's thread.

    def _write(self) -> None:
        self._tidy(lambda: self._folder.recover(self._complete, self._now()))
        self._tidy(self._enforce)
        while queues := self._next_queues():
            # One that ended while it was written comes once more.
            live = [queue for queue in queues if not queue.is_finished]
            for queue in live:
                self._write_one(queue)
            if any(queue.is_finished for queue in live):
                self._tidy(self._enforce)
        for queue in list(self._files):  # sessions whose end was not told
            self._finish(queue, queue.take())

    def _next_queues(self) -> list[RecordingQueue]:
        """The queues that have something; none once the archive closes and everything is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._filled or self._is_closing)
            self._changed.wait_for(lambda: self._is_urgent or self._is_closing, timeout=_GATHER_S)
            self._is_urgent = False
            filled, self._filled = self._filled, {}
        return list(filled)

    def _write_one(self, queue: RecordingQueue) -> None:
        if queue not in self._files:
            self._files[queue] = self._begin(queue)
        batch = queue.take()
        file = self._files[queue]
        if file is not None and (batch.pcm or batch.silence_bytes):
            try:
                file.write(batch.pcm, silence_bytes=batch.silence_bytes)
            except Exception as error:  # the boundary: one recording fails, the others go on
                file.cut()
                self._give_up(queue, error)
        if file is not None:
            file.add_finals(batch.finals, left_out=batch.finals_left_out)
        if batch.ended is not None:
            self._finish(queue, batch)

    def _begin(self, queue: RecordingQueue) -> RecordingFile | None:
        try:
            file = RecordingFile(self._folder, queue.session, queue.started_at)
        except Exception as error:  # the boundary, as above
            self._give_up(queue, error)
            return None
        self.counters.started += 1
        return file

    def _finish(self, queue: RecordingQueue, batch: Batch) -> None:
        queue.is_finished = True
        file = self._files.pop(queue)
        if file is None:
            return
        try:
            file.finish(batch.ended, batch.ended_at or self._now(), dropped_chunks=batch.dropped_chunks)
        except Exception as error:  # the boundary, as above
            self._give_up(queue, error)
        else:
            self.counters.finished += 1
        if batch.dropped_chunks:
            _logger.warning(
                "The disk was too slow for session %s: %d chunks are silent in its recording",
                *(queue.session.id, batch.dropped_chunks),
            )

    def _give_up(self, queue: RecordingQueue, error: Exception) -> None:
        if not queue.close():
            return
        self.counters.failed += 1
        if isinstance(error, OSError):
            _logger.error(
                "Session %s is not recorded any further: %s", queue.session.id, error.strerror or error
            )
        else:
            _logger.error("Session %s is not recorded any further", queue.session.id, exc_info=error)

    def _complete(self, name: str, written_at: datetime) -> None:
        complete_leftover(self._folder, name, written_at)

    def _enforce(self) -> None:
        self.counters.deleted += self._folder.enforce(self._limits, self._now())

    def _tidy(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            _logger.error("Recordings cannot be tidied up: %s", error.strerror or error)
        except Exception:  # the boundary: recording goes on
            _logger.exception("Recordings cannot be tidied up")
