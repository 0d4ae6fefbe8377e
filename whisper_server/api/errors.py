"""Every fault as an OpenAI error object: `{"error": {"message", "type", "param", "code"}}`."""

import json
import logging
import math
from typing import Any, cast
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whisper_server.api.error_table import INVALID_REQUEST, WIRE_ERRORS
from whisper_server.api.request_id import request_id
from whisper_server.api.unread_body import UnreadBodyMiddleware
from whisper_server.core import errors

logger = logging.getLogger(__name__)

_CLIENT_CLOSED_REQUEST = 499


_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def error_body(message: str, type_: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The error object. All four keys are always there."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def error_content(error: errors.WhisperServerError) -> str:
    """The error object as one line of JSON, for streams that have begun."""
    wire = WIRE_ERRORS[type(error)]
    code = getattr(error, "code", None) or wire.code
    return json.dumps(error_body(error.message, wire.type, error.param, code), ensure_ascii=False)


def error_response(error: errors.WhisperServerError) -> JSONResponse:
    """The answer to a request that failed with `error`."""
    wire = WIRE_ERRORS[type(error)]
    code = getattr(error, "code", None) or wire.code
    body = error_body(error.message, wire.type, error.param, code)
    return JSONResponse(body, status_code=wire.status, headers=error_headers(error))


def error_headers(error: errors.WhisperServerError) -> dict[str, str]:
    """What an answer about `error` says in its headers."""
    wire = WIRE_ERRORS[type(error)]
    headers = {}
    should_retry = wire.should_retry
    if isinstance(error, errors.ModelDownloadError):
        should_retry = error.is_retryable
    if should_retry is not None:
        headers["x-should-retry"] = "true" if should_retry else "false"
    if wire.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, errors.ServerBusyError):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return headers


def log_fault(error: errors.WhisperServerError) -> None:
    """Log a fault with its causes, which the client does not get to see."""
    status = WIRE_ERRORS[type(error)].status
    is_fault = status >= 500 and not isinstance(error, errors.ServerBusyError | errors.DeadlineExceededError)
    level = logging.ERROR if is_fault else logging.INFO
    causes = f" ({error.causes})" if status >= 500 and error.causes else ""
    logger.log(level, "%s: %s%s", type(error).__name__, error.message, causes)
    logger.debug("It was raised here", exc_info=error)


def unknown_error() -> errors.WhisperServerError:
    """What a client is told of a fault that nobody foresaw: where to look for it."""
    return errors.WhisperServerError(
        f"The server failed on this request. Its log has the details under request id {request_id()}."
    )


def install(app: FastAPI) -> None:
    """Answer every fault of the app in OpenAI's form."""
    app.add_exception_handler(errors.WhisperServerError, _on_named)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_middleware(_UnknownErrorMiddleware)
    app.add_middleware(UnreadBodyMiddleware)


async def _on_named(_: Request, error: Exception) -> Response:
    named = cast("errors.WhisperServerError", error)
    log_fault(named)
    return error_response(named)


async def _on_http(request: Request, error: Exception) -> Response:
    http = cast("HTTPException", error)
    message = str(http.detail)
    if http.status_code in _HTTP_CODES:
        message = f"{message}: {request.method} {quote(request.url.path[:200])}"
    body = error_body(message, INVALID_REQUEST, code=_HTTP_CODES.get(http.status_code))
    return JSONResponse(body, status_code=http.status_code, headers=http.headers)


async def _on_invalid(_: Request, error: Exception) -> Response:
    first = cast("RequestValidationError", error).errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return JSONResponse(error_body(first["msg"], INVALID_REQUEST, param, "invalid_value"), status_code=400)


async def _on_disconnect(_: Request, __: Exception) -> Response:
    logger.info("The client left before its request was complete")
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


class _UnknownErrorMiddleware:
    """Answers what no handler knows.

    Starlette's own place for this is outside all middleware: there the request id is already forgotten, in
    the answer and in the log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception:  # the outermost boundary: one request fails, the server goes on
            if scope["type"] != "http" or has_started:
                raise
            logger.exception("The request failed")
            await error_response(unknown_error())(scope, receive, send)
