"""What a client has sent and nobody has handled yet."""

import asyncio
from collections import deque


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
        self._has_come = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_waited_for = False

    @property
    def is_idle(self) -> bool:
        """Whether everything has been handled, and whoever obeys waits for more."""
        return self._is_waited_for and not self._messages

    async def put(self, message: str | bytes) -> None:
        """Add a message, then wait until there is room for another."""
        self._messages.append(message)
        self._chars += len(message)
        self._has_come.set()
        while self._chars > self._max_chars:
            self._has_room.clear()
            await self._has_room.wait()

    async def get(self) -> str | bytes:
        """The oldest message; waits for one."""
        if self._messages:
            await asyncio.sleep(0)  # whoever sends faster than real time must not hold up the others
        self._is_waited_for = True
        while not self._messages:
            self._has_come.clear()
            await self._has_come.wait()
        self._is_waited_for = False
        message = self._messages.popleft()
        self._chars -= len(message)
        self._has_room.set()
        return message
