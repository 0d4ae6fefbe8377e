"""The messages of a streaming client, and its last ones, which nobody wants any more."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from whisper_server.stt_v1 import stt_pb2

_PAUSE_S: Final = 0.1
_LONGEST_S: Final = 2.0


class Incoming:
    """Reads a client's messages. For one reader.

    A call that ends while its client is in the middle of sending loses its status at the clients of grpc.aio:
    these report an internal error of their own. So what comes after the end is read until the client pauses.

    Args:
        requests: of the call.
    """

    def __init__(self, requests: AsyncIterator[stt_pb2.StreamingRecognizeRequest]) -> None:
        self._requests = aiter(requests)
        self._count = 0

    async def next(self) -> stt_pb2.StreamingRecognizeRequest | None:
        """The next message; None when the client has sent its last one."""
        request = await anext(self._requests, None)
        self._count += 1
        return request

    async def drop_rest(self) -> None:
        """Read what is left and drop it."""
        while await self.next() is not None:
            pass

    async def settle(self, reading: "asyncio.Task[None]") -> None:
        """Let a task that reads go on until the client pauses or has finished, then end it.

        Args:
            reading: takes messages, and drops those that are not wanted.
        """
        end_s = asyncio.get_running_loop().time() + _LONGEST_S
        seen = -1
        while not reading.done() and seen != self._count and asyncio.get_running_loop().time() < end_s:
            seen = self._count
            await asyncio.wait([reading], timeout=_PAUSE_S)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
