"""What the scheduler counts, and `/debug/scheduler` shows."""

from dataclasses import dataclass


@dataclass(slots=True)
class SchedulerCounters:
    """What has happened since the start, in windows unless the name says calls.

    Attributes:
        windows_decoded: came back with a result.
        windows_dropped: called off while they waited.
        windows_wasted: called off while they ran.
        windows_failed: came back with an error.
        windows_retried: run again after their process had died.
        windows_refused: found the queue full.
        calls: to engines.
        calls_split: that failed and were run again in halves.
        calls_crashed: whose process died.
        calls_hung: that were given up.
        calls_out_of_memory: that the device could not hold.
    """

    windows_decoded: int = 0
    windows_dropped: int = 0
    windows_wasted: int = 0
    windows_failed: int = 0
    windows_retried: int = 0
    windows_refused: int = 0
    calls: int = 0
    calls_split: int = 0
    calls_crashed: int = 0
    calls_hung: int = 0
    calls_out_of_memory: int = 0
