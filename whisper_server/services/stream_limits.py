"""What live streams share, and what they may use."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from whisper_server.core.engine import Engine
from whisper_server.core.errors import UnsupportedByEngineError
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.stream_events import StreamOptions
from whisper_server.core.types import SAMPLE_RATE, Task, Window
from whisper_server.services.scheduler import Backlog, TimedDecode
from whisper_server.services.session_registry import SessionRegistry

_BYTES_PER_S = SAMPLE_RATE * 2


class Decodes(Protocol):
    """What a stream needs of the scheduler."""

    async def decode_timed(
        self, engine: Engine, window: Window, *, priority: Priority, caller: Caller | None = None
    ) -> TimedDecode:
        """Decode one window; see `Scheduler`."""

    def backlog(self) -> Backlog:
        """What waits and runs now."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What live streams may use.

    Attributes:
        max_sessions: at once.
        max_buffer_s: audio of one stream that may wait to be listened to; `send` waits beyond that.
        max_buffer_bytes: the same in bytes; None leaves it to `max_buffer_s`.
        max_total_buffer_bytes: audio held by all streams together.
        memory_timeout_s: how long `send` waits for room in that before it fails.
        max_pending_finals: finals of one stream that wait or run; the stream listens no further beyond that.
        decode_queue_timeout_s: how long a final waits for room in the scheduler's queue.
        decode_timeout_s: how long a stream that ends waits for the next of its last finals; None for ever.
        max_queue_depth: live decodes waiting in all, above which no new stream is opened.
        max_estimated_wait_s: estimated delay of a final, above which no new stream is opened.
        max_unread_events: of one stream; a client that reads no further loses its session.
    """

    max_sessions: int = 100
    max_buffer_s: float = 5.0
    max_buffer_bytes: int | None = None
    max_total_buffer_bytes: int = 64 << 20
    memory_timeout_s: float = 10.0
    max_pending_finals: int = 8
    decode_queue_timeout_s: float = 10.0
    decode_timeout_s: float | None = 120.0
    max_queue_depth: int = 20
    max_estimated_wait_s: float = 0.5
    max_unread_events: int = 256

    @property
    def buffer_bytes(self) -> int:
        """Audio of one stream that may wait."""
        by_time = int(self.max_buffer_s * _BYTES_PER_S)
        return by_time if self.max_buffer_bytes is None else min(by_time, self.max_buffer_bytes)


@dataclass(frozen=True, slots=True)
class StreamTools:
    """What the streams of a service share.

    Attributes:
        limits: what a stream may use.
        scheduler: runs the engines.
        registry: knows all streams.
        listeners: threads for voice detection.
        clock: seconds, monotonic.
    """

    limits: StreamLimits
    scheduler: Decodes
    registry: SessionRegistry
    listeners: Executor
    clock: Callable[[], float] = time.monotonic


def check_options(engine: Engine, options: StreamOptions) -> None:
    """Refuse what a model cannot do, before any audio comes.

    Raises:
        UnsupportedByEngineError: naming the field.
    """
    can = engine.capabilities
    wanted = {*options.languages} | ({options.language} if options.language else set())
    unknown = sorted(wanted - can.languages)
    if unknown:
        raise UnsupportedByEngineError(
            f"This model cannot transcribe the language '{unknown[0]}'.",
            param="language",
            code="unsupported_language",
        )
    if options.task is Task.TRANSLATE and not can.translation:
        raise UnsupportedByEngineError("This model cannot translate.", param="task", code="unsupported_task")
    if options.hotwords and not can.hotwords:
        raise UnsupportedByEngineError(f"The engine '{can.engine}' takes no hotwords.", param="hotwords")
    if (options.word_timestamps or options.token_logprobs) and not can.word_timestamps:
        raise UnsupportedByEngineError(
            f"The engine '{can.engine}' gives no word timestamps.", param="word_timestamps"
        )
