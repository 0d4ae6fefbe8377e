"""Which step of which call a model's workers compute next."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from whisper_server.core.scheduling import Priority


class WorkerTurns:
    """Gives the steps of calls their turns, the more urgent ones first. Thread-safe.

    A step, such as encoding a window or decoding a batch, cannot be interrupted, and takes seconds on a slow
    processor. With a spare worker a step does not wait for more patient ones: it begins beside them, and the
    system shares the processor between both. As urgent ones are computed one after the other all the same,
    so that each is done sooner.

    Args:
        workers: steps of one priority that are computed at once.
        spare: so many more for those that are more urgent than what is being computed.
        computing: what a step is computed inside of.
    """

    def __init__(
        self,
        workers: int,
        *,
        spare: int,
        computing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._computing = computing
        self._workers = workers
        self._places = workers + spare
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: list[tuple[Priority, int]] = []
        self._running: list[Priority] = []

    @property
    def waiting(self) -> int:
        """Steps that wait for their turn."""
        with self._changed:
            return len(self._waiting)

    @contextmanager
    def turn(self, priority: Priority) -> Iterator[None]:
        """Wait for a step's turn, and compute it inside the block."""
        ticket = (priority, next(self._numbers))
        with self._changed:
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(lambda: ticket == min(self._waiting) and self._has_place(priority))
                self._running.append(priority)
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            with self._computing():
                yield
        finally:
            with self._changed:
                self._running.remove(priority)
                self._changed.notify_all()

    def _has_place(self, priority: Priority) -> bool:
        as_urgent = sum(running <= priority for running in self._running)
        return as_urgent < self._workers and len(self._running) < self._places
