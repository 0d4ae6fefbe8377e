"""A gRPC service that hears made-up speech (see `live_speech`) and breaks where a test says so.

It cuts utterances at half a second of silence, or at commits. It keeps what it was sent.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.live_speech import hear
from whisper_server.core.types import SAMPLE_RATE, AlignedWord, Pcm16, Timestamps, Window
from whisper_server.stt_v1 import stt_pb2 as pb
from whisper_server.stt_v1 import stt_pb2_grpc

Metadata: TypeAlias = tuple[tuple[str, str], ...]

_SILENCE_SAMPLES = SAMPLE_RATE // 2
TRAILERS: Metadata = (
    ("stt-decode-buffer-wait-sec", "0.5"),
    ("stt-decode-queue-wait-sec", "0.25"),
    ("stt-decode-inference-sec", "1.0"),
    ("stt-decode-response-emit-sec", "0.125"),
    ("stt-decode-total-sec", "1.875"),
    ("stt-decode-count", "3"),
)


@dataclass(frozen=True)
class Refusal:
    """How a call ends: the status, its message, and what the status details say."""

    status: grpc.StatusCode
    message: str
    code: str | None = None
    retry_after_s: float | None = None

    async def end(self, context: Any, trailers: Metadata = ()) -> None:
        details: list[Any] = []
        if self.code:
            details.append(error_details_pb2.ErrorInfo(reason=self.code, domain="whisper-server"))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_after_s * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        packed = [any_pb2.Any() for _ in details]
        for target, detail in zip(packed, details, strict=True):
            target.Pack(detail)
        status = status_pb2.Status(code=self.status.value[0], message=self.message, details=packed)
        rich = rpc_status.to_status(status).trailing_metadata if packed else ()
        await context.abort(self.status, self.message, (*trailers, *rich))


@dataclass
class Heard:
    """What one stream brought."""

    session_id: str
    messages: list[pb.StreamingRecognizeRequest] = field(default_factory=list)

    @property
    def pcm(self) -> Pcm16:
        return np.frombuffer(b"".join(m.audio for m in self.messages), dtype=np.int16)


@dataclass
class Break:
    """Ends a stream in its midst.

    Attributes:
        after_s: once so much of its audio was heard.
        refusal: with this; None ends the session well, as a server does that stops.
    """

    after_s: float
    refusal: Refusal | None


class FakeSttService(stt_pb2_grpc.SpeechToTextServicer):
    """Hears made-up speech.

    Attributes:
        refusals: of CreateSession calls, in turn; None lets one pass.
        breaks: of streams, in turn; None lets one pass.
        ending: how a stream ends after its last event; None is OK.
        failing: words whose utterances fail.
        max_chunk_ms: told to clients.
        max_message_bytes: told to clients.
        created: the CreateSession requests.
        streams: what each stream brought.
        metadata: of all calls.
        recordings: the Recognize requests.
        half_closed: set when a stream's sending side is closed.
        may_end: streams wait for it before their last events.
    """

    def __init__(self) -> None:
        self.refusals: deque[Refusal | None] = deque()
        self.breaks: deque[Break | None] = deque()
        self.ending: Refusal | None = None
        self.failing: set[str] = set()
        self.max_chunk_ms = 0
        self.max_message_bytes = 0
        self.created: list[pb.CreateSessionRequest] = []
        self.streams: list[Heard] = []
        self.metadata: list[dict[str, str]] = []
        self.recordings: list[pb.RecognizeRequest] = []
        self.half_closed = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    async def CreateSession(  # noqa: N802 - as the contract names it
        self, request: pb.CreateSessionRequest, context: Any
    ) -> pb.CreateSessionResponse:
        self._take_metadata(context)
        self.created.append(request)
        refusal = self.refusals.popleft() if self.refusals else None
        if refusal is not None:
            await refusal.end(context)
        return pb.CreateSessionResponse(
            session_id=request.session_id,
            session_token=f"token-of-{request.session_id}" if request.require_token else "",
            attributes=request.attributes,
            config=request.config,
            vad=request.vad,
            audio=request.audio,
            partials=True,
            session_timeout_s=60,
            max_chunk_ms=self.max_chunk_ms,
            max_message_bytes=self.max_message_bytes,
        )

    async def StreamingRecognize(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StreamingRecognizeRequest], context: Any
    ) -> AsyncIterator[pb.StreamingRecognizeResponse]:
        self._take_metadata(context)
        heard = Heard("")
        self.streams.append(heard)
        breaking = self.breaks.popleft() if self.breaks else None
        options = self.created[-1]
        ears = _Ears(is_manual=options.vad.mode == pb.VAD_MODE_MANUAL, failing=self.failing)
        async for message in request_iterator:
            heard.session_id = heard.session_id or message.session_id
            heard.messages.append(message)
            for event in ears.hear(message):
                yield event
            if breaking and ears.heard_s >= breaking.after_s:
                if breaking.refusal is None:
                    break
                await breaking.refusal.end(context)
            if ears.utterances and options.vad.mode == pb.VAD_MODE_AUTO_END:
                break
        else:
            self.half_closed.set()
        await asyncio.to_thread(self.may_end.wait, 30)
        for event in ears.finish():
            yield event
        if self.ending is not None:
            await self.ending.end(context, TRAILERS)
        context.set_trailing_metadata(TRAILERS)

    async def Recognize(  # noqa: N802
        self, request: pb.RecognizeRequest, context: Any
    ) -> pb.RecognizeResponse:
        self._take_metadata(context)
        self.recordings.append(request)
        refusal = self.refusals.popleft() if self.refusals else None
        if refusal is not None:
            await refusal.end(context)
        word = pb.Word(text=" bravo", start_s=0.5, end_s=0.9, probability=0.5)
        segment = pb.Segment(text="alpha bravo", start_s=0.1, end_s=0.9, words=[word])
        return pb.RecognizeResponse(text="alpha bravo", segments=[segment], language="en", duration_s=1.0)

    def _take_metadata(self, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))


class _Ears:
    """Utterances of one stream."""

    def __init__(self, *, is_manual: bool, failing: set[str]) -> None:
        self._is_manual = is_manual
        self._failing = failing
        self._bytes = b""
        self._cut = 0
        self._is_speaking = False
        self.utterances = 0

    @property
    def heard_s(self) -> float:
        return len(self._bytes) / 2 / SAMPLE_RATE

    def hear(self, message: pb.StreamingRecognizeRequest) -> list[pb.StreamingRecognizeResponse]:
        self._bytes += message.audio
        events = []
        while not self._is_manual and (found := self._next_utterance()):
            events += self._commit(*found)
        if self._is_manual and message.commit:
            events += self._commit(self._cut, len(self._bytes) // 2, len(self._bytes) // 2)
        if not self._is_manual and self._samples[self._cut :].any():
            events += self._partial()
        return events

    def finish(self) -> list[pb.StreamingRecognizeResponse]:
        events = []
        rest = self._samples[self._cut :]
        if rest.any():
            stop = self._cut + int(np.flatnonzero(rest)[-1]) + 1
            events += self._commit(self._cut, stop, len(self._samples))
        ended = pb.SessionEnded(
            reason=pb.SessionEnded.REASON_COMPLETED, audio_s=self.heard_s, utterances=self.utterances
        )
        return [*events, pb.StreamingRecognizeResponse(session_ended=ended)]

    @property
    def _samples(self) -> Pcm16:
        return np.frombuffer(self._bytes[: len(self._bytes) // 2 * 2], dtype=np.int16)

    @property
    def _id(self) -> str:
        return f"{id(self):x}-{self.utterances}"

    def _next_utterance(self) -> tuple[int, int, int] | None:
        """Its start, the end of its speech, and its end."""
        loud = np.flatnonzero(self._samples[self._cut :])
        if not len(loud):
            return None
        gaps = np.flatnonzero(np.diff(np.r_[loud, len(self._samples) - self._cut]) > _SILENCE_SAMPLES)
        if not len(gaps):
            return None
        stop = self._cut + int(loud[gaps[0]]) + 1
        return self._cut, stop, stop + _SILENCE_SAMPLES

    def _activity(self, kind: pb.SpeechActivity.Kind.ValueType, at: int) -> pb.StreamingRecognizeResponse:
        activity = pb.SpeechActivity(kind=kind, utterance_id=self._id, at_s=at / SAMPLE_RATE)
        return pb.StreamingRecognizeResponse(speech_activity=activity)

    def _start(self) -> list[pb.StreamingRecognizeResponse]:
        if self._is_speaking or self._is_manual:
            return []
        self._is_speaking = True
        at = self._cut + int(np.flatnonzero(self._samples[self._cut :])[0])
        return [self._activity(pb.SpeechActivity.KIND_SPEECH_STARTED, at)]

    def _partial(self) -> list[pb.StreamingRecognizeResponse]:
        words = _words(self._samples[self._cut :])
        text = " ".join(word.text.strip() for word in words)
        stable = " ".join(word.text.strip() for word in words[:-1])
        result = pb.StreamingResult(
            utterance_id=self._id, text=text, stable_text=stable, unstable_text=text[len(stable) :].strip()
        )
        return [*self._start(), pb.StreamingRecognizeResponse(result=result)]

    def _commit(self, start: int, stop: int, end: int) -> list[pb.StreamingRecognizeResponse]:
        events = self._start()
        if not self._is_manual:
            events.append(self._activity(pb.SpeechActivity.KIND_SPEECH_STOPPED, stop))
        words = _words(self._samples[start:stop])
        text = " ".join(word.text.strip() for word in words)
        if self._failing & set(text.split()):
            failure = pb.UtteranceFailure(utterance_id=self._id, code="ERR2002", message="No luck.")
            events.append(pb.StreamingRecognizeResponse(failure=failure))
        else:
            offset_s = start / SAMPLE_RATE
            result = pb.StreamingResult(
                utterance_id=self._id,
                is_final=True,
                text=text,
                confidence=0.9,
                language="en",
                start_s=offset_s,
                end_s=stop / SAMPLE_RATE,
                words=[
                    pb.Word(text=w.text, start_s=offset_s + w.start_s, end_s=offset_s + w.end_s)
                    for w in words
                ],
            )
            events.append(pb.StreamingRecognizeResponse(result=result))
        self._cut, self._is_speaking = end, False
        self.utterances += 1
        return events


def _words(pcm: Pcm16) -> tuple[AlignedWord, ...]:
    window = Window(samples=pcm.astype(np.float32) / np.float32(32768), timestamps=Timestamps.WORD_ONLY)
    return hear(window).alignment


@asynccontextmanager
async def serving(
    service: FakeSttService,
    address: str = "127.0.0.1:0",
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[str]:
    """Serve until the block ends; yields where. Leaving stops at once: calls that run break.

    Args:
        service: what answers.
        address: `host:port`, or `unix:` and a path.
        credentials: for TLS.
    """
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
    stt_pb2_grpc.add_SpeechToTextServicer_to_server(service, server)
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextmanager
def serving_aside(service: FakeSttService, address: str) -> Iterator[None]:
    """Serve in a thread of its own, for clients that run an event loop themselves."""
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with serving(service, address):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert started.wait(30)
        yield
    finally:
        service.may_end.set()
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
