"""Who may come in, and when the others are told to come back."""

import pytest

from whisper_server.core.errors import ServerBusyError
from whisper_server.services.admission import Admission


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def retry_after_s(admission: Admission) -> float:
    with pytest.raises(ServerBusyError) as caught, admission.enter():
        pass
    return caught.value.retry_after_s


def serve(admission: Admission, clock: Clock, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        with admission.enter():
            clock.now_s += seconds


def test_no_more_than_the_limit_are_inside() -> None:
    admission = Admission(2)
    with admission.enter(), admission.enter():
        assert admission.inside == 2
        with pytest.raises(ServerBusyError, match="busy with 2 requests"), admission.enter():
            pass
        assert admission.inside == 2
    assert admission.inside == 0


def test_who_leaves_makes_room_also_after_an_error() -> None:
    admission = Admission(1)
    with pytest.raises(ValueError, match="broken"), admission.enter():
        raise ValueError("broken")
    with admission.enter():
        assert admission.inside == 1


def test_nobody_is_told_to_come_back_at_once(clock: Clock) -> None:
    admission = Admission(1, clock)
    with admission.enter():
        assert retry_after_s(admission) == 1
    serve(admission, clock, seconds=0.001, times=100)
    with admission.enter():
        assert retry_after_s(admission) == 1


def test_the_time_to_come_back_is_how_long_it_takes_until_one_leaves(clock: Clock) -> None:
    admission = Admission(1, clock)
    serve(admission, clock, seconds=20.0, times=50)
    with admission.enter():
        assert retry_after_s(admission) == 20


def test_requests_side_by_side_leave_more_often(clock: Clock) -> None:
    admission = Admission(2, clock)
    for _ in range(50):
        with admission.enter(), admission.enter():
            clock.now_s += 20.0
    with admission.enter(), admission.enter():
        assert retry_after_s(admission) <= 12


def test_an_idle_night_does_not_count(clock: Clock) -> None:
    admission = Admission(1, clock)
    serve(admission, clock, seconds=2.0, times=50)
    clock.now_s += 36_000
    serve(admission, clock, seconds=2.0)
    with admission.enter():
        assert retry_after_s(admission) == 2
