"""Multipart bodies, piece by piece: what is in them, and how each can be wrong."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from tests.wire import BOUNDARY, FORM_TYPE, form, part, raw_part
from whisper_server.api.uploads import Form, body_chunks, read_form
from whisper_server.core.errors import (
    InvalidRequestError,
    UploadStalledError,
    UploadTooLargeError,
    WhisperServerError,
)

MIB = 1 << 20
AUDIO = bytes(range(256)) * 40
SOME_FORM = form(
    part("model", "demo"),
    part("file", AUDIO, filename="speech.wav", content_type="audio/wav"),
    part("prompt", "Grüße"),
)


@pytest.fixture
def temporary_files(monkeypatch: pytest.MonkeyPatch) -> list[tempfile.SpooledTemporaryFile[bytes]]:
    """Every temporary file that is made."""
    made: list[tempfile.SpooledTemporaryFile[bytes]] = []

    class Noted(tempfile.SpooledTemporaryFile[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("whisper_server.api.uploads.tempfile.SpooledTemporaryFile", Noted)
    return made


def request(pieces: Sequence[bytes], headers: dict[str, str], *, is_cut: bool = False) -> Request:
    """A request whose body arrives in these pieces; a cut one ends with the client's leaving."""
    messages: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        + [{"type": "http.disconnect"} if is_cut else {"type": "http.request", "body": b""}]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


async def read(
    body: bytes | Sequence[bytes],
    *,
    content_type: str = FORM_TYPE,
    length: str | None = None,
    max_file_bytes: int = 4 * MIB,
    is_cut: bool = False,
) -> Form:
    headers = {"Content-Type": content_type} | ({} if length is None else {"Content-Length": length})
    pieces = [body] if isinstance(body, bytes) else body
    return await read_form(request(pieces, headers, is_cut=is_cut), max_file_bytes=max_file_bytes)


def content(parsed: Form) -> tuple[list[tuple[str, str]], bytes, str]:
    with parsed:
        return parsed.fields, parsed.required_file().read(), parsed.filename


async def test_a_form_has_its_fields_in_order_and_its_file_at_the_beginning() -> None:
    assert content(await read(SOME_FORM)) == (
        [("model", "demo"), ("prompt", "Grüße")],
        AUDIO,
        "speech.wav",
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
async def test_the_pieces_a_body_comes_in_do_not_matter(size: int) -> None:
    pieces = [SOME_FORM[start : start + size] for start in range(0, len(SOME_FORM), size)]
    assert content(await read(pieces)) == content(await read(SOME_FORM))


@given(st.lists(st.integers(1, len(SOME_FORM) - 1), max_size=8))
@settings(deadline=None, max_examples=50)
async def test_any_cut_gives_the_same_form(cuts: list[int]) -> None:
    ends = sorted({0, *cuts, len(SOME_FORM)})
    pieces = [SOME_FORM[start:stop] for start, stop in pairwise(ends)]
    assert content(await read(pieces)) == content(await read(SOME_FORM))


@pytest.mark.parametrize(
    "file_part",
    [
        part("file", AUDIO),
        part("file", AUDIO, filename=""),
        part("file", AUDIO, content_type="audio/webm;codecs=opus"),
        raw_part(b"content-disposition:form-data;name=file\r\n", AUDIO),
        raw_part(
            b'X-Other: 1\r\nContent-Type: a/b\r\nContent-Disposition: form-data; name="file"\r\n', AUDIO
        ),
    ],
)
async def test_a_part_named_file_is_the_file_whatever_else_it_says(file_part: bytes) -> None:
    assert content(await read(form(file_part)))[1] == AUDIO


@pytest.mark.parametrize("size", [1, 5, 100_000])
async def test_a_file_full_of_near_boundaries_is_whole(size: int) -> None:
    tricky = f"\r\n--{BOUNDARY}x\r\n--{BOUNDARY[:-1]}\r\n\r\n--\r\n\r\r\n-{BOUNDARY}".encode() * 20
    body = form(part("file", tricky))
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    assert content(await read(pieces))[1] == tricky


async def test_a_filename_may_be_utf8_and_is_only_a_name() -> None:
    name = "../../étude ☃.wav"
    assert content(await read(form(part("file", AUDIO, filename=name))))[2] == name


async def test_text_parts_may_have_a_content_type() -> None:
    body = form(
        part("prompt", "Grüße", content_type="text/plain; charset=utf-8"),
        part("file", AUDIO),
    )
    assert content(await read(body))[0] == [("prompt", "Grüße")]


async def test_files_of_other_names_are_ignored() -> None:
    body = form(part("cover", AUDIO, filename="cover.png"), part("file", b"x"))
    assert content(await read(body)) == ([], b"x", "")


async def test_white_space_before_and_text_after_the_form_do_not_matter() -> None:
    assert content(await read(b"\r\n" + SOME_FORM + b"epilogue")) == content(await read(SOME_FORM))


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
async def test_a_file_up_to_the_limit_is_whole_in_memory_or_on_disk(
    size: int, temporary_files: list[tempfile.SpooledTemporaryFile[bytes]]
) -> None:
    audio = bytes(251) * (size // 251) + bytes(size % 251)
    body = form(part("file", audio, filename="a"))
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)]
    parsed = await read(pieces, max_file_bytes=size)
    (file,) = temporary_files
    assert vars(file)["_rolled"] == (size > MIB)
    assert content(parsed)[1] == audio
    assert file.closed


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        ("", "unsupported_content_type"),
        ("application/json", "unsupported_content_type"),
        ("application/x-www-form-urlencoded", "unsupported_content_type"),
        ("multipart/mixed; boundary=x", "unsupported_content_type"),
        ("multipart/form-data", "unsupported_content_type"),
        ("multipart/form-data; boundary=", "unsupported_content_type"),
        ('multipart/form-data; boundary=""', "unsupported_content_type"),
        ("multipart/form-data; boundary=" + "b" * 300, "invalid_multipart"),
        (f"multipart/form-data; boundary={BOUNDARY}x", "invalid_multipart"),
    ],
)
async def test_a_content_type_that_does_not_fit_is_refused(content_type: str, code: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await read(SOME_FORM, content_type=content_type)
    assert caught.value.code == code


async def test_the_case_of_the_content_type_does_not_matter() -> None:
    content_type = f"Multipart/Form-DATA; Boundary={BOUNDARY}"
    assert content(await read(SOME_FORM, content_type=content_type))[1] == AUDIO


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"RIFF....WAVE",
        SOME_FORM[:-4],
        SOME_FORM[: len(SOME_FORM) // 2],
        SOME_FORM[:40],
        b"--" + BOUNDARY.encode(),
        form(part(None, "x")),
        form(raw_part(b"", b"x")),
        form(raw_part(b"Content-Type: text/plain\r\n", b"x")),
        form(raw_part(b"no colon here\r\n", b"x")),
        form(raw_part(b'Content-Disposition: form-data; name="file"\n', b"x")),
        form(raw_part(b"\x00\x01\x02: \xff\r\n", b"x")),
        form(raw_part(b"X-Long: " + b"x" * 20_000 + b"\r\n", b"x")),
        form(raw_part(b"X-Many: 1\r\n" * 100, b"x")),
    ],
    ids=range(14),
)
async def test_a_malformed_body_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await read(body)
    assert caught.value.code == "invalid_multipart"


