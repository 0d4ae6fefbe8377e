"""Which recordings are deleted, and what recordings are called."""

import string
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_server.core.recording_names import recording_name, started_at_of
from whisper_server.core.retention import RetentionLimits, StoredRecording, to_delete

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
SAFE = frozenset(string.ascii_letters + string.digits + "_-")


def stored(name: str, days_old: float, *, has_wav: bool = True, is_open: bool = False) -> StoredRecording:
    return StoredRecording(name, NOW - timedelta(days=days_old), 100, has_wav, is_open)


A, B, C, D = (stored(name, days) for name, days in (("a", 4), ("b", 3), ("c", 2), ("d", 1)))
OPEN = stored("open", 9, is_open=True, has_wav=False)
WITHOUT_WAV = stored("json", 8, has_wav=False)


@pytest.mark.parametrize(
    ("recordings", "limits", "deleted"),
    [
        ([A, B, C, D], RetentionLimits(), ""),
        ([], RetentionLimits(1, 1, timedelta(days=1)), ""),
        ([D, B, A, C], RetentionLimits(max_files=3), "a"),
        ([D, B, A, C], RetentionLimits(max_files=1), "a b c"),
        ([A, B, C, D], RetentionLimits(max_files=4), ""),
        ([A, B, OPEN], RetentionLimits(max_files=2), ""),  # one that goes on is no finished file
        ([WITHOUT_WAV, A, B], RetentionLimits(max_files=1), "a"),  # a WAV that somebody took is none either
        ([C, A, D, B], RetentionLimits(max_bytes=400), ""),
        ([C, A, D, B], RetentionLimits(max_bytes=399), "a"),
        ([C, A, D, B], RetentionLimits(max_bytes=1), "a b c d"),
        ([A, B, OPEN], RetentionLimits(max_bytes=200), "a"),  # its bytes count
        ([OPEN], RetentionLimits(1, 1, timedelta(days=1)), ""),  # but it stays
        ([WITHOUT_WAV, A], RetentionLimits(max_bytes=100), "json"),
        ([A, B, C, D], RetentionLimits(max_age=timedelta(days=3)), "a"),
        ([A, B, C, D], RetentionLimits(max_age=timedelta(hours=1)), "a b c d"),
        ([WITHOUT_WAV, D], RetentionLimits(max_age=timedelta(days=3)), "json"),
        ([A, B, C, D], RetentionLimits(250, 3, timedelta(days=3.5)), "a b"),
        ([stored("y", 1), stored("x", 1)], RetentionLimits(max_files=1), "x"),  # of one moment: by name
    ],
)
def test_the_oldest_go_first_and_only_as_many_as_must(
    recordings: list[StoredRecording], limits: RetentionLimits, deleted: str
) -> None:
    names = [recording.name for recording in to_delete(recordings, limits, NOW)]
    assert " ".join(names) == deleted


@given(st.text(max_size=300), st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)))
def test_any_session_id_gives_a_short_safe_name_that_tells_its_time(session_id: str, time: datetime) -> None:
    name = recording_name(time.replace(tzinfo=UTC), session_id, "0123abcd")
    assert set(name) <= SAFE
    assert len(name) <= 100
    milliseconds = time.replace(tzinfo=UTC, microsecond=time.microsecond // 1000 * 1000)
    assert started_at_of(name) == milliseconds


def test_a_name_is_utc_and_readable() -> None:
    time = datetime(2026, 11, 30, 1, 2, 3, 45_678, tzinfo=timezone(timedelta(hours=2)))
    assert recording_name(time, "call 7/Anna", "0123abcd") == "20261129T230203045Z_call-7-Anna_0123abcd"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "holiday",
            "20261129T230203045Z",
            "20261129T230203045Z__0123abcd",
            "x20261129T230203045Z_a_0123abcd",
        ),
        *(
            "20261129T230203045Z_a_0123abc",
            "20261129T230203045Z_a.b_0123abcd",
            "20261329T230203045Z_a_0123abcd",
        ),
        *("20261129T230203045Z_a_0123ABCD", "20261129T230203045Z_a_0123abcd\n"),
    ],
)
def test_names_that_the_archive_did_not_make_are_strangers(name: str) -> None:
    assert started_at_of(name) is None
