"""Every code of the gRPC service, provoked by a client."""

import asyncio
import threading
from typing import Any

import grpc
import numpy as np
import pytest

from tests.grpc_service import (
    WAIT_S,
    Failure,
    Request,
    Service,
    chunks,
    eventually,
    failure,
    grpc_service,
    held_open,
)
from tests.live_speech import HearingEngine, speech
from tests.media import wav
from whisper_server.api.error_table import ERR_CODES
from whisper_server.core.errors import EngineError, RequestCancelledError
from whisper_server.services.live_stream import LiveStream
from whisper_server.services.streaming import StreamLimits
from whisper_server.stt_v1 import stt_pb2

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_event_loop")]

SENTENCE = speech(0.3, "alpha bravo charlie", 1.0)
TONE = wav((speech("alpha bravo").pcm / 32768).astype(np.float32))

Config = stt_pb2.RecognitionConfig
Vad = stt_pb2.VadConfig


def check(found: Failure | None, code: str, *, field: str = "") -> None:
    assert found is not None, "the call ended well"
    assert (found.code, found.reason) == (code, code), found.message
    assert found.status.name == ERR_CODES[code].status
    assert found.field == field
    assert found.message


def held_engine() -> HearingEngine:
    """An engine whose calls wait until its gate is opened."""
    engine = HearingEngine()
    engine.gate = threading.Event()
    return engine


# What is asked for


@pytest.mark.parametrize(
    ("code", "field", "fields"),
    [
        ("ERR1001", "session_id", {"session_id": ""}),
        ("ERR1001", "session_id", {"session_id": "x" * 129}),
        ("ERR1003", "vad_threshold", {"vad": Vad(vad_threshold=-0.1)}),
        ("ERR1003", "vad_threshold", {"vad": Vad(vad_threshold=1.1)}),
        ("ERR1003", "vad_threshold", {"vad": Vad(vad_threshold=float("nan"))}),
        ("ERR1010", "vad_silence_ms", {"vad": Vad(vad_silence_ms=60_001)}),
        ("ERR1010", "max_utterance_s", {"vad": Vad(max_utterance_s=0.5)}),
        ("ERR1010", "mode", {"vad": Vad(mode=99)}),  # type: ignore[arg-type]  # of a newer client
        ("ERR1010", "language", {"config": Config(language="klingon")}),
        ("ERR1010", "decode_profile", {"config": Config(decode_profile="fastest")}),
        ("ERR1010", "beam_size", {"config": Config(decode_options=stt_pb2.DecodeOptions(beam_size=0))}),
        ("ERR1010", "patience", {"config": Config(decode_options=stt_pb2.DecodeOptions(patience=-1.0))}),
        (
            "ERR1010",
            "temperatures",
            {"config": Config(decode_options=stt_pb2.DecodeOptions(temperatures=[9.0]))},
        ),
        ("ERR1010", "prompt", {"config": Config(prompt="x" * 10_001)}),
        ("ERR1010", "hotwords", {"config": Config(hotwords=["x" * 6_000] * 2)}),
        ("ERR1010", "sample_rate", {"audio": stt_pb2.AudioFormat(sample_rate_hz=100)}),
        ("ERR1010", "channels", {"audio": stt_pb2.AudioFormat(channels=9)}),
        ("ERR1010", "attributes", {"attributes": {str(number): "" for number in range(33)}}),
        ("ERR1010", "attributes", {"attributes": {"name": "x" * 513}}),
        ("ERR1010", "partial_interval_ms", {"partial_interval_ms": 0}),
        ("ERR1014", "", {"config": Config(model="no-such-model")}),
        ("ERR1014", "", {"config": Config(model="/etc/passwd")}),
    ],
)
async def test_create_session_names_what_is_wrong(code: str, field: str, fields: dict[str, Any]) -> None:
    async with grpc_service(HearingEngine()) as service:
        check(await service.refused(**fields), code, field=field)
        assert service.services.streams.registry.active == 0


async def test_an_active_session_id_is_taken_while_it_waits_and_while_it_runs() -> None:
    async with grpc_service(HearingEngine()) as service:
        await service.create()
        check(await service.refused(), "ERR1002", field="session_id")
        async with held_open(chunks(SENTENCE)) as requests:
            call = service.stub.StreamingRecognize(requests)
            await anext(aiter(call))
            check(await service.refused(), "ERR1002", field="session_id")
            second = await service.stream(chunks(SENTENCE))
            check(second.failure, "ERR1002", field="session_id")
            call.cancel()


@pytest.mark.parametrize("requests", [[], [Request()], [Request(session_id="never created", audio=b"\0\0")]])
async def test_a_stream_needs_a_session_that_is_known(requests: list[Request]) -> None:
    async with grpc_service(HearingEngine()) as service:
        heard = await service.stream(requests)
    check(heard.failure, "ERR1004")


