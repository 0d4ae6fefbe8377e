"""Streams that outlast broken connections, and when the client gives up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from tests.fake_stt_service import Break, FakeSttService, serving
from tests.grpc_talk import AT_ONCE, BROKEN, TALK, chunks_of, collect, gated, talk_to, words_of
from tests.live_speech import speech
from whisper_server.clients.grpc import (
    COMMIT,
    AudioLost,
    Commit,
    Ended,
    EndReason,
    Event,
    Final,
    Reconnected,
    RetryPolicy,
    SessionOptions,
    SttClient,
    SttError,
    VadMode,
    VadOptions,
)
from whisper_server.clients.grpc.retry import Attempts

pytestmark = pytest.mark.usefixtures("one_event_loop")


@pytest.fixture
def service() -> FakeSttService:
    return FakeSttService()


@pytest.mark.parametrize("after_s", [0.1, 0.8, 1.2, 2.0, 2.6, 4.5])
async def test_no_word_is_lost_or_doubled_when_the_connection_breaks(
    service: FakeSttService, after_s: float
) -> None:
    service.breaks.append(Break(after_s, BROKEN))
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        events, stream = await talk_to(client)
    assert words_of(events) == TALK.words
    words = [word for event in events if isinstance(event, Final) for word in event.words]
    first = [index for index, sample in enumerate(TALK.pcm) if sample == 10 or sample == 60]
    assert words[0].start_s == pytest.approx(first[0] / 16_000)
    assert words[-2].start_s == pytest.approx(first[6400 * 9 // 10] / 16_000)
    assert [event.session_id for event in events if isinstance(event, Reconnected)] == ["mine-2"]
    assert stream.session.session_id == "mine-2"
    assert events[-1] == Ended(EndReason.COMPLETED, len(TALK.pcm) / 16_000, 3)
    assert len([event for event in events if isinstance(event, Ended)]) == 1
    assert not [event for event in events if isinstance(event, AudioLost)]


async def test_final_audio_is_not_sent_again(service: FakeSttService) -> None:
    service.breaks.append(Break(2.0, BROKEN))
    gate = asyncio.Event()
    events: list[Event] = []
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        session = await client.create_session()
        async with client.stream(session, gated(TALK, 2.0, gate)) as stream:
            async for event in stream:
                events.append(event)
                if isinstance(event, Reconnected):
                    gate.set()
    (notice,) = [event for event in events if isinstance(event, Reconnected)]
    assert notice.resumed_at_s == pytest.approx(1.3)
    assert notice.reason == "UNAVAILABLE: Socket closed"
    assert len(service.streams[1].pcm) == len(TALK.pcm) - round(1.3 * 16_000)


async def test_commits_are_sent_again_but_those_that_are_final_are_not(service: FakeSttService) -> None:
    async def source() -> AsyncIterator[bytes | Commit]:
        for word in ("alpha", "bravo", "charlie"):
            yield speech(0.2, word, 0.4).pcm.tobytes()
            yield COMMIT

    service.breaks.append(Break(1.9, BROKEN))
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        session = await client.create_session(SessionOptions(vad=VadOptions(mode=VadMode.MANUAL)))
        async with client.stream(session, source()) as stream:
            finals = [event.text async for event in stream if isinstance(event, Final)]
    assert finals == ["alpha", "bravo", "charlie"]


async def test_audio_that_was_not_kept_is_told(service: FakeSttService) -> None:
    talk = speech("alpha bravo charlie delta echo foxtrot golf hotel india juliet", 1.0)
    service.breaks.append(Break(3.0, BROKEN))
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        session = await client.create_session()
        gate = asyncio.Event()
        events: list[Event] = []
        async with client.stream(session, gated(talk, 3.0, gate), max_replay_s=1.0) as stream:
            async for event in stream:
                events.append(event)
                if isinstance(event, Reconnected):
                    gate.set()
    assert [event for event in events if isinstance(event, AudioLost)] == [AudioLost(0.0, 2.0)]
    assert words_of(events) == talk.words[5:]
    (final,) = [event for event in events if isinstance(event, Final)]
    assert final.words[0].start_s == pytest.approx(2.0)


async def test_a_server_that_stops_is_followed_by_the_next(service: FakeSttService, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    more = FakeSttService()
    async with AsyncExitStack() as second:
        first = serving(service, address)
        await first.__aenter__()
        async with SttClient(address, retries=RetryPolicy(initial_pause_s=0.05, max_attempts=20)) as client:
            session = await client.create_session(SessionOptions(session_id="mine"))
            events: list[Event] = []
            async with client.stream(session, chunks_of(TALK)) as stream:
                async for event in stream:
                    events.append(event)
                    if isinstance(event, Final) and not more.created:
                        await first.__aexit__(None, None, None)
                        await second.enter_async_context(serving(more, address))
    assert words_of(events) == TALK.words


async def test_attempts_are_bounded_and_each_has_an_id_of_its_own(service: FakeSttService) -> None:
    service.refusals.extend([BROKEN] * 9)
    policy = RetryPolicy(max_attempts=3, initial_pause_s=0.0)
    async with serving(service) as target, SttClient(target, retries=policy) as client:
        with pytest.raises(SttError, match="UNAVAILABLE"):
            await client.create_session(SessionOptions(session_id="i" * 128))
    assert [request.session_id for request in service.created] == [
        "i" * 128,
        "i" * 126 + "-2",
        "i" * 126 + "-3",
    ]


async def test_a_stream_without_progress_gives_up(service: FakeSttService) -> None:
    service.breaks.extend([Break(0.7, BROKEN)] * 9)
    policy = RetryPolicy(max_attempts=3, initial_pause_s=0.0)
    async with serving(service) as target, SttClient(target, retries=policy) as client:
        session = await client.create_session()
        async with client.stream(session, gated(TALK, 0.7, asyncio.Event())) as stream:
            with pytest.raises(SttError, match="Socket closed"):
                await collect(stream, [])
    assert len(service.streams) == 3


async def test_finals_and_sessions_that_held_start_the_count_anew(service: FakeSttService) -> None:
    service.breaks.extend([Break(2.0, BROKEN), Break(2.5, BROKEN), Break(0.1, BROKEN)])
    policy = RetryPolicy(max_attempts=2, initial_pause_s=0.0, reset_after_s=0.0)
    async with serving(service) as target, SttClient(target, retries=policy) as client:
        events, _ = await talk_to(client)
    assert words_of(events) == TALK.words
    assert len(service.streams) == 4


async def test_a_draining_server_is_tried_again_when_it_says() -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    attempts = Attempts(RetryPolicy(max_attempts=4), sleep)
    await attempts.pause(SttError("ERR1011", grpc.StatusCode.UNAVAILABLE, "It stops.", 4.0))
    broken = SttError("", grpc.StatusCode.UNAVAILABLE, "Socket closed")
    await attempts.pause(broken)
    await attempts.pause(broken)
    assert pauses == [4.0, 1.0, 2.0]
    with pytest.raises(SttError, match="Socket closed"):
        await attempts.pause(broken)


def test_pauses_grow_and_are_bounded() -> None:
    policy = RetryPolicy(initial_pause_s=0.5, max_pause_s=3.0)
    assert [policy.pause_s(failures, None) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert policy.pause_s(1, 60.0) == 3.0


async def test_no_server_is_an_error_after_all_attempts(tmp_path: Path) -> None:
    policy = RetryPolicy(max_attempts=2, initial_pause_s=0.0)
    async with SttClient(f"unix:{tmp_path}/none", retries=policy) as client:
        with pytest.raises(SttError) as caught:
            await client.create_session()
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE
    assert caught.value.code == ""


@pytest.mark.parametrize("mode", VadMode)
@pytest.mark.parametrize("is_flat_out", [True, False])
async def test_a_session_that_a_stopping_server_ends_is_followed_by_another(
    service: FakeSttService, mode: VadMode, is_flat_out: bool
) -> None:
    talk = speech(1.0, "alpha bravo", 0.4)
    service.breaks.append(Break(0.5, None))
    gate = asyncio.Event()
    source = chunks_of(talk) if is_flat_out else gated(talk, 0.5, gate)
    events: list[Event] = []
    async with serving(service) as target, SttClient(target, retries=AT_ONCE) as client:
        session = await client.create_session(SessionOptions(vad=VadOptions(mode=mode)))
        async with client.stream(session, source) as stream:
            async for event in stream:
                events.append(event)
                if isinstance(event, Reconnected):
                    gate.set()
    assert words_of(events) == talk.words
    (notice,) = [event for event in events if isinstance(event, Reconnected)]
    assert notice.resumed_at_s == pytest.approx(0.5)
    assert events[-1] == Ended(EndReason.COMPLETED, len(talk.pcm) / 16_000, 1)
