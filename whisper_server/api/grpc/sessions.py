"""Live sessions between their CreateSession and the end of their StreamingRecognize."""

import asyncio
import hmac
import secrets
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from whisper_server.core.errors import InvalidSessionTokenError, SessionExistsError, UnknownSessionError
from whisper_server.services.raw_audio import RawAudio
from whisper_server.services.streaming import LiveStream

CLAIM_S = 60.0
"""A session that nobody streams to is closed after so long."""

_TOKEN_BYTES = 24


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


@dataclass(slots=True, eq=False)
class OpenSession:
    """A session that was created.

    Attributes:
        stream: open.
        audio: converts what the client sends.
        key_name: of the API key that created it, which alone may stream to it; None where there are no keys.
        token: that every message has to bring; empty for none.
        claimed: it is being streamed to.
    """

    stream: LiveStream
    audio: RawAudio
    key_name: str | None
    token: str = ""
    claimed: asyncio.Event = field(default_factory=asyncio.Event)

    def check_token(self, presented: str) -> None:
        """Refuse a message without the token, in the same time for any.

        Raises:
            InvalidSessionTokenError: it has not the session's.
        """
        if self.token and not hmac.compare_digest(presented.encode(), self.token.encode()):
            raise InvalidSessionTokenError("The session token is missing or wrong.")


class SessionBook:
    """The sessions of the service, by id. For one event loop.

    An async context manager: leaving it closes those that nobody streams to.

    Args:
        claim_s: a session that nobody streams to is closed after so long, seconds.
    """

    def __init__(self, *, claim_s: float = CLAIM_S) -> None:
        self._claim_s = claim_s
        self._sessions: dict[str, OpenSession] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)

    def add(self, session: OpenSession) -> None:
        """Keep a session until it is claimed and released, or ends by itself."""
        self._sessions[session.stream.id] = session
        watcher = asyncio.create_task(self._watch(session), name=f"claim-{session.stream.id}")
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    def claim(self, session_id: str, token: str, key_name: str | None) -> OpenSession:
        """The session of an id, for the one call that streams to it; `release` follows.

        Raises:
            UnknownSessionError: there is none of this id, or it is another key's.
            InvalidSessionTokenError: the token is not the session's. The session stays open.
            SessionExistsError: another call streams to it.
        """
        session = self._sessions.get(session_id)
        if session is None or session.key_name != key_name:
            raise UnknownSessionError(
                "No session of this session_id is open. Call CreateSession, and name it in the first message."
            )
        session.check_token(token)
        if session.claimed.is_set():
            raise SessionExistsError("Another call streams to this session.", param="session_id")
        session.claimed.set()
        return session

    def release(self, session: OpenSession) -> None:
        """Forget a session that is over."""
        if self._sessions.get(session.stream.id) is session:
            del self._sessions[session.stream.id]

    async def _watch(self, session: OpenSession) -> None:
        """Close a session that nobody claims in time."""
        try:
            async with asyncio.timeout(self._claim_s):
                await session.claimed.wait()
        except TimeoutError:
            self.release(session)
            await session.stream.cancel()
        except asyncio.CancelledError:
            if not session.claimed.is_set():
                await session.stream.cancel()
            raise
