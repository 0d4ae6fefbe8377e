"""The client library: sessions and errors."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme

from tests.fake_stt_service import Break, FakeSttService, Refusal, serving
from tests.grpc_talk import AT_ONCE, BROKEN, TALK, chunks_of, collect, gated, talk_to, words_of
from tests.live_speech import Speech, speech
from whisper_server.clients.grpc import (
    COMMIT,
    AudioFormat,
    Commit,
    ConnectionOptions,
    DecodeTotals,
    Ended,
    EndReason,
    Event,
    Failure,
    Final,
    Partial,
    RecognitionOptions,
    RetryPolicy,
    SessionOptions,
    SpeechStarted,
    SpeechStopped,
    SttClient,
    SttError,
    Task,
    TlsOptions,
    VadMode,
    VadOptions,
)

pytestmark = pytest.mark.usefixtures("one_event_loop")


@pytest.fixture
def service() -> FakeSttService:
    return FakeSttService()


async def test_a_session_tells_everything_in_order(service: FakeSttService) -> None:
    async with serving(service) as target, SttClient(target) as client:
        events, stream = await talk_to(client)
    finals = [event for event in events if isinstance(event, Final)]
    assert [final.text for final in finals] == ["alpha bravo", "charlie delta echo", "foxtrot golf"]
    assert [word.text.strip() for word in finals[0].words] == ["alpha", "bravo"]
    assert [word.start_s for word in finals[0].words] == pytest.approx([0.5, 0.9])
    first = [event for event in events if getattr(event, "utterance_id", "") == finals[0].utterance_id]
    assert isinstance(first[0], SpeechStarted)
    assert first[0].at_s == pytest.approx(0.5)
    assert all(isinstance(event, Partial) for event in first[1:-2])
    assert isinstance(first[-2], SpeechStopped)
    assert first[-1] is finals[0]
    assert events[-1] == Ended(EndReason.COMPLETED, len(TALK.pcm) / 16_000, 3)
    assert stream.decode_totals == DecodeTotals(0.5, 0.25, 1.0, 0.125, 1.875, 3)


async def test_partials_tell_what_is_stable(service: FakeSttService) -> None:
    async with serving(service) as target, SttClient(target) as client:
        events, _ = await talk_to(client)
    partials = [event for event in events if isinstance(event, Partial)]
    told = [(partial.text, partial.stable_text, partial.unstable_text) for partial in partials]
    assert ("alpha bravo", "alpha", "bravo") in told


async def test_options_reach_the_server_and_come_back(service: FakeSttService) -> None:
    options = SessionOptions(
        session_id="mine",
        attributes={"room": "7"},
        recognition=RecognitionOptions(
            model="demo",
            language="de",
            task=Task.TRANSLATE,
            decode_profile="accurate",
            hotwords=("Bad", "Tölz"),
        ),
        vad=VadOptions(mode=VadMode.AUTO, threshold=0.25, silence_ms=700),
        audio=AudioFormat(sample_rate_hz=8000),
        partials=False,
        require_token=True,
    )
    async with serving(service) as target, SttClient(target) as client:
        session = await client.create_session(options)
    request = service.created[0]
    assert request.config.hotwords == ["Bad", "Tölz"]
    assert request.vad.vad_silence_ms == 700
    assert request.HasField("partials")
    assert not request.HasField("partial_interval_ms")
    assert not request.config.HasField("word_timestamps")
    assert session.token == "token-of-mine"
    assert session.attributes == {"room": "7"}
    assert session.recognition.language == "de"
    assert session.recognition.task is Task.TRANSLATE
    assert session.vad == options.vad
    assert session.audio == options.audio
    assert session.token not in repr(session)


async def test_every_message_brings_the_token_and_every_call_the_key(service: FakeSttService) -> None:
    options = SessionOptions(session_id="mine", require_token=True)
    async with serving(service) as target:
        connection = ConnectionOptions(target, api_key="secret")
        async with SttClient(connection) as client:
            await talk_to(client, options=options)
            await client.recognize(b"audio")
    messages = service.streams[0].messages
    assert {message.session_token for message in messages} == {"token-of-mine"}
    assert [message.session_id for message in messages] == ["mine"] + [""] * (len(messages) - 1)
    assert [metadata["authorization"] for metadata in service.metadata] == ["Bearer secret"] * 3
    assert "secret" not in repr(connection)


@pytest.mark.parametrize("prefix", ["unix:", "unix://"])
async def test_unix_sockets(service: FakeSttService, tmp_path: Path, prefix: str) -> None:
    async with serving(service, f"unix:{tmp_path}/s") as _, SttClient(f"{prefix}{tmp_path}/s") as client:
        events, _stream = await talk_to(client)
    assert words_of(events) == TALK.words


async def test_mutual_tls(service: FakeSttService, tmp_path: Path) -> None:
    authority = trustme.CA()
    host, person = authority.issue_cert("localhost"), authority.issue_cert("me@example.org")
    files = {"ca": authority.cert_pem, "cert": person.cert_chain_pems[0], "key": person.private_key_pem}
    for name, blob in files.items():
        blob.write_to_path(str(tmp_path / name))
    credentials = grpc.ssl_server_credentials(
        [(host.private_key_pem.bytes(), host.cert_chain_pems[0].bytes())], authority.cert_pem.bytes(), True
    )
    async with serving(service, "localhost:0", credentials) as target:
        target = target.replace("127.0.0.1", "localhost")
        tls = TlsOptions.from_files(tmp_path / "ca", tmp_path / "cert", tmp_path / "key")
        async with SttClient(ConnectionOptions(target, tls=tls)) as client:
            assert (await client.create_session(SessionOptions("mine"))).session_id == "mine"
        no_certificate = ConnectionOptions(target, tls=TlsOptions.from_files(tmp_path / "ca"))
        async with SttClient(no_certificate, retries=RetryPolicy(max_attempts=1)) as client:
            with pytest.raises(SttError, match="UNAVAILABLE"):
                await client.create_session()
    assert len(service.created) == 1


async def test_a_session_without_audio_ends(service: FakeSttService) -> None:
    async with serving(service) as target, SttClient(target) as client:
        events, _ = await talk_to(client, Speech(TALK.pcm[:0], ()))
    assert events == [Ended(EndReason.COMPLETED, 0.0, 0)]
    assert service.streams[0].session_id == "mine"


async def test_auto_end_ends_the_stream_before_its_source(service: FakeSttService) -> None:
    is_closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield speech(0.5, "alpha bravo", 1.0).pcm.tobytes()
            while True:
                await asyncio.sleep(0)
                yield bytes(320)
        finally:
            is_closed.set()

    async with serving(service) as target, SttClient(target) as client:
        session = await client.create_session(SessionOptions(vad=VadOptions(mode=VadMode.AUTO)))
        async with client.stream(session, endless()) as stream:
            events = [event async for event in stream]
    assert words_of(events) == ("alpha", "bravo")
    assert is_closed.is_set()


async def test_commits_end_utterances(service: FakeSttService) -> None:
    async def source() -> AsyncIterator[bytes | Commit]:
        yield speech("alpha").pcm.tobytes()
        yield speech("bravo").pcm.tobytes()
        yield COMMIT
        yield speech("charlie").pcm.tobytes()
        yield COMMIT

    async with serving(service) as target, SttClient(target) as client:
        session = await client.create_session(SessionOptions(vad=VadOptions(mode=VadMode.MANUAL)))
        async with client.stream(session, source()) as stream:
            finals = [event.text async for event in stream if isinstance(event, Final)]
    assert finals == ["alpha bravo", "charlie"]


async def test_messages_keep_the_limits_of_the_server(service: FakeSttService) -> None:
    service.max_chunk_ms = 400
    service.max_message_bytes = 8000
    async with serving(service) as target, SttClient(target) as client:
        session = await client.create_session(SessionOptions(require_token=True))
        async with client.stream(session, chunks_of(TALK, 1 << 30)) as stream:
            events = [event async for event in stream]
    messages = service.streams[0].messages
    assert max(message.ByteSize() for message in messages) <= 8000
    assert len(messages) == -(-len(TALK.pcm) * 2 // 7800)
    assert words_of(events) == TALK.words


async def test_recognize(service: FakeSttService) -> None:
    service.refusals.append(BROKEN)
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        transcript = await client.recognize(
            b"pcm", RecognitionOptions(language="en"), raw=AudioFormat(sample_rate_hz=8000)
        )
    assert transcript.text == "alpha bravo"
    assert transcript.segments[0].words[0].start_s == 0.5
    assert len(service.recordings) == 2
    assert service.recordings[1].raw.sample_rate_hz == 8000
    assert service.recordings[1].config.language == "en"


# Errors


@pytest.mark.parametrize(
    ("refusal", "code", "retry_after_s", "shown"),
    [
        (
            Refusal(grpc.StatusCode.ALREADY_EXISTS, "ERR1002: It runs.", "ERR1002"),
            "ERR1002",
            None,
            "ERR1002: It runs.",
        ),
        (Refusal(grpc.StatusCode.ALREADY_EXISTS, "ERR1002: It runs."), "ERR1002", None, "ERR1002: It runs."),
        (
            Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "ERR1008: Full.", "ERR1008", 2.5),
            "ERR1008",
            2.5,
            "ERR1008: Full.",
        ),
        (Refusal(grpc.StatusCode.PERMISSION_DENIED, "No."), "", None, "PERMISSION_DENIED: No."),
    ],
)
async def test_refusals_are_raised_at_once_with_their_code(
    service: FakeSttService, refusal: Refusal, code: str, retry_after_s: float | None, shown: str
) -> None:
    service.refusals.append(refusal)
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        with pytest.raises(SttError) as caught:
            await client.create_session()
    assert caught.value.code == code
    assert caught.value.status is refusal.status
    assert caught.value.retry_after_s == retry_after_s
    assert str(caught.value) == shown
    assert len(service.created) == 1


async def test_an_utterance_that_fails_is_told_and_the_stream_ends_with_its_error(
    service: FakeSttService,
) -> None:
    service.failing = {"delta"}
    service.ending = Refusal(grpc.StatusCode.INTERNAL, "ERR2002: A decode failed.", "ERR2002")
    events: list[Event] = []
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        session = await client.create_session()
        async with client.stream(session, chunks_of(TALK)) as stream:
            with pytest.raises(SttError, match="ERR2002"):
                await collect(stream, events)
    assert words_of(events) == ("alpha", "bravo", "foxtrot", "golf")
    assert [event.code for event in events if isinstance(event, Failure)] == ["ERR2002"]
    assert isinstance(events[-1], Ended)
    assert stream.decode_totals is not None
    assert len(service.streams) == 1


async def test_a_refusal_in_the_midst_of_a_stream_is_raised_at_once(service: FakeSttService) -> None:
    service.breaks.append(
        Break(1.0, Refusal(grpc.StatusCode.INVALID_ARGUMENT, "ERR1007: Too much.", "ERR1007"))
    )
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        session = await client.create_session()
        async with client.stream(session, gated(TALK, 1.0, asyncio.Event())) as stream:
            with pytest.raises(SttError) as caught:
                await collect(stream, [])
    assert caught.value.code == "ERR1007"
    assert len(service.streams) == 1


async def test_a_source_that_fails_raises_its_own_error(service: FakeSttService) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield bytes(3200)
        raise FileNotFoundError("gone")

    async with serving(service) as target, SttClient(target) as client:
        session = await client.create_session()
        async with client.stream(session, source()) as stream:
            with pytest.raises(FileNotFoundError, match="gone"):
                await collect(stream, [])


async def test_a_chunk_of_another_type_is_refused(service: FakeSttService) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield "text"  # type: ignore[misc]

    async with serving(service) as target, SttClient(target) as client:
        session = await client.create_session()
        async with client.stream(session, source()) as stream:
            with pytest.raises(TypeError, match="not str"):
                await collect(stream, [])


async def test_leaving_cancels_the_call(service: FakeSttService) -> None:
    async with serving(service) as target, SttClient(target) as client:
        session = await client.create_session()
        async with client.stream(session, chunks_of(TALK)) as stream:
            async for event in stream:
                if isinstance(event, Final):
                    break
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


@pytest.mark.parametrize("target", ["localhost", "localhost:", "localhost:http", "unix:", ""])
def test_a_wrong_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="host:port or unix:/path"):
        ConnectionOptions(target)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="go together"):
        TlsOptions(certificate=b"pem")
