"""Puts the server together: the only place that knows the concrete engines."""

import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypedDict

import anyio
from anyio import to_thread
from fastapi import FastAPI

import whisper_server.demo
from whisper_server.api import ephemeral_keys, middleware
from whisper_server.api.documentation.app import DescribedApp
from whisper_server.api.openai import chat, client_secrets, languages, models, transcriptions
from whisper_server.api.openai.realtime import routes as realtime
from whisper_server.api.openai.realtime.session import RealtimeLimits
from whisper_server.api.operations import admin, debug, health, requests, scheduler
from whisper_server.api.services import Services
from whisper_server.api.streams import chunked, websocket
from whisper_server.config import Settings
from whisper_server.config.schema import ClientSettings
from whisper_server.core.admission import AdmissionLimits, ClientLimits
from whisper_server.core.engine import ComputeChoice, Engine, EngineLoader
from whisper_server.core.errors import ConfigurationError, WhisperServerError
from whisper_server.core.hardware import Decision, HardwareFacts
from whisper_server.core.retention import RetentionLimits
from whisper_server.engines.blas_threads import use_one_blas_thread
from whisper_server.engines.hardware_probe import gather_facts
from whisper_server.engines.isolation import isolated
from whisper_server.engines.openmp import wait_actively
from whisper_server.services.admission import Admission
from whisper_server.services.archive_folder import ArchiveFolder
from whisper_server.services.audio_archive import AudioArchive
from whisper_server.services.audio_processor import AudioProcessor
from whisper_server.services.calibration import Calibrator
from whisper_server.services.calibration_cache import CalibrationCache, platform_cache_folder
from whisper_server.services.compute_choice import decide
from whisper_server.services.engine_measuring import Measure, measure_engine
from whisper_server.services.idle_trimming import IdleTrimmer
from whisper_server.services.model_catalog import ModelCatalog, ModelReference
from whisper_server.services.model_download import ModelStore
from whisper_server.services.model_manager import ModelManager
from whisper_server.services.requests import RequestRegistry
from whisper_server.services.scheduler import Scheduler
from whisper_server.services.scheduler_limits import SchedulerLimits
from whisper_server.services.stream_limits import StreamLimits
from whisper_server.services.stream_timings import StreamTimings
from whisper_server.services.streaming import StreamService
from whisper_server.services.transcription import Transcriber
from whisper_server.services.voice_detectors import VoiceDetectorPool

if TYPE_CHECKING:
    from whisper_server.engines.silero_vad import SileroVad

logger = logging.getLogger(__name__)

_BYTES_PER_MB = 1_000_000
_RANKS = MappingProxyType({"high": -1, "normal": 0, "low": 1})


