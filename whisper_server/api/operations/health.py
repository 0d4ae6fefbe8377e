"""`GET /health` and below: whether the server answers, is ready, and how busy it is; `GET /` says what it is.

`/health/live`, `/health/ready` and `/health/startup` are for probes: their status is 200 or 503.
"""

from typing import Literal

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from whisper_server import __version__
from whisper_server.api.documentation import operations
from whisper_server.api.services import Services, ServicesDep
from whisper_server.core.errors import ServerBusyError
from whisper_server.core.scheduling import Priority
from whisper_server.services.model_manager import LoadedModel

router = APIRouter()


class LoadedModelHealth(BaseModel):
    """A model in memory."""

    id: str
    device: str
    compute_type: str
    users: int


class Health(BaseModel):
    """The state of the server. It is `ok` as soon as requests are taken; models load when first used.

    It is `draining` from when the server is told to stop until what runs is finished: new work is refused.
    """

    status: Literal["ok", "draining"]
    version: str
    default_model: str
    loaded_models: list[LoadedModelHealth]
    requests_inside: int


@router.get("/health", **operations.HEALTH)
async def health(services: ServicesDep) -> Health:
    """Report that the server answers."""
    return Health(
        status="draining" if services.admission.is_draining else "ok",
        version=__version__,
        default_model=services.settings.model.name,
        loaded_models=[
            LoadedModelHealth(
                id=model.id,
                device=model.capabilities.device,
                compute_type=model.capabilities.compute_type,
                users=model.users,
            )
            for model in services.manager.loaded()
        ],
        requests_inside=services.admission.inside,
    )


_Status = Literal["ready", "starting", "draining"]

_UNAVAILABLE = 503
_WAS_READY = "was_ready"


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    """Whether requests should be sent here; `waiting_for` are the preloaded models that are not loaded yet.

    A server that was ready once stays so when such a model is put away to make room: the next request
    loads it again.
    """

    status: _Status
    waiting_for: list[str]


class Startup(BaseModel):
    """Whether the start is over."""

    status: Literal["started", "starting"]
    waiting_for: list[str]


class ModelStatus(BaseModel):
    """The default model. Until it is loaded it is not `ready`, and has device and type of the settings."""

    model_size: str
    device: str
    compute_type: str
    ready: bool


class QueueStatus(BaseModel):
    """The decodes of live streams: those that wait, and moving means of how long one takes, in ms.

    `estimated_server_total_ms` is what a final would take now: its wait and its decode. `total_requests` are
    decodes since the start, `rejected_requests` decodes and sessions that were refused.
    """

    depth: int
    avg_partial_ms: float
    avg_final_ms: float
    estimated_server_total_ms: float
    accepting_requests: bool
    total_requests: int
    rejected_requests: int


class SessionsStatus(BaseModel):
    """Live sessions."""

    active: int
    max: int


class Capacity(BaseModel):
    """How many can speak at once before partials come later than `max_estimated_server_total_ms`.

    It is as many as there may be sessions until it was measured. The load is those who speak now, of these.
    """

    estimated_max_concurrent: int
    current_load_percent: float


class Status(BaseModel):
    """How busy the server is with live streams."""

    status: _Status
    accepting_requests: bool
    model: ModelStatus
    queue: QueueStatus
    sessions: SessionsStatus
    capacity: Capacity


class ServiceInfo(BaseModel):
    """What answers here, and where."""

    name: str = "whisper_server"
    version: str
    status: _Status
    model: str
    endpoints: dict[str, str]
    docs: str = "/docs"


_ENDPOINTS = {
    "transcriptions": "/v1/audio/transcriptions",
    "transcriptions_stream": "/v1/audio/transcriptions/stream",
    "translations": "/v1/audio/translations",
    "realtime": "/v1/realtime",
    "websocket": "/ws/stt",
    "models": "/v1/models",
    "health": "/health",
    "status": "/health/status",
}


@router.get("/", include_in_schema=False)
async def service_info(request: Request, services: ServicesDep) -> ServiceInfo:
    """Say what this server is."""
    return ServiceInfo(
        version=__version__,
        status=await _status(request, services),
        model=services.settings.model.name,
        endpoints=_ENDPOINTS,
    )


