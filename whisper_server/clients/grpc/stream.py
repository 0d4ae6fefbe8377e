"""A stream of audio and the events it makes, over as many sessions as it takes."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeAlias

import grpc

from whisper_server.clients.grpc.errors import SttError, stt_errors
from whisper_server.clients.grpc.events import (
    AudioLost,
    DecodeTotals,
    Ended,
    EndReason,
    Event,
    Final,
    Reconnected,
)
from whisper_server.clients.grpc.messages import event_of
from whisper_server.clients.grpc.options import Session, VadMode
from whisper_server.clients.grpc.outcome import CallOutcome
from whisper_server.clients.grpc.replay_buffer import Commit, ReplayBuffer
from whisper_server.clients.grpc.retry import Attempts, RetryPolicy
from whisper_server.stt_v1 import stt_pb2

Chunks: TypeAlias = AsyncIterable[bytes | Commit]
StreamCall: TypeAlias = grpc.aio.StreamStreamCall[
    stt_pb2.StreamingRecognizeRequest, stt_pb2.StreamingRecognizeResponse
]

_MAX_UNLIMITED_BYTES = 1 << 30
_ROUNDING_S = 0.1
"""The server counts audio after resampling."""

_FRAMING_BYTES = 64
"""More than the keys and lengths of a message's fields take."""


