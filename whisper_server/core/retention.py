"""Which recordings are deleted: a rule without files or clocks."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """What may be kept; None sets no limit.

    Attributes:
        max_bytes: of all files together, those of sessions that go on too.
        max_files: finished WAVs.
        max_age: since a recording began.
    """

    max_bytes: int | None = None
    max_files: int | None = None
    max_age: timedelta | None = None

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        return (self.max_bytes, self.max_files, self.max_age) != (None, None, None)


@dataclass(frozen=True, slots=True)
class StoredRecording:
    """The files of one recording.

    Attributes:
        name: what their names begin with, as `recording_names` makes it.
        started_at: when the recording began, UTC.
        total_bytes: of all its files.
        has_wav: whether a finished WAV is among them.
        is_open: its session goes on, so it is not deleted.
    """

    name: str
    started_at: datetime
    total_bytes: int
    has_wav: bool = True
    is_open: bool = False


def to_delete(
    recordings: Iterable[StoredRecording], limits: RetentionLimits, now: datetime
) -> list[StoredRecording]:
    """The recordings that are too old or too many, the oldest first."""
    kept = list(recordings)
    total_bytes = sum(recording.total_bytes for recording in kept)
    finished = sorted(
        (recording for recording in kept if not recording.is_open),
        key=lambda recording: (recording.started_at, recording.name),
    )
    files = sum(recording.has_wav for recording in finished)
    deleted = []
    for recording in finished:
        is_old = limits.max_age is not None and now - recording.started_at > limits.max_age
        is_one_too_many = recording.has_wav and limits.max_files is not None and files > limits.max_files
        is_too_much = limits.max_bytes is not None and total_bytes > limits.max_bytes
        if is_old or is_one_too_many or is_too_much:
            deleted.append(recording)
            files -= recording.has_wav
            total_bytes -= recording.total_bytes
    return deleted