async def test_a_token_is_asked_for_in_every_message() -> None:
    async with grpc_service(HearingEngine()) as service:
        token = (await service.create(require_token=True)).session_token
        assert len(token) >= 32
        for wrong in ("", "guess", token[:-1], f"{token}x", "ä"):
            check((await service.stream(chunks(SENTENCE, token=wrong))).failure, "ERR1005")
        # The guesses did not take the session from its owner.
        heard = await service.stream(chunks(SENTENCE, token=token))
        assert heard.texts == ["alpha bravo charlie"]

        token = (await service.create("two", require_token=True)).session_token
        first, *rest = chunks(SENTENCE, session_id="two", token=token)
        rest[1].session_token = "guess"
        check((await service.stream([first, *rest])).failure, "ERR1005")
        assert service.services.streams.registry.active == 0


async def test_a_session_without_audio_times_out() -> None:
    async with grpc_service(HearingEngine(), streaming={"session_timeout_s": 0.1}) as service:
        await service.create()
        async with held_open([Request(session_id="one")]) as requests:
            heard = await service.stream(requests)
    check(heard.failure, "ERR1006")
    assert heard.ended.reason == stt_pb2.SessionEnded.REASON_TIMEOUT
    assert heard.trailing["stt-decode-count"] == "0"


async def test_a_message_may_not_bring_too_much_audio() -> None:
    async with grpc_service(HearingEngine(), streaming={"max_chunk_ms": 100}) as service:
        assert (await service.create()).max_chunk_ms == 100
        assert (await service.stream(chunks(SENTENCE, chunk_bytes=3200))).failure is None
        await service.create()
        check((await service.stream(chunks(SENTENCE, chunk_bytes=3202))).failure, "ERR1007")


