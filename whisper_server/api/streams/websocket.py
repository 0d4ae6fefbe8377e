"""`/ws/stt`: live streams over a WebSocket, with JSON messages and binary audio."""

import contextlib
import json
import logging
from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from whisper_server.api.error_table import stt_code
from whisper_server.api.request_id import request_id
from whisper_server.api.streams import messages
from whisper_server.api.streams.messages import (
    Cancel,
    ClientMessage,
    EndSession,
    Flush,
    MessageError,
    SessionConfig,
    StartSession,
    parse_message,
)
from whisper_server.api.streams.options import open_stream, services_of, stream_options
from whisper_server.api.streams.sending import send_message
from whisper_server.core.errors import (
    AudioMemoryFullError,
    ChunkTooLongError,
    EmptyCommitError,
    WhisperServerError,
)
from whisper_server.core.stream_events import (
    EndReason,
    FinalTranscript,
    PartialTranscript,
    SessionEnded,
    SpeechStarted,
    SpeechStopped,
    StreamEvent,
    TranscriptFailed,
)
from whisper_server.services.raw_audio import RawAudio
from whisper_server.services.streaming import LiveStream

logger = logging.getLogger(__name__)

router = APIRouter()

_MAX_WITHOUT_SESSION_S = 60.0
"""A connection on which no session runs is closed after this."""

_MAX_UNREAD_S = 30.0
"""A client that takes no message for so long has stopped reading."""

_KEY_PROTOCOLS = "openai-"
_NORMAL, _INTERNAL = 1000, 1011


@router.websocket("/ws/stt")
async def stt(websocket: WebSocket) -> None:
    """Serve sessions, one after the other, until the client leaves."""
    # A browser that offers protocols wants one of them back; the key must not be it.
    offered = [name for name in websocket.scope["subprotocols"] if not name.startswith(_KEY_PROTOCOLS)]
    await websocket.accept(subprotocol=offered[0] if offered else None)
    connection = _Connection(websocket)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(connection.watch, group.cancel_scope)
            await connection.serve(group)
            group.cancel_scope.cancel()
    except* (WebSocketDisconnect, _ReaderGoneError):
        logger.info("The client of /ws/stt left")
    except* Exception:  # the boundary of one connection: its client is told, the server goes on
        logger.exception("A connection of /ws/stt failed")
        await connection.fail()


class _ReaderGoneError(Exception):
    """The client has stopped reading."""


class _Connection:
    """One client."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._services = services_of(websocket)
        self._session: _Session | None = None
        self._last: _Session | None = None
        self._used_at_s = anyio.current_time()
        self._is_noise_told = False

    async def serve(self, group: TaskGroup) -> None:
        """Take messages until the client leaves."""
        while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
            if message.get("text") is not None:
                await self._take_text(message["text"], group)
            else:
                await self._take_audio(message.get("bytes") or b"")
        if self._session is not None:
            logger.info("Session %s: the client left", self._session.id)

    async def watch(self, scope: anyio.CancelScope) -> None:
        """Close the connection when nothing has been done with it for too long."""
        while True:
            remaining_s = self._used_at_s + _MAX_WITHOUT_SESSION_S - anyio.current_time()
            if self._session is not None:
                remaining_s = _MAX_WITHOUT_SESSION_S
            elif remaining_s <= 0:
                break
            await anyio.sleep(remaining_s)
        await self._websocket.close(_NORMAL, "No session was started.")
        scope.cancel()

    async def fail(self) -> None:
        """Tell the client that the server has failed, and close."""
        session_id = self._session.id if self._session else None
        text = f"The server failed. Its log has the details under request id {request_id()}."
        with contextlib.suppress(WebSocketDisconnect, _ReaderGoneError, RuntimeError):
            await self.send(messages.failure(messages.INTERNAL_ERROR, text, session_id))
            await self._websocket.close(_INTERNAL)

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            _ReaderGoneError: nobody reads it.
        """
        try:
            with anyio.fail_after(_MAX_UNREAD_S):
                await self._websocket.send_text(json.dumps(message, ensure_ascii=False))
        except TimeoutError:
            logger.warning("A client of /ws/stt has stopped reading; its connection is closed")
            raise _ReaderGoneError from None

    def forget(self, session: "_Session") -> None:
        """The session has ended; another may begin."""
        if self._session is session:
            self._session, self._last = None, session
            self._used_at_s = anyio.current_time()
            self._is_noise_told = True  # audio still on its way is no fault

    async def _take_text(self, text: str, group: TaskGroup) -> None:
        try:
            await self._obey(parse_message(text), group)
        except MessageError as error:
            session_id = error.session_id or (self._session.id if self._session else None)
            await self.send(messages.failure(messages.INVALID_MESSAGE, error.message, session_id))

    async def _obey(self, message: ClientMessage, group: TaskGroup) -> None:
        session = self._session
        if isinstance(message, StartSession):
            await self._start(message, group)
        elif session is None:
            raise MessageError(f"No session is running for '{message.type}'. Send start_session first.")
        elif isinstance(message, Flush):
            await session.flush()
        elif isinstance(message, EndSession):
            await session.end()
        elif isinstance(message, Cancel):
            await session.cancel()

    async def _start(self, message: StartSession, group: TaskGroup) -> None:
        if self._session is not None:
            text = f"The session '{self._session.id}' is running. Wait for its session_ended."
            await self.send(messages.failure(messages.SESSION_EXISTS, text, message.session_id))
            return
        if self._last is not None:
            # Its decodes may still run, and until they are over its id is taken.
            await self._last.wait_closed()
        config = message.config or SessionConfig()
        try:
            audio = config.audio()
            options = stream_options(
                config.wishes(), self._services.settings, language_param="config.lang_code"
            )
            stream = await open_stream(
                options, config.model, self._websocket, self._services, message.session_id
            )
        except WhisperServerError as error:
            code = stt_code(error)
            logger.warning("No session: %s (%s) %s", error.message, code, error.causes)
            await self.send(messages.failure(code, error.message, message.session_id))
            return
        self._session = _Session(self, stream, audio)
        await group.start(self._session.run)

    async def _take_audio(self, data: bytes) -> None:
        if self._session is not None:
            await self._session.take(data)
        elif not self._is_noise_told:
            # Once, as the next message comes 20 ms later.
            self._is_noise_told = True
            text = "Audio came before a session. Send start_session first."
            await self.send(messages.failure(messages.INVALID_MESSAGE, text, None))


