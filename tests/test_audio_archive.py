"""Recordings of live streams: what is on the disk after sessions, on slow disks and on full ones."""

import asyncio
import errno
import json
import os
import re
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.live_speech import HearingEngine, PerfectDetector, speech
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
from tests.test_streaming import CALLER, MODEL, QUIET, Models, read, texts
from whisper_server.core.stream_events import FinalTranscript
from whisper_server.services.archive_folder import ArchiveFolder
from whisper_server.services.audio_archive import AudioArchive
from whisper_server.services.recorder import RecordedSession
from whisper_server.services.scheduler import Scheduler
from whisper_server.services.streaming import StreamService
from whisper_server.services.voice_detectors import VoiceDetectorPool

pytestmark = pytest.mark.anyio

SPOKEN = speech(0.3, "alpha bravo", 0.8, "charlie", 0.8)


def final(text: str, start_s: float = 0.0) -> FinalTranscript:
    return FinalTranscript("utt", text, (), "en", 1.0, 0.9, start_s, 1.0, start_s + 0.8)


def stream_service(archive: AudioArchive) -> StreamService:
    return StreamService(
        Models(HearingEngine()), Scheduler(), VoiceDetectorPool(PerfectDetector), archive=archive
    )


# One recording


async def test_a_session_leaves_its_audio_and_who_said_what_when(tmp_path: Path) -> None:
    attributes = {"room": "blue", "caller": "Zoë"}
    async with (
        AudioArchive(ArchiveFolder(tmp_path)) as archive,
        stream_service(archive) as streams,
        await streams.open(QUIET, MODEL, caller=CALLER, session_id="call 7", attributes=attributes) as stream,
    ):
        (entry,) = streams.registry.sessions()
        assert entry.attributes == attributes
        data = SPOKEN.pcm.tobytes()
        for start in range(0, len(data), 641):
            await stream.send(data[start : start + 641])
        await stream.end()
        events = await read(stream)
    assert pcm_of(only(tmp_path, "*.wav")) == data
    sidecar = sidecar_of(tmp_path)
    transcript = sidecar.pop("transcript")
    times = {key: datetime.fromisoformat(sidecar.pop(key)) for key in ("started_at", "ended_at")}
    assert sidecar == {
        "session_id": "call 7",
        "attributes": attributes,
        "client": "ann",
        "model": "made-up",
        "language": None,
        "sample_rate_hz": 16000,
        "end_reason": "completed",
        "duration_s": round(len(data) / 32000, 3),
        "dropped_chunks": 0,
        "is_cut": False,
        "finals_left_out": 0,
    }
    assert times["started_at"].tzinfo == UTC
    assert times["started_at"] <= times["ended_at"]
    assert [entry["text"] for entry in transcript] == texts(events) == ["alpha bravo", "charlie"]
    first = transcript[0]
    assert first["language"] == "en"
    assert [word["word"] for word in first["words"]] == ["alpha", "bravo"]
    assert first["words"][0]["start"] == pytest.approx(0.3, abs=0.01)
    assert first["start"] <= first["words"][0]["start"] < first["words"][1]["end"] <= first["end"] + 0.1
    assert archive.counters.started == archive.counters.finished == 1
    assert archive.waiting_bytes == 0


