"""What all routes of the admin API share: the token, the form of faults, and a log line for each call."""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from whisper_server.api.admin_token import require_admin_token
from whisper_server.api.error_table import WIRE_ERRORS, err_code
from whisper_server.api.errors import error_headers, log_fault, unknown_error
from whisper_server.api.openai.fields import shown
from whisper_server.api.services import get_services
from whisper_server.core.errors import (
    AdminError,
    AdminModelError,
    InvalidAdminTokenError,
    ModelNotFoundError,
    WhisperServerError,
)

logger = logging.getLogger(__name__)

_SUBJECT = "admin_subject"


class AdminRoute(APIRoute):
    """A route for the operator alone.

    The token is checked before the body is read. Every fault is answered as `{"code": "ERR…", "message"}`.
    Each call is logged when it is over: at INFO, and at WARNING where the token was missing or wrong. The
    record's `fields` are `action`, `subject` (the model, once it is known), `client` (its address) and
    `result` (the status, and the code of a fault; `cut off` where there was no answer).
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler with all that around it."""
        serve = super().get_route_handler()

        async def serve_operator(request: Request) -> Response:
            result, level = "cut off", logging.INFO
            try:
                response, fault = await _answer(request, serve)
                result = f"{response.status_code} {err_code(fault)}" if fault else str(response.status_code)
                if isinstance(fault, InvalidAdminTokenError):
                    level = logging.WARNING
                return response
            finally:
                _log(request, result, level)

        return serve_operator


def note_subject(request: Request, subject: str) -> None:
    """Tell the log which model a call is about."""
    setattr(request.state, _SUBJECT, shown(subject))


async def _answer(
    request: Request, serve: Callable[[Request], Awaitable[Response]]
) -> tuple[Response, WhisperServerError | None]:
    """The answer, and the fault that it tells of."""
    try:
        require_admin_token(request, get_services(request).settings.admin)
        return await serve(request), None
    except ClientDisconnect:
        raise
    except ModelNotFoundError as error:
        fault: WhisperServerError = AdminModelError(error.message, param=error.param)
    except WhisperServerError as error:
        if not isinstance(error, AdminError):
            log_fault(error)
        fault = error
    except Exception:  # a boundary: the answer has this API's form here too
        logger.exception("The call failed")
        fault = unknown_error()
    content = {"code": err_code(fault), "message": fault.message}
    status = WIRE_ERRORS[type(fault)].status
    return JSONResponse(content, status_code=status, headers=error_headers(fault)), fault


def _log(request: Request, result: str, level: int) -> None:
    fields = {
        "action": request.url.path.rpartition("/")[2],
        "subject": getattr(request.state, _SUBJECT, None),
        "client": request.client.host if request.client else None,
        "result": result,
    }
    words = ("-" if value is None else value for value in fields.values())
    logger.log(level, "Admin: %s of %s by %s: %s", *words, extra={"fields": fields})
