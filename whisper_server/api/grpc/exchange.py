"""One StreamingRecognize: a client's messages to its session, and the session's events to the client."""

import asyncio
import contextlib
import logging
import time
from contextlib import aclosing

import grpc.aio

from whisper_server.api.grpc.asking import prompted
from whisper_server.api.grpc.calls import Context
from whisper_server.api.grpc.incoming import Incoming
from whisper_server.api.grpc.sessions import OpenSession
from whisper_server.api.grpc.telling import told
from whisper_server.api.streams.sending import send_message
from whisper_server.core.errors import (
    EmptyCommitError,
    InvalidRequestError,
    ServerDrainingError,
    SessionEndedError,
    SlowReaderError,
    WhisperServerError,
)
from whisper_server.core.stream_events import (
    Endpointing,
    EndReason,
    SessionEnded,
    StreamEvent,
    TranscriptFailed,
)
from whisper_server.stt_v1 import stt_pb2

logger = logging.getLogger(__name__)

_MAX_UNREAD_S = 30.0
"""A client that takes no message for so long has stopped reading."""

_CLOSE_S = 1.0
_RETRY_AFTER_S = 1.0


class Exchange:
    """Runs the session of one call.

    Args:
        session: claimed.
        context: of the call.
    """

    def __init__(self, session: OpenSession, context: Context) -> None:
        self._session = session
        self._stream = session.stream
        self._options = session.stream.options
        self._context = context
        self._error: WhisperServerError | None = None
        self._is_half_closed = False
        self._emit_s = 0.0

    async def run(self, first: stt_pb2.StreamingRecognizeRequest, incoming: Incoming) -> None:
        """Serve until the session has ended, and put where the time went into the trailing metadata.

        Raises:
            WhisperServerError: why it did not end well.
        """
        try:
            feeding = asyncio.create_task(self._feed(first, incoming))
            try:
                await self._tell()
                await incoming.settle(feeding)
            finally:
                feeding.cancel()
                await self._close()
        finally:
            self._context.set_trailing_metadata(self._trailing_metadata())
        if self._error is not None:
            raise self._error

    async def _close(self) -> None:
        """End what is not ended. A model that hangs does not keep the client from its status."""
        await self._stream.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._stream.wait_closed()

    # From the client

    async def _feed(self, first: stt_pb2.StreamingRecognizeRequest, incoming: Incoming) -> None:
        """Bring the client's messages to the session, and end it after the last one."""
        try:
            request: stt_pb2.StreamingRecognizeRequest | None = first
            while request is not None:
                await self._take(request)
                request = await incoming.next()
            self._is_half_closed = True
            await self._stream.send(self._session.audio.flush())
            await self._stream.end()
        except SessionEndedError:
            pass  # it ended by itself; `_tell` knows why
        except WhisperServerError as error:
            await self._fail(error)
        except Exception as error:  # the boundary of one call: it fails, the server goes on
            logger.exception("Session %s failed", self._stream.id)
            failure = WhisperServerError("The server failed on this session.")
            failure.__cause__ = error
            await self._fail(failure)
        await incoming.drop_rest()

    async def _take(self, request: stt_pb2.StreamingRecognizeRequest) -> None:
        """One message.

        Raises:
            InvalidSessionTokenError: it does not bring the session's token.
            InvalidRequestError: it names another session, or its prompt is too long.
            WhisperServerError: as `send_message`.
        """
        self._session.check_token(request.session_token)
        if request.session_id and request.session_id != self._stream.id:
            raise InvalidRequestError(
                "A call streams to one session; this message names another.", param="session_id"
            )
        if request.clear:
            await self._stream.clear()
        if request.HasField("prompting"):
            await self._stream.update(prompted(self._options, request.prompting))
        if request.audio:
            await send_message(self._stream, self._session.audio, request.audio)
        if request.commit:
            await self._commit()

    async def _commit(self) -> None:
        await self._stream.send(self._session.audio.flush())
        try:
            await self._stream.commit()
        except EmptyCommitError:
            logger.debug("Session %s: nothing to commit", self._stream.id)

    async def _fail(self, error: WhisperServerError) -> None:
        """End the session at once because of a message."""
        self._error = error
        await self._stream.cancel()

    # To the client

    async def _tell(self) -> None:
        """Tell every event, up to the end of the session."""
        async with aclosing(self._stream.events()) as events:
            async for event in events:
                self._note(event)
                message = told(self._stream.id, event)
                if message is not None and not await self._write(message):
                    return

    def _note(self, event: StreamEvent) -> None:
        """Remember the first fault: the call ends with it."""
        if isinstance(event, TranscriptFailed):
            logger.error("Session %s: %s (%s)", self._stream.id, event.error.message, event.error.causes)
            self._error = self._error or event.error
        if isinstance(event, SessionEnded):
            self._error = self._error or event.error
            if self._error is None and self._is_ended_by_server(event):
                self._error = ServerDrainingError("The server is stopping.", retry_after_s=_RETRY_AFTER_S)

    def _is_ended_by_server(self, event: SessionEnded) -> bool:
        """Whether a session ended though neither its client nor its speech has ended it."""
        ends_itself = self._is_half_closed or self._options.endpointing is Endpointing.AUTO_END
        return event.reason is EndReason.CANCELLED or (
            event.reason is EndReason.COMPLETED and not ends_itself
        )

    async def _write(self, message: stt_pb2.StreamingRecognizeResponse) -> bool:
        """Send a message; false where the client takes none any more."""
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(_MAX_UNREAD_S):
                await self._context.write(message)
        except TimeoutError:
            logger.warning("Session %s: the client has stopped reading", self._stream.id)
            self._error = self._error or SlowReaderError("The client does not read its transcripts.")
            return False
        except grpc.aio.UsageError:  # the call is over: the client has left
            return False
        finally:
            self._emit_s += time.perf_counter() - began_s
        return True

    def _trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        totals = self._stream.decode_totals
        parts_s = {
            "buffer-wait": totals.buffer_wait_s,
            "queue-wait": totals.queue_wait_s,
            "inference": totals.inference_s,
            "response-emit": self._emit_s,
        }
        times_s = {**parts_s, "total": sum(parts_s.values())}
        times = [(f"stt-decode-{name}-sec", f"{seconds:.6f}") for name, seconds in times_s.items()]
        return (*times, ("stt-decode-count", str(totals.count)))
