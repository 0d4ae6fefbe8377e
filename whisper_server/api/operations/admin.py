"""`/admin/load_model`, `/admin/unload_model` and `/admin/list_models`: the models in memory, by hand."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel

from whisper_server.api.openai.fields import shown
from whisper_server.api.openai.json_body import read_object
from whisper_server.api.operations.admin_route import AdminRoute, note_subject
from whisper_server.api.services import Services, ServicesDep
from whisper_server.core.errors import (
    AdminModelError,
    InvalidRequestError,
    ModelAlreadyLoadedError,
    ModelNotFoundError,
    ModelPathNotAllowedError,
)
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.model_manager import UnloadResult
from whisper_server.services.model_path_allowlist import is_allowed

router = APIRouter(prefix="/admin", route_class=AdminRoute, include_in_schema=False)

_MAX_BODY_BYTES = 1 << 20
_NAME_KEYS = ("model", "name")
_PATH_KEY = "model_path"


class ModelInMemory(BaseModel):
    """A loaded model.

    One that is `unloading` goes when its last user leaves. `idle_s` is the time since the last use, 0 while
    it is in use; `size_bytes` that of its weights.
    """

    id: str
    status: Literal["loaded", "unloading"]
    is_default: bool
    device: str
    compute_type: str
    users: int
    idle_s: float
    loaded_at: datetime
    size_bytes: int


class ModelsInMemory(BaseModel):
    """The loaded models, the longest unused first."""

    models: list[ModelInMemory]


class ModelChange(BaseModel):
    """What has become of a model, for programs and for people."""

    id: str
    status: Literal["loaded", "unloaded", "unloading"]
    message: str


@router.get("/list_models")
async def list_models(services: ServicesDep) -> ModelsInMemory:
    """List the models in memory."""
    default_id = await _default_id(services)
    return ModelsInMemory(
        models=[
            ModelInMemory(
                id=model.id,
                status="unloading" if model.is_unwanted else "loaded",
                is_default=model.id == default_id,
                device=model.capabilities.device,
                compute_type=model.capabilities.compute_type,
                users=model.users,
                idle_s=round(model.idle_s, 3),
                loaded_at=model.loaded_at,
                size_bytes=model.capabilities.weights_bytes,
            )
            for model in services.manager.loaded()
        ]
    )


@router.post("/load_model")
async def load_model(request: Request, services: ServicesDep) -> ModelChange:
    """Load a model, downloaded first where necessary, and answer when it is there.

    A model that is about to be unloaded stays.
    """
    key, place = await _asked(request, (*_NAME_KEYS, _PATH_KEY))
    if key == _PATH_KEY:
        reference = await to_thread.run_sync(_at_path, services, place)
    else:
        reference = await to_thread.run_sync(services.catalog.resolve, place)
    services.admission.check_not_draining()
    # No await from here to the manager's own count of users: nothing comes between the look and the load.
    is_kept = services.manager.keep(reference)
    if not is_kept and any(model.id == reference.id for model in services.manager.loaded()):
        raise ModelAlreadyLoadedError(f"The model '{shown(place)}' is loaded already.", param=key)
    async with services.manager.acquire(reference):
        return ModelChange(id=reference.id, status="loaded", message="The model is loaded.")


@router.post("/unload_model")
async def unload_model(request: Request, services: ServicesDep) -> ModelChange:
    """Unload a model; one that is in use or loading goes when its last user leaves."""
    key, name = await _asked(request, _NAME_KEYS)
    reference = await _by_name_or_id(services, name)
    if reference.id == await _default_id(services):
        raise AdminModelError(
            f"The model '{shown(name)}' is the default, which is not unloaded by hand.", param=key
        )
    match await services.manager.unload(reference):
        case UnloadResult.UNLOADED:
            return ModelChange(id=reference.id, status="unloaded", message="The model is unloaded.")
        case UnloadResult.WHEN_FREE:
            message = "The model is in use. It is unloaded when its last user leaves."
            return ModelChange(id=reference.id, status="unloading", message=message)
        case UnloadResult.NOT_LOADED:
            raise AdminModelError(f"The model '{shown(name)}' is not loaded.", param=key)


async def _asked(request: Request, keys: Sequence[str]) -> tuple[str, str]:
    """The one key that the body has, and its text.

    Raises:
        InvalidRequestError: the body is no JSON object with exactly one of these keys, and text there.
        UploadTooLargeError: it is too large.
    """
    key, text = await read_object(request, partial(_only, keys=keys), max_file_bytes=_MAX_BODY_BYTES)
    note_subject(request, text)
    return key, text


def _only(body: Mapping[str, Any], *, keys: Sequence[str]) -> tuple[str, str]:
    wanted = f"Send one of: {', '.join(keys)}."
    given = {key: value for key, value in body.items() if value is not None}
    for key in given:
        if key not in keys:
            raise InvalidRequestError(f"'{shown(key)}' is not known here. {wanted}", param=shown(key))
    if len(given) != 1:
        raise InvalidRequestError(f"The body names {len(given) or 'no'} models. {wanted}", param=keys[0])
    ((key, text),) = given.items()
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequestError(f"'{key}' must be text.", param=key)
    return key, text.strip()


def _at_path(services: Services, place: str) -> ModelReference:
    """The model of a `model_path`, which is judged before the disk is asked whether it is there; blocking."""
    admin = services.settings.admin
    if not admin.allow_model_path:
        raise ModelPathNotAllowedError("This server loads no models by model_path.", param=_PATH_KEY)
    if not is_allowed(place, admin.model_path_allowlist):
        raise ModelPathNotAllowedError(
            f"No model may be loaded from '{shown(place)}': it is outside the server's allowlist.",
            param=_PATH_KEY,
        )
    return services.catalog.at_place(place)


async def _by_name_or_id(services: Services, name: str) -> ModelReference:
    """What a name means, or else the id of a model that was loaded by its path."""
    try:
        return await to_thread.run_sync(services.catalog.resolve, name)
    except ModelNotFoundError:
        if all(model.id != name for model in services.manager.loaded()):
            raise
        return ModelReference(name)


async def _default_id(services: Services) -> str | None:
    """The id of the default model; None where its folder has gone."""
    try:
        return (await to_thread.run_sync(services.catalog.resolve, "")).id
    except ModelNotFoundError:
        return None


PATHS = frozenset(getattr(route, "path", "") for route in router.routes)
"""The paths of these routes, which ask for the admin token and for no API key."""
