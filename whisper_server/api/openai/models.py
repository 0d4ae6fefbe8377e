"""`GET /v1/models` and one of them."""

from fastapi import APIRouter
from pydantic import BaseModel

from whisper_server.api.services import ServicesDep
from whisper_server.core.errors import ModelNotFoundError

router = APIRouter()


class Model(BaseModel):
    """A name that requests may use. `created` is 0: the server does not know when a model was made."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str


class ModelList(BaseModel):
    """All names worth showing to a user."""

    object: str = "list"
    data: list[Model]


@router.get("/models")
async def list_models(services: ServicesDep) -> ModelList:
    """List the models by every name they have."""
    entries = services.catalog.entries()
    return ModelList(data=[Model(id=entry.id, owned_by=entry.owned_by) for entry in entries])


@router.get("/models/{name:path}")
async def retrieve_model(name: str, services: ServicesDep) -> Model:
    """Show one model, also one that is not listed but could be had from the hub."""
    reference = services.catalog.resolve(name)
    for entry in services.catalog.entries():
        if entry.id == name:
            return Model(id=name, owned_by=entry.owned_by)
    if reference.repo_id is None:
        raise ModelNotFoundError(f"The model '{name}' does not exist.", param="model")
    return Model(id=name, owned_by=reference.repo_id.split("/")[0])
