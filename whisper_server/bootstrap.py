"""Puts the server together: the only place that knows the concrete engines."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import anyio
from anyio import to_thread
from fastapi import FastAPI

import whisper_server.demo
from whisper_server.api import middleware
from whisper_server.api.documentation.app import DescribedApp
from whisper_server.api.openai import chat, languages, models, transcriptions
from whisper_server.api.operations import debug, health
from whisper_server.api.services import Services
from whisper_server.config import Settings
from whisper_server.core.engine import ComputeChoice, Engine, EngineLoader, VoiceDetector
from whisper_server.core.errors import ConfigurationError, WhisperServerError
from whisper_server.core.hardware import Decision, HardwareFacts
from whisper_server.engines.hardware_probe import gather_facts
from whisper_server.services.admission import Admission
from whisper_server.services.audio_processor import AudioProcessor
from whisper_server.services.blas_threads import use_one_blas_thread
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """What services are made from; checked, and nothing of it started."""

    settings: Settings
    decision: Decision
    catalog: ModelCatalog
    load: EngineLoader


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
    plan = _plan(settings, engines, facts)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with _running(plan) as services:
            yield {"services": services}

    app = DescribedApp(
        settings.security,
        lifespan=lifespan,
        redirect_slashes=False,  # the middleware puts paths right; a redirect loses the body
    )
    middleware.install(app, settings)
    for prefix in ("/v1", ""):  # clients whose base URL lacks /v1 append the rest to it
        app.include_router(transcriptions.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(models.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(chat.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(languages.router, prefix=prefix, include_in_schema=bool(prefix))
    app.include_router(health.router)
    app.include_router(debug.router)
    return app


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    engines: Mapping[str, EngineLoader] | None = None,
    facts: HardwareFacts | None = None,
) -> AsyncIterator[Services]:
    """The services of the server without the server, until the block ends; arguments as `create_app`.

    Raises:
        ConfigurationError: the settings cannot work on this machine.
    """
    async with _running(_plan(settings, engines, facts)) as services:
        yield services


def built_in_engines() -> dict[str, EngineLoader]:
    """The engines of this package; none is imported before it loads a model."""

    def load_faster_whisper(folder: Path, compute: ComputeChoice) -> Engine:
        from whisper_server.engines import faster_whisper

        return faster_whisper.load(folder, compute)

    return {"faster-whisper": load_faster_whisper}


def _plan(
    settings: Settings, engines: Mapping[str, EngineLoader] | None, facts: HardwareFacts | None
) -> _Plan:
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
    return _Plan(settings, decision, catalog, engines[decision.choice.engine])


@asynccontextmanager
async def _running(plan: _Plan) -> AsyncIterator[Services]:
    for reason in (*plan.decision.reasons, *plan.decision.warnings):
        logger.info("Hardware: %s", reason)
    await to_thread.run_sync(use_one_blas_thread)
    async with AsyncExitStack() as stack:
        yield await _start_services(stack, plan)


async def _start_services(stack: AsyncExitStack, plan: _Plan) -> Services:
    settings, catalog, compute = plan.settings, plan.catalog, plan.decision.choice
    store = ModelStore(settings.model.cache_dir)

    def load_engine(reference: ModelReference) -> Engine:
        return plan.load(store.locate(reference), compute)

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
        logger.error("Preloading failed: %s (%s)", error.message, error.causes)


def _new_voice_detector() -> VoiceDetector:
    from whisper_server.engines.silero_vad import SileroVad

    return SileroVad()
