"""Transcription by a running server, this one or another with OpenAI's API."""

import asyncio
import email.utils
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import httpx
from anyio import to_thread

from whisper_server.cli.transcribe.planning import Job, OutputFormat
from whisper_server.cli.transcribe.progress import shown
from whisper_server.cli.transcribe.rendering import render
from whisper_server.cli.transcribe.requesting import OnProgress, Results, Wish, json_text
from whisper_server.cli.transcribe.verbose_json import transcription_from
from whisper_server.core.errors import ConfigurationError, WhisperServerError

_CONNECT_S: Final = 10.0
_SEND_S: Final = 60.0
_MAX_ATTEMPTS: Final = 6
_FIRST_DELAY_S: Final = 1.0
_MAX_DELAY_S: Final = 60.0
_MAX_ASKED_DELAY_S: Final = 600.0
"""A server that wants us to wait longer has no time today."""

_BUSY: Final = frozenset([429, 503])
_MAX_MESSAGE: Final = 500

_Sleep = Callable[[float], Awaitable[None]]


class RemoteError(WhisperServerError):
    """The server did not give a transcript; the message is for the user."""


@asynccontextmanager
async def open_remote(
    url: str,
    api_key: str,
    wish: Wish,
    stdin: BinaryIO | None,
    *,
    transport: httpx.AsyncBaseTransport | None = None,
    sleep: _Sleep = asyncio.sleep,
) -> AsyncIterator["RemoteBackend"]:
    """A backend that has reached its server, until the block ends.

    Args:
        url: of the server, with or without `/v1`.
        api_key: sent along; empty sends none.
        wish: what is wanted of every recording.
        stdin: what came from standard input; seekable.
        transport: carries the requests; None takes the network.
        sleep: waits between attempts, seconds.

    Raises:
        ConfigurationError: the URL is none, the server cannot be reached, or it wants another key.
    """
    base = base_url(url)
    if not api_key.isascii() or not api_key.isprintable():
        raise ConfigurationError("The API key may hold only printable ASCII characters.")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    # A long recording takes as long as it takes: nothing limits the time to the answer but the user.
    timeout = httpx.Timeout(connect=_CONNECT_S, write=_SEND_S, read=None, pool=None)
    async with httpx.AsyncClient(headers=headers, timeout=timeout, transport=transport) as client:
        await _check_server(client, base)
        yield RemoteBackend(client, base, wish, stdin, sleep)


class RemoteBackend:
    """Sends recordings to a server; it tries again where the server is busy."""

    def __init__(
        self, client: httpx.AsyncClient, base: str, wish: Wish, stdin: BinaryIO | None, sleep: _Sleep
    ) -> None:
        self._client = client
        self._base = base
        self._wish = wish
        self._stdin = stdin
        self._sleep = sleep

    async def transcribe(self, job: Job, on_progress: OnProgress) -> Results:
        """The results of a job; see `Backend`. How far the server is, is not known."""
        if job.path is None:
            assert self._stdin is not None
            response = await self._post(self._stdin, "stdin", job.formats)
        else:
            with await to_thread.run_sync(job.path.open, "rb") as file:
                response = await self._post(file, _sent_name(job.path), job.formats)
        return read_answer(response, job.formats, self._wish)

    async def _post(self, file: BinaryIO, name: str, formats: Sequence[OutputFormat]) -> httpx.Response:
        """The answer to one request, after as many attempts as it takes.

        Raises:
            RemoteError: the server refuses, fails, or stays busy.
        """
        route = "translations" if self._wish.translate else "transcriptions"
        fields: dict[str, list[str]] = {}
        for key, value in self._wish.request_fields(formats):
            fields.setdefault(key, []).append(value)
        for attempt in range(_MAX_ATTEMPTS):
            file.seek(0)
            try:
                response = await self._client.post(
                    f"{self._base}/audio/{route}", data=fields, files={"file": (name, file)}
                )
            except httpx.HTTPError as error:
                raise RemoteError(_unreachable(self._base, error)) from error
            if response.is_success:
                return response
            delay_s = retry_delay_s(response, attempt, time.time())
            if delay_s is None or attempt == _MAX_ATTEMPTS - 1:
                break
            await self._sleep(delay_s)
        raise RemoteError(_refusal(response))


