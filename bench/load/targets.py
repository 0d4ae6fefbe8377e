"""What is put under load: a server over HTTP, or the library in this process."""

import asyncio
import io
import json
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx

from bench.load.clips import Clip

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

ROUTE = "/v1/audio/transcriptions"

REQUEST_FIELDS = {"language": "en", "response_format": "json"}

OWN_FIELDS = {"temperatures[]": "0"}
"""For this server alone: the ladder of temperatures draws at random, and neither cost nor text repeats."""

LIBRARY_OPTIONS: dict[str, Any] = {
    "language": "en",
    "temperature": 0.0,
    "vad_filter": True,
    "condition_on_previous_text": False,
}
"""What the server does with the fields above."""

_OK = 200
_EVENT = "data: "
_LIBRARY_THREADS = 32
"""Of the pool: the largest number of clients at once in any scenario with the library."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP; 0 where there was no answer at all.
        text: the transcript, or "".
        retry_after: the header, or None.
    """

    status: int
    text: str = ""
    retry_after: str | None = None

    @property
    def is_transcript(self) -> bool:
        """Whether it holds a transcript."""
        return self.status == _OK


class Target(Protocol):
    """Something that transcribes."""

    @property
    def name(self) -> str:
        """For the table."""

    async def transcribe(self, clip: Clip) -> Reply:
        """The whole transcript of a clip. Cancelling it leaves, as a client does."""

    def follow(self, clip: Clip) -> AsyncGenerator[str, None]:
        """The transcript of a clip in pieces, as it grows. Closing it leaves."""


class HttpTarget:
    """A server with OpenAI's API.

    Args:
        name: for the table.
        client: with the server's address as `base_url`, without `/v1`.
        model: the name requests give.
        fields: of every request, beside the usual.
    """

    def __init__(
        self, name: str, client: httpx.AsyncClient, model: str, fields: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.client = client
        self._fields = REQUEST_FIELDS | {"model": model} | (fields or {})

    def request(self, clip: Clip, **more: str) -> httpx.Request:
        """The request for a clip's transcript, ready to be sent."""
        return self.client.build_request(
            "POST",
            ROUTE,
            data=self._fields | more,
            files={"file": ("clip.flac", clip.flac, "audio/flac")},
        )

    async def transcribe(self, clip: Clip, **more: str) -> Reply:
        """The whole transcript of a clip; `more` are fields of the request."""
        try:
            response = await self.client.send(self.request(clip, **more))
        except (httpx.TransportError, httpx.InvalidURL):
            return Reply(status=0)
        text = response.json()["text"] if response.status_code == _OK else ""
        return Reply(response.status_code, text, response.headers.get("Retry-After"))

    async def follow(self, clip: Clip) -> AsyncGenerator[str, None]:
        """The transcript in pieces, from the server's stream of events."""
        response = await self.client.send(self.request(clip, stream="true"), stream=True)
        try:
            response.raise_for_status()
            async for line in response.aiter_lines():
                event = json.loads(line.removeprefix(_EVENT)) if line.startswith(_EVENT + "{") else {}
                if event.get("type") == "transcript.text.delta":
                    yield event["delta"]
        finally:
            await response.aclose()


class LibraryTarget:
    """faster-whisper in this process, called from a pool of threads.

    Args:
        model: shared by all threads.
        pool: as many threads as there are clients at most.
    """

    name = "faster-whisper"

    def __init__(self, model: "WhisperModel", pool: ThreadPoolExecutor) -> None:
        self._model = model
        self._pool = pool

    async def transcribe(self, clip: Clip) -> Reply:
        """The whole transcript of a clip. One that runs already cannot be left: it goes on unseen."""
        pieces = await asyncio.get_running_loop().run_in_executor(self._pool, list, self._pieces(clip))
        return Reply(_OK, "".join(pieces).strip())

    async def follow(self, clip: Clip) -> AsyncGenerator[str, None]:
        """The transcript in pieces, as the library's generator gives them."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        has_left = threading.Event()

        def work() -> None:
            try:
                for piece in self._pieces(clip):
                    if has_left.is_set():
                        break
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)
            finally:
                loop.call_soon_threadsafe(pieces.put_nowait, None)

        running = loop.run_in_executor(self._pool, work)
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
        finally:
            has_left.set()
            await running

    def _pieces(self, clip: Clip) -> Iterator[str]:
        # A generator's body runs in the thread that asks for its items: decoding the file counts too.
        segments, _ = self._model.transcribe(io.BytesIO(clip.flac), **LIBRARY_OPTIONS)
        for segment in segments:
            yield segment.text


@contextmanager
def library(weights: Path, threads: int) -> Iterator[LibraryTarget]:
    """faster-whisper with so many CPU threads in all, as its users run it: one replica."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=threads)
    pool = ThreadPoolExecutor(_LIBRARY_THREADS, thread_name_prefix="library")
    try:
        yield LibraryTarget(model, pool)
    finally:
        pool.shutdown(cancel_futures=True)
