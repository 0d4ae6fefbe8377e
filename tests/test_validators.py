"""Which kind of file some bytes begin, and what is base64."""

import base64
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media import encode, pictures, tone, wav
from whisper_server.core.validators import HEAD_BYTES, decode_base64, sniff_format

TONE = tone(0.5, 48_000)


def id3(size: int, *, has_footer: bool = False) -> bytes:
    """An ID3v2.4 tag of `size` bytes behind its header."""
    digits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    footer = b"3DI\4\0\x10" + digits if has_footer else b""
    return b"ID3\4\0" + (b"\x10" if has_footer else b"\0") + digits + bytes(size) + footer


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "wav": (lambda: wav(TONE, 48_000), "wav"),
    "wav of more than 4 GB": (lambda: wav(TONE, 48_000, container="RF64"), "wav"),
    "mp3 with a tag": (lambda: encode(TONE, 48_000, "mp3", "libmp3lame"), "mp3"),
    "mp3 without a tag": (lambda: encode(TONE, 48_000, "mp3", "libmp3lame")[45:], "mp3"),
    "mp3 behind a cover picture": (lambda: id3(100_000) + b"\xff\xfb\x90\x00", "mp3"),
    "mp3 behind two tags": (lambda: id3(20) + id3(0, has_footer=True) + b"\xff\xfb\x90\x00", "mp3"),
    "mp2": (lambda: encode(TONE, 48_000, "mp2", "mp2"), "mp2"),
    "aac": (lambda: encode(TONE, 48_000, "adts", "aac"), "aac"),
    "aac behind a tag": (lambda: id3(63) + encode(TONE, 48_000, "adts", "aac"), "aac"),
    "m4a": (lambda: encode(TONE, 48_000, "ipod", "aac"), "m4a"),
    "mp4": (lambda: encode(TONE, 48_000, "mp4", "aac"), "mp4"),
    "mp4 film": (lambda: pictures(0.5), "mp4"),
    "mov": (lambda: encode(TONE, 48_000, "mov", "aac"), "mov"),
    "mov without its first atom": (lambda: struct.pack(">I", 8) + b"wide", "mov"),
    "flac": (lambda: encode(TONE, 48_000, "flac", "flac"), "flac"),
    "flac behind a tag": (lambda: id3(0) + encode(TONE, 48_000, "flac", "flac"), "flac"),
    "ogg opus": (lambda: encode(TONE, 48_000, "ogg", "libopus"), "ogg"),
    "webm": (lambda: encode(TONE, 48_000, "webm", "libopus"), "webm"),
    "matroska": (lambda: encode(TONE, 48_000, "matroska", "libopus"), "mkv"),
    "mpeg": (lambda: encode(TONE, 48_000, "mpeg", "mp2"), "mpeg"),
    "aiff": (lambda: wav(TONE, 48_000, container="AIFF"), "aiff"),
    "caf": (lambda: wav(TONE, 48_000, container="CAF"), "caf"),
    "amr": (lambda: b"#!AMR\n", "amr"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_known_by_its_first_bytes(name: str) -> None:
    make, expected = FILES[name]
    assert sniff_format(make()[:HEAD_BYTES]) == expected


@pytest.mark.parametrize(
    "head",
    [
        *(
            b"",
            b"R",
            b"RIFF",
            b"RIFF\0\0\0\0AVI ",
            b"hello, this is no audio",
            b"\x89PNG\r\n\x1a\n",
            b"%PDF-1.7",
        ),
        *(
            b"\xff\xd8\xff\xe0\0\x10JFIF",
            b"\xff" * 20,
            b"\xff\xfb",
            b"\xff\xe8\x90\0",
            b"\xff\xfb\x9c\0",
            bytes(40),
        ),
    ],
)
def test_what_is_no_audio_has_no_format(head: bytes) -> None:
    assert sniff_format(head) is None


@given(
    st.binary(max_size=64), st.sampled_from([b"", b"ID3", b"ID3\4\0\0\0\0\0\1", b"\xff\xfb", b"\0\0\0\0ftyp"])
)
def test_any_bytes_can_be_sniffed(data: bytes, start: bytes) -> None:
    name = sniff_format(start + data)
    assert name is None or name.isalnum()


def decoded(text: str) -> bytes:
    return b"".join(decode_base64(text))


@given(st.binary(max_size=100))
def test_base64_of_either_alphabet_gives_the_bytes_back(data: bytes) -> None:
    standard, url_safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    for text in (standard, standard.rstrip("="), url_safe, url_safe.rstrip("="), " \r\n\t".join(standard)):
        assert decoded(text) == data


def test_base64_longer_than_a_piece_gives_the_bytes_back() -> None:
    data = bytes(range(256)) * 7001
    text = base64.encodebytes(data).decode()  # a line break after 76 characters
    pieces = list(decode_base64(text))
    assert b"".join(pieces) == data
    assert len(pieces) > 2


@pytest.mark.parametrize(
    "text",
    [
        *("A", "AAAAA", "A===", "=", "====", "AA=", "AAA==", "AAAA=", "AA==AA==", "AA=A", "AAA=\n=", "A%2B="),
        *(
            "héllo",
            "AAA\0",
            "AA.A",
            "data:,AAAA",
            "AAAA" * (1 << 18) + "AA==AAAA",
            "\N{FULLWIDTH LATIN SMALL LETTER A}",
        ),
    ],
)
def test_anything_else_is_no_base64(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the class is all that is promised
        decoded(text)
