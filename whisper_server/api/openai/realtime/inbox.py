"""What a client has sent and nobody has handled yet."""

from collections import deque

import anyio


class Inbox:
    """A queue of messages between the task that receives and the one that obeys. For one event loop.

    Receiving goes on while a little waits, so that a client's leaving is noticed at once although its audio
    is not handled yet. Beyond that the client has to wait.

    Args:
        max_chars: `put` waits while more than this waits.
    """

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._messages: deque[str | bytes] = deque()
        self._chars = 0
        self._changed = anyio.Condition()

    async def put(self, message: str | bytes) -> None:
        """Add a message, then wait until there is room for another."""
        async with self._changed:
            self._messages.append(message)
            self._chars += len(message)
            self._changed.notify_all()
            while self._chars > self._max_chars:
                await self._changed.wait()

    async def get(self) -> str | bytes:
        """The oldest message; waits for one."""
        async with self._changed:
            while not self._messages:
                await self._changed.wait()
            message = self._messages.popleft()
            self._chars -= len(message)
            self._changed.notify_all()
        return message