class _Session:
    """One session of a connection."""

    def __init__(self, connection: _Connection, stream: LiveStream, audio: RawAudio) -> None:
        self._connection = connection
        self._stream = stream
        self._audio = audio
        self._is_ending = False
        self._spoken: set[str] = set()
        self._segments = 0

    @property
    def id(self) -> str:
        """Its id."""
        return self._stream.id

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Tell the client what happens, from `session_started` to `session_ended`."""
        async with self._stream:
            await self._connection.send(messages.started(self.id))
            task_status.started()
            async for event in self._stream:
                await self._tell(event)

    async def take(self, data: bytes) -> None:
        """Audio; what comes after the end is dropped."""
        if self._is_ending:
            return
        try:
            await send_message(self._stream, self._audio, data)
        except WhisperServerError as error:
            await self._refuse(error)

    async def flush(self) -> None:
        """End the utterance here. Where there is none, nothing happens."""
        try:
            await self._stream.send(self._audio.flush())
            await self._stream.commit()
        except EmptyCommitError:
            logger.debug("Session %s: nothing to flush", self.id)
        except WhisperServerError as error:
            await self._refuse(error)

    async def end(self) -> None:
        """Take no more audio; `session_ended` follows the last final."""
        if not self._is_ending:
            self._is_ending = True
            try:
                await self._stream.send(self._audio.flush())
            except WhisperServerError as error:
                await self._refuse(error)
            await self._stream.end()

    async def cancel(self) -> None:
        """End at once."""
        self._is_ending = True
        await self._stream.cancel()

    async def wait_closed(self) -> None:
        """Wait until nothing of it runs."""
        await self._stream.wait_closed()

    async def _refuse(self, error: WhisperServerError) -> None:
        # Of a session that has ended `session_ended` tells, and why.
        if isinstance(error, ChunkTooLongError | AudioMemoryFullError):
            logger.warning("Session %s: %s", self.id, error.message)
            await self._connection.send(messages.failure(stt_code(error), error.message, self.id))

    async def _tell(self, event: StreamEvent) -> None:
        send = self._connection.send
        match event:
            case SpeechStarted():
                self._spoken.add(event.utterance_id)
                await send(messages.vad_event(self.id, "speech_start", event.at_s))
            case SpeechStopped():
                await send(messages.vad_event(self.id, "speech_end", event.at_s))
            case PartialTranscript() if event.text.strip():
                await send(messages.partial(self.id, event))
            case FinalTranscript():
                await self._tell_final(event)
            case TranscriptFailed():
                self._spoken.discard(event.utterance_id)
                error = event.error
                logger.error("Session %s: %s (%s)", self.id, error.message, error.causes)
                code = stt_code(error)
                await send(messages.failure(code, error.message, self.id, event.utterance_id))
            case SessionEnded():
                await self._tell_end(event)

    async def _tell_final(self, event: FinalTranscript) -> None:
        """Tell a final, unless it is the nothing that was flushed out of silence."""
        is_announced = event.utterance_id in self._spoken
        self._spoken.discard(event.utterance_id)
        if event.text or is_announced:
            self._segments += 1
            await self._connection.send(messages.final(self.id, event))

    async def _tell_end(self, event: SessionEnded) -> None:
        self._is_ending = True
        send = self._connection.send
        if event.reason is EndReason.ERROR and event.error is not None:
            logger.error("Session %s: %s (%s)", self.id, event.error.message, event.error.causes)
            await send(messages.failure(stt_code(event.error), event.error.message, self.id))
        # Before the message: whoever reads it may start the next session at once.
        self._connection.forget(self)
        await send(messages.ended(self.id, event.reason.value, event.total_audio_s, self._segments))