class SttStream:
    """The events of one stream: `async with stream: async for event in stream`. Made by `SttClient.stream`.

    When the connection breaks, or the server stops, a new session goes on and the events stay one sequence on
    one clock:

    - A final is told once. Its audio is not sent again.
    - A server that stops ends its sessions with their last finals; what it did not take goes to the next one.
    - Audio without a final is sent again, at most the last `max_replay_s` that were sent; what is older is
      told by an `AudioLost`.
    - Each new session is told by a `Reconnected`. Utterances that were not final begin anew, with other ids,
      and so do those that failed.
    - Failures in a row are bounded by the `RetryPolicy`; then the error is raised. A final starts the count
      anew, and so does a session that held for `reset_after_s`.

    It may be read once, by one task.

    Raises:
        SttError: from the iteration; after `Ended` where the server told that.
        Exception: what `chunks` raises, as it is; the call is cancelled then.
    """

    def __init__(
        self,
        session: Session,
        chunks: Chunks,
        open_call: Callable[[], StreamCall],
        reopen: Callable[[Session, Attempts], Awaitable[Session]],
        attempts: Attempts,
        policy: RetryPolicy,
        max_replay_s: float,
    ) -> None:
        self._session = session
        self._chunks = chunks
        self._open_call = open_call
        self._reopen = reopen
        self._attempts = attempts
        self._policy = policy
        self._buffer = ReplayBuffer(session.audio, max_replay_s)
        self._inbox: asyncio.Queue[bytes | Commit | None] = asyncio.Queue(maxsize=1)
        self._is_source_over = False
        self._source_error: Exception | None = None
        self._base_s = 0.0
        self._opened_s = 0.0
        self._earlier_finals = 0
        self._session_finals = 0
        self._ended: Ended | None = None
        self._fault: SttError | None = None
        self._totals: DecodeTotals | None = None
        self._events = self._run()

    @property
    def session(self) -> Session:
        """The session that runs, or ran last."""
        return self._session

    @property
    def decode_totals(self) -> DecodeTotals | None:
        """Where the server's time went, once the stream is over, also with an error.

        Summed over the sessions that told it, which one with a broken connection cannot; None if none did.
        """
        return self._totals

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Cancel what still runs. The server drops what is not final."""
        await self._events.aclose()

    async def _run(self) -> AsyncGenerator[Event]:
        feeder = asyncio.create_task(self._feed())
        try:
            while True:
                async with aclosing(self._serve()) as events:
                    async for event in events:
                        yield event
                if self._fault is None:
                    break
                try:
                    notices = await self._recover(self._fault)
                except SttError:
                    if self._ended is not None:
                        yield self._ended
                    raise
                for notice in notices:
                    yield notice
            if self._ended is not None:
                yield self._ended
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)

    async def _recover(self, fault: SttError) -> list[Event]:
        """Open the next session, and go back to the first audio that is not final.

        Raises:
            SttError: there were enough attempts, or another one is of no use.
        """
        if self._clock() - self._opened_s >= self._policy.reset_after_s:
            self._attempts.progress()
        await self._attempts.pause(fault)
        self._session = await self._reopen(self._session, self._attempts)
        settled_s, self._base_s = self._buffer.rewind()
        self._earlier_finals += self._session_finals
        events: list[Event] = [Reconnected(self._session.session_id, self._base_s, str(fault))]
        if self._base_s > settled_s:
            events.append(AudioLost(settled_s, self._base_s))
        return events

    # One session

    async def _serve(self) -> AsyncGenerator[Event]:
        """The events of one session but the last; that and the fault it ended with are noted."""
        self._ended = self._fault = None
        self._session_finals = 0
        self._opened_s = self._clock()
        call = self._open_call()
        outcome = CallOutcome(call)
        sender = asyncio.create_task(self._send(call, self._session))
        try:
            # Iterating reads what the server sent before it ended the call; `call.read` would not.
            with suppress(grpc.aio.AioRpcError):
                async for response in call:
                    event = event_of(response, self._base_s)
                    if event is not None and not self._note(event):
                        yield event
            with stt_errors():
                self._add_totals(await outcome.wait())
            if self._ended_early:
                raise SttError(
                    "", grpc.StatusCode.UNAVAILABLE, "The server ended the session before its audio did."
                )
        except SttError as error:
            self._add_totals(error.trailing_metadata)
            self._fault = None if self._is_over and error.is_transient else error
        except asyncio.CancelledError:
            if self._source_error is not None:
                raise self._source_error from None
            raise
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            call.cancel()

    @property
    def _is_over(self) -> bool:
        """Whether the server's last word came through, whatever befalls the connection after it."""
        return self._is_completed and not self._ended_early

    @property
    def _is_completed(self) -> bool:
        return self._ended is not None and self._ended.reason is EndReason.COMPLETED

    @property
    def _ended_early(self) -> bool:
        """Whether there is audio that the server did not take, as when it stops and ends its sessions."""
        has_heard = self._ended is not None and self._ended.utterances > self._earlier_finals
        if not self._is_completed or (has_heard and self._session.vad.mode is VadMode.AUTO):
            return False
        return not self._is_source_over or self._buffer.unsettled_s > _ROUNDING_S

    def _note(self, event: Event) -> bool:
        """Take what the event means for the stream; whether it is held back."""
        if isinstance(event, Final):
            self._attempts.progress()
            self._session_finals += 1
            self._buffer.settle(self._covered_s(event))
        elif isinstance(event, Ended):
            if event.reason is EndReason.COMPLETED:
                self._buffer.settle(event.audio_s)
            self._ended = replace(event, utterances=event.utterances + self._earlier_finals)
            return True
        return False

    def _covered_s(self, final: Final) -> float:
        """Up to where audio needs no second hearing.

        Where commits end utterances, the silence between the last word and the commit is part of it, unless
        the utterance ended by its length, which one of VadMode.MANUAL does not.
        """
        vad = self._session.vad
        is_manual = vad.mode is VadMode.MANUAL
        if not is_manual and vad.enabled is not False:
            return final.end_s
        commit_s = self._buffer.commit_from_s(final.end_s)
        longest_s = math.inf if is_manual else vad.max_utterance_s or math.inf
        if commit_s is None or commit_s - final.start_s >= longest_s:
            return final.end_s
        return commit_s

    def _add_totals(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        totals = DecodeTotals.from_metadata(dict(metadata))
        if totals is not None:
            self._totals = totals if self._totals is None else self._totals + totals

    # Audio

    async def _feed(self) -> None:
        """Read the source. It outlives sessions, since cancelling would end the source."""
        try:
            async for item in self._chunks:
                await self._inbox.put(item)
        except Exception as error:
            self._source_error = error
        finally:
            if isinstance(self._chunks, AsyncGenerator):
                await self._chunks.aclose()
        await self._inbox.put(None)

    async def _send(self, call: StreamCall, session: Session) -> None:
        """Send what there is and what comes, then close the sending side."""
        opening = stt_pb2.StreamingRecognizeRequest(
            session_id=session.session_id, session_token=session.token
        )
        following = stt_pb2.StreamingRecognizeRequest(session_token=session.token)
        max_bytes = _max_audio_bytes(session, opening.ByteSize())
        message = opening
        try:
            while True:
                while (piece := self._buffer.take(max_bytes)) is not None:
                    message.audio, message.commit = piece.pcm, piece.commit
                    await call.write(message)
                    message = following
                if self._is_source_over or not await self._take_input():
                    break
            if message is opening:
                await call.write(message)  # there was no audio, and the call has to say whose it is
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the call is over; who reads it learns why
        except Exception as error:
            self._source_error = error
            call.cancel()

    async def _take_input(self) -> bool:
        """Move the next item to the buffer; False when no more will come.

        Raises:
            Exception: of the source.
        """
        item = await self._inbox.get()
        if item is not None:
            self._buffer.put(item)
            return True
        self._is_source_over = True
        if self._source_error is not None:
            raise self._source_error
        return False

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()


def _max_audio_bytes(session: Session, other_bytes: int) -> int:
    """Longest audio of one message.

    Args:
        session: its limits.
        other_bytes: what the rest of the message takes at most, without the framing of the audio.
    """
    limits = [_MAX_UNLIMITED_BYTES]
    if session.max_message_bytes:
        limits.append(session.max_message_bytes - other_bytes - _FRAMING_BYTES)
    if session.max_chunk_ms:
        limits.append(session.max_chunk_ms * session.audio.bytes_per_s // 1000)
    return min(limits)