def base_url(url: str) -> str:
    """The address with `/v1`, where the routes are.

    Raises:
        ConfigurationError: it is not an address.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigurationError(f"--server '{shown(url)}' is no address. Write it as http://127.0.0.1:8089.")
    base = str(parsed).rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1"


def retry_delay_s(response: httpx.Response, attempt: int, now_s: float) -> float | None:
    """How long to wait before the next attempt; None where another one is of no use.

    Args:
        response: the refusal. Its `Retry-After` counts, as seconds or as a date.
        attempt: which it was, from 0; without `Retry-After` each waits twice as long as the one before.
        now_s: Unix time, for dates.
    """
    is_hopeless = response.headers.get("x-should-retry") == "false"
    if response.status_code not in _BUSY or is_hopeless:
        return None
    asked_s = _asked_delay_s(response.headers.get("retry-after", ""), now_s)
    if asked_s is None:
        return min(_FIRST_DELAY_S * 2.0**attempt, _MAX_DELAY_S)
    return asked_s if asked_s <= _MAX_ASKED_DELAY_S else None


def read_answer(response: httpx.Response, formats: Sequence[OutputFormat], wish: Wish) -> Results:
    """The results in a server's answer.

    Raises:
        RemoteError: the answer is not in the format that was asked for.
    """
    asked = wish.asked_format(formats)
    if not asked.is_json:
        return Results({asked: response.text.removesuffix("\n") + "\n"}, None)
    body = _json_object(response)
    duration_s = _duration_s(body)
    if tuple(formats) == (asked,):
        return Results({asked: json_text(body, wish.json_indent)}, duration_s)
    transcription = None if asked is OutputFormat.JSON else transcription_from(body)
    texts: dict[OutputFormat, str] = {}
    for kind in formats:
        if kind is OutputFormat.TEXT:
            texts[kind] = body["text"].strip() + "\n"
        elif kind is OutputFormat.JSON:
            texts[kind] = json_text(
                {k: v for k, v in body.items() if k in ("text", "usage")}, wish.json_indent
            )
        elif kind is OutputFormat.VERBOSE_JSON:
            kept = body if wish.has_words else {k: v for k, v in body.items() if k != "words"}
            texts[kind] = json_text(kept, wish.json_indent)
        elif transcription is not None:
            texts[kind] = render(transcription, kind, wish)
    return Results(texts, duration_s)


async def _check_server(client: httpx.AsyncClient, base: str) -> None:
    """See that somebody is there who takes the key; which routes a server has is not asked."""
    try:
        response = await client.get(f"{base}/models", timeout=_CONNECT_S)
    except httpx.HTTPError as error:
        raise ConfigurationError(_unreachable(base, error)) from error
    if response.status_code in (401, 403):
        raise ConfigurationError(f"{_refusal(response)} Give its key with --api-key or OPENAI_API_KEY.")


def _asked_delay_s(text: str, now_s: float) -> float | None:
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now_s)
    except ValueError:
        return None


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("text"), str):
        raise RemoteError("The server's answer is not a transcript.")
    return body


def _duration_s(body: dict[str, Any]) -> float | None:
    usage = body.get("usage")
    seconds = usage.get("seconds") if isinstance(usage, dict) else None
    duration_s = body.get("duration", seconds)
    return float(duration_s) if isinstance(duration_s, int | float) else None


def _unreachable(base: str, error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError):
        return f"Cannot reach the server at {base}: {shown(str(error) or 'no answer')}."
    return f"The connection to the server at {base} broke: {shown(str(error) or type(error).__name__)}."


def _refusal(response: httpx.Response) -> str:
    """What a server said, in OpenAI's form or in FastAPI's, else its status."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    if isinstance(body, dict):
        error = body.get("error", body.get("detail"))
        message = error.get("message") if isinstance(error, dict) else error
        if isinstance(message, str) and message:
            return f"The server says {status}: {shown(message[:_MAX_MESSAGE])}"
    return f"The server says {status}."


def _sent_name(path: Path) -> str:
    """The file's name as it may stand in a header; some servers tell the format by its suffix."""
    return "".join(char if char.isprintable() and char not in '"\\' else "_" for char in path.name)
