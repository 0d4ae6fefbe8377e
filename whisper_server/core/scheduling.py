"""Whose window is decoded next, and with which others: the rules of the queue, without threads or clocks."""

from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """How urgent a window is; smaller goes first."""

    LIVE_FINAL = 0
    LIVE_PARTIAL = 1
    SHORT_FILE = 2
    LONG_FILE = 3


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a window is decoded.

    Attributes:
        client: whom to be fair to within a priority: the name of an API key, or an address.
        weight: this client's share beside one of weight 1.
    """

    client: str = ""
    weight: float = 1.0
