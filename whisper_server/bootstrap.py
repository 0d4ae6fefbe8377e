"""Puts the server together: the only place that knows the concrete engines."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypedDict

import anyio
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

import whisper_server.demo
from whisper_server import __version__
from whisper_server.api import errors
from whisper_server.api.openai import models, transcriptions
from whisper_server.api.operations import health
from whisper_server.api.request_id import HEADER, RequestIdMiddleware
from whisper_server.api.services import Services
from whisper_server.config import Settings
from whisper_server.core.engine import ComputeChoice, Engine, EngineLoader, VoiceDetector
from whisper_server.core.errors import ConfigurationError, WhisperServerError
from whisper_server.core.hardware import HardwareFacts
from whisper_server.engines.hardware_probe import gather_facts
from whisper_server.services.admission import Admission
from whisper_server.services.audio_processor import AudioProcessor
from whisper_server.services.compute_choice import decide
from whisper_server.services.model_catalog import ModelCatalog, ModelReference
from whisper_server.services.model_download import ModelStore
from whisper_server.services.model_manager import ModelManager
from whisper_server.services.scheduler import Scheduler
from whisper_server.services.transcription import Transcriber

logger = logging.getLogger(__name__)

_BYTES_PER_MB = 1_000_000


class State(TypedDict):
    """What the lifespan gives each request."""

    services: Services


def create_app(
    settings: Settings,
    *,
    engines: Mapping[str, EngineLoader] | None = None,
    facts: HardwareFacts | None = None,
) -> FastAPI:
    """Build the server's app. Nothing is loaded or started before its lifespan begins.

    Args:
        settings: of the server.
        engines: by name; None takes those that are built in.
        facts: of the machine; None looks at it.

    Raises:
        ConfigurationError: the settings cannot work on this machine.
    """
    engines = built_in_engines() if engines is None else engines
    decision = decide(settings.model, gather_facts() if facts is None else facts)
    if decision.choice.engine not in engines:
        raise ConfigurationError(
            f"The engine '{decision.choice.engine}' does not exist. Set model.engine to one of: "
            f"{', '.join(engines)}."
        )
    catalog = ModelCatalog(
        settings.model.name,
        settings.model.aliases,
        settings.model.allowed_paths,
        whisper_server.demo.MODEL_PATH,
    )
    load = engines[decision.choice.engine]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        for reason in (*decision.reasons, *decision.warnings):
            logger.info("Hardware: %s", reason)
        async with AsyncExitStack() as stack:
            services = await _start_services(stack, settings, catalog, load, decision.choice)
            yield {"services": services}

    app = FastAPI(title="whisper_server", version=__version__, lifespan=lifespan)
    errors.install(app)
    for prefix in ("/v1", ""):  # clients whose base URL lacks /v1 append the rest to it
        app.include_router(transcriptions.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(models.router, prefix=prefix, include_in_schema=bool(prefix))
    app.include_router(health.router)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(settings.server.allowed_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=[HEADER],
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.server.allowed_hosts))
    app.add_middleware(RequestIdMiddleware)
    return app


def built_in_engines() -> dict[str, EngineLoader]:
    """The engines of this package; none is imported before it loads a model."""

    def load_faster_whisper(folder: Path, compute: ComputeChoice) -> Engine:
        from whisper_server.engines import faster_whisper

        return faster_whisper.load(folder, compute)

    return {"faster-whisper": load_faster_whisper}


async def _start_services(
    stack: AsyncExitStack,
    settings: Settings,
    catalog: ModelCatalog,
    load: EngineLoader,
    compute: ComputeChoice,
) -> Services:
    store = ModelStore(settings.model.cache_dir)

    def load_engine(reference: ModelReference) -> Engine:
        return load(store.locate(reference), compute)

    manager = await stack.enter_async_context(
        ModelManager(
            load_engine,
            max_loaded=settings.model.max_loaded,
            max_loaded_bytes=int(settings.model.max_loaded_mb * _BYTES_PER_MB),
            idle_ttl_s=settings.model.idle_ttl_s,
        )
    )
    # Ends first: the manager waits for running loads.
    stack.callback(store.stop)
    threads = max(2, compute.cpu_threads * compute.workers)
    services = Services(
        settings=settings,
        catalog=catalog,
        manager=manager,
        audio_processor=AudioProcessor(max_audio_s=settings.limits.max_audio_s, max_parallel=threads),
        transcriber=Transcriber(manager, Scheduler(), _new_voice_detector, max_parallel=threads),
        admission=Admission(settings.limits.max_waiting_requests),
    )
    preload = [catalog.resolve(name) for name in settings.model.preload]
    if preload:
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        group.start_soon(_preload, manager, preload)
    return services


async def _preload(manager: ModelManager, references: list[ModelReference]) -> None:
    try:
        await manager.preload(references)
    except WhisperServerError as error:
        # The server serves its other models; the next request for this one tries again.
        logger.error("Preloading failed: %s", error.message, exc_info=error.__cause__)


def _new_voice_detector() -> VoiceDetector:
    from whisper_server.engines.silero_vad import SileroVad

    return SileroVad()
