"""The client: opens sessions, streams audio, transcribes recordings."""

import uuid
from dataclasses import replace
from types import TracebackType
from typing import Self

import grpc

from whisper_server.clients.grpc.connection import ConnectionOptions
from whisper_server.clients.grpc.errors import SttError, stt_errors
from whisper_server.clients.grpc.messages import (
    audio_format,
    create_request,
    recognition_config,
    session_of,
    transcript_of,
)
from whisper_server.clients.grpc.options import AudioFormat, RecognitionOptions, Session, SessionOptions
from whisper_server.clients.grpc.retry import Attempts, RetryPolicy
from whisper_server.clients.grpc.stream import Chunks, StreamCall, SttStream
from whisper_server.clients.grpc.transcript import Transcript
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

_MAX_ID_LENGTH = 128


class SttClient:
    """A connection to one server. Use it as an asynchronous context manager, within one event loop.

    Any number of sessions may run at once. A call that fails because the connection is broken, or because the
    server is about to stop, is tried again as `retries` says; every other refusal is raised at once.

    Args:
        connection: where the server is, or just its target.
        retries: how often and when to try again.
    """

    def __init__(self, connection: ConnectionOptions | str, *, retries: RetryPolicy | None = None) -> None:
        if isinstance(connection, str):
            connection = ConnectionOptions(connection)
        self._connection = connection
        self._retries = retries or RetryPolicy()
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = self._connection.open_channel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, and cancel what still uses it."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def create_session(self, options: SessionOptions | None = None) -> Session:
        """Open a session, which then waits for its stream.

        The server may have taken an id with an answer that got lost, so each further attempt brings another
        one: the id with "-2", "-3"… at its end.

        Raises:
            SttError: the server refused it, or was not reached in all attempts.
        """
        options = options or SessionOptions()
        return await self._open(options, 1, Attempts(self._retries))

    def stream(self, session: Session, chunks: Chunks, *, max_replay_s: float = 60.0) -> SttStream:
        """Stream the audio of a session.

        Args:
            session: just created.
            chunks: raw audio as `session.audio` says, cut anywhere, and `COMMIT` where an utterance ends. Its
                end ends the session. It is read no faster than the server takes the audio, and not at all
                without a connection: a live source keeps what it can by itself. A generator is closed when
                the stream is over.
            max_replay_s: audio kept to be sent again after a broken connection; see `SttStream`.
        """
        return SttStream(
            session,
            chunks,
            self._stream_call,
            self._reopen,
            Attempts(self._retries),
            self._retries,
            max_replay_s,
        )

    async def recognize(
        self,
        audio: bytes,
        options: RecognitionOptions | None = None,
        *,
        raw: AudioFormat | None = None,
        timeout_s: float | None = None,
    ) -> Transcript:
        """Transcribe a whole recording.

        Args:
            audio: a file of any format the server reads, or raw audio; it has to fit one message.
            options: what is asked of the model.
            raw: how raw audio is written; None is a file.
            timeout_s: how long each attempt may take; None sets no limit.

        Raises:
            SttError: the server refused it, or was not reached in all attempts.
        """
        request = stt_pb2.RecognizeRequest(
            audio=audio,
            raw=None if raw is None else audio_format(raw),
            config=recognition_config(options or RecognitionOptions()),
        )
        attempts = Attempts(self._retries)
        while True:
            try:
                with stt_errors():
                    response = await self._stub.Recognize(
                        request, metadata=self._connection.metadata, timeout=timeout_s
                    )
                return transcript_of(response)
            except SttError as error:
                await attempts.pause(error)

    @property
    def _stub(self) -> "stt_pb2_grpc.SpeechToTextAsyncStub":
        if self._channel is None:
            raise RuntimeError("use the client within 'async with'")
        return stt_pb2_grpc.SpeechToTextStub(self._channel)

    def _stream_call(self) -> StreamCall:
        return self._stub.StreamingRecognize(metadata=self._connection.metadata)

    async def _reopen(self, session: Session, attempts: Attempts) -> Session:
        return await self._open(session.options, session.attempt + 1, attempts)

    async def _open(self, options: SessionOptions, attempt: int, attempts: Attempts) -> Session:
        base_id = options.session_id or f"client-{uuid.uuid4().hex}"
        options = replace(options, session_id=base_id)
        while True:
            request = create_request(options, _numbered(base_id, attempt))
            try:
                with stt_errors():
                    response = await self._stub.CreateSession(
                        request,
                        metadata=self._connection.metadata,
                        timeout=self._connection.create_timeout_s,
                    )
                return session_of(response, options, attempt)
            except SttError as error:
                await attempts.pause(error)
                attempt += 1


def _numbered(base_id: str, attempt: int) -> str:
    if attempt == 1:
        return base_id
    suffix = f"-{attempt}"
    return base_id[: _MAX_ID_LENGTH - len(suffix)] + suffix
