"""`/v1/realtime` with the clients that people use, against a live server with the demo model."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from agents import set_tracing_disabled
from agents.voice import OpenAISTTModel, StreamedAudioInput, STTModelSettings
from livekit import rtc
from livekit.agents import stt, utils
from livekit.plugins import openai as livekit_openai
from openai import AsyncOpenAI
from openai.types.realtime import (
    ConversationItemInputAudioTranscriptionCompletedEvent,
    RealtimeErrorEvent,
    RealtimeServerEvent,
    SessionCreatedEvent,
)

from tests.realtime_client import realtime_server
from whisper_server.core.types import Pcm16
from whisper_server.engines.silero_vad import SileroVad

pytestmark = pytest.mark.anyio

RATE_HZ = 24_000
KEY = "the-key-of-these-tests-0123456789"
WAIT_S = 30


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    security = {"api_keys": (f"sdk: {KEY}",)}
    with realtime_server(new_detector=SileroVad, security=security) as url:
        yield url


@pytest.fixture(scope="module")
def spoken(sample_recordings: list[dict[str, Any]]) -> tuple[Pcm16, list[str]]:
    """Speech of the samples with silence around it, 24 kHz, and what is said."""
    sample = next(one for one in sample_recordings if one["path"].name == "kitchen_en.wav")
    samples, rate_hz = soundfile.read(sample["path"], dtype="float32")
    silence = np.zeros(RATE_HZ, dtype=np.float32)
    audio = np.concatenate([silence, soxr.resample(samples, rate_hz, RATE_HZ), silence])
    return (audio * 32767).astype(np.int16), [segment["text"] for segment in sample["segments"]]


@pytest.fixture
async def sdk(url: str) -> AsyncIterator[AsyncOpenAI]:
    websockets_url = url.replace("http", "ws", 1)
    async with AsyncOpenAI(base_url=url, websocket_base_url=websockets_url, api_key=KEY) as sdk:
        yield sdk


def chunks(audio: Pcm16) -> Iterator[Pcm16]:
    for start in range(0, len(audio), RATE_HZ // 20):
        yield audio[start : start + RATE_HZ // 20]


async def test_the_openai_sdk_talks(sdk: AsyncOpenAI, spoken: tuple[Pcm16, list[str]]) -> None:
    audio, texts = spoken
    session: Any = {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "demo", "language": "en"},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 600},
            }
        },
    }
    events: list[RealtimeServerEvent] = []
    async with asyncio.timeout(WAIT_S), sdk.realtime.connect(extra_query={"intent": "transcription"}) as talk:
        await talk.session.update(session=session)
        for chunk in chunks(audio):
            await talk.input_audio_buffer.append(audio=base64.b64encode(chunk.tobytes()).decode())
        await talk.input_audio_buffer.clear()
        async for event in talk:
            events.append(event)
            if len(completed(events)) == len(texts) and has(events, "input_audio_buffer.cleared"):
                break
    assert isinstance(events[0], SessionCreatedEvent)
    assert events[1].type == "session.updated"
    assert [event.transcript for event in completed(events)] == texts
    assert all(event.usage.type == "tokens" for event in completed(events))
    spoken_text = "".join(
        event.delta or ""
        for event in events
        if event.type == "conversation.item.input_audio_transcription.delta"
    )
    assert spoken_text == "".join(texts)
    assert not [event for event in events if isinstance(event, RealtimeErrorEvent)]


def completed(
    events: list[RealtimeServerEvent],
) -> list[ConversationItemInputAudioTranscriptionCompletedEvent]:
    return [e for e in events if isinstance(e, ConversationItemInputAudioTranscriptionCompletedEvent)]


def has(events: list[RealtimeServerEvent], name: str) -> bool:
    return any(event.type == name for event in events)


async def test_the_openai_sdk_sees_faults_as_error_events(sdk: AsyncOpenAI) -> None:
    async with asyncio.timeout(WAIT_S), sdk.realtime.connect(model="gpt-realtime") as talk:
        assert (await talk.recv()).type == "session.created"
        await talk.session.update(session={"type": "realtime"}, event_id="mine")
        event = await talk.recv()
        assert isinstance(event, RealtimeErrorEvent)
        assert (event.error.code, event.error.event_id) == ("invalid_parameter", "mine")


@pytest.mark.parametrize("turn_detection", [None, {"type": "server_vad", "silence_duration_ms": 600}])
async def test_the_voice_of_openai_agents_gets_its_turns(
    sdk: AsyncOpenAI, spoken: tuple[Pcm16, list[str]], turn_detection: dict[str, Any] | None
) -> None:
    """None is its default, `semantic_vad`: the end of the input commits what is left."""
    set_tracing_disabled(True)
    audio, texts = spoken
    given = StreamedAudioInput()  # type: ignore[no-untyped-call]  # the library's
    for chunk in chunks(audio):
        await given.add_audio(chunk)
    await given.add_audio(None)
    model = OpenAISTTModel("demo", sdk)
    settings = STTModelSettings(language="en", turn_detection=turn_detection)
    async with asyncio.timeout(WAIT_S):
        session = await model.create_session(given, settings, False, False)
        turns = [turn async for turn in session.transcribe_turns()]
        await session.close()
    assert " ".join(turns) == " ".join(texts)


async def test_livekit_s_own_plugin_gets_its_transcripts(url: str, spoken: tuple[Pcm16, list[str]]) -> None:
    audio, texts = spoken
    async with asyncio.timeout(WAIT_S), utils.http_context.open():
        plugin = livekit_openai.STT(model="demo", base_url=url, api_key=KEY, use_realtime=True, language="en")
        events: list[stt.SpeechEvent] = []
        async with plugin.stream() as stream:
            for chunk in chunks(audio):
                stream.push_frame(rtc.AudioFrame(chunk.tobytes(), RATE_HZ, 1, len(chunk)))
            async for event in stream:
                events.append(event)
                if event.type is stt.SpeechEventType.RECOGNITION_USAGE:
                    break
        await plugin.aclose()
    names = [event.type for event in events]
    assert names[0] is stt.SpeechEventType.START_OF_SPEECH
    assert stt.SpeechEventType.END_OF_SPEECH in names
    finals = [e for e in events if e.type is stt.SpeechEventType.FINAL_TRANSCRIPT]
    assert [final.alternatives[0].text for final in finals] == texts
    assert events[-1].recognition_usage is not None
    assert events[-1].recognition_usage.input_tokens > 0