@given(st.binary(max_size=300), st.integers(0, len(SOME_FORM)), st.integers(1, 50))
@settings(deadline=None, max_examples=150)
async def test_a_damaged_body_is_read_or_refused_and_nothing_else(junk: bytes, place: int, size: int) -> None:
    body = SOME_FORM[:place] + junk + SOME_FORM[place + size :]
    with suppress(WhisperServerError):
        (await read(body)).close()


async def test_two_files_are_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await read(form(part("file", AUDIO), part("file", AUDIO)))
    assert (caught.value.param, caught.value.code) == ("file", "duplicate_field")


async def test_a_form_without_a_file_is_read_and_the_file_missed_later() -> None:
    parsed = await read(form(part("model", "demo")))
    with pytest.raises(InvalidRequestError) as caught:
        parsed.required_file()
    assert (caught.value.param, caught.value.code) == ("file", "missing_required_parameter")
    parsed.close()


async def test_a_form_may_have_200_parts_and_no_more() -> None:
    parts = [part("x", "1")] * 199
    assert len(content(await read(form(*parts, part("file", b""))))[0]) == 199
    with pytest.raises(InvalidRequestError) as caught:
        await read(form(*parts, part("file", b""), part("x", "1")))
    assert caught.value.code == "too_many_fields"


async def test_text_fields_are_at_most_a_mebibyte_together() -> None:
    half = "x" * (MIB // 2)
    parsed = await read(form(part("a", half), part("prompt", half)))
    assert sum(len(value) for _, value in parsed.fields) == MIB
    with pytest.raises(InvalidRequestError) as caught:
        await read(form(part("a", half), part("prompt", half + "x")))
    assert (caught.value.param, caught.value.code) == ("prompt", "field_too_large")


async def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await read(form(part("prompt", b"Gr\xfc\xdfe")))
    assert (caught.value.param, caught.value.code) == ("prompt", "invalid_value")


async def test_a_file_over_the_limit_is_refused_as_soon_as_it_is_over(
    temporary_files: list[tempfile.SpooledTemporaryFile[bytes]],
) -> None:
    body = form(part("file", bytes(3 * MIB), filename="a"))
    pieces = [body[start : start + 65536] for start in range(0, len(body), 65536)]
    unread = iter(pieces)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(unread), "more_body": True}

    asked = Request(request([], {"Content-Type": FORM_TYPE}).scope, receive)
    with pytest.raises(UploadTooLargeError, match="maximum of 2 MB") as caught:
        await read_form(asked, max_file_bytes=2 * MIB)
    assert caught.value.param == "file"
    assert len(list(unread)) == len(pieces) - 33
    (file,) = temporary_files
    assert file.closed


async def test_a_declared_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UploadTooLargeError):
        await read([], length=str(10**12))


async def test_a_body_of_endless_headers_and_text_is_bounded_too() -> None:
    tail = b"-" * 65536
    with pytest.raises(UploadTooLargeError):
        await read([SOME_FORM, *[tail] * 100])


@pytest.mark.parametrize("length", ["", "abc", "-1", "²", "1e9"])
async def test_a_length_that_is_no_number_says_nothing(length: str) -> None:
    assert content(await read(SOME_FORM, length=length))[1] == AUDIO


async def test_a_client_that_leaves_leaves_no_file(
    temporary_files: list[tempfile.SpooledTemporaryFile[bytes]],
) -> None:
    with pytest.raises(ClientDisconnect):
        await read([SOME_FORM[:200]], is_cut=True)
    (file,) = temporary_files
    assert file.closed


async def test_an_upload_that_stops_is_given_up() -> None:
    sent: list[dict[str, Any]] = [{"type": "http.request", "body": b"--", "more_body": True}]

    async def receive() -> dict[str, Any]:
        if sent:
            return sent.pop()
        await anyio.sleep_forever()
        raise AssertionError

    chunks = body_chunks(
        Request({"type": "http", "method": "POST", "headers": []}, receive), max_pause_s=0.01
    )
    assert await anext(chunks) == b"--"
    with pytest.raises(UploadStalledError):
        await anext(chunks)
