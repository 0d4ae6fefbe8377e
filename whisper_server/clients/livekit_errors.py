"""The server's refusals as the errors of livekit-agents, which say whether to try again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import aiohttp
from livekit.agents import APIConnectionError, APIError, APIStatusError, APITimeoutError

_STATUSES: Mapping[str, int] = MappingProxyType(
    {
        "INVALID_MESSAGE": 400,
        "SESSION_EXISTS": 503,  # not 409, which is never tried again: the next attempt has another id
        "MAX_SESSIONS_REACHED": 429,
        "QUEUE_FULL": 429,
        "QUEUE_CONGESTION": 429,
        "INFERENCE_ERROR": 500,
        "INTERNAL_ERROR": 500,
    }
)
"""Of an `error` message, as HTTP would have it: 429 and 5xx are tried again."""


def error_of_message(message: Mapping[str, Any]) -> APIStatusError:
    """An `error` message of the server."""
    code = str(message.get("code"))
    return APIStatusError(
        f"{code}: {message.get('message')}",
        status_code=_STATUSES.get(code, 500),
        request_id=message.get("session_id"),
        body=dict(message),
    )


async def error_of_response(response: aiohttp.ClientResponse) -> APIStatusError:
    """An HTTP answer that is no transcript."""
    try:
        body = await response.json()
        text = str(body["error"]["message"])
    except (ValueError, TypeError, LookupError, aiohttp.ContentTypeError):
        body, text = None, f"The server answered {response.status} {response.reason}."
    return APIStatusError(
        text,
        status_code=response.status,
        request_id=response.headers.get("x-request-id"),
        body=body,
        retryable=response.headers.get("x-should-retry") != "false",
    )


@contextmanager
def api_errors() -> Iterator[None]:
    """Raise faults of the connection as errors of livekit-agents.

    Raises:
        APITimeoutError: it took too long.
        APIStatusError: the handshake was refused.
        APIConnectionError: there is no connection.
    """
    try:
        yield
    except APIError:
        raise
    except aiohttp.WSServerHandshakeError as error:
        text = f"The server refused the WebSocket: {error.status} {error.message}."
        raise APIStatusError(text, status_code=error.status) from error
    except TimeoutError as error:
        raise APITimeoutError("The server did not answer in time.") from error
    except (aiohttp.ClientError, OSError) as error:
        raise APIConnectionError("There is no connection to the server.") from error