async def test_a_message_may_not_be_larger_than_the_server_takes() -> None:
    settings = {"port": 0, "max_receive_message_bytes": 4096}
    async with grpc_service(HearingEngine(), grpc=settings) as service:
        assert (await service.create()).max_message_bytes == 4096
        call = service.stub.StreamingRecognize(iter(chunks(SENTENCE, chunk_bytes=8192)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
        await eventually(lambda: service.services.streams.registry.active <= 1)


async def test_there_are_as_many_sessions_as_allowed() -> None:
    async with grpc_service(HearingEngine(), limits=StreamLimits(max_sessions=2)) as service:
        await service.create("one")
        await service.create("two")
        refused = await service.refused("three")
        check(refused, "ERR1008")
        assert refused.retry_after_s == 5.0
        await service.stream(chunks(SENTENCE, session_id="one"))
        await service.create("three")
        assert (await service.stream(chunks(SENTENCE, session_id="three"))).texts == ["alpha bravo charlie"]
        assert (await service.stream(chunks(SENTENCE, session_id="two"))).texts == ["alpha bravo charlie"]


# Keys

KEYS = {"api_keys": ("anna:key-of-anna-123456", "ben:key-of-ben-1234567")}
ANNA = (("authorization", "Bearer key-of-anna-123456"),)
BEN = (("x-api-key", "key-of-ben-1234567"),)


async def test_every_call_needs_a_key_where_there_are_keys() -> None:
    async with grpc_service(HearingEngine(), security=KEYS) as service:
        for metadata in ((), (("authorization", "Basic key-of-anna-123456"),), (("x-api-key", "wrong"),)):
            found = await failure(service.create(metadata=metadata))
            check(found, "ERR1009")
            check((await service.stream(chunks(SENTENCE), metadata=metadata)).failure, "ERR1009")
            check(await failure(recognize(service, TONE, metadata=metadata)), "ERR1009")
        await service.create(metadata=ANNA)
        assert (await service.stream(chunks(SENTENCE), metadata=ANNA)).failure is None
        await service.create(metadata=BEN)


async def test_nobody_streams_to_the_session_of_another_key() -> None:
    async with grpc_service(HearingEngine(), security=KEYS) as service:
        await service.create(metadata=ANNA)
        check((await service.stream(chunks(SENTENCE), metadata=BEN)).failure, "ERR1004")
        assert (await service.stream(chunks(SENTENCE), metadata=ANNA)).texts == ["alpha bravo charlie"]


# Load, time, and the model


async def recognize(
    service: Service, audio: bytes, *, metadata: Any = (), timeout_s: float = WAIT_S
) -> stt_pb2.RecognizeResponse:
    request = stt_pb2.RecognizeRequest(audio=audio)
    return await service.stub.Recognize(request, metadata=metadata, timeout=timeout_s)


async def test_a_busy_server_says_when_to_come_back() -> None:
    engine = held_engine()
    async with grpc_service(
        engine, request_limits={"max_waiting_requests": 1}, transcription={"vad_filter": False}
    ) as service:
        first = asyncio.create_task(recognize(service, TONE))
        await eventually(lambda: len(engine.windows) == 1)
        refused = await failure(recognize(service, TONE))
        check(refused, "ERR1011")
        assert refused.retry_after_s
        engine.gate.set()
        assert (await first).text


async def test_a_call_that_is_called_off_says_so() -> None:
    engine = held_engine()
    async with grpc_service(engine, transcription={"vad_filter": False}) as service:
        call = asyncio.create_task(failure(recognize(service, TONE)))
        await eventually(lambda: len(engine.windows) == 1)
        (running,) = service.services.requests
        assert running.path.endswith("/Recognize")
        running.stop(RequestCancelledError("The request was called off."))
        engine.gate.set()
        check(await call, "ERR1015")


async def test_a_call_that_takes_too_long_for_the_server_is_ended_by_it() -> None:
    engine = held_engine()
    async with grpc_service(
        engine, request_limits={"request_deadline_s": 0.3}, transcription={"vad_filter": False}
    ) as service:
        call = asyncio.create_task(failure(recognize(service, TONE)))
        await eventually(lambda: [each.status.value for each in service.services.requests] == ["stopping"])
        engine.gate.set()
        check(await call, "ERR1016")


async def test_a_client_that_reads_nothing_loses_its_session_and_is_told_when_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = StreamLimits(max_unread_events=8)
    release = asyncio.Event()

    async def blocked(*_: object) -> bool:
        """Stands for a connection whose windows are full."""
        await release.wait()
        return True

    async with grpc_service(HearingEngine(), limits=limits) as service:
        parts: list[float | str] = ["alpha", 0.8]
        await service.create()
        with monkeypatch.context() as patched:
            patched.setattr("whisper_server.api.grpc.exchange.Exchange._write", blocked)
            call = asyncio.create_task(service.stream(chunks(speech(*parts * 30))))
            stream = service.services.streams.get("one")
            assert stream is not None
            await asyncio.wait_for(stream.wait_closed(), WAIT_S)
            release.set()
            check((await call).failure, "ERR1017")


async def test_last_transcripts_that_do_not_come_are_given_up() -> None:
    engine = held_engine()
    async with grpc_service(engine, limits=StreamLimits(decode_timeout_s=0.2)) as service:
        await service.create()
        heard = await service.stream(chunks(SENTENCE))
        check(heard.failure, "ERR2001")
        assert heard.ended.reason == stt_pb2.SessionEnded.REASON_ERROR
        engine.gate.set()


async def test_a_decode_that_fails_is_told_and_the_session_goes_on() -> None:
    engine = HearingEngine()
    async with grpc_service(engine) as service:
        engine.error = EngineError("The model failed on this audio.")
        await service.create(partials=False)
        async with held_open(chunks(speech(0.3, "alpha", 1.0))) as requests:
            call = service.stub.StreamingRecognize(requests)
            failures = [each.failure async for each in _until_failure(call)]
            engine.error = None
            call.cancel()
        assert (failures[-1].code, failures[-1].message) == ("ERR2002", "The model failed on this audio.")
        engine.error = EngineError("The model failed on this audio.")
        await service.create("two", partials=False)
        heard = await service.stream(chunks(speech(0.3, "alpha", 1.0), session_id="two"))
        check(heard.failure, "ERR2002")
        assert heard.ended.reason == stt_pb2.SessionEnded.REASON_COMPLETED, "the rest was heard"


async def _until_failure(call: Any) -> Any:
    async for response in call:
        yield response
        if response.HasField("failure"):
            return


async def test_a_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    async with grpc_service(None) as service:
        check(await service.refused(config=Config(model="tiny")), "ERR2003")
        assert service.services.streams.registry.active == 0


@pytest.mark.parametrize("audio", [b"", b"this is no audio", TONE[:40]])
async def test_a_recording_that_is_none(audio: bytes) -> None:
    async with grpc_service(HearingEngine()) as service:
        check(await failure(recognize(service, audio)), "ERR1013", field="audio")


async def test_what_nobody_foresaw_tells_the_client_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("password=hunter2")

    async with grpc_service(HearingEngine()) as service:
        await service.create()
        with monkeypatch.context() as patched:
            patched.setattr(LiveStream, "send", fail)
            broken = (await service.stream(chunks(SENTENCE))).failure
        with monkeypatch.context() as patched:
            patched.setattr(service.services.streams, "open", fail)
            refused = await failure(service.create("two", metadata=[("x-request-id", "ticket-7")]))
        assert (await service.create("three")).session_id == "three"
    check(broken, "ERR3002")
    check(refused, "ERR3001")
    assert refused.message.endswith("under request id ticket-7.")
    assert broken is not None
    assert "hunter2" not in refused.message + broken.message
    assert caplog.text.count("password=hunter2") >= 2


def test_every_code_is_provoked_here_or_where_the_service_drains() -> None:
    with open(__file__, encoding="utf-8") as file:
        own = file.read()
    elsewhere = {"ERR1012"}  # test_grpc_sessions: a drain
    assert {code for code in ERR_CODES if code not in own} <= elsewhere
