"""Folders of recordings: what a killed server leaves behind, and what is deleted when."""

import asyncio
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.recordings import (
    CHUNK_BYTES,
    COMPLETED,
    NOW,
    SESSION,
    WAIT_S,
    ShapedFolder,
    all_of,
    chunk,
    only,
    pcm_of,
    record,
    sidecar_of,
)
from whisper_server.core.recording_names import recording_name
from whisper_server.core.retention import RetentionLimits
from whisper_server.services.archive_folder import ArchiveFolder
from whisper_server.services.audio_archive import AudioArchive
from whisper_server.services.recorder import RecordedSession
from whisper_server.services.wav_file import HEADER_BYTES

pytestmark = pytest.mark.anyio

# A killed server

_WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from whisper_server.services.archive_folder import ArchiveFolder
from whisper_server.services.audio_archive import AudioArchive
from whisper_server.services.recorder import RecordedSession

async def main():
    async with AudioArchive(ArchiveFolder(Path(sys.argv[1]))) as archive:
        recorder = archive.begin(RecordedSession("killed", "ann", "demo", "en", {"room": "blue"}))
        number = 0
        while True:
            for _ in range(20):
                recorder.hear(b"".join(value.to_bytes(4, "little") for value in range(number, number + 800)))
                number += 800
            while archive.waiting_bytes:
                await asyncio.sleep(0)
            print(number, flush=True)

