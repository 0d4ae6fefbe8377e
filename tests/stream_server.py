"""A server with the doors of live streams, whose streams hear made-up speech; see `live_speech`."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from tests.live_server import make_settings, running_app
from tests.live_speech import PerfectDetector
from whisper_server.api import middleware
from whisper_server.api.operations import health
from whisper_server.api.services import Services
from whisper_server.api.streams import chunked, websocket
from whisper_server.bootstrap import open_services
from whisper_server.config import Settings
from whisper_server.core.engine import Engine
from whisper_server.services.stream_timings import StreamTimings
from whisper_server.services.streaming import StreamLimits, StreamService
from whisper_server.services.voice_detectors import ReusableVoiceDetector, VoiceDetectorPool


@asynccontextmanager
async def stream_services(
    engine: Engine | None,
    settings: Settings,
    *,
    limits: StreamLimits | None = None,
    new_detector: Callable[[], ReusableVoiceDetector] = PerfectDetector,
) -> AsyncIterator[Services]:
    """The services of a server until the block ends; arguments as `stream_server`."""
    engines = None if engine is None else {"faster-whisper": lambda _folder, _compute: engine}
    async with open_services(settings, engines=engines) as services:
        timings = StreamTimings(services.scheduler)
        detectors = VoiceDetectorPool(new_detector)
        async with StreamService(services.manager, timings, detectors, limits) as streams:
            yield replace(services, streams=streams, stream_timings=timings)


@contextmanager
def stream_server(
    engine: Engine | None,
    *,
    limits: StreamLimits | None = None,
    new_detector: Callable[[], ReusableVoiceDetector] = PerfectDetector,
    **sections: Any,
) -> Iterator[str]:
    """Serve until the block ends; yields the URL.

    Args:
        engine: behind every model; None takes the demo model.
        limits: of live streams.
        new_detector: hears them; the perfect one hears made-up speech.
        sections: of the settings.
    """
    settings = make_settings(**sections)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with stream_services(engine, settings, limits=limits, new_detector=new_detector) as services:
            yield {"services": services}

    app = FastAPI(lifespan=lifespan)
    middleware.install(app, settings)
    for prefix in ("/v1", ""):
        app.include_router(chunked.router, prefix=prefix)
    app.include_router(websocket.router)
    app.include_router(health.router)
    with running_app(app) as url:
        yield url
