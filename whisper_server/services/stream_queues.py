"""What waits between a live stream's client and its session: audio and commands one way, events the other."""

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from whisper_server.core.session_states import SessionEvent
from whisper_server.core.stream_events import PartialTranscript, SessionEnded, StreamEvent


class Command:
    """An event for the session that takes its place among the audio.

    Args:
        event: what the client asks.
    """

    def __init__(self, event: SessionEvent) -> None:
        self.event = event
        self.answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        """The id of the committed utterance, where one was; or why the session refused."""

    def refuse(self, error: Exception) -> None:
        """It cannot be done."""
        if not self.answer.done():
            self.answer.set_exception(error)


Item: TypeAlias = bytearray | Command


class Inbox:
    """Audio and commands in the order they came. For one event loop; one reader and one writer."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._wanted = 0
        self._ready = asyncio.Event()
        self._has_room = asyncio.Event()

    @property
    def held_bytes(self) -> int:
        """Audio that waits."""
        return self._bytes

    @property
    def missing_bytes(self) -> int:
        """Audio that has to come before anybody looks; 0 unless somebody waits for just that."""
        return max(0, self._wanted - self._bytes)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._items

    def put_audio(self, audio: memoryview) -> None:
        """Add audio, whole samples."""
        if not self._items or isinstance(self._items[-1], Command):
            self._items.append(bytearray())
        last = self._items[-1]
        if isinstance(last, bytearray):
            last += audio
        self._bytes += len(audio)
        if self._bytes >= self._wanted:
            self._rouse()

    def put_command(self, command: Command) -> None:
        """Add a command."""
        self._items.append(command)
        self._rouse()

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._rouse()
        self._has_room.set()

    def _rouse(self) -> None:
        # How much whoever waited will want next is not known: nothing may be held back for it meanwhile.
        self._wanted = 0
        self._ready.set()

    async def wait(self, wanted_bytes: int) -> None:
        """Wait for a command or so much audio; may return for nothing after `wake`."""
        if self._bytes < wanted_bytes and not any(isinstance(item, Command) for item in self._items):
            self._wanted = wanted_bytes
            self._ready.clear()
            await self._ready.wait()

    async def wait_for_room(self) -> None:
        """Wait until something was taken, or for `wake`."""
        self._has_room.clear()
        await self._has_room.wait()

    def take(self, most_bytes: int) -> Item | None:
        """The next command, or the audio before it; None where nothing waits."""
        if not self._items:
            return None
        first = self._items[0]
        if isinstance(first, Command):
            return self._items.popleft()
        if len(first) > most_bytes:
            taken = first[:most_bytes]
            del first[:most_bytes]
        else:
            taken = first
            self._items.popleft()
        self._bytes -= len(taken)
        self._has_room.set()
        return taken

    def clear(self) -> Iterator[Command]:
        """Drop everything; the commands that nobody will answer."""
        items, self._items = self._items, deque()
        self._bytes = 0
        self.wake()
        return (item for item in items if isinstance(item, Command))


class Outgoing:
    """Events that the client has not read. For one event loop and one reader.

    Args:
        longest: events; more are refused.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._events: deque[StreamEvent] = deque()
        self._changed = asyncio.Event()
        self._is_over = False

    def put(self, event: StreamEvent) -> bool:
        """Add an event. A partial takes the place of an unread one before it.

        Returns:
            Whether there was room; SessionEnded always finds some.
        """
        if self._events and _replaces(event, self._events[-1]):
            self._events.pop()
        elif len(self._events) >= self._longest and not isinstance(event, SessionEnded):
            return False
        self._events.append(event)
        self._changed.set()
        return True

    async def get(self) -> StreamEvent | None:
        """The next event; None after SessionEnded."""
        while not self._events:
            if self._is_over:
                return None
            self._changed.clear()
            await self._changed.wait()
        event = self._events.popleft()
        self._is_over = isinstance(event, SessionEnded)
        return event


def _replaces(event: StreamEvent, last: StreamEvent) -> bool:
    return (
        isinstance(event, PartialTranscript)
        and isinstance(last, PartialTranscript)
        and event.utterance_id == last.utterance_id
    )
