"""Which live sessions there are, and how much audio they hold together."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from whisper_server.core.errors import AudioMemoryFullError, SessionExistsError, TooManySessionsError

_RETRY_AFTER_S = 5.0


@dataclass(slots=True, eq=False)
class SessionEntry:
    """One live session as others see it.

    Attributes:
        id: of the session.
        client: whom it belongs to.
        opened_s: when it was opened, by the registry's clock.
        received_s: audio received, seconds.
        is_speaking: an utterance is open.
        utterances: finals told.
        held_bytes: audio in memory.
        attributes: what the client said of it.
    """

    id: str
    client: str
    opened_s: float
    received_s: float = 0.0
    is_speaking: bool = False
    utterances: int = 0
    held_bytes: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)


class SessionRegistry:
    """The live sessions of the server. For one event loop.

    Args:
        max_sessions: at once.
        max_held_bytes: audio of all of them together.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        max_sessions: int,
        max_held_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_sessions = max_sessions
        self._max_held_bytes = max_held_bytes
        self._clock = clock
        self._entries: dict[str, SessionEntry] = {}
        self._held_bytes = 0
        self._speaking = 0
        self._freed = asyncio.Event()
        self.opened = 0
        """Sessions since the start."""
        self.refused = 0
        """Sessions that were not let in since the start."""

    @property
    def active(self) -> int:
        """How many there are."""
        return len(self._entries)

    @property
    def speaking(self) -> int:
        """In how many an utterance is open."""
        return self._speaking

    @property
    def held_bytes(self) -> int:
        """Audio of all of them in memory."""
        return self._held_bytes

    def sessions(self) -> list[SessionEntry]:
        """All of them, the oldest first."""
        return list(self._entries.values())

    def by_client(self) -> dict[str, int]:
        """How many each client has."""
        return dict(Counter(entry.client for entry in self._entries.values()))

    def enter(self, session_id: str | None, client: str) -> SessionEntry:
        """Register a session.

        Raises:
            SessionExistsError: there is one of this id.
            TooManySessionsError: there are as many as may be.
            AudioMemoryFullError: those there are hold as much as they may.
        """
        if session_id is not None and session_id in self._entries:
            raise SessionExistsError(
                "A session with this id is active. End it first, or choose another id.", param="session_id"
            )
        if self.active >= self.max_sessions:
            raise TooManySessionsError(
                f"Maximum sessions reached: {self.active}/{self.max_sessions}. Try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._held_bytes >= self._max_held_bytes:
            raise _memory_full()
        entry = SessionEntry(session_id or f"sess_{uuid.uuid4().hex}", client, self._clock())
        self._entries[entry.id] = entry
        self.opened += 1
        return entry

    def leave(self, entry: SessionEntry) -> None:
        """Forget a session."""
        self.note(entry, is_speaking=False, held_bytes=0)
        self._entries.pop(entry.id, None)

    def note(self, entry: SessionEntry, *, is_speaking: bool, held_bytes: int) -> None:
        """Keep up with a session."""
        self._speaking += is_speaking - entry.is_speaking
        self._held_bytes += held_bytes - entry.held_bytes
        is_freed = held_bytes < entry.held_bytes
        entry.is_speaking, entry.held_bytes = is_speaking, held_bytes
        if is_freed and self._held_bytes < self._max_held_bytes:
            self._freed.set()

    @property
    def is_full(self) -> bool:
        """Whether sessions hold as much audio as they may."""
        return self._held_bytes >= self._max_held_bytes

    async def wait_for_memory(self, timeout_s: float) -> None:
        """Wait until sessions hold less audio than they may.

        Raises:
            AudioMemoryFullError: they did not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self.is_full:
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise _memory_full() from None


def _memory_full() -> AudioMemoryFullError:
    return AudioMemoryFullError(
        "Live sessions hold as much audio as the server allows. Try again later.",
        retry_after_s=_RETRY_AFTER_S,
    )
