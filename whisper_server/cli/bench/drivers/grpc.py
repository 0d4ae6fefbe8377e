"""Sessions of the gRPC service, `stt.v1.SpeechToText`."""

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from whisper_server.cli.bench.drivers.driver import Address, Pace, Wishes, call_off, read_file, send_audio
from whisper_server.cli.bench.session import DecodeTimes, SessionFailedError, SessionTrace
from whisper_server.cli.bench.speech import Speech
from whisper_server.core.errors import ConfigurationError
from whisper_server.stt_v1 import stt_pb2
from whisper_server.stt_v1.stt_pb2_grpc import SpeechToTextStub

if TYPE_CHECKING:
    from whisper_server.stt_v1.stt_pb2_grpc import SpeechToTextAsyncStub

    _Call = grpc.aio.StreamStreamCall[stt_pb2.StreamingRecognizeRequest, stt_pb2.StreamingRecognizeResponse]

_T = TypeVar("_T")

_LOOKS = 200
_LOOK_EVERY_S = 0.01
"""How often, and how many times, it is looked for a status that is on its way."""

_CODE = re.compile(r"(ERR\d{4})\b:?\s*")
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_CHECK_S = 10.0

_CHANNEL_OPTIONS = (
    # Otherwise gRPC gives all channels to one server the same connection.
    ("grpc.use_local_subchannel_pool", 1),
    # A refusal is to be counted, not tried again behind one's back.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)

_VAD_MODES = {
    "continue": stt_pb2.VAD_MODE_CONTINUE,
    "auto": stt_pb2.VAD_MODE_AUTO_END,
    "manual": stt_pb2.VAD_MODE_MANUAL,
}
_TASKS = {
    None: stt_pb2.TASK_UNSPECIFIED,
    "transcribe": stt_pb2.TASK_TRANSCRIBE,
    "translate": stt_pb2.TASK_TRANSLATE,
}


class GrpcDriver:
    """Speaks to the gRPC service.

    Args:
        address: `host:port` or `unix:/path`.
        speech: what every session says.
        wishes: what every session asks for.
        chunk_ms: audio of one message.
        pace: of the audio.

    Raises:
        ConfigurationError: a certificate or a key cannot be read.
    """

    def __init__(
        self, address: Address, speech: Speech, wishes: Wishes, *, chunk_ms: int, pace: Pace
    ) -> None:
        self._target = address.target
        self._credentials = _credentials(address) if address.is_encrypted else None
        self._metadata = (("authorization", f"Bearer {address.api_key}"),) if address.api_key else ()
        self._wishes = wishes
        self._chunks = speech.chunks(chunk_ms)
        # The first message names the session; these may leave that out, so that all sessions share them.
        self._audio = [stt_pb2.StreamingRecognizeRequest(audio=chunk) for chunk in self._chunks]
        self._pace = pace

    @property
    def door(self) -> str:
        """Its name, for people."""
        return "grpc"

    async def check(self) -> None:
        """See that a gRPC server is there; whether it tells of its health does not matter.

        Raises:
            ConfigurationError: there is none, or it wants another key.
        """
        async with self._connection() as connection:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.unary_unary(_HEALTH_CHECK)
            try:
                await ask(b"", timeout=_CHECK_S, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    message = f"Cannot reach a gRPC server at {self._target}: {_details(error)}"
                    raise ConfigurationError(message) from error
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    message = f"{_details(error)} Give the server's key with --api-key or WHISPER_API_KEY."
                    raise ConfigurationError(message) from error

    @asynccontextmanager
    async def channel(self) -> "AsyncIterator[GrpcChannel]":
        """A connection of its own."""
        async with self._connection() as connection:
            yield GrpcChannel(
                SpeechToTextStub(connection), self._metadata, self._wishes, self._audio, self._pace
            )

    def _connection(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self._target, self._credentials, options=_CHANNEL_OPTIONS)


class GrpcChannel:
    """A connection; see `Channel`. gRPC makes it anew when it broke."""

    def __init__(
        self,
        stub: "SpeechToTextAsyncStub",
        metadata: tuple[tuple[str, str], ...],
        wishes: Wishes,
        audio: list[stt_pb2.StreamingRecognizeRequest],
        pace: Pace,
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._wishes = wishes
        self._audio = audio
        self._pace = pace

    async def run_session(self, trace: SessionTrace) -> None:
        """Run a session; see `Channel`."""
        try:
            session = await self._stub.CreateSession(
                creation(trace.session_id, self._wishes), metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _failure(error.code(), error.details()) from error
        await self._stream(trace, session.session_token)

    async def _stream(self, trace: SessionTrace, token: str) -> None:
        call = self._stub.StreamingRecognize(metadata=self._metadata)
        ending = _Ending(call)
        sending = asyncio.create_task(self._send(call, trace, token))
        try:
            async for response in call:
                _note(response, trace)
            end = await ending.told()
        except grpc.aio.AioRpcError:
            end = await ending.told()
        finally:
            call.cancel()  # a call that is over takes no harm
            await call_off(sending)
        trace.decode = decode_times(dict(end.metadata))
        if end.code is not grpc.StatusCode.OK:
            raise _failure(end.code, end.details)

    async def _send(
        self,
        call: "_Call",
        trace: SessionTrace,
        token: str,
    ) -> None:
        request = stt_pb2.StreamingRecognizeRequest
        await call.write(request(session_id=trace.session_id, session_token=token))
        audio = self._audio
        if token:
            audio = [request(session_token=token, audio=message.audio) for message in audio]
        await send_audio(audio, call.write, trace, self._pace)
        if self._wishes.vad_mode == "manual":
            await call.write(request(session_token=token, commit=True))
        await call.done_writing()


def creation(session_id: str, wishes: Wishes) -> stt_pb2.CreateSessionRequest:
    """What opens a session. What is not wished for is not set."""
    return stt_pb2.CreateSessionRequest(
        session_id=session_id,
        attributes=wishes.attributes,
        config=stt_pb2.RecognitionConfig(
            model=wishes.model or "",
            language=wishes.language or "",
            task=_TASKS[wishes.task],
            decode_profile=wishes.decode_profile or "",
        ),
        vad=stt_pb2.VadConfig(
            mode=_VAD_MODES[wishes.vad_mode],
            vad_threshold=wishes.vad_threshold,
            vad_silence_ms=wishes.vad_silence_ms,
        ),
        require_token=wishes.has_token,
    )


def decode_times(metadata: Mapping[str, Any]) -> DecodeTimes:
    """What trailing metadata tells of the decodes; what is missing or no number is None."""
    return DecodeTimes(
        buffer_wait_s=_number(metadata.get("stt-decode-buffer-wait-sec")),
        queue_wait_s=_number(metadata.get("stt-decode-queue-wait-sec")),
        inference_s=_number(metadata.get("stt-decode-inference-sec")),
        response_emit_s=_number(metadata.get("stt-decode-response-emit-sec")),
        total_s=_number(metadata.get("stt-decode-total-sec")),
        count=None if (count := _number(metadata.get("stt-decode-count"))) is None else int(count),
    )


@dataclass(frozen=True, slots=True)
class _End:
    """How the server ended a call."""

    code: grpc.StatusCode
    details: str | None
    metadata: Sequence[tuple[str, Any]]

    @property
    def is_own(self) -> bool:
        """Whether grpc.aio made it."""
        return self.code is grpc.StatusCode.INTERNAL and self.details == "Internal error from Core"


class _Ending:
    """Tells how the server ended a call, also where the call has it wrong.

    Where a message is sent to a call that the server has ended, grpc.aio sets a status of its own: before the
    server's, which then replaces it, or in the place of the server's, which only the done callback has seen
    (https://github.com/grpc/grpc/issues/36066).

    Args:
        call: that has not ended.
    """

    def __init__(self, call: "_Call") -> None:
        self._call = call
        self._first: _End | None = None
        call.add_done_callback(self._note)

    async def told(self) -> _End:
        """The end of a call of which all was read; grpc.aio's own where no other comes soon."""
        for _ in range(_LOOKS):
            end = self._now() if self._first is None or self._first.is_own else self._first
            if not end.is_own:
                return end
            await asyncio.sleep(_LOOK_EVERY_S)
        return end

    def _note(self, _: object) -> None:
        self._first = self._now()

    def _now(self) -> _End:
        metadata = tuple(_settled(self._call.trailing_metadata()) or ())
        return _End(_settled(self._call.code()), _settled(self._call.details()), metadata)


def _settled(answer: Coroutine[Any, Any, _T]) -> _T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        answer.send(None)
    except StopIteration as stop:
        result: _T = stop.value
        return result
    answer.close()
    raise AssertionError("The call is not over.")


def _failure(code: grpc.StatusCode, details: str | None) -> SessionFailedError:
    """With the server's code, such as ERR1008; else gRPC's, such as UNAVAILABLE."""
    text = details or code.name
    told = _CODE.match(text)
    return SessionFailedError(told[1], text[told.end() :]) if told else SessionFailedError(code.name, text)


def _note(response: stt_pb2.StreamingRecognizeResponse, trace: SessionTrace) -> None:
    match response.WhichOneof("event"):
        case "result" if response.result.is_final:
            trace.note_final(response.result.text)
        case "result":
            trace.note_partial()
        case "failure":
            trace.fail(response.failure.code, response.failure.message)
        case "session_ended":
            _note_end(response.session_ended, trace)


def _note_end(end: stt_pb2.SessionEnded, trace: SessionTrace) -> None:
    trace.audio_s = end.audio_s
    # Of an error the status of the call tells more.
    if end.reason not in (stt_pb2.SessionEnded.REASON_COMPLETED, stt_pb2.SessionEnded.REASON_ERROR):
        reason = stt_pb2.SessionEnded.Reason.Name(end.reason).removeprefix("REASON_")
        trace.fail(reason, "The server ended the session before its time.")


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _details(error: grpc.aio.AioRpcError) -> str:
    return " ".join((error.details() or error.code().name).split())


def _credentials(address: Address) -> grpc.ChannelCredentials:
    """Certificates for gRPC.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    chain = None if address.cert_path is None else read_file(address.cert_path, "--tls-cert")
    key = chain if address.key_path is None else read_file(address.key_path, "--tls-key")
    return grpc.ssl_channel_credentials(
        root_certificates=None if address.ca_path is None else read_file(address.ca_path, "--tls-ca"),
        private_key=key,
        certificate_chain=chain,
    )
