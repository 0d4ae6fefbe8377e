"""Made-up speech over the client library, to a `FakeSttService`."""

import asyncio
from collections.abc import AsyncIterator

import grpc

from tests.fake_stt_service import Refusal
from tests.live_speech import Speech, speech
from whisper_server.clients.grpc import (
    Event,
    Final,
    RetryPolicy,
    SessionOptions,
    SttClient,
    SttStream,
)

AT_ONCE = RetryPolicy(initial_pause_s=0.0)
BROKEN = Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed")
TALK = speech(0.5, "alpha bravo", 1.0, "charlie delta echo", 1.0, "foxtrot golf", 1.0)


async def chunks_of(heard: Speech, chunk_bytes: int = 3200) -> AsyncIterator[bytes]:
    pcm = heard.pcm.tobytes()
    for start in range(0, len(pcm), chunk_bytes):
        yield pcm[start : start + chunk_bytes]


async def gated(heard: Speech, at_s: float, gate: asyncio.Event) -> AsyncIterator[bytes]:
    """The rest comes when the gate opens, so that nothing is written while the stream breaks."""
    at = round(at_s * 16_000)
    async for chunk in chunks_of(Speech(heard.pcm[:at], ())):
        yield chunk
    await gate.wait()
    async for chunk in chunks_of(Speech(heard.pcm[at:], ())):
        yield chunk


async def talk_to(
    client: SttClient,
    heard: Speech = TALK,
    options: SessionOptions | None = None,
    max_replay_s: float = 60.0,
) -> tuple[list[Event], SttStream]:
    session = await client.create_session(options or SessionOptions(session_id="mine"))
    async with client.stream(session, chunks_of(heard), max_replay_s=max_replay_s) as stream:
        return [event async for event in stream], stream


async def collect(stream: SttStream, events: list[Event]) -> None:
    async for event in stream:
        events.append(event)


def words_of(events: list[Event]) -> tuple[str, ...]:
    return tuple(" ".join(event.text for event in events if isinstance(event, Final)).split())
