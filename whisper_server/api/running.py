"""A route's request as one of those inside: whose it is, how long it may take, and how it is called off."""

import re
from contextlib import AbstractContextManager

from starlette.requests import Request

from whisper_server.api.request_id import request_id
from whisper_server.api.security import api_key_name, is_loopback
from whisper_server.api.services import Services
from whisper_server.core.errors import InvalidRequestError
from whisper_server.services.requests import RunningRequest

TIMEOUT_HEADER = "X-Request-Timeout-S"
"""With it a client gives its request less time than the server does."""

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def enter(request: Request, services: Services) -> AbstractContextManager[RunningRequest]:
    """Let a request in before its body is read; it is inside while the block runs.

    Raises:
        InvalidRequestError: its time-out is no positive number.
        ServerBusyError: as `RequestRegistry.enter`, when the block begins.
    """
    return services.requests.enter(
        request_id(),
        request.url.path,
        key_name=api_key_name(request),
        address=_address(request),
        timeout_s=_timeout_s(request),
    )


def may_call_off(asker: Request, request: RunningRequest) -> bool:
    """Whether a request belongs to the asker: to the same API key.

    Where no keys are asked for, to the same address; and programs of the server's machine may call off any.
    """
    name = api_key_name(asker)
    if name is not None or request.key_name is not None:
        return name == request.key_name
    address = _address(asker)
    return address == request.caller.client or is_loopback(address)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _timeout_s(request: Request) -> float | None:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    seconds = float(text) if _SECONDS.fullmatch(text.strip()) else 0.0
    if not seconds:
        raise InvalidRequestError(
            f"The header {TIMEOUT_HEADER} must be a positive number of seconds such as 30 or 2.5.",
            param=TIMEOUT_HEADER,
            code="invalid_value",
        )
    return seconds
