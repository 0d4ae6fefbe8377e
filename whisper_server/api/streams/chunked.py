"""`POST /v1/audio/transcriptions/stream`: audio comes in the body while events go out in the answer."""

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskStatus
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from whisper_server.api.sse import KEEP_ALIVE_S, with_pauses
from whisper_server.api.streams.chunked_request import LiveRequest, StreamFormat, parse_live_request
from whisper_server.api.streams.options import open_stream, services_of, stream_options
from whisper_server.api.streams.transcript_events import TranscriptEvents, created, failed
from whisper_server.core.errors import (
    InvalidAudioError,
    ServerDrainingError,
    SessionEndedError,
    WhisperServerError,
)
from whisper_server.core.stream_events import EndReason, SessionEnded
from whisper_server.core.types import Pcm16
from whisper_server.services.container_input import ContainerInput
from whisper_server.services.raw_audio import RawAudio
from whisper_server.services.streaming import LiveStream

logger = logging.getLogger(__name__)

router = APIRouter()

SESSION_HEADER = "x-session-id"

_MAX_UNREAD_S = 60.0
"""A client that takes nothing of its answer for so long has stopped reading."""

_RETRY_AFTER_S = 1.0

_PIECE_BYTES = 64 << 10
"""Samples converted at once."""


# `curl -T` sends PUT unless it is told otherwise.
@router.api_route(
    "/audio/transcriptions/stream", methods=["POST", "PUT"], response_class=Response, include_in_schema=False
)
async def stream_transcription(request: Request) -> Response:
    """Transcribe a body while it arrives."""
    services = services_of(request)
    asked = parse_live_request(request)
    options = stream_options(asked.wishes, services.settings, language_param="language")
    async with AsyncExitStack() as resources:
        stream = await open_stream(options, asked.wishes.model, request, services, asked.session_id)
        await resources.enter_async_context(stream)
        model = asked.wishes.model or services.settings.model.name
        held = resources.pop_all()
    return LiveAnswer(stream, asked, model, held)


class LiveAnswer(Response):
    """Reads the body into a live stream, and tells of its events meanwhile.

    The answer begins at once, so that a client knows when to speak. The client's leaving cancels the stream.
    A fault after the first byte becomes OpenAI's error object as the last event; what was heard before a
    fault of the body is transcribed first.

    Args:
        stream: open.
        asked: what the client wants.
        model: the model's name as the client or the settings have it.
        resources: closed at the end, however it comes.
        keep_alive_s: silence after which something is sent to keep the connection, seconds.
    """

    def __init__(
        self,
        stream: LiveStream,
        asked: LiveRequest,
        model: str,
        resources: AsyncExitStack,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._stream = stream
        self._audio = asked.audio
        self._framing = _FRAMINGS[asked.stream_format]
        self._model = model
        self._resources = resources
        self._keep_alive_s = keep_alive_s
        self._error: WhisperServerError | None = None
        self.status_code = 200
        self.background = None
        self.media_type = self._framing.media_type
        # Proxies such as nginx hold a response back unless told not to.
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", SESSION_HEADER: stream.id}
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until the session has ended or the client has left."""
        async with self._resources, anyio.create_task_group() as group:
            # A client that asked first whether to send its body is told to when the body is first read; once
            # the answer has begun it would not be.
            await group.start(self._upload, receive, group.cancel_scope)
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            await self._answer(send)
            group.cancel_scope.cancel()

    async def _upload(
        self, receive: Receive, scope: anyio.CancelScope, *, task_status: TaskStatus[None]
    ) -> None:
        task_status.started()
        try:
            async with contextlib.aclosing(_chunks(receive)) as chunks:
                if self._audio is not None:
                    await self._take_samples(chunks, self._audio)
                else:
                    await self._take_container(chunks)
                await self._stream.end()
                # Whatever is left is read, as a client may read its answer only when it has sent everything.
                async for _ in chunks:
                    pass
            while (await receive())["type"] != "http.disconnect":
                pass
        except ClientDisconnect:
            pass
        logger.info("Session %s: the client left", self._stream.id)
        scope.cancel()

    async def _take_samples(self, chunks: AsyncIterator[bytes], audio: RawAudio) -> None:
        async for chunk in chunks:
            for start in range(0, len(chunk), _PIECE_BYTES):
                if not await self._send(audio.feed(chunk[start : start + _PIECE_BYTES])):
                    return
        await self._send(audio.flush())

    async def _take_container(self, chunks: AsyncIterator[bytes]) -> None:
        async with ContainerInput() as container, anyio.create_task_group() as group:
            group.start_soon(self._take_decoded, container)
            async for chunk in chunks:
                await container.feed(chunk)
            await container.finish()

    async def _take_decoded(self, container: ContainerInput) -> None:
        try:
            async for samples in container:
                if not await self._send(samples):
                    break
        except InvalidAudioError as error:
            self._note(error)
        finally:
            container.stop()

    async def _send(self, samples: Pcm16) -> bool:
        """Bring samples to the stream; false where it takes no more."""
        try:
            await self._stream.send(samples)
        except SessionEndedError:
            return False
        except WhisperServerError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: WhisperServerError) -> None:
        logger.warning("Session %s: %s: %s", self._stream.id, type(error).__name__, error.message)
        self._error = self._error or error

    async def _answer(self, send: Send) -> None:
        try:
            async with contextlib.aclosing(with_pauses(self._events(), self._keep_alive_s)) as events:
                async for event in events:
                    frame = self._framing.pause if event is None else self._framing.frame(event)
                    with anyio.fail_after(_MAX_UNREAD_S):
                        await send({"type": "http.response.body", "body": frame, "more_body": True})
            with anyio.fail_after(_MAX_UNREAD_S):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            logger.warning("Session %s: the client has stopped reading; it is cut off", self._stream.id)

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            events = TranscriptEvents()
            yield created(self._stream.id, self._model, self._stream.options)
            async for event in self._stream:
                if isinstance(event, SessionEnded):
                    error = self._failure(event)
                    yield events.done(event.total_audio_s) if error is None else failed(error)
                    return
                for content in events.of(event):
                    yield content
        except Exception:  # the boundary of one stream: the client is told, the server goes on
            logger.exception("Session %s failed", self._stream.id)
            yield failed(WhisperServerError("The server failed on this request."))

    def _failure(self, event: SessionEnded) -> WhisperServerError | None:
        """Why the stream did not end well, if it did not."""
        error = self._error or event.error
        if error is None and event.reason is EndReason.CANCELLED:
            return ServerDrainingError("The server is stopping.", retry_after_s=_RETRY_AFTER_S)
        return error


async def _chunks(receive: Receive) -> AsyncGenerator[bytes, None]:
    """The body as it arrives.

    Raises:
        ClientDisconnect: the client left in the middle of it.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if body := message.get("body"):
            yield body
        if not message.get("more_body", False):
            return


@dataclass(frozen=True, slots=True)
class _Framing:
    """How events are written.

    Attributes:
        media_type: of the answer.
        before: each event.
        after: each event.
        pause: what keeps the connection while nothing happens.
    """

    media_type: str
    before: str
    after: str
    pause: bytes

    def frame(self, event: dict[str, Any]) -> bytes:
        return f"{self.before}{json.dumps(event, ensure_ascii=False)}{self.after}".encode()


_FRAMINGS = {
    StreamFormat.SSE: _Framing("text/event-stream", "data: ", "\n\n", b": keep-alive\n\n"),
    StreamFormat.NDJSON: _Framing("application/x-ndjson", "", "\n", b'{"type": "keep_alive"}\n'),
}
