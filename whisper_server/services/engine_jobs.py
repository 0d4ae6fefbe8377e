"""Windows on their way through an engine."""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from whisper_server.core.audio_context import encoder_frames
from whisper_server.core.batching import batch_key
from whisper_server.core.engine import Engine
from whisper_server.core.mel import ENCODER_FRAMES
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import MAX_WINDOW_S, Decoded, LanguageProbabilities, Window

_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class Job(Generic[_Result]):
    """A window on its way through an engine.

    Attributes:
        window: what to work on.
        call: what to do with windows of its kind.
        result: what came of it.
        priority: how urgent it is.
        is_running: it is in a running call, or in one that will be tried again.
        left_engine: set once it is in no call any more.
        started_s: when its last call began.
        ended_s: when that was over.
        crashes: calls with it whose process died.
    """

    window: Window
    call: Callable[[Engine, Sequence[Window], Priority], Sequence[_Result]]
    result: asyncio.Future[_Result] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    priority: Priority = Priority.LONG_FILE
    is_running: bool = False
    left_engine: asyncio.Event = field(default_factory=asyncio.Event)
    started_s: float = 0.0
    ended_s: float = 0.0
    crashes: int = 0

    @property
    def batch_key(self) -> Hashable:
        """What jobs of one call have in common."""
        return self.call, batch_key(self.window)

    @property
    def compute_share(self) -> float:
        """What it takes of its client's share; a full context of dense speech is 1."""
        context = encoder_frames(self.window) / ENCODER_FRAMES
        return (context + self.window.duration_s / MAX_WINDOW_S) / 2

    def leave_engine(self) -> None:
        """It is in no call any more."""
        self.is_running = False
        self.left_engine.set()

    def succeed(self, result: _Result, now_s: float) -> None:
        """Its call is over; the result counts for nothing where it was called off."""
        self.leave_engine()
        self.ended_s = now_s
        if not self.result.done():
            self.result.set_result(result)

    def fail(self, error: Exception, now_s: float) -> None:
        """As `succeed`, for a call that did not."""
        self.leave_engine()
        self.ended_s = now_s
        if not self.result.done():
            self.result.set_exception(error)


def still_wanted(jobs: Sequence[Job[Any]]) -> list[Job[Any]]:
    """Those that have not been called off; the others leave the engine."""
    for job in jobs:
        if job.result.done():
            job.leave_engine()
    return [job for job in jobs if not job.result.done()]


def text_job(window: Window) -> Job[Decoded]:
    """Decode a window."""
    return Job(window, _decode)


def language_job(window: Window) -> Job[LanguageProbabilities]:
    """Tell a window's language."""
    return Job(window, _detect_language)


def _decode(engine: Engine, windows: Sequence[Window], priority: Priority) -> Sequence[Decoded]:
    return engine.decode(windows, priority)


def _detect_language(
    engine: Engine, windows: Sequence[Window], priority: Priority
) -> Sequence[LanguageProbabilities]:
    return engine.detect_language(windows, priority)
