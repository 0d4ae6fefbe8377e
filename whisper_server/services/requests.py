"""The requests inside, each of which can be called off: by its client, its deadline, or the server's stop."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from enum import StrEnum
from typing import TypeVar

import anyio

from whisper_server.core.errors import (
    DeadlineExceededError,
    RequestCancelledError,
    ServerDrainingError,
    WhisperServerError,
)
from whisper_server.core.scheduling import Caller
from whisper_server.services.admission import Admission, Place
from whisper_server.services.transcription import Progress

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_CUT_RETRY_AFTER_S = 1.0
"""Whoever was cut off may try again at once: by then another server is there, or none."""


class RequestStatus(StrEnum):
    """What becomes of a request at present."""

    RECEIVING = "receiving"
    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"


class RunningRequest:
    """One request inside.

    Args:
        id: of the request; clients may choose it, so several may have one.
        path: of its route.
        caller: for whom.
        key_name: of the API key that opened it; None where no key was needed.
        place: what it holds.
    """

    def __init__(self, id: str, path: str, caller: Caller, key_name: str | None, place: Place) -> None:
        self.id = id
        self.path = path
        self.caller = caller
        self.key_name = key_name
        self.place = place
        self.began_at_s = time.time()
        self._error: WhisperServerError | None = None
        self._scope: anyio.CancelScope | None = None

    @property
    def status(self) -> RequestStatus:
        """What becomes of it at present."""
        if self._error is not None:
            return RequestStatus.STOPPING
        if self.place.is_at_work:
            return RequestStatus.RUNNING
        return RequestStatus.WAITING if self.place.holding.audio_s else RequestStatus.RECEIVING

    def stop(self, error: WhisperServerError) -> bool:
        """Call it off: its work is cancelled, and it ends with this error. False where it was before."""
        if self._error is not None:
            return False
        self._error = error
        if self._scope is not None:
            self._scope.cancel()
        return True

    async def run(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        """Do some of the request's work; calling the request off cancels it.

        One call at a time, or one inside another.

        Raises:
            WhisperServerError: what the request was called off with.
        """
        if self._error is None:
            outer = self._scope
            with anyio.CancelScope() as self._scope:
                try:
                    return await work()
                finally:
                    self._scope = outer
        assert self._error is not None
        raise self._error

    async def follow(
        self, steps: AsyncGenerator[Progress, None], *, start_s: float = 0.0, audio_s: float
    ) -> AsyncGenerator[Progress, None]:
        """The same steps as work of this request, noting how far they have come.

        Args:
            steps: of one recording.
            start_s: length of the request's recordings before this one, seconds.
            audio_s: length of this one, seconds.

        Raises:
            WhisperServerError: as `run`.
        """
        async with aclosing(steps):
            while (progress := await self.run(lambda: anext(steps, None))) is not None:
                self.place.advance(start_s + progress.position_s)
                yield progress
            self.place.advance(start_s + audio_s)


class RequestRegistry:
    """Lets requests in, knows them while they are inside, and calls them off. For one event loop.

    Args:
        admission: decides who may come in.
        deadline_s: how long a request may take; None for as long as it likes.
        on_leave: told when a request has left.
    """

    def __init__(
        self,
        admission: Admission,
        *,
        deadline_s: float | None = None,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        self._admission = admission
        self._deadline_s = deadline_s
        self._on_leave = on_leave
        self._running: list[RunningRequest] = []
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __iter__(self) -> Iterator[RunningRequest]:
        """Those inside, the oldest first."""
        return iter(tuple(self._running))

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def enter(
        self, id: str, path: str, *, key_name: str | None, address: str, timeout_s: float | None = None
    ) -> Iterator[RunningRequest]:
        """A request, inside while the block runs.

        Args:
            id: of the request.
            path: of its route.
            key_name: of the API key that opened it; None where no key was needed.
            address: where it came from.
            timeout_s: what its client gives it; the deadline holds too.

        Raises:
            ServerBusyError: as `Admission.enter`.
        """
        caller = self._admission.caller(address if key_name is None else key_name)
        with self._admission.enter(caller) as place:
            request = RunningRequest(id, path, caller, key_name, place)
            self._running.append(request)
            self._is_empty.clear()
            timer = self._timer(request, timeout_s)
            try:
                yield request
            finally:
                if timer is not None:
                    timer.cancel()
                self._running.remove(request)
                if not self._running:
                    self._is_empty.set()
                if self._on_leave is not None:
                    self._on_leave()

    def cancel(self, id: str, is_own: Callable[[RunningRequest], bool]) -> bool:
        """Call off every request of this id that the asker may call off; False where there is none."""
        found = [request for request in self._running if request.id == id and is_own(request)]
        for request in found:
            if request.stop(RequestCancelledError("The request was cancelled.")):
                self._admission.counters.cancelled += 1
                logger.info("Request %s was cancelled by its client", id)
        return bool(found)

    def drain(self, grace_s: float) -> None:
        """Let nobody in from now on; in `grace_s` seconds the server is gone."""
        self._admission.drain(grace_s)

    async def wait_until_empty(self) -> None:
        """Wait until nobody is inside."""
        await self._is_empty.wait()

    def cut(self) -> int:
        """Call off whoever is inside, since the server stops; tells how many these are."""
        message = "The server is stopping and could not finish the request. Try again later."
        for request in self._running:
            if request.stop(ServerDrainingError(message, retry_after_s=_CUT_RETRY_AFTER_S)):
                self._admission.counters.cut += 1
        return len(self._running)

    def _timer(self, request: RunningRequest, timeout_s: float | None) -> asyncio.TimerHandle | None:
        if timeout_s is not None and (self._deadline_s is None or timeout_s <= self._deadline_s):
            limit_s, whose = timeout_s, "it was given"
        elif self._deadline_s is not None:
            limit_s, whose = self._deadline_s, "a request may take. Send a shorter recording, or in parts"
        else:
            return None

        def expire() -> None:
            message = f"The request took longer than the {limit_s:.10g} seconds {whose}."
            if request.stop(DeadlineExceededError(message)):
                self._admission.counters.deadline_exceeded += 1

        return asyncio.get_running_loop().call_later(limit_s, expire)
