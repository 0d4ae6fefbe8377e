"""`GET /v1/requests`: one's own requests inside, and `DELETE`, which calls one off."""

from typing import Literal

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel

from whisper_server.api.documentation import request_operations as operations
from whisper_server.api.running import may_call_off
from whisper_server.api.services import ServicesDep
from whisper_server.services.requests import RequestStatus, RunningRequest

router = APIRouter()


class RequestInside(BaseModel):
    """A request that the server has not finished.

    `receiving` means that its audio is not all there or not decoded, `waiting` that no model is at it yet,
    and `stopping` that it was called off and a model is still at its last window. `audio_s` is the length
    of its recordings, and `position_s` how much of it is transcribed.
    """

    id: str
    object: Literal["request"] = "request"
    created: int
    path: str
    status: RequestStatus
    audio_s: float | None
    position_s: float | None


class RequestList(BaseModel):
    """One's own requests, the oldest first."""

    object: Literal["list"] = "list"
    data: list[RequestInside]


class DeletedRequest(BaseModel):
    """A request that was called off."""

    id: str
    object: Literal["request"] = "request"
    deleted: Literal[True] = True


@router.get("/requests", **operations.LIST_REQUESTS)
async def list_requests(request: Request, services: ServicesDep) -> RequestList:
    """List one's own requests that wait or run."""
    return RequestList(data=[_shown(one) for one in services.requests if may_call_off(request, one)])


@router.delete("/requests/{request_id}", **operations.CANCEL_REQUEST)
async def cancel_request(request_id: str, request: Request, services: ServicesDep) -> DeletedRequest:
    """Call off one's own request that waits or runs; its client gets an error with 409."""
    if not services.requests.cancel(request_id, lambda one: may_call_off(request, one)):
        raise HTTPException(404, "No request of yours that waits or runs has this id")
    return DeletedRequest(id=request_id)


def _shown(request: RunningRequest) -> RequestInside:
    holding, is_known = request.place.holding, bool(request.place.holding.audio_s)
    return RequestInside(
        id=request.id,
        created=int(request.began_at_s),
        path=request.path,
        status=request.status,
        audio_s=round(holding.audio_s, 3) if is_known else None,
        position_s=round(holding.done_s, 3) if is_known else None,
    )
