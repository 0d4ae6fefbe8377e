"""Faults of calls, with the server's codes."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from whisper_server.clients.grpc.outcome import UNTOLD

_FRONT = re.compile(r"(ERR\d{4}): *")
_BROKEN_STREAM = re.compile(
    rf"RST_STREAM|[Ss]tream removed|[Cc]onnection reset|GOAWAY|[Ss]ocket closed|{UNTOLD}"
)
_MAYBE_BROKEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED)


class SttError(Exception):
    """A call that failed.

    Attributes:
        code: the server's, such as ERR1002; empty where it gave none, as with a broken connection.
        status: of gRPC.
        message: for people, without the code.
        retry_after_s: when the server says to come back; None where it says nothing.
        trailing_metadata: of the call.
    """

    def __init__(
        self,
        code: str,
        status: grpc.StatusCode,
        message: str,
        retry_after_s: float | None = None,
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        super().__init__(f"{code or status.name}: {message}")
        self.code = code
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.trailing_metadata = tuple(trailing_metadata)

    @classmethod
    def from_rpc(cls, error: grpc.aio.AioRpcError) -> Self:
        """The same fault, its status details read."""
        message = error.details() or ""
        front = _FRONT.match(message)
        code, retry_after_s = _read_details(error)
        if front:
            code, message = code or front[1], message[front.end() :]
        return cls(
            code, error.code(), message or "The call failed.", retry_after_s, error.trailing_metadata() or ()
        )

    @property
    def is_transient(self) -> bool:
        """Whether another attempt may go well.

        The connection is broken, the server is about to stop, or the call ended while a message was being
        written and gRPC does not tell why.
        """
        if self.status is grpc.StatusCode.UNAVAILABLE:
            return True
        is_broken = self.status in _MAYBE_BROKEN and _BROKEN_STREAM.search(self.message) is not None
        return is_broken and not self.code


@contextmanager
def stt_errors() -> Iterator[None]:
    """Raise faults of calls as `SttError`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise SttError.from_rpc(error) from error


def _read_details(error: grpc.aio.AioRpcError) -> tuple[str, float | None]:
    """The code of `google.rpc.ErrorInfo` and the wait of `google.rpc.RetryInfo`, where there are any."""
    try:
        status: status_pb2.Status | None = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # details that contradict the status, or are garbage
        return "", None
    code, retry_after_s = "", None
    for detail in status.details if status else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            code = info.reason
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return code, retry_after_s
