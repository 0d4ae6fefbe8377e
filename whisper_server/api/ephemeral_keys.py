"""Keys for one browser or device: they open the realtime route alone, and soon expire."""

import hashlib
import math
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.types import Scope

from whisper_server.core.errors import ServerBusyError

PREFIX = "ek_"
"""OpenAI's; its Node client lets browsers use such a key without being asked to."""

_PATHS = frozenset(("/v1/realtime", "/realtime"))
_STATE_KEY = "ephemeral_keys"
_KEY_BYTES = 24


@dataclass(frozen=True, slots=True)
class EphemeralKey:
    """What is known of a key.

    Attributes:
        owner: the name of the API key that it was made with; None where no key was needed.
        session: the configuration it was made with; whoever opens a session with it starts from there.
        expires_at_s: seconds since the epoch.
    """

    owner: str | None
    session: object
    expires_at_s: int


class EphemeralKeys:
    """The keys of a server, in memory only. It holds their digests, not the keys. For one event loop.

    Args:
        max_keys: at once.
        clock: tells seconds since the epoch.
    """

    def __init__(self, *, max_keys: int = 1000, clock: Callable[[], float] = time.time) -> None:
        self._max_keys = max_keys
        self._clock = clock
        self._keys: dict[bytes, EphemeralKey] = {}

    def create(self, owner: str | None, session: object, seconds: int) -> tuple[str, EphemeralKey]:
        """A new key.

        Args:
            owner: see `EphemeralKey`.
            session: see there.
            seconds: how long it opens sessions; a session that is open lasts on.

        Raises:
            ServerBusyError: there are too many already.
        """
        now_s = self._clock()
        self._keys = {digest: key for digest, key in self._keys.items() if key.expires_at_s > now_s}
        if len(self._keys) >= self._max_keys:
            first_s = min(key.expires_at_s for key in self._keys.values())
            raise ServerBusyError(
                f"There are {self._max_keys} client secrets already. Try again later.",
                retry_after_s=max(1.0, first_s - now_s),
            )
        value = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
        key = EphemeralKey(owner, session, math.ceil(now_s) + seconds)
        self._keys[_digest(value.encode())] = key
        return value, key

    def find(self, presented: Iterable[bytes]) -> EphemeralKey | None:
        """The first of these that is a key and has not expired."""
        now_s = self._clock()
        for value in presented:
            # What a lookup by digest tells by its time is of no use to whoever does not know the key.
            key = self._keys.get(_digest(value))
            if key is not None and key.expires_at_s > now_s:
                return key
        return None


def install(app_state: object, keys: EphemeralKeys) -> None:
    """Let the app's routes and middleware find the keys."""
    setattr(app_state, _STATE_KEY, keys)


def ephemeral_keys(scope: Scope) -> EphemeralKeys | None:
    """The keys of the app that got a request; None where it has none."""
    app = scope.get("app")
    keys: EphemeralKeys | None = getattr(getattr(app, "state", None), _STATE_KEY, None)
    return keys


def opens(scope: Scope) -> bool:
    """Whether an ephemeral key counts for this request."""
    return scope["type"] == "websocket" and scope["path"] in _PATHS


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
