"""WAVs that can be played at any moment of their making."""

import errno
import io
import wave
from pathlib import Path

import pytest

from whisper_server.services.wav_file import HEADER_BYTES, WavFile, repair

RATE_HZ = 16000


class Disk(io.BytesIO):
    """A file in memory that takes so many bytes at a time and so many in all."""

    def __init__(self, most_at_once: int = 1 << 30, most: int = 1 << 30) -> None:
        super().__init__()
        self.most_at_once = most_at_once
        self.most = most

    def write(self, data: object, /) -> int:
        piece = memoryview(data)[: self.most_at_once]  # type: ignore[arg-type]
        if self.tell() + len(piece) > self.most:
            piece = piece[: max(0, self.most - self.tell())]
            if not piece:
                raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(piece)


def played(data: bytes) -> bytes:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        frames: bytes = file.readframes(file.getnframes())
        assert len(frames) == 2 * file.getnframes(), "the header promises more than there is"
    return frames


@pytest.mark.parametrize("most_at_once", [1, 7, 44, 1 << 20])
def test_it_is_whole_after_each_write(most_at_once: int) -> None:
    disk = Disk(most_at_once)
    file = WavFile(disk, RATE_HZ)
    assert played(disk.getvalue()) == b""
    expected = b""
    for pcm, silence_bytes in ((b"\x01\x02", 0), (b"", 6), (bytes(range(200)), 2), (b"\x03\x04" * 500, 0)):
        file.write(pcm, silence_bytes=silence_bytes)
        expected += bytes(silence_bytes) + pcm
        assert played(disk.getvalue()) == expected
    assert file.duration_s == len(expected) / 32000
    assert len(disk.getvalue()) == HEADER_BYTES + len(expected)


def test_a_long_silence_is_written_in_pieces() -> None:
    disk = Disk()
    file = WavFile(disk, RATE_HZ)
    file.write(b"\x01\x02", silence_bytes=300_000)
    assert played(disk.getvalue()) == bytes(300_000) + b"\x01\x02"


def test_it_can_be_played_wherever_the_process_was_killed() -> None:
    """Every order of bytes that the disk can be left with."""
    states: list[bytes] = []

    class Filmed(Disk):
        def write(self, data: object, /) -> int:
            written = super().write(data)
            states.append(self.getvalue())
            return written

    file = WavFile(Filmed(most_at_once=100), RATE_HZ)
    audio = bytes(range(250)) * 4
    for start in range(0, len(audio), 250):
        file.write(audio[start : start + 250])
    heard = [played(state) for state in states]
    assert all(audio.startswith(frames) for frames in heard)
    assert [len(frames) for frames in heard] == sorted(len(frames) for frames in heard)
    assert heard[-1] == audio


def test_a_full_disk_leaves_what_was_written_before() -> None:
    disk = Disk(most=HEADER_BYTES + 150)
    file = WavFile(disk, RATE_HZ)
    file.write(b"\x01\x02" * 50)
    with pytest.raises(OSError, match="No space"):
        file.write(b"\x03\x04" * 50)
    assert played(disk.getvalue()) == b"\x01\x02" * 50
    assert len(disk.getvalue()) == HEADER_BYTES + 100
    assert file.duration_s == 100 / 32000


def test_a_disk_that_takes_nothing_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(OSError, match="error"):
        WavFile(Disk(most_at_once=0), RATE_HZ)


def test_more_than_the_format_can_say_is_refused() -> None:
    file = WavFile(Disk(), RATE_HZ)
    with pytest.raises(OSError, match="large"):
        file.write(b"", silence_bytes=0xFFFF_FFFF)
    assert file.duration_s == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", b""),
        (b"RIFF", b""),
        (bytes(HEADER_BYTES), b""),
        (bytes(HEADER_BYTES) + b"\x01\x02\x03\x04", b"\x01\x02\x03\x04"),
        (bytes(HEADER_BYTES) + b"\x01\x02\x03", b"\x01\x02"),
    ],
)
def test_repair_makes_a_header_that_says_what_is_there(
    tmp_path: Path, content: bytes, expected: bytes
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert repair(path, RATE_HZ) == len(expected) / 32000
    assert played(path.read_bytes()) == expected
    assert path.stat().st_size == HEADER_BYTES + len(expected)