asyncio.run(main())
"""


@contextmanager
def writing_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    arguments = [sys.executable, "-c", _WRITER, str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def numbers(pcm: bytes) -> list[int]:
    found: list[int] = np.frombuffer(pcm[: len(pcm) - len(pcm) % 4], dtype="<u4").tolist()
    return found


async def test_a_killed_server_leaves_what_can_be_played_and_the_next_one_completes_it(
    tmp_path: Path,
) -> None:
    with writing_process(tmp_path) as process:
        assert process.stdout is not None
        for _ in range(4):
            taken = int(process.stdout.readline())
        process.kill()
        process.wait(WAIT_S)
    part = only(tmp_path, "*.wav.part")
    left = numbers(pcm_of(part))
    assert left == list(range(len(left)))
    assert len(left) >= taken - 20 * 800  # all but the round that was on its way to the disk
    assert sidecar_of(tmp_path)["session_id"] == "killed"
    only(tmp_path, "*.json").with_suffix(".json.part").touch()  # killed while it wrote this

    async with AudioArchive(ArchiveFolder(tmp_path)):
        pass
    assert sorted(path.suffix for path in all_of(tmp_path)) == [".json", ".wav"]
    whole = numbers(pcm_of(only(tmp_path, "*.wav")))
    assert whole[: len(left)] == left
    assert whole == list(range(len(whole)))
    sidecar = sidecar_of(tmp_path)
    assert (sidecar["end_reason"], sidecar["dropped_chunks"]) == ("interrupted", None)
    assert sidecar["duration_s"] == round(len(whole) / 8000, 3)
    assert sidecar["attributes"] == {"room": "blue"}
    assert datetime.fromisoformat(sidecar["ended_at"]) >= datetime.fromisoformat(sidecar["started_at"])


async def test_the_recording_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    with writing_process(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        limits = RetentionLimits(1, 1, timedelta(microseconds=1))
        async with AudioArchive(ArchiveFolder(tmp_path), limits) as archive:
            record(archive.begin(SESSION), chunk(1))
        assert archive.counters.deleted == 1  # its own
        assert only(tmp_path, "*killed*.wav.part").exists()
        assert sidecar_of(tmp_path, "*killed*.json")["ended_at"] is None
        process.stdout.readline()


async def test_leftovers_without_a_readable_sidecar_become_recordings_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [recording_name(NOW, name, "0123abcd") for name in ("torn", "none", "done", "list")]
    for name in names:
        (tmp_path / f"{name}.wav.part").write_bytes(bytes(HEADER_BYTES) + chunk(1))
    (tmp_path / f"{names[0]}.json").write_text('{"session_id": "to')
    (tmp_path / f"{names[2]}.json").write_text('{"ended_at": "then", "transcript": ["kept"]}')
    (tmp_path / f"{names[3]}.json").write_text("[]")
    async with AudioArchive(ArchiveFolder(tmp_path)):
        pass
    for name in names:
        assert pcm_of(tmp_path / f"{name}.wav") == chunk(1)
    for name in (names[0], names[1], names[3]):
        assert sidecar_of(tmp_path, f"{name}.json")["duration_s"] == 0.1
    assert sidecar_of(tmp_path, f"{names[2]}.json") == {"ended_at": "then", "transcript": ["kept"]}
    assert not all_of(tmp_path, "*.part")


async def test_a_part_that_was_never_begun_goes_after_an_hour(tmp_path: Path) -> None:
    fresh, old = (
        tmp_path / f"{recording_name(NOW - timedelta(minutes=age), 'a', '0123abcd')}.wav.part"
        for age in (59, 61)
    )
    fresh.touch()
    old.touch()
    async with AudioArchive(ArchiveFolder(tmp_path), now=lambda: NOW):
        pass
    assert all_of(tmp_path) == [fresh]


# Retention

STRANGERS = ("holiday.wav", "20261101T120000000Z_a_0123abcd.mp3", "20261101T120000000Z_a.wav", "notes.json")


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (RetentionLimits(), "01234"),
        (RetentionLimits(max_files=2), "34"),
        (RetentionLimits(max_bytes=2 * (HEADER_BYTES + CHUNK_BYTES) + 2000), "34"),
        (RetentionLimits(max_age=timedelta(days=2)), "234"),
    ],
)
async def test_after_each_session_the_oldest_recordings_go(
    tmp_path: Path, limits: RetentionLimits, kept: str
) -> None:
    for name in STRANGERS:
        (tmp_path / name).write_bytes(bytes(10_000))
    (tmp_path / f"{recording_name(NOW - timedelta(days=99), 'folder', '0123abcd')}.wav").mkdir()
    times = [NOW - timedelta(days=4 - number) for number in range(5)]
    for number, time in enumerate(times):
        async with AudioArchive(ArchiveFolder(tmp_path), limits, now=lambda time=time: time) as archive:  # type: ignore[misc]
            session = RecordedSession(str(number), "", "demo", None)
            record(archive.begin(session), chunk(number))
    names = {path.name for path in all_of(tmp_path)}
    assert names >= set(STRANGERS)
    recordings = sorted(re.findall(r"Z_(\d)_\w+\.wav", " ".join(names)))
    assert "".join(recordings) == kept
    assert len(all_of(tmp_path, "*Z_[0-9]_*.json")) == len(kept)


async def test_a_file_that_goes_away_meanwhile_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ArchiveFolder(tmp_path)
    remove = folder.remove

    def remove_second(name: str) -> None:
        for path in tmp_path.glob(f"{name}*"):
            path.unlink()
        remove(name)

    monkeypatch.setattr(folder, "remove", remove_second)
    async with AudioArchive(folder, RetentionLimits(max_files=1)) as archive:
        for name in ("one", "two"):
            record(archive.begin(RecordedSession(name, "", "demo", None)), chunk(1))
    assert len(all_of(tmp_path, "*.wav")) == 1
    assert archive.counters.deleted == 1
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]


async def test_sessions_that_go_on_are_never_deleted(tmp_path: Path) -> None:
    folder = ShapedFolder(tmp_path)
    async with AudioArchive(folder, RetentionLimits(max_bytes=1)) as archive:
        going_on = archive.begin(SESSION)
        going_on.hear(chunk(1))
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        for name in ("a", "b"):
            record(archive.begin(RecordedSession(name, "", "demo", None)), chunk(2))
        await asyncio.to_thread(folder.wait_for_deletions, 2)
        assert [path.suffixes for path in all_of(tmp_path, "*one*")] == [[".json"], [".wav", ".part"]]
        going_on.tell(COMPLETED)
    assert archive.counters.deleted == 3
    assert not all_of(tmp_path)
