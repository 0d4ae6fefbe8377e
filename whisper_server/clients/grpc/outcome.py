"""The status a call ended with."""

from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

_Value = TypeVar("_Value")

UNTOLD = "Internal error from Core"
"""What grpc.aio says, with INTERNAL, of a call that ended while a message was being written.

It puts that in the place of the server's status, or lets that no longer come (grpc/grpc#36066).
"""


class CallOutcome:
    """Keeps the status and the trailing metadata that the server ended a call with.

    Each status is seen here when it is set, before a failed write can replace it.

    Args:
        call: just begun.
    """

    def __init__(self, call: grpc.aio.Call) -> None:
        self._call = call
        self._code = grpc.StatusCode.INTERNAL
        self._details = UNTOLD
        self._metadata = grpc.aio.Metadata()
        call.add_done_callback(self._take)

    async def wait(self) -> grpc.aio.Metadata:
        """The trailing metadata of a call that has no more responses.

        Raises:
            AioRpcError: it did not end with OK; INTERNAL and `UNTOLD` where that cannot be known.
        """
        await self._call.code()
        if self._code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(self._code, grpc.aio.Metadata(), self._metadata, self._details)
        return self._metadata

    def _take(self, call: grpc.aio.Call) -> None:
        details = _result(call.details()) or ""
        if self._details == UNTOLD and details != UNTOLD:
            self._code = _result(call.code())
            self._details = details
            self._metadata = _result(call.trailing_metadata()) or grpc.aio.Metadata()


def _result(finished: Coroutine[Any, Any, _Value]) -> _Value:
    """What a coroutine returns that has nothing to wait for."""
    try:
        finished.send(None)
    except StopIteration as stop:
        value: _Value = stop.value
        return value
    finished.close()
    raise RuntimeError("the call has no status yet")
