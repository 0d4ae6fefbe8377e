"""The live streams behind one session, one after the other.

A stream is opened when its first audio comes. It ends when no audio comes for a while, so that whoever is
connected and sends nothing takes no place; and when the client changes the model. The next audio opens the
next one.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import anyio

from whisper_server.core.errors import (
    EmptyCommitError,
    SessionEndedError,
    SessionTimeoutError,
    WhisperServerError,
)
from whisper_server.core.scheduling import Caller
from whisper_server.core.stream_events import (
    MIN_COMMIT_MS,
    EndReason,
    SessionEnded,
    StreamEvent,
    StreamOptions,
)
from whisper_server.core.types import SAMPLE_RATE, Pcm16
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.streaming import LiveStream, StreamService

_PIECE_SAMPLES = SAMPLE_RATE
"""Longer audio is handed on second by second: a client may send minutes at once."""

Listener: TypeAlias = Callable[[StreamEvent, float], Awaitable[None]]
"""Takes an event, and the seconds of audio that went into the streams before its own."""

Spawn: TypeAlias = Callable[[Callable[[], Awaitable[None]]], None]
"""Runs something beside whoever asks."""


class OpeningFailedError(Exception):
    """No stream could be had, so that the session has nothing to live on.

    Attributes:
        error: why.
    """

    def __init__(self, error: WhisperServerError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the next audio is to be transcribed with."""

    options: StreamOptions
    model: ModelReference


class SessionStream:
    """The current stream of a session, opened when it is needed. For one task; listeners run in others.

    Args:
        service: opens streams.
        caller: whom they are for.
        session_id: names them.
        spawn: runs what reads the events.
        listen: takes the events; a `SessionEnded` only where the session has to end with it.
        wanted: what to begin with.
    """

    def __init__(
        self,
        service: StreamService,
        caller: Caller,
        session_id: str,
        *,
        spawn: Spawn,
        listen: Listener,
        wanted: Wanted,
    ) -> None:
        self._service = service
        self._caller = caller
        self._session_id = session_id
        self._spawn = spawn
        self._listen = listen
        self._wanted = wanted
        self._opened = 0
        self._before_s = 0.0
        self._stream: LiveStream | None = None
        self._has_ended = anyio.Event()

    @property
    def wanted(self) -> Wanted:
        """What the next audio is to be transcribed with."""
        return self._wanted

    @property
    def received_s(self) -> float:
        """Seconds of audio so far."""
        return self._before_s + (0.0 if self._stream is None else self._stream.received_s)

    @property
    def missing_s(self) -> float:
        """Seconds of audio that have to come before anybody listens: so much may be gathered."""
        return 0.0 if self._stream is None else self._stream.missing_s

    async def send(self, pcm: Pcm16) -> None:
        """Hand audio on; waits while the stream is behind.

        Raises:
            OpeningFailedError: there is no stream, and none could be had.
            WhisperServerError: as `LiveStream.send`.
        """
        for start in range(0, len(pcm), _PIECE_SAMPLES):
            piece = pcm[start : start + _PIECE_SAMPLES]
            try:
                await (await self._open()).send(piece)
            except (SessionTimeoutError, SessionEndedError):
                # It fell asleep just now.
                await self._leave()
                await (await self._open()).send(piece)

    async def commit(self) -> None:
        """Errors as `LiveStream.commit`."""
        stream = self._stream
        if stream is not None:
            try:
                await stream.commit()
            except (SessionTimeoutError, SessionEndedError):
                await self._leave()
                stream = None
        if stream is None:
            raise EmptyCommitError(
                f"There is nothing to commit: at least {MIN_COMMIT_MS} ms of audio are needed, and none came."
            )

    async def clear(self) -> bool:
        """Drop what is not committed; false where there is no stream that will say so."""
        if self._stream is not None:
            try:
                await self._stream.clear()
            except (SessionTimeoutError, SessionEndedError):
                await self._leave()
        return self._stream is not None

    async def change(self, wanted: Wanted) -> None:
        """Transcribe what follows otherwise. With another model, what was sent is settled first.

        Raises:
            UnsupportedByEngineError: the model cannot do it; nothing has changed.
        """
        stream = self._stream
        if stream is not None:
            try:
                if wanted.model != self._wanted.model:
                    await self.end()
                else:
                    await stream.update(wanted.options)
            except (SessionTimeoutError, SessionEndedError):
                await self._leave()
        self._wanted = wanted

    async def end(self) -> None:
        """Have everything transcribed that was sent, and wait until that is told."""
        if self._stream is not None:
            await self._stream.end()
            await self._leave()

    async def _leave(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await self._has_ended.wait()
            self._before_s += stream.received_s

    async def _open(self) -> LiveStream:
        if self._stream is not None and self._has_ended.is_set():
            await self._leave()
        if self._stream is None:
            self._opened += 1
            name = self._session_id if self._opened == 1 else f"{self._session_id}.{self._opened}"
            try:
                stream = await self._service.open(
                    self._wanted.options,
                    self._wanted.model,
                    caller=self._caller,
                    session_id=name,
                    utterance_prefix="item_",
                )
            except WhisperServerError as error:
                raise OpeningFailedError(error) from error
            self._stream, self._has_ended = stream, anyio.Event()
            self._spawn(partial(self._read, stream, self._has_ended, self._before_s))
        return self._stream

    async def _read(self, stream: LiveStream, has_ended: anyio.Event, before_s: float) -> None:
        try:
            async with stream:
                async for told in stream:
                    if not isinstance(told, SessionEnded) or told.reason is EndReason.ERROR:
                        await self._listen(told, before_s)
        finally:
            has_ended.set()
