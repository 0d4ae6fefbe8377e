"""`GET /v1/realtime`, which becomes a WebSocket."""

import logging
import uuid
from functools import partial

from anyio import to_thread
from fastapi import APIRouter
from starlette.websockets import WebSocket

from whisper_server.api.ephemeral_keys import PREFIX, EphemeralKey, ephemeral_keys
from whisper_server.api.openai.realtime.config import Dialect, RealtimeConfig
from whisper_server.api.openai.realtime.options import config_defaults
from whisper_server.api.openai.realtime.session import RealtimeLimits, RealtimeSession, model_of_url
from whisper_server.api.refusal import refuse
from whisper_server.api.request_id import session_logging
from whisper_server.api.security import api_key_name, presented_keys
from whisper_server.api.services import Services
from whisper_server.api.streams.options import caller_of, services_of
from whisper_server.core.errors import (
    InvalidApiKeyError,
    InvalidRequestError,
    TooManySessionsError,
    WhisperServerError,
)
from whisper_server.services.streaming import StreamService

logger = logging.getLogger(__name__)

_SUBPROTOCOL = "realtime"
_BETA_SUBPROTOCOL = "openai-beta.realtime-v1"
_BETA_HEADER = "realtime=v1"
_RETRY_AFTER_S = 5.0


def new_router(limits: RealtimeLimits | None = None) -> APIRouter:
    """The route.

    Args:
        limits: of each session.
    """
    router = APIRouter()
    router.add_api_websocket_route("/realtime", partial(_connect, limits or RealtimeLimits()))
    return router


async def _connect(limits: RealtimeLimits, websocket: WebSocket) -> None:
    services = services_of(websocket)
    try:
        config = await _first_config(websocket, services)
        _check_room(services.streams)
    except WhisperServerError as error:
        await refuse(error, websocket.scope, websocket.receive, websocket.send)
        return
    offered = websocket.scope["subprotocols"]
    # The other subprotocols carry the key.
    await websocket.accept(_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
    session_id = f"sess_{uuid.uuid4().hex}"
    with session_logging(session_id):
        logger.info("A realtime session begins")
        await RealtimeSession(
            websocket,
            services,
            session_id=session_id,
            caller=caller_of(websocket, services),
            config=config,
            dialect=_dialect(websocket),
            limits=limits,
        ).run()


async def _first_config(websocket: WebSocket, services: Services) -> RealtimeConfig:
    """What the session begins with: as its ephemeral key says, or as the URL does.

    Raises:
        InvalidApiKeyError: there is an ephemeral key, but it opens nothing (any more).
        InvalidRequestError: it wants to join a call.
    """
    query = websocket.query_params
    if "call_id" in query:
        raise InvalidRequestError(
            "This server has no calls. Connect without 'call_id'.",
            param="call_id",
            code="unsupported_parameter",
        )
    key = _ephemeral_key(websocket)
    if key is not None and isinstance(key.session, RealtimeConfig):
        return key.session
    # Azure's clients call the model a deployment.
    name = query.get("model") or query.get("deployment") or ""
    name = await to_thread.run_sync(model_of_url, name.strip(), services.catalog.resolve)
    return RealtimeConfig.new(config_defaults(services.settings), name)


def _check_room(streams: StreamService) -> None:
    """Refuse whoever could not open a stream now; over HTTP clients know best when to come back.

    Raises:
        ServerBusyError: as `StreamService.open`.
    """
    streams.check_admission()
    registry = streams.registry
    if registry.active >= registry.max_sessions:
        raise TooManySessionsError(
            f"There are {registry.active} live sessions, the most this server takes. Try again later.",
            retry_after_s=_RETRY_AFTER_S,
        )


def _ephemeral_key(websocket: WebSocket) -> EphemeralKey | None:
    presented = list(presented_keys(websocket.scope))
    keys = ephemeral_keys(websocket.scope)
    key = None if keys is None else keys.find(presented)
    is_meant = any(value.startswith(PREFIX.encode()) for value in presented)
    if key is None and is_meant and api_key_name(websocket) is None:
        # A server without API keys lets anybody in, but not with a configuration it does not know.
        raise InvalidApiKeyError("The client secret has expired, or is not one of this server's.")
    return key


def _dialect(websocket: WebSocket) -> Dialect:
    betas = websocket.headers.get("openai-beta", "")
    is_beta = _BETA_HEADER in betas.replace(" ", "") or _BETA_SUBPROTOCOL in websocket.scope["subprotocols"]
    return Dialect.BETA if is_beta else Dialect.GA
