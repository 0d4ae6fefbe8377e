"""What gRPC adds to the session core: an hour of audio, flat out, through a call and without one, in one run.

    python -m bench.grpc_overhead [--minutes 60] [--rounds 2] [--chunk-ms 100]

One process has the services, with the demo model at the compute cost of whisper-tiny. The audio goes to a
live stream directly, or to the gRPC service beside it from a client in a process of its own; the two take
turns. The finals must be the same.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import numpy as np
import soundfile

from bench.demo_weights import widened_model
from whisper_server.api.grpc.server import grpc_server
from whisper_server.api.security import ApiKeys
from whisper_server.api.services import Services
from whisper_server.bootstrap import open_services
from whisper_server.config import Settings
from whisper_server.core.scheduling import Caller
from whisper_server.core.stream_events import FinalTranscript
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

TEST_SET = Path(__file__).parent.parent / "tests" / "assets" / "demo_test_set"
LANGUAGE = "en"
_PAUSE_S = 1.0
_SAMPLE_BYTES = 2


def main() -> None:
    """Measure, or be the client that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--chunk-ms", type=int, default=100)
    parser.add_argument("--client", nargs=2, metavar=("ADDRESS", "AUDIO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        address, audio = arguments.client
        asyncio.run(_be_client(address, Path(audio).read_bytes(), arguments.chunk_ms))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, int8, whisper-tiny cost")
    with tempfile.TemporaryDirectory() as folder:
        weights = widened_model("tiny", Path(folder) / "tiny")
        audio_path = Path(folder) / "audio.s16le"
        audio_path.write_bytes(speech(arguments.minutes * 60))
        asyncio.run(_measure(weights, audio_path, arguments.rounds, arguments.chunk_ms))


def speech(duration_s: float) -> bytes:
    """English test clips with pauses, 16 kHz, signed 16-bit."""
    clips = json.loads((TEST_SET / "clips.json").read_text())
    pieces: list[bytes] = []
    silence = bytes(int(_PAUSE_S * SAMPLE_RATE) * _SAMPLE_BYTES)
    left = int(duration_s * SAMPLE_RATE) * _SAMPLE_BYTES
    while left > 0:
        for clip in clips:
            if clip["language"] == LANGUAGE and left > 0:
                samples, rate_hz = soundfile.read(TEST_SET / clip["file"], dtype="int16")
                assert rate_hz == SAMPLE_RATE
                pieces += [np.asarray(samples).tobytes(), silence]
                left -= len(pieces[-2]) + len(silence)
    return b"".join(pieces)


async def _measure(weights: Path, audio_path: Path, rounds: int, chunk_ms: int) -> None:
    settings = Settings(
        model={"name": "bench", "aliases": {"bench": str(weights)}, "allowed_paths": (str(weights),)},
        grpc={"port": 0},
    )
    audio = await asyncio.to_thread(audio_path.read_bytes)
    direct_s, call_s = [], []
    async with open_services(settings) as services, grpc_server(services, ApiKeys([])) as addresses:
        await _direct(services, audio[: 60 * SAMPLE_RATE * _SAMPLE_BYTES], chunk_ms, "warm-up")
        for index in range(rounds):
            began_s = time.perf_counter()
            expected = await _direct(services, audio, chunk_ms, f"direct-{index}")
            direct_s.append(time.perf_counter() - began_s)
            seconds, texts = await _through_grpc(addresses[0], audio_path, chunk_ms)
            call_s.append(seconds)
            same = "the same finals" if texts == expected else "OTHER FINALS"
            print(
                f"round {index + 1}: session core {direct_s[-1]:.1f} s, gRPC {seconds:.1f} s, "
                f"ratio {seconds / direct_s[-1]:.3f}, {len(texts)} utterances, {same}",
                flush=True,
            )
    print(
        f"{len(audio) / SAMPLE_RATE / _SAMPLE_BYTES:.0f} s of audio, {chunk_ms} ms a message: "
        f"least session core {min(direct_s):.1f} s, least gRPC {min(call_s):.1f} s, "
        f"ratio {min(call_s) / min(direct_s):.3f}"
    )


async def _direct(services: Services, audio: bytes, chunk_ms: int, session_id: str) -> list[str]:
    """The finals of a stream that is driven in this process, opened as the gRPC service opens one."""
    from whisper_server.api.grpc.asking import session_wish

    request = stt_pb2.CreateSessionRequest(session_id=session_id, config=_config())
    wish = session_wish(request, services.settings)
    model = services.catalog.resolve(wish.model)
    stream = await services.streams.open(
        wish.options, model, caller=Caller("bench"), session_id=session_id, must_keep_up=False
    )

    async def feed() -> None:
        for chunk in chunks(audio, chunk_ms):
            await stream.send(chunk)
        await stream.end()

    async with stream:
        feeding = asyncio.create_task(feed())
        texts = [event.text async for event in stream if isinstance(event, FinalTranscript)]
        await feeding
    return texts


async def _through_grpc(address: str, audio_path: Path, chunk_ms: int) -> tuple[float, list[str]]:
    """Seconds from the first message to the last, and the finals, by a client in a process of its own."""
    command = ("-m", "bench.grpc_overhead", "--chunk-ms", str(chunk_ms), "--client", address, str(audio_path))
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the client failed")
    told = json.loads(out)
    return told["seconds"], told["texts"]


async def _be_client(address: str, audio: bytes, chunk_ms: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = stt_pb2_grpc.SpeechToTextStub(channel)
        began_s = time.perf_counter()
        await stub.CreateSession(stt_pb2.CreateSessionRequest(session_id="client", config=_config()))
        requests = (
            stt_pb2.StreamingRecognizeRequest(session_id="client", audio=chunk)
            for chunk in chunks(audio, chunk_ms)
        )
        texts = [each.result.text async for each in stub.StreamingRecognize(requests) if each.result.is_final]
        print(json.dumps({"seconds": time.perf_counter() - began_s, "texts": texts}))


def chunks(audio: bytes, chunk_ms: int) -> Iterator[bytes]:
    """Audio as messages."""
    size = SAMPLE_RATE * chunk_ms // 1000 * _SAMPLE_BYTES
    return (audio[start : start + size] for start in range(0, len(audio), size))


def _config() -> stt_pb2.RecognitionConfig:
    return stt_pb2.RecognitionConfig(language=LANGUAGE)


if __name__ == "__main__":
    main()
