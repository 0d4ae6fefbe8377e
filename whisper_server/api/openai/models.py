"""`GET /v1/models`, one of them, and `DELETE`, which unloads it."""

from anyio import to_thread
from fastapi import APIRouter
from pydantic import BaseModel

from whisper_server.api.documentation import operations
from whisper_server.api.openai.fields import shown
from whisper_server.api.services import ServicesDep
from whisper_server.core.errors import ModelNotFoundError
from whisper_server.services.model_manager import UnloadResult

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


class DeletedModel(BaseModel):
    """A model that was unloaded, in OpenAI's words."""

    id: str
    object: str = "model"
    deleted: bool = True


@router.get("/models", **operations.LIST_MODELS)
async def list_models(services: ServicesDep) -> ModelList:
    """List the models by every name they have."""
    entries = services.catalog.entries()
    return ModelList(data=[Model(id=entry.id, owned_by=entry.owned_by) for entry in entries])


@router.get("/models/{name:path}", **operations.RETRIEVE_MODEL)
async def retrieve_model(name: str, services: ServicesDep) -> Model:
    """Show one model, also one that is not listed but could be had from the hub."""
    reference = await to_thread.run_sync(services.catalog.resolve, name)
    for entry in services.catalog.entries():
        if entry.id == name:
            return Model(id=name, owned_by=entry.owned_by)
    return Model(id=name, owned_by=reference.repo_id.split("/")[0] if reference.repo_id else "local")


@router.delete("/models/{name:path}", **operations.DELETE_MODEL)
async def delete_model(name: str, services: ServicesDep) -> DeletedModel:
    """Unload a model. Its files stay; the next request loads it again. One in use goes when it is free."""
    reference = await to_thread.run_sync(services.catalog.resolve, name)
    if await services.manager.unload(reference) is UnloadResult.NOT_LOADED:
        raise ModelNotFoundError(f"The model '{shown(name)}' is not loaded.", param="model")
    return DeletedModel(id=name)
