"""Whole recordings over gRPC, with the demo model; and live sessions that give what `/ws/stt` gives."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import connect

from tests.grpc_service import WAIT_S, Request, Service, eventually, failure, grpc_service
from tests.live_server import make_settings, running_server
from tests.live_speech import HearingEngine, speech
from tests.media import wav
from whisper_server.engines.silero_vad import SileroVad
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_event_loop")]

SAMPLES = Path(__file__).parent.parent / "whisper_server" / "demo" / "samples"
Config = stt_pb2.RecognitionConfig
RATE_HZ = 48_000


@pytest.fixture(scope="module")
async def demo() -> AsyncIterator[Service]:
    async with grpc_service(None, new_detector=SileroVad) as service:
        yield service


async def recognize(service: Service, audio: bytes, **fields: Any) -> stt_pb2.RecognizeResponse:
    request = stt_pb2.RecognizeRequest(audio=audio, **fields)
    return await service.stub.Recognize(request, timeout=WAIT_S)


async def test_a_file_of_any_format_is_transcribed(demo: Service) -> None:
    answer = await recognize(demo, (SAMPLES / "train_de.ogg").read_bytes())
    assert [segment.text for segment in answer.segments] == [
        "Die Nummer ist null, sieben, neun.",
        "Die Nummer ist acht, neun, acht, null.",
        "Der Zug nach Madrid fährt in vierundzwanzig Minuten.",
    ]
    assert answer.text == " ".join(segment.text for segment in answer.segments)
    assert answer.language == "de"
    assert answer.language_probability > 0.9
    assert answer.duration_s == pytest.approx(10.3, abs=0.1)
    first = answer.segments[0]
    assert 0 <= first.start_s < first.end_s < 3.6
    assert [word.text for word in first.words] == first.text.split()
    assert all(a.end_s <= b.start_s + 0.01 for a, b in zip(first.words, first.words[1:], strict=False))


async def test_what_is_asked_for_counts(demo: Service) -> None:
    config = Config(
        language="pt",
        task=stt_pb2.TASK_TRANSLATE,
        word_timestamps=False,
        decode_options=stt_pb2.DecodeOptions(beam_size=1),
    )
    answer = await recognize(demo, (SAMPLES / "meeting_pt.mp3").read_bytes(), config=config)
    assert answer.text.startswith("Call Maria at twelve o'clock.")
    assert not answer.segments[0].words


@pytest.mark.parametrize(
    ("encoding", "rate_hz", "channels"),
    [
        (stt_pb2.AUDIO_ENCODING_UNSPECIFIED, 0, 0),
        (stt_pb2.AUDIO_ENCODING_LINEAR16, 48_000, 2),
    ],
)
async def test_raw_audio_is_transcribed(
    demo: Service, encoding: "stt_pb2.AudioEncoding.ValueType", rate_hz: int, channels: int
) -> None:
    samples, own_hz = soundfile.read(SAMPLES / "kitchen_en.wav", dtype="int16")
    assert own_hz == 16_000
    repeated = np.repeat(samples, (rate_hz or own_hz) // own_hz)
    raw = np.repeat(repeated[:, None], channels or 1, axis=1).tobytes()
    format = stt_pb2.AudioFormat(encoding=encoding, sample_rate_hz=rate_hz, channels=channels)
    answer = await recognize(demo, raw, raw=format)
    assert answer.text == "Send a message to David on Monday."


async def test_half_a_sample_is_no_audio(demo: Service) -> None:
    request = stt_pb2.RecognizeRequest(audio=b"x", raw=stt_pb2.AudioFormat())
    found = await failure(demo.stub.Recognize(request))
    assert (found.code, found.field) == ("ERR1010", "audio")


async def test_a_client_that_leaves_stops_its_work() -> None:
    engine = HearingEngine()
    engine.gate.clear()
    async with grpc_service(engine, transcription={"vad_filter": False}) as service:
        parts: list[float | str] = ["alpha bravo", 20.0]
        long = wav((speech(*parts * 6).pcm / 32768).astype(np.float32))
        call = service.stub.Recognize(stt_pb2.RecognizeRequest(audio=long))
        await eventually(lambda: len(engine.windows) == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        engine.gate.set()
        await eventually(lambda: not list(service.services.requests))
        assert len(engine.windows) == 1


async def test_grpc_and_the_websocket_give_the_same_finals(tmp_path: Path) -> None:
    pcm, rate_hz = soundfile.read(SAMPLES / "household_en.flac", dtype="int16")
    assert rate_hz == RATE_HZ
    data = pcm.tobytes()
    messages = [data[start : start + 9600] for start in range(0, len(data), 9600)]
    path = tmp_path / "grpc.sock"
    settings = make_settings(grpc={"port": None, "unix_socket": path})
    with running_server(settings) as url:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            over_grpc = await _over_grpc(stt_pb2_grpc.SpeechToTextStub(channel), messages)
        over_websocket = await _over_websocket(url, messages)
    assert len(over_grpc) > 5
    assert over_grpc == over_websocket


async def _over_grpc(
    stub: "stt_pb2_grpc.SpeechToTextAsyncStub", messages: list[bytes]
) -> list[tuple[str, list[str], float]]:
    await stub.CreateSession(
        stt_pb2.CreateSessionRequest(
            session_id="same",
            config=Config(language="en"),
            audio=stt_pb2.AudioFormat(sample_rate_hz=RATE_HZ),
            partials=False,
        )
    )
    requests = iter([Request(session_id="same", audio=each) for each in messages])
    finals = [each.result async for each in stub.StreamingRecognize(requests) if each.result.is_final]
    return [
        (final.text, [word.text for word in final.words], round(final.start_s * 1000)) for final in finals
    ]


async def _over_websocket(url: str, messages: list[bytes]) -> list[tuple[str, list[str], float]]:
    config = {"lang_code": "en", "partial_results": False, "sample_rate": RATE_HZ}
    finals = []
    async with connect(f"{url.replace('http', 'ws')}/ws/stt") as socket:
        await socket.send(json.dumps({"type": "start_session", "config": config}))

        async def speak() -> None:
            for each in messages:
                await socket.send(each)
            await socket.send(json.dumps({"type": "end_session"}))

        speaking = asyncio.create_task(speak())
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "final_transcript":
                finals.append(message)
            if message["type"] == "session_ended":
                break
        await speaking
    return [
        (final["text"], [word["word"] for word in final["words"]], round(final["audio_start_ms"]))
        for final in finals
    ]
