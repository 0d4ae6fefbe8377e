"""Which recordings are deleted, and what recordings are called: rules without files or clocks."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

_MAX_ID_CHARS: Final = 64
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_NAME: Final = re.compile(rf"(\d{{8}}T\d{{9}}Z)_[A-Za-z0-9_-]{{1,{_MAX_ID_CHARS}}}_[0-9a-f]{{8}}")
_TIME_FORMAT: Final = "%Y%m%dT%H%M%S%fZ"


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
        name: what their names begin with, as `recording_name` makes it.
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


def recording_name(started_at: datetime, session_id: str, token: str) -> str:
    """A file name without suffix: safe whatever the client calls its session, and sorted by time.

    Args:
        started_at: when the recording began; any time zone.
        session_id: letters, digits, `_` and `-` of it stay, at most 64 of them.
        token: 8 hexadecimal digits that tell apart what is otherwise alike.
    """
    utc = started_at.astimezone(UTC)
    time = f"{utc:%Y%m%dT%H%M%S}{utc.microsecond // 1000:03d}Z"
    readable = _UNSAFE.sub("-", session_id)[:_MAX_ID_CHARS].strip("-") or "session"
    return f"{time}_{readable}_{token}"


def started_at_of(name: str) -> datetime | None:
    """When the recording of this name began, UTC; None where `recording_name` did not make the name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return datetime.strptime(match[1], _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:  # digits that are no date
        return None
