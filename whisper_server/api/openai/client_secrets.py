"""`POST /v1/realtime/client_secrets`, and its predecessor `/v1/realtime/transcription_sessions`."""

import uuid
from collections.abc import Mapping
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel

from whisper_server.api.documentation import realtime_operations
from whisper_server.api.ephemeral_keys import EphemeralKey, EphemeralKeys, ephemeral_keys
from whisper_server.api.openai.json_body import read_object
from whisper_server.api.openai.realtime.config import Dialect, RealtimeConfig
from whisper_server.api.openai.realtime.options import config_defaults, stream_options
from whisper_server.api.openai.realtime.updates import updated
from whisper_server.api.security import api_key_name
from whisper_server.api.services import Services, ServicesDep
from whisper_server.core.errors import ConfigurationError, InvalidRequestError

router = APIRouter()

_MAX_BODY_BYTES = 1 << 20
_DEFAULT_S = 600
_LEAST_S, _MOST_S = 10, 7200


class ClientSecret(BaseModel):
    """A key, and what a session begins with that is opened with it."""

    value: str
    expires_at: int
    session: dict[str, Any]


class LegacySecret(BaseModel):
    """A key; `expires_at` in seconds since the epoch."""

    value: str
    expires_at: int


class LegacySession(BaseModel):
    """The fields of a session in the beta shape, and the key that opens it."""

    id: str
    object: str
    expires_at: int
    include: list[str]
    modalities: list[str]
    input_audio_format: str
    input_audio_transcription: dict[str, Any]
    input_audio_noise_reduction: dict[str, Any] | None
    turn_detection: dict[str, Any] | None
    client_secret: LegacySecret


@router.post("/realtime/client_secrets", **realtime_operations.CLIENT_SECRET)
async def create_client_secret(request: Request, services: ServicesDep) -> ClientSecret:
    """Make a key that opens `/v1/realtime` for a while, for a browser that is not to have an API key."""
    body = await read_object(request, dict, max_file_bytes=_MAX_BODY_BYTES)
    seconds = _seconds(body.get("expires_after"), "expires_after")
    value, key, config = await _new_key(request, services, body.get("session"), seconds)
    session = _session(config, Dialect.GA)
    return ClientSecret(value=value, expires_at=key.expires_at_s, session=session)


@router.post("/realtime/transcription_sessions", **realtime_operations.TRANSCRIPTION_SESSION)
async def create_transcription_session(request: Request, services: ServicesDep) -> LegacySession:
    """The same for older clients; the body has the fields of a session in the beta shape."""
    body = await read_object(request, dict, max_file_bytes=_MAX_BODY_BYTES)
    secret = body.get("client_secret")
    after = secret.get("expires_at", secret.get("expires_after")) if isinstance(secret, dict) else None
    seconds = _seconds(after, "client_secret.expires_at")
    value, key, config = await _new_key(request, services, body, seconds)
    return LegacySession(
        **_session(config, Dialect.BETA),
        client_secret=LegacySecret(value=value, expires_at=key.expires_at_s),
    )


async def _new_key(
    request: Request, services: Services, session: object, seconds: int
) -> tuple[str, EphemeralKey, RealtimeConfig]:
    """A key and what it carries.

    Raises:
        InvalidRequestError: the session is wrong.
        ModelNotFoundError: its model is none.
        ServerBusyError: there are too many keys.
    """
    config = RealtimeConfig.new(config_defaults(services.settings))
    config = updated(config, {} if session is None else session)
    stream_options(config, services.settings, has_live_deltas=False)
    await to_thread.run_sync(services.catalog.resolve, config.transcription.model)
    value, key = _store(request).create(api_key_name(request), config, seconds)
    return value, key, config


def _store(request: Request) -> EphemeralKeys:
    keys = ephemeral_keys(request.scope)
    if keys is None:
        raise ConfigurationError("This server makes no client secrets.")
    return keys


def _session(config: RealtimeConfig, dialect: Dialect) -> dict[str, Any]:
    """A session that is not open yet, and so does not expire."""
    known = {"id": f"sess_{uuid.uuid4().hex}", "object": "realtime.transcription_session", "expires_at": 0}
    return known | config.in_shape(dialect)


def _seconds(given: object, param: str) -> int:
    if given is None:
        return _DEFAULT_S
    if not isinstance(given, Mapping):
        raise InvalidRequestError(f"'{param}' must be an object.", param=param, code="invalid_value")
    if given.get("anchor", "created_at") != "created_at":
        raise InvalidRequestError(
            f"'{param}.anchor' must be 'created_at'.", param=f"{param}.anchor", code="unsupported_value"
        )
    seconds = given.get("seconds", _DEFAULT_S)
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not _LEAST_S <= seconds <= _MOST_S:
        raise InvalidRequestError(
            f"'{param}.seconds' must be a whole number between {_LEAST_S} and {_MOST_S}.",
            param=f"{param}.seconds",
            code="invalid_value",
        )
    return seconds
