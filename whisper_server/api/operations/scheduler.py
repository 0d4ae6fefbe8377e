"""`GET /debug/scheduler`: what waits, what runs, and what has happened since the start."""

from dataclasses import asdict

from fastapi import APIRouter
from pydantic import BaseModel

from whisper_server.api.documentation.request_operations import SCHEDULER_STATE
from whisper_server.api.services import ServicesDep

router = APIRouter()


class ModelInMemory(BaseModel):
    """A loaded model: who uses it, and how it computes."""

    id: str
    users: int
    idle_s: float
    device: str
    compute_type: str
    max_batch: int
    parallel_calls: int
    overtaking_calls: int


class AdmissionState(BaseModel):
    """Requests since the start, by what became of them at the door and after."""

    admitted: int
    refused: dict[str, int]
    cancelled: int
    deadline_exceeded: int
    cut: int


class SchedulerState(BaseModel):
    """The scheduler's state.

    `compute_per_audio_s` is measured, seconds of computing for a second of audio; null before anything was
    decoded. The counters count from the start of the server: windows, unless the name says calls.
    """

    windows_waiting: int
    windows_waiting_by_priority: dict[str, int]
    windows_running: int
    waiting_audio_s: float
    compute_per_audio_s: float | None
    counters: dict[str, int]
    requests_inside: int
    buffered_audio_s: float
    requests: AdmissionState
    models: list[ModelInMemory]
    models_loaded_since_start: int


@router.get("/debug/scheduler", **SCHEDULER_STATE)
async def scheduler_state(services: ServicesDep) -> SchedulerState:
    """What waits for the models and what became of what they were given."""
    backlog = services.scheduler.backlog()
    return SchedulerState(
        windows_waiting=sum(backlog.waiting.values()),
        windows_waiting_by_priority={p.name.lower(): n for p, n in backlog.waiting.items()},
        windows_running=backlog.running,
        waiting_audio_s=round(backlog.waiting_audio_s, 3),
        compute_per_audio_s=backlog.compute_per_audio_s,
        counters=asdict(services.scheduler.counters),
        requests_inside=services.admission.inside,
        buffered_audio_s=round(services.admission.buffered_audio_s, 3),
        requests=AdmissionState(**asdict(services.admission.counters)),
        models=[
            ModelInMemory(
                id=model.id,
                users=model.users,
                idle_s=round(model.idle_s, 3),
                device=model.capabilities.device,
                compute_type=model.capabilities.compute_type,
                max_batch=model.capabilities.max_batch,
                parallel_calls=model.capabilities.parallel_calls,
                overtaking_calls=model.capabilities.overtaking_calls,
            )
            for model in services.manager.loaded()
        ],
        models_loaded_since_start=services.manager.loads,
    )