@router.get("/health/live", include_in_schema=False)
async def live() -> Alive:
    """Report that the process answers."""
    return Alive()


@router.get("/health/ready", include_in_schema=False)
async def ready(request: Request, response: Response, services: ServicesDep) -> Readiness:
    """Report whether requests should be sent here."""
    status = await _status(request, services)
    if status != "ready":
        response.status_code = _UNAVAILABLE
    waiting_for = await _missing_models(services) if status == "starting" else []
    return Readiness(status=status, waiting_for=waiting_for)


@router.get("/health/startup", include_in_schema=False)
async def startup(request: Request, response: Response, services: ServicesDep) -> Startup:
    """Report whether the start is over."""
    if await _is_started(request, services):
        return Startup(status="started", waiting_for=[])
    response.status_code = _UNAVAILABLE
    return Startup(status="starting", waiting_for=await _missing_models(services))


@router.get("/health/status", include_in_schema=False)
async def status(request: Request, services: ServicesDep) -> Status:
    """Report how busy the server is."""
    queue = _queue(services)
    streams = services.streams
    estimated_max, load_percent = _capacity(services)
    return Status(
        status=await _status(request, services),
        accepting_requests=queue.accepting_requests,
        model=await _model(services),
        queue=queue,
        sessions=SessionsStatus(active=streams.registry.active, max=streams.limits.max_sessions),
        capacity=Capacity(estimated_max_concurrent=estimated_max, current_load_percent=load_percent),
    )


async def _status(request: Request, services: Services) -> _Status:
    if services.admission.is_draining:
        return "draining"
    return "ready" if await _is_started(request, services) else "starting"


async def _is_started(request: Request, services: Services) -> bool:
    state = request.app.state
    if not getattr(state, _WAS_READY, False) and not await _missing_models(services):
        setattr(state, _WAS_READY, True)
    return getattr(state, _WAS_READY, False)


async def _missing_models(services: Services) -> list[str]:
    """The preloaded models that are not loaded, by the names the settings have for them."""
    loaded = {model.id for model in services.manager.loaded()}
    names = services.settings.model.preload
    # A name may be a path, which is looked up on disk.
    references = await to_thread.run_sync(lambda: [services.catalog.resolve(name) for name in names])
    return [name for name, one in zip(names, references, strict=True) if one.id not in loaded]


async def _model(services: Services) -> ModelStatus:
    settings = services.settings.model
    reference = await to_thread.run_sync(services.catalog.resolve, "")
    loaded: LoadedModel | None = next(
        (model for model in services.manager.loaded() if model.id == reference.id), None
    )
    return ModelStatus(
        model_size=settings.name,
        device=loaded.capabilities.device if loaded else settings.device,
        compute_type=loaded.capabilities.compute_type if loaded else settings.compute_type,
        ready=loaded is not None,
    )


def _queue(services: Services) -> QueueStatus:
    streams, timings = services.streams, services.stream_timings
    partial_s = timings.mean_s(Priority.LIVE_PARTIAL) or 0.0
    final_s = timings.mean_s(Priority.LIVE_FINAL) or 0.0
    wait_s = timings.estimated_wait_s(Priority.LIVE_FINAL)
    return QueueStatus(
        depth=timings.waiting,
        avg_partial_ms=_milliseconds(partial_s),
        avg_final_ms=_milliseconds(final_s),
        estimated_server_total_ms=_milliseconds(wait_s + final_s),
        accepting_requests=_is_accepting(services),
        total_requests=timings.asked,
        rejected_requests=timings.refused + streams.registry.refused,
    )


def _is_accepting(services: Services) -> bool:
    streams = services.streams
    try:
        streams.check_admission()
    except ServerBusyError:
        return False
    is_full = streams.registry.active >= streams.limits.max_sessions or streams.registry.is_full
    return not is_full and not services.admission.is_draining


def _capacity(services: Services) -> tuple[int, float]:
    """(how many can speak at once, the percentage of them who do)."""
    streams = services.streams
    most = streams.limits.max_sessions
    if partial_s := services.stream_timings.mean_s(Priority.LIVE_PARTIAL):
        most = max(1, min(most, int(streams.limits.max_estimated_wait_s / partial_s)))
    return most, round(100 * streams.registry.speaking / most, 1)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
