"""Health for probes and for people: real numbers, and 503 while nothing should be sent here."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from tests.live_server import make_settings
from tests.live_speech import HearingEngine, PerfectDetector, speech
from whisper_server import __version__
from whisper_server.api.operations import health
from whisper_server.api.services import Services
from whisper_server.bootstrap import open_services
from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.stream_events import FinalTranscript, StreamOptions
from whisper_server.services.scheduler import Backlog, TimedDecode
from whisper_server.services.stream_timings import StreamTimings

pytestmark = pytest.mark.anyio


class Server:
    """The routes of health around real services, without a network."""

    def __init__(self, services: Services) -> None:
        self.services = services
        app = FastAPI()
        app.include_router(health.router)

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": {"services": services}}, receive, send)

        transport = httpx.ASGITransport(app=with_state)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://server", trust_env=False)

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        response = await self._client.get(path)
        return response.status_code, response.json()


@asynccontextmanager
async def serving(engine: Engine | None = None, **sections: Any) -> AsyncIterator[Server]:
    own = engine or HearingEngine()
    loaders = {"faster-whisper": lambda _folder, _compute: own}
    async with open_services(make_settings(**sections), engines=loaders) as services:
        yield Server(services)


async def test_a_server_that_preloads_nothing_is_ready_at_once() -> None:
    async with serving() as server:
        assert await server.get("/health/live") == (200, {"status": "alive"})
        assert await server.get("/health/startup") == (200, {"status": "started", "waiting_for": []})
        assert await server.get("/health/ready") == (200, {"status": "ready", "waiting_for": []})
        status, info = await server.get("/")
        assert (status, info["name"], info["version"]) == (200, "whisper_server", __version__)
        assert (info["status"], info["model"], info["docs"]) == ("ready", "demo", "/docs")
        assert info["endpoints"]["websocket"] == "/ws/stt"


async def test_it_is_ready_when_the_preloaded_models_are() -> None:
    may_load = threading.Event()
    engine = HearingEngine()

    def load(_folder: Path, _compute: ComputeChoice) -> Engine:
        assert may_load.wait(30)
        return engine

    settings = make_settings(model={"preload": ("demo",), "idle_ttl_s": 0})
    async with open_services(settings, engines={"faster-whisper": load}) as services:
        server = Server(services)
        waiting = {"status": "starting", "waiting_for": ["demo"]}
        assert await server.get("/health/startup") == (503, waiting)
        assert await server.get("/health/ready") == (503, waiting)
        assert (await server.get("/health/live"))[0] == 200
        assert (await server.get("/health/status"))[1]["status"] == "starting"
        may_load.set()
        async with services.manager.acquire(services.catalog.resolve("demo")):
            assert (await server.get("/health/ready"))[0] == 200
        await services.manager.unload(services.catalog.resolve("demo"))
        # Put away to make room: whoever asks next loads it again.
        assert (await server.get("/health/ready"))[0] == 200
        assert (await server.get("/health/status"))[1]["model"]["ready"] is False


async def test_a_server_that_stops_is_not_ready_but_alive() -> None:
    async with serving() as server:
        server.services.requests.drain(5.0)
        status, body = await server.get("/health/ready")
        assert (status, body["status"]) == (503, "draining")
        assert (await server.get("/health/live"))[0] == 200
        assert (await server.get("/health/startup"))[0] == 200
        busy = (await server.get("/health/status"))[1]
        assert busy["status"] == "draining"
        assert busy["accepting_requests"] is busy["queue"]["accepting_requests"] is False


async def test_the_status_tells_real_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whisper_server.bootstrap._new_voice_detector", PerfectDetector)
    engine = HearingEngine()
    async with serving(engine, streaming={"max_sessions": 2, "max_estimated_server_total_ms": 400}) as server:
        assert await server.get("/health/status") == (
            200,
            {
                "status": "ready",
                "accepting_requests": True,
                "model": {"model_size": "demo", "device": "auto", "compute_type": "auto", "ready": False},
                "queue": {
                    "depth": 0,
                    "avg_partial_ms": 0.0,
                    "avg_final_ms": 0.0,
                    "estimated_server_total_ms": 0.0,
                    "accepting_requests": True,
                    "total_requests": 0,
                    "rejected_requests": 0,
                },
                "sessions": {"active": 0, "max": 2},
                "capacity": {"estimated_max_concurrent": 2, "current_load_percent": 0.0},
            },
        )
        streams = server.services.streams
        reference = server.services.catalog.resolve("demo")
        options = StreamOptions(partials=False, speculative_finals=False)
        stream = await streams.open(options, reference, caller=Caller())
        async with stream, await streams.open(options, reference, caller=Caller()):
            events = aiter(stream)
            await stream.send(speech(0.2, "alpha bravo").pcm)
            await anext(events)  # somebody speaks
            busy = (await server.get("/health/status"))[1]
            assert busy["sessions"] == {"active": 2, "max": 2}
            assert busy["capacity"]["current_load_percent"] == 50.0
            assert busy["accepting_requests"] is False
            assert busy["model"] == {
                "model_size": "demo",
                "device": "cpu",
                "compute_type": "none",
                "ready": True,
            }
            with pytest.raises(Exception, match="2/2"):
                await streams.open(options, reference, caller=Caller())
            await stream.commit()
            while not isinstance(await anext(events), FinalTranscript):
                pass
            queue = (await server.get("/health/status"))[1]["queue"]
            assert (queue["total_requests"], queue["rejected_requests"]) == (1, 1)
            assert queue["avg_final_ms"] >= 0
            assert queue["estimated_server_total_ms"] >= queue["avg_final_ms"]


async def test_means_follow_what_is_measured() -> None:
    took_s = iter([1.0, 2.0])

    class Fixed:
        async def decode_timed(self, *_: Any, **__: Any) -> TimedDecode:
            return TimedDecode(decoded=None, queue_wait_s=0.5, inference_s=next(took_s))  # type: ignore[arg-type]  # nobody looks at it

        def backlog(self) -> Backlog:
            waiting = {Priority.LIVE_FINAL: 1, Priority.LIVE_PARTIAL: 2, Priority.LONG_FILE: 4}
            return Backlog(waiting, 0.0, 0, None)

        def estimated_wait_s(self, _: Priority) -> float:
            return 0.25

    timings = StreamTimings(Fixed())
    assert timings.mean_s(Priority.LIVE_PARTIAL) is None
    for _ in range(2):
        await timings.decode_timed(None, None, priority=Priority.LIVE_PARTIAL)  # type: ignore[arg-type]  # as above
    assert timings.mean_s(Priority.LIVE_PARTIAL) == pytest.approx(1.6)
    assert (timings.asked, timings.refused, timings.waiting) == (2, 0, 3)
    assert timings.estimated_wait_s(Priority.LIVE_FINAL) == 0.25