Isolation = Literal["process", "thread"]


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
    calibrator: Calibrator | None
    recordings: ArchiveFolder | None = None


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
    plan = _plan(settings, engines, facts, settings.model.engine_isolation, measure_engine)
    if settings.storage.persist_audio:
        recordings = ArchiveFolder(settings.storage.directory)
        recordings.prepare()
        plan = replace(plan, recordings=recordings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            services = await stack.enter_async_context(_running(plan))
            if settings.grpc.enabled:
                from whisper_server.api.grpc.server import grpc_server

                await stack.enter_async_context(grpc_server(services, keys))
            yield {"services": services}

    app = DescribedApp(
        settings.security,
        lifespan=lifespan,
        redirect_slashes=False,  # the middleware puts paths right; a redirect loses the body
    )
    ephemeral_keys.install(app.state, ephemeral_keys.EphemeralKeys())
    keys = middleware.install(app, settings)
    for prefix in ("/v1", ""):  # clients whose base URL lacks /v1 append the rest to it
        app.include_router(transcriptions.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(models.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(chat.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(languages.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(client_secrets.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(realtime.new_router(_realtime_limits(settings)), prefix=prefix)
        app.include_router(requests.router, prefix=prefix, include_in_schema=bool(prefix))
        app.include_router(chunked.router, prefix=prefix)
    app.include_router(websocket.router)
    app.include_router(health.router)
    app.include_router(debug.router)
    app.include_router(scheduler.router)
    app.include_router(admin.router)
    return app


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    engines: Mapping[str, EngineLoader] | None = None,
    facts: HardwareFacts | None = None,
) -> AsyncIterator[Services]:
    """The services of the server without the server, until the block ends; arguments as `create_app`.

    Models run in threads, as there are no neighbours to protect, and take what a server has found by
    calibration: to measure does not pay for a few recordings.

    Raises:
        ConfigurationError: the settings cannot work on this machine.
    """
    async with _running(_plan(settings, engines, facts, "thread", None)) as services:
        yield services


def built_in_engines(isolation: Isolation) -> dict[str, EngineLoader]:
    """The engines of this package; none is imported before it loads a model.

    Args:
        isolation: each model in a process of its own, or in threads of this one.
    """

    def load_faster_whisper(folder: Path, compute: ComputeChoice) -> Engine:
        from whisper_server.engines import faster_whisper

        return faster_whisper.load(folder, compute)

    if isolation == "thread":
        return {"faster-whisper": load_faster_whisper}
    return {"faster-whisper": isolated("whisper_server.engines.faster_whisper:load")}


def _plan(
    settings: Settings,
    engines: Mapping[str, EngineLoader] | None,
    facts: HardwareFacts | None,
    isolation: Isolation,
    measure: Measure | None,
) -> _Plan:
    wait_actively()
    is_calibrated = engines is None and settings.model.calibrate
    engines = built_in_engines(isolation) if engines is None else engines
    facts = gather_facts() if facts is None else facts
    decision = decide(settings.model, facts)
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
    if not is_calibrated:
        return _Plan(settings, decision, catalog, load, None)
    calibrator = Calibrator(decision, facts, CalibrationCache(platform_cache_folder()), measure=measure)
    return _Plan(settings, decision, catalog, calibrator.calibrated_loader(load), calibrator)


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
    if plan.calibrator is not None:
        stack.callback(plan.calibrator.stop)
    work = Scheduler(_scheduler_limits(settings), on_lost=manager.retire)
    threads = max(2, compute.cpu_threads * compute.workers)
    admission = _admission(settings, work, lanes=compute.workers)
    timings = StreamTimings(work)
    trimmer = IdleTrimmer()
    stack.callback(trimmer.close)
    archive = None
    if plan.recordings is not None:
        # Ends after the streams, whose last words it writes.
        archive = await stack.enter_async_context(_archive(settings, plan.recordings))
    services = Services(
        settings=settings,
        catalog=catalog,
        manager=manager,
        audio_processor=AudioProcessor(
            max_audio_s=min(settings.limits.max_audio_s, settings.limits.max_buffered_audio_s),
            max_parallel=threads,
        ),
        scheduler=work,
        transcriber=Transcriber(
            manager,
            work,
            _new_voice_detector,
            max_parallel=threads,
            short_file_s=settings.scheduler.short_file_s,
        ),
        streams=await stack.enter_async_context(_streams(settings, manager, timings, archive, trimmer)),
        stream_timings=timings,
        admission=admission,
        requests=RequestRegistry(
            admission, deadline_s=settings.limits.request_deadline_s or None, on_leave=trimmer.note_use
        ),
        archive=archive,
    )
    preload = [catalog.resolve(name) for name in settings.model.preload]
    if preload:
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        group.start_soon(_preload, manager, preload)
    return services


def _scheduler_limits(settings: Settings) -> SchedulerLimits:
    return SchedulerLimits(
        max_batch=settings.model.max_batch or None,
        max_waiting=settings.scheduler.max_waiting_windows,
        ageing_s=settings.scheduler.ageing_s,
        call_timeout_s=settings.scheduler.call_timeout_s,
    )


def _archive(settings: Settings, folder: ArchiveFolder) -> AudioArchive:
    storage = settings.storage
    max_age = None if storage.max_age_days is None else timedelta(days=storage.max_age_days)
    limits = RetentionLimits(storage.max_bytes, storage.max_files, max_age)
    return AudioArchive(folder, limits, queue_max_chunks=storage.queue_max_chunks)


def _streams(
    settings: Settings,
    manager: ModelManager,
    scheduler: StreamTimings,
    archive: AudioArchive | None,
    trimmer: IdleTrimmer,
) -> StreamService:
    streaming = settings.streaming
    detectors = VoiceDetectorPool(
        _new_voice_detector,
        size=settings.vad.model_pool_size,
        prewarm=settings.vad.model_prewarm,
        growth_factor=settings.vad.model_pool_growth_factor,
        cap=streaming.max_sessions,
    )
    limits = StreamLimits(
        max_sessions=streaming.max_sessions,
        max_buffer_s=streaming.max_buffer_ms / 1000,
        max_buffer_bytes=streaming.max_buffer_bytes,
        max_total_buffer_bytes=streaming.max_total_buffer_bytes,
        memory_timeout_s=streaming.memory_timeout_s,
        max_pending_finals=streaming.max_pending_decodes_per_stream,
        decode_queue_timeout_s=streaming.decode_queue_timeout_s,
        decode_timeout_s=streaming.decode_timeout_s,
        max_unread_events=streaming.max_unread_events,
        max_queue_depth=streaming.max_queue_depth,
        max_estimated_wait_s=streaming.max_estimated_server_total_ms / 1000,
    )
    return StreamService(manager, scheduler, detectors, limits, archive=archive, on_leave=trimmer.note_use)


def _realtime_limits(settings: Settings) -> RealtimeLimits:
    streaming = settings.streaming
    return RealtimeLimits(
        session_s=streaming.realtime_session_s, has_live_deltas=streaming.realtime_live_deltas
    )


def _admission(settings: Settings, scheduler: Scheduler, *, lanes: int) -> Admission:
    limits = settings.limits
    return Admission(
        AdmissionLimits(
            limits.max_waiting_requests,
            limits.max_buffered_audio_s,
            limits.max_estimated_wait_s or math.inf,
        ),
        clients={name: _client_limits(client) for name, client in settings.security.clients.items()},
        lanes=max(1, lanes),
        short_file_s=settings.scheduler.short_file_s,
        estimated_wait_s=scheduler.estimated_wait_s,
    )


def _client_limits(client: ClientSettings) -> ClientLimits:
    return ClientLimits(
        weight=client.get("weight", 1.0),
        rank=_RANKS[client.get("priority", "normal")],
        max_requests=client.get("max_requests"),
        max_buffered_audio_s=client.get("max_buffered_audio_s"),
    )


async def _preload(manager: ModelManager, references: list[ModelReference]) -> None:
    try:
        await manager.preload(references)
    except WhisperServerError as error:
        # The server serves its other models; the next request for this one tries again.
        logger.error("Preloading failed: %s (%s)", error.message, error.causes)


def _new_voice_detector() -> "SileroVad":
    from whisper_server.engines.silero_vad import SileroVad

    return SileroVad()
