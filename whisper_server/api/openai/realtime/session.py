"""One connection to `/v1/realtime`: receives, obeys, and tells; all else is in the modules beside it."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import anyio
from anyio import to_thread
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from whisper_server.api.openai.fields import shown
from whisper_server.api.openai.realtime.client_events import (
    APPEND,
    ClientEvent,
    audio_of,
    decode_audio,
    item_id_of,
    parse_event,
)
from whisper_server.api.openai.realtime.config import Dialect, RealtimeConfig
from whisper_server.api.openai.realtime.events import EventWriter, ServerEvent, error_event
from whisper_server.api.openai.realtime.inbox import Inbox
from whisper_server.api.openai.realtime.options import stream_options, wants_live_deltas
from whisper_server.api.openai.realtime.stream import OpeningFailedError, SessionStream, Wanted
from whisper_server.api.openai.realtime.updates import updated
from whisper_server.api.services import Services
from whisper_server.core.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    ServerBusyError,
    ServerDrainingError,
    SessionEndedError,
    SlowReaderError,
    WhisperServerError,
)
from whisper_server.core.scheduling import Caller
from whisper_server.core.stream_events import SessionEnded, StreamEvent
from whisper_server.core.types import Pcm16, Task
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.pcm_input import PcmInput

logger = logging.getLogger(__name__)

NORMAL_CLOSURE = 1000
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013

_CONVERSATION_MODELS = ("gpt-realtime", "gpt-4o-realtime", "gpt-4o-mini-realtime")
"""In a URL they stand for the default model: some clients must name one and mean to transcribe."""

_MAX_REASON_BYTES = 123
_LARGE_FRAME_CHARS = 64 << 10
"""Larger ones are read in a worker thread: they would hold up all other sessions."""


@dataclass(frozen=True, slots=True)
class RealtimeLimits:
    """What one session may take.

    Attributes:
        session_s: it expires after this.
        closing_grace_s: how long transcripts that are under way may take when it does.
        send_timeout_s: a client that reads nothing for so long is closed.
        close_timeout_s: how long saying goodbye may take.
        max_append_bytes: audio of one event.
        max_waiting_chars: received and not yet handled.
        has_live_deltas: send text while somebody speaks, whether a client asks for that or not.
    """

    session_s: float = 3600.0
    closing_grace_s: float = 10.0
    send_timeout_s: float = 30.0
    close_timeout_s: float = 10.0
    max_append_bytes: int = 15 << 20
    max_waiting_chars: int = 256 << 10
    has_live_deltas: bool = False


@dataclass(frozen=True, slots=True)
class Closing:
    """How a connection is closed."""

    code: int
    reason: str


class RealtimeSession:
    """One session.

    Args:
        websocket: accepted.
        services: of the server.
        session_id: of this session.
        caller: whom it is for.
        config: to begin with.
        dialect: of the client, until an update is in the other one.
        limits: of this session.
    """

    def __init__(
        self,
        websocket: WebSocket,
        services: Services,
        *,
        session_id: str,
        caller: Caller,
        config: RealtimeConfig,
        dialect: Dialect,
        limits: RealtimeLimits,
    ) -> None:
        self._websocket = websocket
        self._services = services
        self._id = session_id
        self._caller = caller
        self._limits = limits
        expires_at_s = int(time.time() + limits.session_s)
        task = Task(services.settings.model.task)
        self._writer = EventWriter(session_id, expires_at_s, config, dialect, task=task)
        self._inbox = Inbox(limits.max_waiting_chars)
        self._pcm = PcmInput(config.format.pcm, config.format.rate_hz)
        self._stream: SessionStream | None = None
        self._work_scope = anyio.CancelScope()
        self._group = anyio.create_task_group()
        self._closing: Closing | None = None

    async def run(self) -> None:
        """Serve until the client leaves, the session expires, or nothing more can be done."""
        async with self._group:
            for task in (self._receive, self._work, self._expire):
                self._spawn(task)
        await self._close()

    # The tasks.

    async def _receive(self) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                logger.info("The client left with code %s", message.get("code"))
                self._finish(None)
                return
            text = message.get("text")
            data = message.get("bytes") or b"" if text is None else text
            if not self._gather(data):
                await self._inbox.put(data)

    async def _work(self) -> None:
        with self._work_scope:
            await self._send(self._writer.created())
            while True:
                await self._handle(await self._inbox.get())

    async def _expire(self) -> None:
        await anyio.sleep(self._limits.session_s)
        self._work_scope.cancel()
        if self._stream is not None:
            with anyio.move_on_after(self._limits.closing_grace_s):
                await self._stream.end()
        minutes = self._limits.session_s / 60
        message = f"The session has reached its maximum duration of {minutes:.10g} minutes."
        await self._send(error_event(InvalidRequestError(message, code="session_expired")))
        self._finish(Closing(NORMAL_CLOSURE, message))

    def _spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        async def guarded() -> None:
            await self._guarded(task)

        self._group.start_soon(guarded)

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run one of the tasks; whatever it raises ends this session and no other."""
        try:
            await task()
        except WebSocketDisconnect as gone:
            logger.info("The client left with code %s", gone.code)
            self._finish(None)
        except OpeningFailedError as failure:
            await self._fail(failure.error)
        except WhisperServerError as error:
            await self._fail(error)
        except Exception:  # the boundary of a session: the server goes on
            logger.exception("The session failed")
            await self._fail(
                WhisperServerError("The server failed on this session. Its log has the details.")
            )

    def _gather(self, message: str | bytes) -> bool:
        """Keep audio that only waits for more: between utterances nearly all that comes. False leaves it."""
        gather_s = 0.0 if self._stream is None else self._stream.missing_s
        if gather_s == 0.0 or not self._inbox.is_idle or len(message) > _LARGE_FRAME_CHARS:
            return False
        audio = audio_of(message, max_bytes=self._limits.max_append_bytes)
        return audio is not None and self._pcm.gather(audio, gather_s)

    # Client events.

    async def _handle(self, message: str | bytes) -> None:
        event: ClientEvent | None = None
        try:
            event = await self._parsed(message)
            await self._obey(event)
        except InvalidRequestError as error:
            if isinstance(error, SessionEndedError):
                raise
            await self._refuse(error, event)
        except ModelNotFoundError as error:
            if event is not None and event.type not in _UPDATES:
                raise
            await self._refuse(error, event)

    async def _refuse(self, error: WhisperServerError, event: ClientEvent | None) -> None:
        logger.info("Refused: %s", error.message)
        await self._send(error_event(error, None if event is None else event.event_id))

    async def _parsed(self, message: str | bytes) -> ClientEvent:
        if isinstance(message, bytes):
            raise InvalidRequestError(
                "Binary messages are not understood. Send JSON in text messages, with audio as base64.",
                code="invalid_message",
            )
        if len(message) > _LARGE_FRAME_CHARS:
            return await to_thread.run_sync(parse_event, message)
        return parse_event(message)

    async def _obey(self, event: ClientEvent) -> None:
        name = _ACTIONS.get(event.type) if isinstance(event.type, str) else None
        if name is None:
            if event.type is None:
                raise InvalidRequestError(
                    "'type' is missing.", param="type", code="missing_required_parameter"
                )
            raise InvalidRequestError(
                f"The event type '{shown(str(event.type))}' is not known. Known are: {', '.join(_ACTIONS)}.",
                param="type",
                code="unknown_event_type",
            )
        await getattr(self, name)(event)

    async def _append(self, event: ClientEvent) -> None:
        streams = await self._streams()
        gather_s = streams.missing_s

        def samples_of() -> Pcm16:
            pcm = decode_audio(event, max_bytes=self._limits.max_append_bytes)
            return self._pcm.feed(pcm, gather_s=gather_s)

        audio = event.body.get("audio")
        is_large = isinstance(audio, str) and len(audio) > _LARGE_FRAME_CHARS
        samples = await to_thread.run_sync(samples_of) if is_large else samples_of()
        await streams.send(samples)

    async def _commit(self, _: ClientEvent) -> None:
        streams = await self._streams()
        # What the resampler holds back belongs to this turn.
        await streams.send(self._pcm.flush())
        await streams.commit()

    async def _clear(self, _: ClientEvent) -> None:
        self._pcm.flush()
        if not await (await self._streams()).clear():
            await self._send(self._writer.cleared())

    async def _retrieve(self, event: ClientEvent) -> None:
        await self._send(self._writer.retrieved(item_id_of(event)))

    async def _delete(self, event: ClientEvent) -> None:
        await self._send(self._writer.deleted(item_id_of(event)))

    async def _update(self, event: ClientEvent) -> None:
        before = self._writer.config
        config = updated(before, event.body.get("session"))
        wanted = await self._wanted(config)
        if self._stream is not None:
            if config.format != before.format or wanted.model != self._stream.wanted.model:
                # What the resampler holds back belongs to what came before.
                await self._stream.send(self._pcm.flush())
            await self._stream.send(self._pcm.feed(b""))  # so does what was gathered
            await self._stream.change(wanted)
        if config.format != before.format:
            self._pcm = PcmInput(config.format.pcm, config.format.rate_hz)
        self._writer.config = config
        self._writer.dialect = _UPDATES[str(event.type)]
        await self._send(self._writer.updated())

    async def _wanted(self, config: RealtimeConfig) -> Wanted:
        has_live_deltas = self._limits.has_live_deltas or wants_live_deltas(config)
        options = stream_options(config, self._services.settings, has_live_deltas=has_live_deltas)
        # A name may be a path, which is looked up on disk.
        model = await to_thread.run_sync(self._services.catalog.resolve, config.transcription.model)
        return Wanted(options, model)

    async def _streams(self) -> SessionStream:
        if self._stream is None:
            self._stream = SessionStream(
                self._services.streams,
                self._caller,
                self._id,
                spawn=self._spawn,
                listen=self._tell,
                wanted=await self._wanted(self._writer.config),
            )
        return self._stream

    # What is sent.

    async def _tell(self, told: StreamEvent, before_s: float) -> None:
        if isinstance(told, SessionEnded):
            await self._fail(told.error or WhisperServerError("The session failed."))
            return
        for event in self._writer.translate(told, before_s):
            await self._send(event)

    async def _send(self, event: ServerEvent) -> None:
        with anyio.move_on_after(self._limits.send_timeout_s) as scope:
            await self._websocket.send_text(json.dumps(event, ensure_ascii=False))
        if scope.cancelled_caught:
            raise SlowReaderError("The client does not read its events.")

    async def _fail(self, error: WhisperServerError) -> None:
        """End the session with an error, which a client is told that reads."""
        logger.warning("The session ends: %s %s", error.message, error.causes)
        if not isinstance(error, SlowReaderError):
            with anyio.move_on_after(self._limits.close_timeout_s):
                try:
                    await self._websocket.send_text(json.dumps(error_event(error)))
                except WebSocketDisconnect:
                    self._finish(None)
                    return
        self._finish(Closing(_close_code(error), error.message))

    def _finish(self, closing: Closing | None) -> None:
        """Stop everything; the first word on how counts. None says nothing to a client that has left."""
        if not self._group.cancel_scope.cancel_called:
            self._closing = closing
        self._group.cancel_scope.cancel()

    async def _close(self) -> None:
        closing = self._closing
        received_s = 0.0 if self._stream is None else self._stream.received_s
        logger.info("The session is over after %.1f s of audio", received_s)
        if closing is None or self._websocket.application_state is not WebSocketState.CONNECTED:
            return
        reason = closing.reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        with anyio.move_on_after(self._limits.close_timeout_s):
            try:
                await self._websocket.close(closing.code, reason)
            except WebSocketDisconnect:
                logger.debug("The client left first")


_UPDATES: Mapping[str, Dialect] = MappingProxyType(
    {"session.update": Dialect.GA, "transcription_session.update": Dialect.BETA}
)

_ACTIONS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(_UPDATES, "_update"),
        APPEND: "_append",
        "input_audio_buffer.commit": "_commit",
        "input_audio_buffer.clear": "_clear",
        "conversation.item.retrieve": "_retrieve",
        "conversation.item.delete": "_delete",
    }
)


def model_of_url(name: str, resolve: Callable[[str], ModelReference]) -> str:
    """The model that a URL names; empty, for the default, where it names one for conversations."""
    if name.startswith(_CONVERSATION_MODELS):
        try:
            resolve(name)
        except ModelNotFoundError:
            return ""
    return name


def _close_code(error: WhisperServerError) -> int:
    match error:
        case ServerDrainingError():
            return SERVICE_RESTART
        case ServerBusyError():
            return TRY_AGAIN_LATER
        case InvalidRequestError() | ModelNotFoundError() | SlowReaderError():
            return POLICY_VIOLATION
        case _:
            return INTERNAL_ERROR
