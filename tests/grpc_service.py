"""The gRPC service in this process, with made-up speech or the demo model behind it; see `live_speech`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tests.live_server import make_settings
from tests.live_speech import PerfectDetector, Speech
from tests.stream_server import stream_services
from whisper_server.api.grpc.server import grpc_server
from whisper_server.api.grpc.sessions import CLAIM_S
from whisper_server.api.security import load_api_keys
from whisper_server.api.services import Services
from whisper_server.core.engine import Engine
from whisper_server.services.streaming import StreamLimits
from whisper_server.services.voice_detectors import ReusableVoiceDetector
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

WAIT_S = 30.0

Request = stt_pb2.StreamingRecognizeRequest
Response = stt_pb2.StreamingRecognizeResponse
Requests = Iterable[Request] | AsyncIterator[Request]


@dataclass(frozen=True)
class Failure:
    """How a call failed.

    Attributes:
        code: such as ERR1001, of the status's message.
        status: of gRPC.
        message: behind the code.
        reason: the code in the details.
        field: the wrong one in the details.
        retry_after_s: in the details; None where they do not say.
    """

    code: str
    status: grpc.StatusCode
    message: str
    reason: str
    field: str
    retry_after_s: float | None

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Failure":
        code, _, message = (error.details() or "").partition(": ")
        details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
        rich = Status.FromString(details if isinstance(details, bytes) else details.encode())
        assert rich.code == error.code().value[0]
        assert rich.message == error.details()
        info, retry, bad = ErrorInfo(), RetryInfo(), BadRequest()
        known = [detail.Unpack(kind) for detail in rich.details for kind in (info, retry, bad)]
        assert sum(known) == len(rich.details)
        assert info.domain == "whisper-server"
        wrong = bad.field_violations[0].field if bad.field_violations else ""
        delay = retry.retry_delay
        has_retry = any(detail.Is(RetryInfo.DESCRIPTOR) for detail in rich.details)
        return cls(
            code=code,
            status=error.code(),
            message=message,
            reason=info.reason,
            field=wrong,
            retry_after_s=delay.seconds + delay.nanos / 1e9 if has_retry else None,
        )


@dataclass
class Heard:
    """What came back from a stream.

    Attributes:
        responses: in order.
        failure: how the call failed; None where it ended well.
        trailing: its metadata.
    """

    responses: list[Response] = field(default_factory=list)
    failure: Failure | None = None
    trailing: dict[str, str] = field(default_factory=dict)

    @property
    def finals(self) -> list[stt_pb2.StreamingResult]:
        return [each.result for each in self.responses if each.result.is_final]

    @property
    def partials(self) -> list[stt_pb2.StreamingResult]:
        return [
            each.result
            for each in self.responses
            if each.WhichOneof("event") == "result" and not each.result.is_final
        ]

    @property
    def texts(self) -> list[str]:
        return [final.text for final in self.finals]

    @property
    def ended(self) -> stt_pb2.SessionEnded:
        assert self.responses[-1].HasField("session_ended")
        return self.responses[-1].session_ended


@dataclass(frozen=True)
class Service:
    """A running service and a client of it."""

    services: Services
    addresses: Sequence[str]
    stub: "stt_pb2_grpc.SpeechToTextAsyncStub"
    channel: grpc.aio.Channel

    async def create(
        self, session_id: str = "one", *, metadata: Sequence[tuple[str, str]] = (), **fields: Any
    ) -> stt_pb2.CreateSessionResponse:
        request = stt_pb2.CreateSessionRequest(session_id=session_id, **fields)
        return await self.stub.CreateSession(request, metadata=metadata, timeout=WAIT_S)

    async def stream(
        self, requests: Requests, *, metadata: Sequence[tuple[str, str]] = (), timeout_s: float = WAIT_S
    ) -> Heard:
        """Send everything, and read everything."""
        if not isinstance(requests, AsyncIterator):
            requests = iter(requests)
        return await read(self.stub.StreamingRecognize(requests, metadata=metadata, timeout=timeout_s))

    async def refused(self, session_id: str = "one", **fields: Any) -> Failure:
        """How CreateSession fails."""
        return await failure(self.create(session_id, **fields))


async def read(call: "grpc.aio.StreamStreamCall[Request, Response]", heard: Heard | None = None) -> Heard:
    """Read a stream to its end."""
    heard = heard or Heard()
    try:
        async for response in call:
            heard.responses.append(response)
    except grpc.aio.AioRpcError as error:
        heard.failure = Failure.of(error)
    heard.trailing = {
        name: value for name, value in await call.trailing_metadata() or () if isinstance(value, str)
    }
    return heard


async def failure(call: Any) -> Failure:
    """How a call fails."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return Failure.of(error)
    raise AssertionError("the call did not fail")


def chunks(
    said: Speech | bytes, *, session_id: str = "one", chunk_bytes: int = 6400, token: str = ""
) -> list[Request]:
    """Audio as messages."""
    data = said if isinstance(said, bytes) else said.pcm.tobytes()
    return [
        Request(session_id=session_id, session_token=token, audio=data[start : start + chunk_bytes])
        for start in range(0, max(1, len(data)), chunk_bytes)
    ]


@asynccontextmanager
async def held_open(requests: Iterable[Request]) -> AsyncIterator[AsyncIterator[Request]]:
    """Requests of a client that then neither sends nor closes while the block runs."""
    is_over = asyncio.Event()

    async def send() -> AsyncIterator[Request]:
        for request in requests:
            yield request
        await is_over.wait()

    try:
        yield send()
    finally:
        is_over.set()
        await asyncio.sleep(0)  # gRPC's task that reads them sees the end


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # what it waits for has no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def grpc_service(
    engine: Engine | None,
    *,
    limits: StreamLimits | None = None,
    new_detector: Callable[[], ReusableVoiceDetector] = PerfectDetector,
    claim_s: float = CLAIM_S,
    request_limits: Mapping[str, Any] | None = None,
    **sections: Any,
) -> AsyncIterator[Service]:
    """Serve until the block ends; arguments as `stream_server`, and the section `limits` of the settings.

    The settings of live streams count where no `limits` are given.
    """
    settings = make_settings(**{"grpc": {"port": 0}, "limits": request_limits or {}} | sections)
    async with (
        stream_services(engine, settings, limits=limits, new_detector=new_detector) as services,
        grpc_server(services, load_api_keys(settings), claim_s=claim_s) as addresses,
        grpc.aio.insecure_channel(addresses[0]) as channel,
    ):
        yield Service(services, addresses, stt_pb2_grpc.SpeechToTextStub(channel), channel)
