"""Live streams: audio in as it is spoken, events out. Every transport drives this and translates.

async with await service.open(options, reference, caller=caller) as stream:
    await stream.send(pcm)              # from one task
    async for event in stream:          # in another
        ...
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

from whisper_server.core.engine import Engine
from whisper_server.core.errors import QueueCongestedError, QueueFullError, ServerDrainingError
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.session import Session
from whisper_server.core.stream_events import StreamOptions
from whisper_server.services.live_stream import AudioInput, LiveStream
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.recorder import Archive, NoArchive, RecordedSession
from whisper_server.services.session_registry import SessionEntry, SessionRegistry
from whisper_server.services.stream_limits import Decodes, StreamLimits, StreamTools, check_options
from whisper_server.services.voice_detectors import VoiceDetectorPool

__all__ = ["AudioInput", "LiveStream", "StreamLimits", "StreamService"]

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 2.0
_LISTENING_THREADS = 2


class Models(Protocol):
    """What the service needs of the model manager."""

    def acquire(self, reference: ModelReference) -> AbstractAsyncContextManager[Engine]:
        """The model's engine, loaded first where necessary; see `ModelManager`."""


class StreamScheduler(Decodes, Protocol):
    """What the service needs of the scheduler."""

    def estimated_wait_s(self, priority: Priority) -> float:
        """How long a window of this priority would wait now."""


class StreamService:
    """Opens live streams. For one event loop. An async context manager; leaving it cancels every stream.

    Args:
        models: has the engines.
        scheduler: runs them.
        detectors: for the streams; warmed up on entering.
        limits: what streams may use.
        clock: seconds, monotonic.
        archive: records the streams; None records nothing.
    """

    def __init__(
        self,
        models: Models,
        scheduler: StreamScheduler,
        detectors: VoiceDetectorPool,
        limits: StreamLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        archive: Archive | None = None,
    ) -> None:
        self._models = models
        self._archive = archive or NoArchive()
        self._scheduler = scheduler
        self._detectors = detectors
        self._limits = limits or StreamLimits()
        self._clock = clock
        self._listeners = ThreadPoolExecutor(_LISTENING_THREADS, thread_name_prefix="listen")
        self._streams: dict[str, LiveStream] = {}
        self._is_draining = False
        self.registry = SessionRegistry(
            max_sessions=self._limits.max_sessions,
            max_held_bytes=self._limits.max_total_buffer_bytes,
            clock=clock,
        )
        """The sessions there are, for health, metrics and administration."""

    @property
    def limits(self) -> StreamLimits:
        """What streams may use."""
        return self._limits

    async def __aenter__(self) -> Self:
        await self._detectors.prewarm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_draining = True
        streams = list(self._streams.values())
        for stream in streams:
            await stream.cancel()
        await asyncio.gather(*(stream.wait_closed() for stream in streams))
        self._listeners.shutdown(wait=False, cancel_futures=True)

    async def drain(self) -> None:
        """Open no more streams, end those there are, and wait for their last finals."""
        self._is_draining = True
        streams = list(self._streams.values())
        await asyncio.gather(*(stream.end() for stream in streams))
        await asyncio.gather(*(stream.wait_closed() for stream in streams))

    async def open(
        self,
        options: StreamOptions,
        model: ModelReference,
        *,
        caller: Caller,
        session_id: str | None = None,
        partial_model: ModelReference | None = None,
        utterance_prefix: str = "utt_",
        must_keep_up: bool = True,
        attributes: Mapping[str, str] = MappingProxyType({}),
    ) -> LiveStream:
        """A new stream. The model is loaded first where necessary, and stays loaded while the stream lasts.

        Args:
            options: what the client asks for.
            model: for finals, and for partials unless there is `partial_model`.
            caller: whom the decodes are for.
            session_id: the client's name for it; None makes one.
            partial_model: for partials.
            utterance_prefix: what utterance ids begin with.
            must_keep_up: refuse it where transcripts would lag; a client that does not mind is slowed down.
            attributes: what the client says of the session; kept with it and its recording.

        Raises:
            ServerDrainingError: the server stops.
            SessionExistsError: a stream with this id is open.
            TooManySessionsError: `max_sessions` are open.
            VoiceDetectorsExhaustedError: every voice detector is taken.
            QueueFullError: `max_queue_depth` is reached.
            QueueCongestedError: `max_estimated_wait_s` is exceeded.
            AudioMemoryFullError: `max_total_buffer_bytes` is reached.
            UnsupportedByEngineError: the model cannot do what is asked.
            WhisperServerError: the model cannot be loaded.
        """
        entry = self._enter(session_id, caller, must_keep_up=must_keep_up)
        entry.attributes = attributes
        resources = AsyncExitStack()
        try:
            detector = await self._detectors.acquire()
            resources.callback(self._detectors.release, detector)
            engine = await resources.enter_async_context(self._models.acquire(model))
            partial_engine = engine
            if partial_model is not None:
                partial_engine = await resources.enter_async_context(self._models.acquire(partial_model))
            for used in (engine, partial_engine):
                check_options(used, options)
        except BaseException:
            self.registry.refused += 1
            self.registry.leave(entry)
            await resources.aclose()
            raise
        session = Session(
            options,
            new_utterance_id=lambda: f"{utterance_prefix}{uuid.uuid4().hex[:20]}",
            now_s=self._clock(),
            times_words=engine.capabilities.word_timestamps and partial_engine.capabilities.word_timestamps,
        )
        tools = StreamTools(self._limits, self._scheduler, self.registry, self._listeners, self._clock)
        resources.callback(self._streams.pop, entry.id, None)
        stream = LiveStream(
            session,
            entry,
            tools,
            resources,
            detector=detector,
            engine=engine,
            partial_engine=partial_engine,
            caller=caller,
            recorder=self._archive.begin(
                RecordedSession(entry.id, entry.client, model.id, options.language, attributes)
            ),
        )
        self._streams[entry.id] = stream
        logger.info("Session %s opened", entry.id)
        return stream

    def get(self, session_id: str) -> LiveStream | None:
        """The open stream of this id."""
        return self._streams.get(session_id)

    def check_admission(self) -> None:
        """Refuse what `open` would refuse now because of the server's load.

        Raises:
            ServerBusyError: as `open`.
        """
        waiting = self._scheduler.backlog().waiting
        depth = waiting.get(Priority.LIVE_FINAL, 0) + waiting.get(Priority.LIVE_PARTIAL, 0)
        if depth >= self._limits.max_queue_depth:
            raise QueueFullError(
                f"Queue full: {depth}/{self._limits.max_queue_depth}", retry_after_s=_RETRY_AFTER_S
            )
        wait_s = self._scheduler.estimated_wait_s(Priority.LIVE_FINAL)
        if wait_s > self._limits.max_estimated_wait_s:
            raise QueueCongestedError(
                f"Estimated delay of {1000 * wait_s:.0f} ms is more than the limit of "
                f"{1000 * self._limits.max_estimated_wait_s:.0f} ms. Try again later.",
                retry_after_s=max(_RETRY_AFTER_S, wait_s),
            )

    def _enter(self, session_id: str | None, caller: Caller, *, must_keep_up: bool) -> SessionEntry:
        try:
            if self._is_draining:
                raise ServerDrainingError(
                    "The server is stopping. Try another one.", retry_after_s=_RETRY_AFTER_S
                )
            if must_keep_up:
                self.check_admission()
            return self.registry.enter(session_id, caller.client)
        except Exception:
            self.registry.refused += 1
            raise
