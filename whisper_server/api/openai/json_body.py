"""JSON in place of a form: the audio as base64, every other key as the form field of that name.

Arrays and objects become fields the way the SDKs encode them for forms, so that a request means the same in
either shape.
"""

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from whisper_server.api.openai.fields import shown
from whisper_server.api.uploads import Form, body_chunks, read_form
from whisper_server.core.errors import InvalidRequestError, UploadTooLargeError
from whisper_server.core.validators import HEAD_BYTES, decode_base64, sniff_format
from whisper_server.services.transcription import Transcription

_SPOOL_BYTES = 1 << 20
"""Larger bodies, and larger audio, go to disk."""

_MAX_TEXT_BYTES = 1 << 20
"""All of a body but the audio."""

_MAX_VALUES = 50_000
"""Keys, values and brackets of a body: a few bytes each, and each becomes an object many times its size."""

_MAX_FIELDS = 10_000
_MAX_NAME_CHARS = 200
_MAX_DEPTH = 8
_MAX_PARSED_AT_ONCE = 2
_MAX_DATA_URL_HEADER_CHARS = 1000

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_parsers: RunVar[CapacityLimiter] = RunVar("json_body_parsers")

_Built = TypeVar("_Built")


@dataclass(frozen=True, slots=True)
class UploadBody:
    """What a route that takes audio was sent; close it to delete the file.

    Attributes:
        form: the fields and the file, in whichever shape they came.
        is_audio_json: it was JSON with the audio in `audio`, which `audio_json_response` answers.
        audio_format: of JSON, what kind of file the audio is, as `sniff_format` says.
    """

    form: Form
    is_audio_json: bool = False
    audio_format: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.form.close()


async def read_body(request: Request, *, max_file_bytes: int) -> UploadBody:
    """Read a multipart form or JSON; errors as `read_form` and `read_json`."""
    kind, _ = parse_options_header(request.headers.get("content-type", ""))
    if kind == b"multipart/form-data":
        return UploadBody(await read_form(request, max_file_bytes=max_file_bytes))
    if _is_json(kind):
        return await read_json(request, max_file_bytes=max_file_bytes)
    raise InvalidRequestError(
        "The body must be multipart/form-data with the audio in its part 'file', or application/json with "
        "the audio as base64 in 'audio'.",
        code="unsupported_content_type",
    )


async def read_json(request: Request, *, max_file_bytes: int) -> UploadBody:
    """Read a JSON body: `{"audio": "<base64>"}` or `{"input_audio": {"data": "<base64>"}}`, and fields.

    Raises:
        InvalidRequestError: it is no JSON object, has no audio, or the audio is no base64.
        UploadTooLargeError: the body or the audio in it is too large.
    """
    build = partial(_upload_body, max_file_bytes=max_file_bytes)
    return await read_object(request, build, max_file_bytes=max_file_bytes)


async def read_object(
    request: Request, build: Callable[[dict[str, Any]], _Built], *, max_file_bytes: int
) -> _Built:
    """Read a JSON object and make something of it in a worker thread.

    Args:
        request: its body has not been read.
        build: called with the object; blocking.
        max_file_bytes: the body may be as large as base64 makes this much, and a little more.

    Raises:
        InvalidRequestError: the body is not declared to be JSON, or is no JSON object.
        UploadTooLargeError: it is too large.
        Exception: whatever `build` raises.
    """
    kind, _ = parse_options_header(request.headers.get("content-type", ""))
    if not _is_json(kind):
        # A web page may send any other type to a server that did not agree to it.
        raise InvalidRequestError(
            "The body must be JSON, and its Content-Type application/json.", code="unsupported_content_type"
        )
    with await _receive(request, max_file_bytes) as body:
        return await to_thread.run_sync(lambda: build(_parse(_take(body))), limiter=_limiter())


