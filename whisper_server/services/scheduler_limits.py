"""Bounds of what the scheduler takes and runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of each engine's queue.

    Attributes:
        max_batch: the most windows of one call; None leaves it to the engine.
        max_waiting: windows that may wait; more are refused.
        ageing_s: a window that has waited so long is due whatever its priority.
        call_timeout_s: for each window of a call; a call that takes longer has hung.
    """

    max_batch: int | None = None
    max_waiting: int = 2048
    ageing_s: float = 5.0
    call_timeout_s: float = 120.0