async def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = ArchiveFolder(tmp_path / "data" / "audio")
    before = os.umask(0)
    try:
        folder.prepare()
        async with AudioArchive(folder) as archive:
            record(archive.begin(SESSION), chunk(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data" / "audio").stat().st_mode) == 0o700
    files = list((tmp_path / "data" / "audio").iterdir())
    assert {(path.suffix, stat.S_IMODE(path.stat().st_mode)) for path in files} == {
        (".wav", 0o600),
        (".json", 0o600),
    }


async def test_a_recording_that_goes_on_is_a_part_that_says_whose_it_is(tmp_path: Path) -> None:
    folder = ShapedFolder(tmp_path)
    async with AudioArchive(folder) as archive:
        recorder = archive.begin(SESSION)
        recorder.hear(chunk(1))
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        assert pcm_of(only(tmp_path, "*.wav.part")) in (b"", chunk(1))
        assert not all_of(tmp_path, "*.wav")
        sidecar = sidecar_of(tmp_path)
        assert (sidecar["session_id"], sidecar["attributes"]) == ("one", {"room": "blue"})
        assert (sidecar["ended_at"], sidecar["end_reason"], sidecar["transcript"]) == (None, None, [])
        recorder.tell(COMPLETED)
    assert len(all_of(tmp_path)) == 2
    assert only(tmp_path, "*.wav").stem == only(tmp_path, "*.json").stem


async def test_a_session_without_audio_or_without_an_end_is_a_recording_too(tmp_path: Path) -> None:
    async with AudioArchive(ArchiveFolder(tmp_path)) as archive:
        archive.begin(RecordedSession("silent", "", "demo", None)).tell(COMPLETED)
        archive.begin(RecordedSession("endless", "", "demo", None)).hear(chunk(1))
    assert pcm_of(only(tmp_path, "*silent*.wav")) == b""
    assert pcm_of(only(tmp_path, "*endless*.wav")) == chunk(1)
    assert sidecar_of(tmp_path, "*endless*.json")["end_reason"] == "interrupted"


async def test_a_recorder_of_a_closed_archive_records_nothing(tmp_path: Path) -> None:
    async with AudioArchive(ArchiveFolder(tmp_path)) as archive:
        pass
    record(archive.begin(SESSION), chunk(1))
    assert not all_of(tmp_path)


@pytest.mark.parametrize(
    "session_id",
    [
        *("../../../etc/passwd", "/etc/passwd", "..", "", "a/b\\c:d*e?f", "\x00\n", "\ud800 half a pair"),
        *("x" * 5000, "ünïcødé 🎉", "CON", "-rf", "{}%s%d"),
    ],
)
async def test_session_ids_cannot_leave_the_folder(tmp_path: Path, session_id: str) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    session = RecordedSession(session_id, "ann", "demo", None, {session_id: session_id})
    async with AudioArchive(ArchiveFolder(folder), now=lambda: NOW) as archive:
        for number in range(3):  # of one moment and one name
            record(archive.begin(session), chunk(number))
    assert all_of(tmp_path) == [folder]
    names = [path.name for path in all_of(folder)]
    assert len(names) == 6
    assert all(
        re.fullmatch(r"20261130T120000000Z_[\w-]{1,64}_[0-9a-f]{8}\.(wav|json)", name) for name in names
    )
    assert sorted(pcm_of(path) for path in all_of(folder, "*.wav")) == [chunk(0), chunk(1), chunk(2)]
    for path in all_of(folder, "*.json"):
        content = json.loads(path.read_bytes())
        assert (content["session_id"], content["attributes"]) == (session_id, {session_id: session_id})


async def test_many_sessions_at_once_each_get_their_own_audio(tmp_path: Path) -> None:
    async with AudioArchive(ArchiveFolder(tmp_path)) as archive:
        recorders = [archive.begin(RecordedSession(f"s{n}", "", "demo", None)) for n in range(40)]
        for _ in range(5):
            for number, recorder in enumerate(recorders):
                recorder.hear(chunk(number))
            await asyncio.sleep(0)
        for recorder in recorders:
            recorder.tell(COMPLETED)
    for number in range(40):
        assert pcm_of(only(tmp_path, f"*_s{number}_*.wav")) == chunk(number) * 5
    assert archive.counters.finished == 40


async def test_a_transcript_beyond_its_bounds_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whisper_server.services.recording_file._MAX_TRANSCRIPT_CHARS", 1000)
    monkeypatch.setattr("whisper_server.services.recording_queue._MAX_WAITING_FINALS", 8)
    folder = ShapedFolder(tmp_path)
    async with AudioArchive(folder) as archive:
        folder.gate.clear()
        recorder = archive.begin(SESSION)
        recorder.hear(chunk(1))
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        recorder.tell(final(""))  # nobody spoke
        recorder.tell(final("x" * 2000))
        for number in range(10):
            recorder.tell(final(f"{number}"))
        recorder.tell(COMPLETED)
        folder.gate.set()
    sidecar = sidecar_of(tmp_path)
    assert [entry["text"] for entry in sidecar["transcript"]] == [str(number) for number in range(7)]
    assert sidecar["finals_left_out"] == 4


# A slow disk


async def test_a_full_queue_drops_the_oldest_and_leaves_silence_in_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ShapedFolder(tmp_path)
    async with AudioArchive(folder, queue_max_chunks=4) as archive:
        folder.gate.clear()
        recorder = archive.begin(SESSION)
        recorder.hear(chunk(0))
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        for number in range(1, 11):
            recorder.hear(chunk(number))
        assert archive.waiting_bytes == 4 * CHUNK_BYTES
        assert archive.counters.dropped_chunks == 6
        assert archive.counters.dropped_bytes == 6 * CHUNK_BYTES
        folder.gate.set()
        recorder.tell(COMPLETED)
    kept = b"".join(chunk(number) for number in (7, 8, 9, 10))
    assert pcm_of(only(tmp_path, "*.wav")) == chunk(0) + bytes(6 * CHUNK_BYTES) + kept
    sidecar = sidecar_of(tmp_path)
    assert (sidecar["dropped_chunks"], sidecar["duration_s"]) == (6, 1.1)
    assert "session one: 6 chunks are silent" in caplog.text


async def test_small_chunks_are_joined_while_they_wait(tmp_path: Path) -> None:
    folder = ShapedFolder(tmp_path)
    async with AudioArchive(folder, queue_max_chunks=4) as archive:
        folder.gate.clear()
        recorder = archive.begin(SESSION)
        recorder.hear(chunk(0))
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        data = bytes(range(256)) * 40
        for start in range(0, len(data), 2):
            recorder.hear(data[start : start + 2])
        folder.gate.set()
        recorder.tell(COMPLETED)
    assert pcm_of(only(tmp_path, "*.wav")) == chunk(0) + data
    assert archive.counters.dropped_chunks == 0


async def test_all_queues_together_are_bounded_in_bytes(tmp_path: Path) -> None:
    folder = ShapedFolder(tmp_path)
    async with AudioArchive(folder, max_waiting_bytes=3 * CHUNK_BYTES) as archive:
        folder.gate.clear()
        first, second = archive.begin(SESSION), archive.begin(RecordedSession("two", "", "demo", None))
        first.hear(chunk(0))
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        for number in (1, 2, 3, 4):
            first.hear(chunk(number))  # drops its own oldest
        second.hear(chunk(5))  # has nothing older to drop
        assert archive.waiting_bytes == 3 * CHUNK_BYTES
        assert archive.counters.dropped_chunks == 2
        folder.gate.set()
        for recorder in (first, second):
            recorder.tell(COMPLETED)
    silence = bytes(CHUNK_BYTES)
    assert pcm_of(only(tmp_path, "*one*.wav")) == chunk(0) + silence + chunk(2) + chunk(3) + chunk(4)
    assert pcm_of(only(tmp_path, "*two*.wav")) == silence


async def test_a_disk_that_hangs_does_not_hold_up_the_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ShapedFolder(tmp_path)
    async with AudioArchive(folder, close_timeout_s=0.01) as archive:
        folder.gate.clear()
        recorder = archive.begin(SESSION)
        recorder.hear(chunk(0))
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        record(recorder, chunk(1))
    assert "within 0.01 s: 1 are not finished, and at least 0.1 s of audio is lost" in caplog.text
    folder.gate.set()
    for thread in threading.enumerate():
        if thread.name == "recordings":
            await asyncio.to_thread(thread.join, WAIT_S)
    assert pcm_of(only(tmp_path, "*.wav")) == chunk(0) + chunk(1)


# A full disk


async def test_a_full_disk_ends_the_recording_and_not_the_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ShapedFolder(tmp_path, room_bytes=CHUNK_BYTES)
    async with (
        AudioArchive(folder) as archive,
        stream_service(archive) as streams,
        await streams.open(QUIET, MODEL, caller=CALLER, session_id="mine") as stream,
    ):
        data = SPOKEN.pcm.tobytes()
        await stream.send(data[:CHUNK_BYTES])
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        for start in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
            await stream.send(data[start : start + CHUNK_BYTES])
        await stream.end()
        assert texts(await read(stream)) == ["alpha bravo", "charlie"]
    assert pcm_of(only(tmp_path, "*.wav")) == data[:CHUNK_BYTES]
    sidecar = sidecar_of(tmp_path)
    assert (sidecar["is_cut"], sidecar["duration_s"]) == (True, 0.1)
    assert [entry["text"] for entry in sidecar["transcript"]] == ["alpha bravo", "charlie"]
    assert archive.counters.failed == 1
    lines = [entry.getMessage() for entry in caplog.records if entry.name == "whisper_server.recordings"]
    assert lines == ["Session mine is not recorded any further: No space left on device"]


@pytest.mark.parametrize("failing", ["create", "write_sidecar", "finish"])
async def test_a_recording_that_fails_is_counted_once_and_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder = ArchiveFolder(tmp_path)
    works = getattr(folder, failing)

    def fail(*arguments: Any) -> Any:
        if "bad" in str(arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return works(*arguments)

    monkeypatch.setattr(folder, failing, fail)
    async with AudioArchive(folder) as archive:
        for name in ("bad", "good"):
            record(archive.begin(RecordedSession(name, "", "demo", None)), chunk(1))
    assert pcm_of(only(tmp_path, "*good*.wav")) == chunk(1)
    counters = archive.counters
    assert (counters.failed, counters.finished) == (1, 1)
    assert caplog.text.count("Session bad is not recorded any further: No space left on device") == 1
    if failing != "finish":
        assert not all_of(tmp_path, "*bad*")


async def test_an_archive_survives_a_fault_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ArchiveFolder(tmp_path)

    def fail(*_: object) -> int:
        raise RuntimeError("a fault")

    monkeypatch.setattr(folder, "enforce", fail)
    async with AudioArchive(folder) as archive:
        record(archive.begin(SESSION), chunk(1))
    assert pcm_of(only(tmp_path, "*.wav")) == chunk(1)
    assert "Recordings cannot be tidied up" in caplog.text


async def test_a_folder_that_went_away_is_made_again(tmp_path: Path) -> None:
    folder = ArchiveFolder(tmp_path / "audio")
    folder.prepare()
    async with AudioArchive(folder) as archive:
        (tmp_path / "audio").rmdir()
        record(archive.begin(SESSION), chunk(1))
    assert pcm_of(only(tmp_path / "audio", "*.wav")) == chunk(1)


async def test_a_part_that_somebody_removed_is_no_error(tmp_path: Path) -> None:
    folder = ShapedFolder(tmp_path)
    async with AudioArchive(folder) as archive:
        recorder = archive.begin(SESSION)
        recorder.hear(chunk(1))
        assert await asyncio.to_thread(folder.is_waited_for.wait, WAIT_S)
        only(tmp_path, "*.wav.part").unlink()
        recorder.tell(COMPLETED)
    assert archive.counters.failed == 0
    assert sidecar_of(tmp_path)["end_reason"] == "completed"
