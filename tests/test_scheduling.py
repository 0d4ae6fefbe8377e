"""The queue's rules: priority, fairness between clients, ageing, batches."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_server.core.scheduling import Caller, FairQueue, Priority, Waiting


class Line:
    """A queue with a clock, of items named by text."""

    def __init__(self, ageing_s: float = 1000.0) -> None:
        self.queue: FairQueue[str] = FairQueue(ageing_s)
        self.now_s = 0.0

    def put(
        self,
        item: str,
        priority: Priority = Priority.SHORT_FILE,
        client: str = "",
        *,
        weight: float = 1.0,
        key: str = "",
        cost: float = 1.0,
    ) -> Waiting[str]:
        waiting = Waiting(item, priority, Caller(client, weight), key, cost, self.now_s)
        self.queue.put(waiting)
        return waiting

    def take(self, limit: int = 1) -> list[str]:
        return [waiting.item for waiting in self.queue.take(self.now_s, lambda _: limit)]

    def drain(self) -> list[str]:
        taken = []
        while batch := self.take():
            taken += batch
        return taken


def test_the_urgent_goes_first_whatever_came_first() -> None:
    line = Line()
    for priority in reversed(Priority):
        line.put(priority.name, priority)
    assert line.drain() == ["LIVE_FINAL", "LIVE_PARTIAL", "SHORT_FILE", "LONG_FILE"]


def test_a_client_with_many_windows_shares_with_one_that_has_few() -> None:
    line = Line()
    for number in range(4):
        line.put(f"many {number}", client="many")
    line.put("few 0", client="few")
    line.put("few 1", client="few")
    assert line.drain() == ["many 0", "few 0", "many 1", "few 1", "many 2", "many 3"]


def test_a_client_gets_its_weight() -> None:
    line = Line()
    for _ in range(90):
        line.put("heavy", client="heavy", weight=2.0)
        line.put("light", client="light")
    shares = Counter(item for _ in range(90) for item in line.take())
    assert shares == {"heavy": 60, "light": 30}


def test_a_client_pays_by_cost_not_by_count() -> None:
    line = Line()
    for _ in range(40):
        line.put("dear", client="a", cost=3.0)
        line.put("cheap", client="b", cost=1.0)
    shares = Counter(item for _ in range(40) for item in line.take())
    assert shares["cheap"] == pytest.approx(3 * shares["dear"], abs=2)


def test_a_client_that_comes_late_is_not_owed_the_past() -> None:
    line = Line()
    for _ in range(50):
        line.put("old", client="old")
    for _ in range(20):
        line.take()
    for _ in range(20):
        line.put("new", client="new")
    shares = Counter(item for _ in range(20) for item in line.take())
    assert shares["new"] == pytest.approx(10, abs=1)


def test_a_client_that_never_has_two_windows_waiting_still_pays_for_what_it_had() -> None:
    line = Line()
    for _ in range(30):
        line.put("crowd", client="crowd")
    line.put("single", client="single")
    taken = []
    for _ in range(20):
        taken += line.take()
        if taken[-1] == "single":  # like a long file: the next window comes after the one before
            line.put("single", client="single")
    assert Counter(taken)["single"] == pytest.approx(10, abs=1)


def test_clients_that_wait_for_nothing_are_forgotten() -> None:
    line = Line()
    for number in range(1000):
        line.put("clip", client=str(number))
        assert line.take() == ["clip"]
    line.put("first", client="a")
    line.put("second", client="0")
    assert line.drain() == ["first", "second"], "nobody owes for a time in which nobody waited"


def test_a_batch_takes_what_agrees_up_to_its_limit_and_leaves_the_rest_in_order() -> None:
    line = Line()
    for item, key in (("a0", "a"), ("b0", "b"), ("a1", "a"), ("a2", "a"), ("b1", "b")):
        line.put(item, key=key)
    assert [line.take(2), line.take(8), line.take(8)] == [["a0", "a1"], ["b0", "b1"], ["a2"]]


def test_a_batch_is_shared_between_clients() -> None:
    line = Line()
    for number in range(3):
        line.put(f"a{number}", client="a")
        line.put(f"b{number}", client="b")
    assert line.take(4) == ["a0", "b0", "a1", "b1"]


def test_nothing_patient_rides_in_an_urgent_batch() -> None:
    line = Line()
    line.put("file", Priority.LONG_FILE)
    line.put("clip", Priority.SHORT_FILE)
    assert line.take(8) == ["clip"]


def test_what_has_waited_too_long_gets_a_turn_in_four() -> None:
    line = Line(ageing_s=10.0)
    line.put("file 0", Priority.LONG_FILE)
    line.put("file 1", Priority.LONG_FILE)
    line.now_s = 11.0
    for number in range(12):
        line.put(f"clip {number}")
    taken = [item for _ in range(8) for item in line.take()]
    assert [index for index, item in enumerate(taken) if item.startswith("file")] == [3, 7]


def test_before_its_time_nothing_patient_passes() -> None:
    line = Line(ageing_s=10.0)
    line.put("file", Priority.LONG_FILE)
    for number in range(8):
        line.put(f"clip {number}")
    line.now_s = 10.0
    assert "file" not in [item for _ in range(8) for item in line.take()]


def test_what_is_discarded_is_never_taken_and_charged_to_nobody() -> None:
    line = Line()
    gone = line.put("gone", client="a")
    line.put("stays", client="a")
    line.put("other", client="b")
    assert line.queue.discard(gone)
    assert not line.queue.discard(gone)
    assert line.drain() == ["stays", "other"]


def test_ranks_go_one_after_the_other_within_a_priority() -> None:
    queue: FairQueue[str] = FairQueue(1000.0)
    for item, priority, rank in (
        ("low clip", Priority.SHORT_FILE, 1),
        ("clip", Priority.SHORT_FILE, 0),
        ("high clip", Priority.SHORT_FILE, -1),
        ("high file", Priority.LONG_FILE, -1),
    ):
        queue.put(Waiting(item, priority, Caller(item, rank=rank), "", 1.0, 0.0))
    order = [queue.take(0.0, lambda _: 1)[0].item for _ in range(4)]
    assert order == ["high clip", "clip", "low clip", "high file"]


puts = st.tuples(
    st.sampled_from(list(Priority)), st.sampled_from("abc"), st.sampled_from("xy"), st.floats(0.1, 4)
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.one_of(puts, st.integers(1, 4), st.just("discard")), max_size=60))
def test_everything_is_taken_once_and_batches_agree(events: list[object]) -> None:
    line = Line(ageing_s=5.0)
    waiting: dict[str, Waiting[str]] = {}
    for number, event in enumerate(events):
        line.now_s = float(number)
        if isinstance(event, tuple):
            priority, client, key, cost = event
            name = str(number)
            waiting[name] = line.put(name, priority, client, key=key, cost=cost)
        elif isinstance(event, int):
            taken = [waiting.pop(item) for item in line.take(event)]
            assert len(taken) <= event
            assert len({(one.batch_key, one.priority) for one in taken}) <= 1
            assert bool(taken) or not waiting
        elif waiting:
            assert line.queue.discard(waiting.pop(next(iter(waiting))))
        assert {one.item for one in line.queue} == waiting.keys()
        assert len(line.queue) == len(waiting)
    assert sorted(line.drain()) == sorted(waiting)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_nothing_starves_under_an_endless_stream_of_the_urgent(clients: int, seed: int) -> None:
    line = Line(ageing_s=5.0)
    patient = [f"patient {number}" for number in range(10)]
    for item in patient:
        line.put(item, Priority.LONG_FILE, client=str(seed % clients))
    served: list[str] = []
    for turn in range(100):
        line.now_s = float(turn)
        line.put("urgent", Priority.LIVE_FINAL, client=str(turn % clients))
        line.put("urgent", Priority.LIVE_FINAL, client=str(turn % clients))
        served += line.take()
    assert set(patient) <= set(served)


def test_what_is_aged_can_be_left_where_it_is() -> None:
    queue: FairQueue[str] = FairQueue(ageing_s=1.0)
    queue.put(Waiting("file", Priority.LONG_FILE, Caller(), None, 1.0, 0.0))
    for number in range(4):
        queue.put(Waiting(f"final {number}", Priority.LIVE_FINAL, Caller(), None, 1.0, 9.0))
    taken = [
        waiting.item
        for _ in range(5)
        for waiting in queue.take(10.0, lambda _: 1, most_patient=Priority.LIVE_FINAL, even_aged=False)
    ]
    assert taken == [f"final {number}" for number in range(4)]
    assert [waiting.item for waiting in queue.take(10.0, lambda _: 1)] == ["file"]