def _required_text(value: object, param: str) -> str:
    """A string that must be there.

    Raises:
        InvalidRequestError: it is missing, empty, or no string.
    """
    if value is None or value == "":
        raise InvalidRequestError(f"'{param}' is missing.", param=param, code="missing_required_parameter")
    if not isinstance(value, str):
        raise InvalidRequestError(f"'{param}' must be a string.", param=param, code="invalid_value")
    return value


def spool_audio(text: str, param: str, *, max_file_bytes: int) -> BinaryIO:
    """The file that base64 or a data URL holds, at its beginning; the caller closes it. Blocking.

    Raises:
        InvalidRequestError: it is neither.
        UploadTooLargeError: it is larger than `max_file_bytes`.
    """
    payload = _payload(text, param)
    file = cast("BinaryIO", tempfile.SpooledTemporaryFile(_SPOOL_BYTES))  # noqa: SIM115  the caller closes it
    try:
        size = 0
        for piece in decode_base64(payload):
            size += len(piece)
            if size > max_file_bytes:
                raise _too_large(max_file_bytes, param)
            file.write(piece)
        file.seek(0)
    except ValueError as error:
        file.close()
        raise _not_base64(param) from error
    except BaseException:
        file.close()
        raise
    return file


def form_fields(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The form fields that say the same: arrays as `name[]`, objects as `name[key]`, null as nothing.

    Raises:
        InvalidRequestError: there are too many, they are too large, or nested too deep.
    """
    fields: list[tuple[str, str]] = []
    text_chars = 0
    for key, value in values.items():
        for name, text in _pairs(key, value, _MAX_DEPTH):
            text_chars += len(name) + len(text)
            if text_chars > _MAX_TEXT_BYTES:
                raise InvalidRequestError(
                    f"The text fields are larger than {_MAX_TEXT_BYTES >> 20} MiB together.",
                    param=shown(key),
                    code="field_too_large",
                )
            fields.append((name, text))
            if len(fields) > _MAX_FIELDS:
                raise InvalidRequestError(
                    f"The body has more than {_MAX_FIELDS} values.", code="too_many_fields"
                )
    return fields


def audio_json_response(
    transcription: Transcription, model_name: str, took_s: float, audio_format: str | None
) -> dict[str, Any]:
    """The answer to `UploadBody.is_audio_json`.

    Args:
        transcription: what to answer with.
        model_name: as the client knows it.
        took_s: seconds of processing.
        audio_format: `UploadBody.audio_format`.
    """
    return {
        "text": transcription.text,
        "processing_time": round(took_s, 3),
        "model": model_name,
        "format": audio_format or "unknown",
    }


def _is_json(kind: bytes) -> bool:
    return kind == b"application/json" or kind.endswith(b"+json")


def _limiter() -> CapacityLimiter:
    """Of the event loop: a parsed body takes several times its size, so few are parsed at once."""
    try:
        return _parsers.get()
    except LookupError:
        limiter = CapacityLimiter(_MAX_PARSED_AT_ONCE)
        _parsers.set(limiter)
        return limiter


async def _receive(request: Request, max_file_bytes: int) -> BinaryIO:
    """The body, on disk if it is large; the caller closes it."""
    limit = math.ceil(max_file_bytes / 3) * 4 + _MAX_TEXT_BYTES
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _body_too_large(max_file_bytes)
    received = 0
    pending = bytearray()
    body = cast("BinaryIO", tempfile.SpooledTemporaryFile(_SPOOL_BYTES))  # noqa: SIM115  the caller closes it
    try:
        async for chunk in body_chunks(request):
            received += len(chunk)
            if received > limit:
                raise _body_too_large(max_file_bytes)
            pending += chunk
            if len(pending) > _SPOOL_BYTES:
                data, pending = pending, bytearray()
                await to_thread.run_sync(body.write, data)
        await to_thread.run_sync(body.write, pending)
    except BaseException:
        body.close()
        raise
    return body


def _take(body: BinaryIO) -> bytes:
    body.seek(0)
    return body.read()


def _parse(body: bytes) -> dict[str, Any]:
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > _MAX_VALUES:
        raise _invalid_json(f"has more than {_MAX_VALUES} values")
    try:
        parsed = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if _SURROGATE.search(body):
            json.dumps(parsed, ensure_ascii=False).encode()  # half a character cannot be written as UTF-8
    except UnicodeError as error:
        raise _invalid_json("is not Unicode text in UTF-8") from error
    except json.JSONDecodeError as error:
        raise _invalid_json(f"breaks off at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _invalid_json("is nested too deep") from error
    except ValueError as error:
        raise _invalid_json("has a number that is too large") from error
    if not isinstance(parsed, dict):
        raise _invalid_json("is not an object")
    return parsed


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _invalid_json(f"has the key '{shown(key)}' twice")
        found[key] = value
    return found


def _refuse_constant(word: str) -> float:
    raise _invalid_json(f"has the number {word}, which JSON does not know")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _upload_body(values: dict[str, Any], *, max_file_bytes: int) -> UploadBody:
    audio, input_audio = values.pop("audio", None), values.pop("input_audio", None)
    if audio and input_audio:
        raise InvalidRequestError(
            "The audio is there twice: send 'audio' or 'input_audio'.",
            param="input_audio",
            code="duplicate_field",
        )
    if input_audio:
        text, param = input_audio_data(input_audio, "input_audio"), "input_audio.data"
    elif audio:
        text, param = _required_text(audio, "audio"), "audio"
    else:
        raise InvalidRequestError(
            "The audio is missing: send it as base64 in 'audio'.",
            param="audio",
            code="missing_required_parameter",
        )
    fields = form_fields(values)
    file = spool_audio(text, param, max_file_bytes=max_file_bytes)
    audio_format = sniff_format(file.read(HEAD_BYTES))
    file.seek(0)
    return UploadBody(Form(fields=fields, file=file), bool(audio), audio_format)


def input_audio_data(input_audio: object, param: str) -> str:
    """The base64 of an OpenAI `input_audio` object; its `format` does not matter, the content tells.

    Raises:
        InvalidRequestError: it is no such object.
    """
    if not isinstance(input_audio, dict):
        raise InvalidRequestError(f"'{param}' must be an object.", param=param, code="invalid_value")
    return _required_text(input_audio.get("data"), f"{param}.data")


def _payload(text: str, param: str) -> str:
    """The base64 of a data URL, or of what is base64 already."""
    if not text[:100].lstrip().lower().startswith("data:"):
        return text
    comma = text.find(",", 0, _MAX_DATA_URL_HEADER_CHARS)
    if comma < 0 or not text[:comma].rstrip().lower().endswith(";base64"):
        raise _not_base64(param)
    return text[comma + 1 :]


def _pairs(name: str, value: object, depth: int) -> Iterator[tuple[str, str]]:
    if not depth:
        raise _invalid_json("is nested too deep")
    if len(name) > _MAX_NAME_CHARS:
        raise _invalid_json(f"has a key of more than {_MAX_NAME_CHARS} characters")
    members: Iterable[tuple[str, object]]
    match value:
        case None:
            return
        case dict():
            members = ((f"{name}[{key}]", item) for key, item in value.items())
        case list():
            members = ((f"{name.removesuffix('[]')}[]", item) for item in value)
        case _:
            yield name, _text(value)
            return
    for inner_name, item in members:
        yield from _pairs(inner_name, item, depth - 1)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _invalid_json(problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"The JSON body {problem}.", code="invalid_json")


def _not_base64(param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"'{param}' is not base64. Send the file as base64, or as a data URL with ';base64'.",
        param=param,
        code="invalid_base64",
    )


def _too_large(max_file_bytes: int, param: str) -> UploadTooLargeError:
    return UploadTooLargeError(
        f"The file in '{param}' is larger than the maximum of {max_file_bytes / (1 << 20):g} MB.", param=param
    )


def _body_too_large(max_file_bytes: int) -> UploadTooLargeError:
    return UploadTooLargeError(
        f"The body is larger than a file of the maximum of {max_file_bytes / (1 << 20):g} MB makes it."
    )
