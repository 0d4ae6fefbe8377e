"""Recordings on the disk, and disks that are slow or full."""

import errno
import json
import os
import threading
import wave
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whisper_server.core.retention import RetentionLimits
from whisper_server.core.stream_events import EndReason, SessionEnded
from whisper_server.services.archive_folder import ArchiveFolder
from whisper_server.services.recorder import RecordedSession, Recorder
from whisper_server.services.wav_file import HEADER_BYTES, UnbufferedFile

WAIT_S = 30.0
CHUNK_BYTES = 3200
"""100 ms: as many are never joined."""
NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
COMPLETED = SessionEnded(EndReason.COMPLETED, 1.0, 1)
SESSION = RecordedSession("one", "ann", "demo", "en", {"room": "blue"})


def chunk(number: int) -> bytes:
    return bytes([number, 1]) * (CHUNK_BYTES // 2)


def pcm_of(path: Path) -> bytes:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        frames: bytes = file.readframes(file.getnframes())
        return frames


def all_of(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(folder.glob(pattern))


def only(folder: Path, pattern: str) -> Path:
    (path,) = all_of(folder, pattern)
    return path


def sidecar_of(folder: Path, pattern: str = "*.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(only(folder, pattern).read_bytes())
    return content


def record(recorder: Recorder, pcm: bytes) -> None:
    """A whole session."""
    recorder.hear(pcm)
    recorder.tell(COMPLETED)


class Disk:
    """A file that waits before each piece of audio while the gate is closed, and takes so many bytes."""

    def __init__(self, file: UnbufferedFile, folder: "ShapedFolder") -> None:
        self._file = file
        self._folder = folder
        self.seek, self.truncate, self.close = file.seek, file.truncate, file.close

    def write(self, data: bytes | bytearray | memoryview, /) -> int | None:
        if len(data) != HEADER_BYTES:
            self._folder.is_waited_for.set()
            assert self._folder.gate.wait(WAIT_S)
            if self._folder.room_bytes < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._folder.room_bytes -= len(data)
        return self._file.write(data)


class ShapedFolder(ArchiveFolder):
    """A real folder on a disk as a test wants it."""

    def __init__(self, path: Path, room_bytes: int = 1 << 40) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.is_waited_for = threading.Event()
        self.room_bytes = room_bytes
        self._changed = threading.Condition()
        self._deleted = 0

    def create(self, started_at: datetime, session_id: str) -> tuple[str, UnbufferedFile]:
        name, file = super().create(started_at, session_id)
        return name, Disk(file, self)

    def enforce(self, limits: RetentionLimits, now: datetime) -> int:
        deleted = super().enforce(limits, now)
        with self._changed:
            self._deleted += deleted
            self._changed.notify_all()
        return deleted

    def wait_for_deletions(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._deleted >= count, WAIT_S)
