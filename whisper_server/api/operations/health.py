"""`GET /health`: whether the server answers, and what it holds."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from whisper_server import __version__
from whisper_server.api.documentation import operations
from whisper_server.api.services import ServicesDep

router = APIRouter()


class LoadedModelHealth(BaseModel):
    """A model in memory."""

    id: str
    device: str
    compute_type: str
    users: int


class Health(BaseModel):
    """The state of the server. It is `ok` as soon as requests are taken; models load when first used."""

    status: Literal["ok"] = "ok"
    version: str
    default_model: str
    loaded_models: list[LoadedModelHealth]
    requests_inside: int


@router.get("/health", **operations.HEALTH)
async def health(services: ServicesDep) -> Health:
    """Report that the server answers."""
    return Health(
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
