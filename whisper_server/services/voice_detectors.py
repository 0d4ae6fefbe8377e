"""Keeps voice detectors for live streams: made before they are needed, and used again."""

import math
from collections.abc import Callable
from typing import Protocol

from anyio import to_thread

from whisper_server.core.engine import VoiceDetector
from whisper_server.core.errors import VoiceDetectorsExhaustedError

_RETRY_AFTER_S = 5.0


class ReusableVoiceDetector(VoiceDetector, Protocol):
    """A detector that can forget what it heard."""

    def reset(self) -> None:
        """As if it were new."""


class VoiceDetectorPool:
    """Lends detectors. For one event loop.

    The pool starts with `size` places. When all are taken it grows by `growth_factor`, up to `cap`; after
    that nobody gets one.

    Args:
        new_detector: makes one. Blocking.
        size: places at the start; 0 takes `cap`.
        prewarm: detectors made by `prewarm()`, at most `size`.
        growth_factor: by which it grows, at least by one place.
        cap: most places.
    """

    def __init__(
        self,
        new_detector: Callable[[], ReusableVoiceDetector],
        *,
        size: int = 0,
        prewarm: int = 1,
        growth_factor: float = 1.5,
        cap: int = 100,
    ) -> None:
        self._new_detector = new_detector
        self._cap = cap
        self._places = min(size, cap) or cap
        self._prewarm = min(prewarm, self._places)
        self._growth_factor = growth_factor
        self._idle: list[ReusableVoiceDetector] = []
        self._lent = 0

    @property
    def places(self) -> int:
        """How many detectors there may be now."""
        return self._places

    @property
    def lent(self) -> int:
        """How many are in use."""
        return self._lent

    @property
    def idle(self) -> int:
        """How many wait to be used again."""
        return len(self._idle)

    async def prewarm(self) -> None:
        """Make the first detectors, so that the first streams do not wait for them."""
        while len(self._idle) + self._lent < self._prewarm:
            self._idle.append(await to_thread.run_sync(self._new_detector))

    async def acquire(self) -> ReusableVoiceDetector:
        """A detector that has heard nothing; give it back with `release`.

        Raises:
            VoiceDetectorsExhaustedError: all are in use, and there may be no more.
        """
        if self._lent >= self._places:
            self._grow()
        self._lent += 1
        if self._idle:
            return self._idle.pop()
        try:
            return await to_thread.run_sync(self._new_detector)
        except BaseException:
            self._lent -= 1
            raise

    def release(self, detector: ReusableVoiceDetector) -> None:
        """Take a detector back."""
        self._lent -= 1
        detector.reset()
        self._idle.append(detector)

    def _grow(self) -> None:
        if self._places >= self._cap:
            raise VoiceDetectorsExhaustedError(
                f"All {self._cap} voice detectors are in use by live sessions. Try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._places = min(self._cap, max(self._places + 1, math.floor(self._places * self._growth_factor)))
