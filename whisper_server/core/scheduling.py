"""Whose window is decoded next, and with which others: the rules of the queue, without threads or clocks."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar


class Priority(IntEnum):
    """How urgent a window is; smaller goes first."""

    LIVE_FINAL = 0
    LIVE_PARTIAL = 1
    SHORT_FILE = 2
    LONG_FILE = 3

    @property
    def is_live(self) -> bool:
        """Whether somebody is speaking and waits."""
        return self <= Priority.LIVE_PARTIAL


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a window is decoded.

    Attributes:
        client: whom to be fair to within a priority: the name of an API key, or an address.
        weight: this client's share beside one of weight 1.
        rank: before (-1) or after (1) others of the same priority, whatever those have had.
    """

    client: str = ""
    weight: float = 1.0
    rank: int = 0


_Item = TypeVar("_Item")


@dataclass(slots=True, eq=False)
class Waiting(Generic[_Item]):
    """Something in the queue.

    Attributes:
        item: what waits.
        priority: its own, before ageing.
        caller: for whom.
        batch_key: items of one batch have the same.
        cost: what it takes of its client's share, in any unit.
        entered_s: when it came.
    """

    item: _Item
    priority: Priority
    caller: Caller
    batch_key: Hashable
    cost: float
    entered_s: float


class FairQueue(Generic[_Item]):
    """Orders by priority, and within a priority shares fairly between clients.

    Within a priority the client goes first that has had least for its weight: start-time fair queueing
    (Goyal, Vin and Cheng, 1996), so a client that comes late is not owed the past. Every fourth turn belongs
    to whatever has waited longer than `ageing_s`, whatever its priority, so nothing starves and nothing
    urgent waits for more than one turn because of that.

    Args:
        ageing_s: how long something waits before it is due whatever its priority.
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._classes = {priority: _FairClass[_Item]() for priority in Priority}
        self._turns_since_aged = 0

    def __len__(self) -> int:
        return sum(len(one) for one in self._classes.values())

    def __iter__(self) -> Iterator[Waiting[_Item]]:
        """Everything that waits, the most urgent priority first."""
        for one in self._classes.values():
            yield from one

    def count(self, priority: Priority) -> int:
        """How many wait with this priority."""
        return len(self._classes[priority])

    def put(self, waiting: Waiting[_Item]) -> None:
        """Let something wait."""
        self._classes[waiting.priority].put(waiting)

    def discard(self, waiting: Waiting[_Item]) -> bool:
        """Take something out that is no longer wanted; false where it does not wait."""
        return self._classes[waiting.priority].discard(waiting)

    def take(
        self,
        now_s: float,
        limit: Callable[[Priority], int],
        *,
        most_patient: Priority = Priority.LONG_FILE,
        even_aged: bool = True,
    ) -> list[Waiting[_Item]]:
        """Take out what is next, and whatever of its priority may share a batch with it.

        A batch is done when its slowest row is, so the urgent takes nothing patient with it.

        Args:
            now_s: the time, on the clock of `entered_s`.
            limit: the most items of one batch, by priority.
            most_patient: what is more patient stays.
            even_aged: but not what has waited too long.
        """
        head = self._next(now_s, most_patient, even_aged=even_aged)
        if head is None:
            return []
        one = self._classes[head.priority]
        one.take(head)
        batch = [head]
        size = limit(head.priority)
        while len(batch) < size:
            more = one.first(lambda waiting: waiting.batch_key == head.batch_key)
            if more is None:
                break
            one.take(more)
            batch.append(more)
        return batch

    def _next(self, now_s: float, most_patient: Priority, *, even_aged: bool) -> Waiting[_Item] | None:
        head = next((first for one in self._classes.values() if (first := one.first()) is not None), None)
        oldest = min(self._heads(), key=lambda waiting: waiting.entered_s, default=None)
        is_due = even_aged and oldest is not None and now_s - oldest.entered_s > self._ageing_s
        if is_due and self._turns_since_aged + 1 >= _AGED_TURN:
            self._turns_since_aged = 0
            return oldest
        if head is None or head.priority > most_patient:
            return None
        self._turns_since_aged += 1
        return head

    def _heads(self) -> Iterator[Waiting[_Item]]:
        for one in self._classes.values():
            yield from one.heads()


_AGED_TURN = 4
"""One turn in so many belongs to what has waited too long."""


class _FairClass(Generic[_Item]):
    """The queue of one priority: a line for each client, and how much each has had."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Waiting[_Item]]] = {}
        self._had: dict[str, float] = {}
        self._virtual_time = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Waiting[_Item]]:
        for line in self._lines.values():
            yield from line

    def heads(self) -> Iterator[Waiting[_Item]]:
        """What each client has waited for longest."""
        return (line[0] for line in self._lines.values())

    def put(self, waiting: Waiting[_Item]) -> None:
        client = waiting.caller.client
        if client not in self._lines:
            self._lines[client] = deque()
            self._had[client] = max(self._had.get(client, 0.0), self._virtual_time)
        self._lines[client].append(waiting)

    def discard(self, waiting: Waiting[_Item]) -> bool:
        client = waiting.caller.client
        line = self._lines.get(client, deque())
        if waiting not in line:
            return False
        line.remove(waiting)
        if not line:
            del self._lines[client]
        return True

    def first(self, suits: Callable[[Waiting[_Item]], bool] | None = None) -> Waiting[_Item] | None:
        """The first thing that suits: by rank, then of the client that has had least, then the oldest."""
        firsts = (
            next((waiting for waiting in line if suits is None or suits(waiting)), None)
            for line in self._lines.values()
        )
        return min(
            (waiting for waiting in firsts if waiting is not None),
            key=lambda waiting: (waiting.caller.rank, self._had[waiting.caller.client], waiting.entered_s),
            default=None,
        )

    def take(self, waiting: Waiting[_Item]) -> None:
        """Take something out and charge its client."""
        client = waiting.caller.client
        least = min(self._had[name] for name in self._lines)
        self._virtual_time = max(self._virtual_time, least)
        self._had[client] += waiting.cost / waiting.caller.weight
        self.discard(waiting)
        if not self._lines:  # nobody waits: whoever comes next begins even
            self._had.clear()
            self._virtual_time = 0.0
            return
        # A client that owes nothing and waits for nothing is as good as new.
        self._had = {
            name: had for name, had in self._had.items() if name in self._lines or had > self._virtual_time
        }
