"""What recordings are called, whatever clients call their sessions."""

import re
from datetime import UTC, datetime
from typing import Final

_MAX_ID_CHARS: Final = 64
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_NAME: Final = re.compile(rf"(\d{{8}}T\d{{9}}Z)_[A-Za-z0-9_-]{{1,{_MAX_ID_CHARS}}}_[0-9a-f]{{8}}")
_TIME_FORMAT: Final = "%Y%m%dT%H%M%S%fZ"


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
