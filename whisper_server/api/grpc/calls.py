"""What every call passes: its API key, its request id, one log line, and its end with the right status."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

import grpc.aio

from whisper_server.api.errors import log_fault, unknown_error
from whisper_server.api.grpc.incoming import Incoming
from whisper_server.api.grpc.status import status_of
from whisper_server.api.request_id import HEADER, request_logging
from whisper_server.api.security import ApiKeys
from whisper_server.core.errors import (
    InvalidApiKeyError,
    MissingApiKeyError,
    WhisperServerError,
)

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"

_STATUS_S = 5.0
"""A client that does not even take the status of its call in this time gets none."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was let in.

    Attributes:
        request_id: of its log lines.
        key_name: of the API key that opened it; None where no key was needed.
        address: where it came from; empty for a Unix socket.
    """

    request_id: str
    key_name: str | None
    address: str

    @property
    def client(self) -> str:
        """For whom it is: the API key's name, or the address."""
        return self.key_name or self.address


@asynccontextmanager
async def answering(
    context: Context, method: str, keys: ApiKeys, incoming: Incoming | None = None
) -> AsyncIterator[Call]:
    """Let a call in, and end it with the status of the fault that the block raises.

    Args:
        context: of the call.
        method: its name.
        keys: one of them opens it; where there are none, none is needed.
        incoming: messages of the client.
    """
    metadata = [(name.lower(), value) for name, value in context.invocation_metadata() or ()]
    with request_logging(_text(metadata, HEADER)) as request_id:
        log = _CallLog(method, context, incoming)
        try:
            call = Call(request_id, _key_name(metadata, keys), address_of(context.peer()))
            log.key_name = call.key_name
            yield call
        except WhisperServerError as error:
            log_fault(error)
            await log.abort(error)
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            log.status = "CANCELLED"
            raise
        except Exception:  # the boundary of one call: it fails, the server goes on
            logger.exception("%s failed", method)
            await log.abort(unknown_error())
        finally:
            log.write()


class _CallLog:
    """The log line of a call, and its end."""

    def __init__(self, method: str, context: Context, incoming: Incoming | None) -> None:
        self._method = method
        self._context = context
        self._incoming = incoming
        self._began_s = time.perf_counter()
        self.status = "OK"
        self.key_name: str | None = None

    async def abort(self, error: WhisperServerError) -> None:
        """End the call with the status of a fault.

        Raises:
            AbortError: always, unless the client takes nothing any more.
        """
        status = status_of(error, self._method)
        self.status = f"{status.code.name} {status.message.partition(':')[0]}"
        if self._incoming is not None:
            await self._incoming.settle(asyncio.create_task(self._incoming.drop_rest()))
        known = tuple(self._context.trailing_metadata() or ())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_S):
                await self._context.abort(status.code, status.message, known + status.metadata)

    def write(self) -> None:
        """Log the call."""
        took_ms = (time.perf_counter() - self._began_s) * 1000
        fields = {
            "method": self._method,
            "status": self.status,
            "duration_ms": round(took_ms, 1),
            "client": address_of(self._context.peer()) or "unix",
            "key": self.key_name,
        }
        logger.info(
            "gRPC %s %s in %.1f ms, client %s, key %s",
            *("-" if value is None else value for value in fields.values()),
            extra={"fields": fields},
        )


def address_of(peer: str) -> str:
    """The address in what gRPC says of a peer, such as `ipv4:127.0.0.1:4711`; empty for a Unix socket."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest.rpartition(":")[0]).strip("[]")


def _key_name(metadata: list[tuple[str, str | bytes]], keys: ApiKeys) -> str | None:
    """The name of the key that opens a call.

    Raises:
        MissingApiKeyError: there is none.
        InvalidApiKeyError: there is none of the server's.
    """
    if not keys:
        return None
    presented = list(_presented(metadata))
    names = [name for key in presented if (name := keys.name_of(key)) is not None]
    if names:
        return names[0]
    if presented:
        raise InvalidApiKeyError("The API key is not one of this server's.")
    raise MissingApiKeyError("An API key is missing: send the metadata 'authorization: Bearer <key>'.")


def _presented(metadata: list[tuple[str, str | bytes]]) -> Iterator[bytes]:
    """Every key a call brings: as `authorization: Bearer`, `x-api-key` or `api-key`."""
    for name, value in metadata:
        text = value if isinstance(value, str) else value.decode("latin-1")
        if name == "authorization":
            scheme, _, token = text.partition(" ")
            text = token if scheme.lower() == "bearer" else ""
        elif name not in ("x-api-key", "api-key"):
            continue
        if text.strip():
            yield text.strip().encode()


def _text(metadata: list[tuple[str, str | bytes]], name: str) -> str:
    return next((value for key, value in metadata if key == name and isinstance(value, str)), "")
