"""Request bodies as they arrive: multipart forms with one file, every part of them bounded.

Not FastAPI's `Form` and `File`: these read any amount before a handler can object, and take a file part
without a filename, as the OpenAI SDK may send it, for text.
"""

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Self, cast

import anyio
from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from whisper_server.core.errors import InvalidRequestError, UploadStalledError, UploadTooLargeError

FILE_FIELD = "file"

_SPOOL_BYTES = 1 << 20
"""A larger file goes to disk while it arrives."""

_MAX_TEXT_BYTES = 1 << 20
"""All text fields of a form together."""

MAX_PAUSE_S = 60.0
"""Longest silence in the middle of an upload, seconds."""

_MAX_PARTS = 200
_MAX_FRAMING_BYTES = 256 << 10
"""Boundaries and part headers of a form together."""


@dataclass(slots=True)
class Form:
    """A parsed form; close it to delete its file.

    Attributes:
        fields: (name, value) of the text parts, in order.
        file: the content of the part named `file`, at its beginning; None where there was none.
        filename: as the client named it; may be empty. Never a path to be opened.
    """

    fields: list[tuple[str, str]] = field(default_factory=list)
    file: BinaryIO | None = None
    filename: str = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def required_file(self) -> BinaryIO:
        """The file.

        Raises:
            InvalidRequestError: there is none.
        """
        if self.file is None:
            raise InvalidRequestError(
                "The audio is missing: send it as the form part 'file'.",
                param=FILE_FIELD,
                code="missing_required_parameter",
            )
        return self.file

    def close(self) -> None:
        """Delete the file."""
        if self.file is not None:
            self.file.close()


async def read_form(request: Request, *, max_file_bytes: int) -> Form:
    """Read a multipart body.

    Raises:
        InvalidRequestError: it is no multipart form, it is malformed, or it has too many or too large fields.
        UploadTooLargeError: the file, or the whole body by its header, is too large.
    """
    content_type = request.headers.get("content-type", "")
    kind, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequestError(
            "The body must be multipart/form-data with a boundary, and the audio in its part 'file'.",
            code="unsupported_content_type",
        )
    limit = max_file_bytes + _MAX_TEXT_BYTES + _MAX_FRAMING_BYTES
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(max_file_bytes)
    try:
        reader = _FormReader(boundary, max_file_bytes)
    except FormParserError as error:
        raise _malformed() from error
    try:
        return await reader.read(_bounded(request, limit, max_file_bytes))
    except BaseException:
        reader.form.close()
        raise


async def body_chunks(request: Request, *, max_pause_s: float = MAX_PAUSE_S) -> AsyncGenerator[bytes, None]:
    """The body as it arrives.

    Raises:
        UploadStalledError: nothing came for `max_pause_s`: the request would hold its place for ever.
    """
    chunks = request.stream()
    while True:
        try:
            with anyio.fail_after(max_pause_s):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise UploadStalledError(
                f"The upload stopped: nothing came for {max_pause_s:g} seconds."
            ) from None
        if chunk is None:
            return
        yield chunk


async def _bounded(request: Request, limit: int, max_file_bytes: int) -> AsyncIterator[bytes]:
    received = 0
    async for chunk in body_chunks(request):
        received += len(chunk)
        if received > limit:
            raise _too_large(max_file_bytes)
        yield chunk


class _FormReader:
    """Feeds a parser, whose callbacks only note what is to be done: writing a file must not block them."""

    def __init__(self, boundary: bytes, max_file_bytes: int) -> None:
        self.form = Form()
        self._max_file_bytes = max_file_bytes
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_end": self._on_end,
            },
        )
        self._parts = 0
        self._text_bytes = 0
        self._file_bytes = 0
        self._is_ended = False
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._name = ""
        self._text: bytearray | None = None
        self._is_file = False
        self._arrived = bytearray()

    async def read(self, chunks: AsyncIterator[bytes]) -> Form:
        try:
            async for chunk in chunks:
                self._parser.write(chunk)
                await self._store()
        except FormParserError as error:
            raise _malformed() from error
        if not self._is_ended:
            raise _malformed()
        if self.form.file is not None:
            self.form.file.seek(0)
        return self.form

    async def _store(self) -> None:
        if not self._arrived or self.form.file is None:
            return
        self._file_bytes += len(self._arrived)
        if self._file_bytes > self._max_file_bytes:
            raise _too_large(self._max_file_bytes)
        data, self._arrived = self._arrived, bytearray()
        if self._file_bytes <= _SPOOL_BYTES:
            self.form.file.write(data)
        else:
            await to_thread.run_sync(self.form.file.write, data)

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidRequestError(f"The form has more than {_MAX_PARTS} parts.", code="too_many_fields")
        self._disposition, self._text, self._is_file = b"", None, False

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed()
        self._name = options[b"name"].decode("utf-8", "replace")
        if self._name == FILE_FIELD:
            if self.form.file is not None:
                raise InvalidRequestError(
                    "The form has more than one part 'file'.", param=FILE_FIELD, code="duplicate_field"
                )
            self._is_file = True
            # The form closes it.
            file = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115
            self.form.file = cast("BinaryIO", file)
            self.form.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        elif b"filename" not in options:
            self._text = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._arrived += data[start:end]
        elif self._text is not None:
            self._text_bytes += end - start
            if self._text_bytes > _MAX_TEXT_BYTES:
                raise InvalidRequestError(
                    f"The text fields are larger than {_MAX_TEXT_BYTES >> 20} MiB together.",
                    param=self._name,
                    code="field_too_large",
                )
            self._text += data[start:end]

    def _on_part_end(self) -> None:
        if self._text is not None:
            try:
                value = self._text.decode()
            except UnicodeDecodeError as error:
                raise InvalidRequestError(
                    f"The field '{self._name[:100]}' is not UTF-8 text.",
                    param=self._name[:100],
                    code="invalid_value",
                ) from error
            self.form.fields.append((self._name, value))

    def _on_end(self) -> None:
        self._is_ended = True


def _malformed() -> InvalidRequestError:
    return InvalidRequestError("The multipart body is malformed or cut short.", code="invalid_multipart")


def _too_large(max_file_bytes: int) -> UploadTooLargeError:
    return UploadTooLargeError(
        f"The file is larger than the maximum of {max_file_bytes / (1 << 20):g} MB.", param=FILE_FIELD
    )
