"""The folder of recordings: what its files are called, who may read them, and which are still written.

A recording is `NAME.wav.part` and `NAME.json` while its session goes on, and `NAME.wav` and `NAME.json` after
it. Whoever writes a part holds a lock on it, which ends with the process: a part without one is left over
from a server that was killed. Several servers may share a folder, except on Windows.
"""

import contextlib
import io
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from whisper_server.core.errors import ConfigurationError
from whisper_server.core.recording_names import recording_name, started_at_of
from whisper_server.core.retention import RetentionLimits, StoredRecording, to_delete
from whisper_server.services.wav_file import UnbufferedFile

_logger = logging.getLogger("whisper_server.recordings")

WAV: Final = ".wav"
PART: Final = ".wav.part"
SIDECAR: Final = ".json"
_DRAFT: Final = ".json.part"
_SUFFIXES: Final = (WAV, PART, SIDECAR, _DRAFT)

_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_ATTEMPTS: Final = 8
_CREATION_TIME: Final = timedelta(hours=1)
"""A part without a header is one that is being created, unless it is older than this."""


@dataclass(slots=True)
class _Files:
    """What there is of one recording: its beginning, UTC, and the bytes of each file by suffix."""

    started_at: datetime
    sizes: dict[str, int] = field(default_factory=dict)


class ArchiveFolder:
    """One folder of recordings. For one thread; every method but `prepare` may raise `OSError`.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self) -> None:
        """Make the folder where there is none, and see whether it can be written to.

        Raises:
            ConfigurationError: it cannot.
        """
        try:
            self._make()
            with tempfile.TemporaryFile(dir=self._path):
                pass
        except OSError as error:
            raise ConfigurationError(
                f"Live streams cannot be recorded in {self._path}: {error.strerror}. Set storage.directory "
                "(WHISPER_STORAGE_DIRECTORY) to a folder that the server may write to, or "
                "storage.persist_audio to false."
            ) from error

    def create(self, started_at: datetime, session_id: str) -> tuple[str, UnbufferedFile]:
        """A new part, and its recording's name. Closing the file gives up the lock."""
        self._make()
        for _ in range(_ATTEMPTS):
            name = recording_name(started_at, session_id, secrets.token_hex(4))
            with contextlib.suppress(FileExistsError):
                file = self._create_file(self.path_of(name, PART))
                if _lock(file):
                    return name, file
                file.close()
        raise FileExistsError(f"no free name for a recording in {self._path}")

    def path_of(self, name: str, suffix: str) -> Path:
        """Where one file of a recording is."""
        return self._path / f"{name}{suffix}"

    def write_sidecar(self, name: str, data: bytes) -> None:
        """Write the JSON of a recording, whole or not at all."""
        draft = self.path_of(name, _DRAFT)
        draft.unlink(missing_ok=True)
        with self._create_file(draft) as raw, io.BufferedWriter(raw) as file:
            file.write(data)
        os.replace(draft, self.path_of(name, SIDECAR))

    def finish(self, name: str) -> None:
        """Call the part a WAV. Where somebody has removed it, nothing is left to do."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path_of(name, PART), self.path_of(name, WAV))

    def remove(self, name: str) -> None:
        """Delete all files of a recording; those that are gone already are no error."""
        for suffix in _SUFFIXES:
            self.path_of(name, suffix).unlink(missing_ok=True)

    def recover(self, complete: Callable[[str, datetime], None], now: datetime) -> None:
        """Find what a server that was killed has left behind. One that cannot be completed is logged.

        Args:
            complete: makes a whole recording of a part, given its name and when it was last written, UTC.
            now: UTC.
        """
        for name, files in self._scan().items():
            try:
                if PART not in files.sizes:
                    # Drafts are written while the part is there.
                    self.path_of(name, _DRAFT).unlink(missing_ok=True)
                elif files.sizes[PART]:
                    self._recover_part(name, complete)
                elif now - files.started_at > _CREATION_TIME:
                    self.remove(name)
            except OSError as error:
                _logger.warning("The recording %s could not be completed: %s", name, error.strerror)

    def enforce(self, limits: RetentionLimits, now: datetime) -> int:
        """Delete what is too old or too many; how many recordings that were."""
        if not limits.are_set:
            return 0
        deleted = to_delete(self._stored(), limits, now)
        for recording in deleted:
            self.remove(recording.name)
        return len(deleted)

    def _make(self) -> None:
        if not self._path.is_dir():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.mkdir(mode=_FOLDER_MODE, exist_ok=True)

    def _create_file(self, path: Path) -> io.FileIO:
        return io.FileIO(path, "x", opener=lambda name, flags: os.open(name, flags, _FILE_MODE))

    def _recover_part(self, name: str, complete: Callable[[str, datetime], None]) -> None:
        with contextlib.suppress(FileNotFoundError), io.FileIO(self.path_of(name, PART), "r+") as file:
            if not _lock(file):
                return
            self.path_of(name, _DRAFT).unlink(missing_ok=True)
            complete(name, datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC))
            self.finish(name)
            _logger.info("The recording %s was cut off; it is complete now", name)

    def _stored(self) -> list[StoredRecording]:
        return [
            StoredRecording(
                name, files.started_at, sum(files.sizes.values()), WAV in files.sizes, PART in files.sizes
            )
            for name, files in self._scan().items()
        ]

    def _scan(self) -> dict[str, _Files]:
        """The files of each recording; what the archive has not written is not there."""
        found: dict[str, _Files] = {}
        with os.scandir(self._path) as entries:
            for entry in entries:
                name, dot, rest = entry.name.partition(".")
                started_at = started_at_of(name)
                if started_at is None or dot + rest not in _SUFFIXES:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        size_bytes = entry.stat(follow_symlinks=False).st_size
                        found.setdefault(name, _Files(started_at)).sizes[dot + rest] = size_bytes
        return found


def _lock(file: io.FileIO) -> bool:
    """Whether the file is now this process's alone; its closing ends that."""
    if sys.platform == "win32":  # has no such lock: servers may not share a folder there
        return True
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
