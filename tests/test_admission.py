"""Who may come in, and when the others are told to come back."""

import threading
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI, RateLimitError

from tests.media import tone, wav
from tests.wire import (
    FORM_TYPE,
    ROUTE,
    Background,
    connection,
    error_of,
    head,
    read_until,
    request,
    scripted_server,
    wait_until,
)
from whisper_server.core.admission import (
    MAX_RETRY_AFTER_S,
    AdmissionLimits,
    ClientLimits,
    Holding,
    Refusal,
)
from whisper_server.core.errors import AudioTooLongError, ServerBusyError, ServerDrainingError
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.engines.scripted import ScriptedEngine, Step, scripted_capabilities
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


def admission_of(
    max_requests: int = 100,
    *,
    clients: dict[str, ClientLimits] | None = None,
    lanes: int = 1,
    clock: Clock | None = None,
    **limits: float,
) -> Admission:
    return Admission(
        AdmissionLimits(max_requests, **limits), clients=clients or {}, lanes=lanes, clock=clock or Clock()
    )


def refusal(admission: Admission, client: str = "") -> ServerBusyError:
    with pytest.raises(ServerBusyError) as caught, admission.enter(admission.caller(client)):
        pass
    return caught.value


def retry_after_s(admission: Admission, client: str = "") -> float:
    return refusal(admission, client).retry_after_s


def serve(admission: Admission, clock: Clock, seconds: float, times: int = 1, audio_s: float = 0) -> None:
    """Requests one after the other, each of which computes for so long."""
    for _ in range(times):
        with admission.enter() as place:
            if audio_s:
                place.hold(audio_s)
                place.advance(0.0)
            clock.now_s += seconds
            place.advance(audio_s)


def test_no_more_than_the_limit_are_inside() -> None:
    admission = admission_of(2)
    with admission.enter(), admission.enter():
        assert admission.inside == 2
        with pytest.raises(ServerBusyError, match="busy with 2 requests"), admission.enter():
            pass
        assert admission.inside == 2
    assert admission.inside == 0
    assert admission.counters.admitted == 2
    assert admission.counters.refused[Refusal.REQUESTS] == 1


def test_who_leaves_makes_room_also_after_an_error() -> None:
    admission = admission_of(1)

    def break_off() -> None:
        with admission.enter() as place:
            place.hold(10.0)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        break_off()
    assert admission.buffered_audio_s == admission.backlog_s == 0
    with admission.enter():
        assert admission.inside == 1


def test_nobody_is_told_to_come_back_at_once(clock: Clock) -> None:
    admission = admission_of(1, clock=clock)
    with admission.enter():
        assert retry_after_s(admission) == 1
    serve(admission, clock, seconds=0.001, times=100)
    with admission.enter():
        assert retry_after_s(admission) == 1


def test_nobody_is_told_to_stay_away_for_hours(clock: Clock) -> None:
    admission = admission_of(1, clock=clock)
    serve(admission, clock, seconds=5 * 3600, times=50)
    with admission.enter():
        assert retry_after_s(admission) == MAX_RETRY_AFTER_S


def test_the_time_to_come_back_is_how_long_it_takes_until_one_leaves(clock: Clock) -> None:
    admission = admission_of(1, clock=clock)
    serve(admission, clock, seconds=20.0, times=50)
    with admission.enter():
        assert retry_after_s(admission) == 20


def test_requests_side_by_side_leave_more_often(clock: Clock) -> None:
    admission = admission_of(2, clock=clock)
    for _ in range(50):
        with admission.enter(), admission.enter():
            clock.now_s += 20.0
    with admission.enter(), admission.enter():
        assert retry_after_s(admission) == 10


def test_an_idle_night_does_not_count(clock: Clock) -> None:
    admission = admission_of(1, clock=clock)
    serve(admission, clock, seconds=2.0, times=50, audio_s=20.0)
    clock.now_s += 36_000
    serve(admission, clock, seconds=2.0, audio_s=20.0)
    assert admission.compute_per_audio_s == pytest.approx(0.1)
    with admission.enter():
        assert retry_after_s(admission) == 2


# How fast the work gets done


def test_computing_side_by_side_is_shared_between_those_who_do_it(clock: Clock) -> None:
    """Two of 10 s, both done after 4 s on one lane: each took 2 s of it."""
    admission = admission_of(clock=clock)
    with admission.enter() as one, admission.enter() as other:
        for place in (one, other):
            place.hold(10.0)
            place.advance(0.0)
        clock.now_s += 4.0
        for place in (one, other):
            place.advance(10.0)
    assert admission.compute_per_audio_s == pytest.approx(0.2)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_more_lanes_get_the_same_backlog_done_sooner(clock: Clock, lanes: int) -> None:
    admission = admission_of(clock=clock, lanes=lanes, max_estimated_wait_s=5.0)
    serve(admission, clock, seconds=1.0, times=5, audio_s=10.0)
    with admission.enter() as place:
        place.hold(60.0)
        place.advance(0.0)
        if lanes == 1:
            assert retry_after_s(admission) == 1, "6 s of work against 5 that may be"
        else:
            with admission.enter():
                pass


def test_a_long_recording_counts_as_it_gets_done_and_called_off_ones_with_what_they_did(clock: Clock) -> None:
    admission = admission_of(clock=clock)
    with admission.enter() as place:
        place.hold(3600.0)
        place.advance(0.0)
        assert admission.compute_per_audio_s is None
        clock.now_s += 3.0
        place.advance(30.0)
        assert admission.compute_per_audio_s == pytest.approx(0.1)
        assert admission.backlog_s == 3570
        clock.now_s += 1000  # a window that was never finished
    assert admission.compute_per_audio_s == pytest.approx(0.1)
    assert admission.backlog_s == 0


def test_the_measure_follows_a_machine_that_becomes_slower(clock: Clock) -> None:
    admission = admission_of(clock=clock)
    serve(admission, clock, seconds=1.0, times=1000, audio_s=10.0)
    serve(admission, clock, seconds=10.0, times=60, audio_s=10.0)
    assert admission.compute_per_audio_s == pytest.approx(1.0, rel=0.02)


def test_what_was_measured_elsewhere_counts_too() -> None:
    admission = admission_of(max_estimated_wait_s=10.0)
    admission.note(100.0, 50.0)
    with admission.enter() as place:
        place.hold(60.0)
        assert retry_after_s(admission) == 20


def test_another_estimate_counts_where_it_is_longer() -> None:
    def wait_s(priority: Priority) -> float:
        return {Priority.SHORT_FILE: 12.5}.get(priority, 0.0)

    admission = Admission(AdmissionLimits(9, max_estimated_wait_s=10.0), estimated_wait_s=wait_s)
    assert retry_after_s(admission) == 3


# The estimated wait


@pytest.fixture
def measured(clock: Clock) -> Admission:
    """Computes a tenth of the time it hears, and lets nobody wait longer than 10 s."""
    admission = admission_of(
        clock=clock,
        max_estimated_wait_s=10.0,
        clients={"urgent": ClientLimits(rank=-1), "twice": ClientLimits(weight=2.0)},
    )
    admission.note(1000.0, 100.0)
    return admission


def test_the_wait_ahead_is_the_audio_not_yet_done(measured: Admission) -> None:
    with measured.enter() as one, measured.enter() as other:
        one.hold(60.0)
        other.hold(60.0)
        assert retry_after_s(measured) == 2
        one.advance(20.0)
        assert measured.wait_s(Holding(Caller(), Priority.SHORT_FILE)) == 10
        with measured.enter():
            pass
    assert measured.counters.refused[Refusal.ESTIMATED_WAIT] == 1


def test_a_short_recording_does_not_wait_for_a_long_one_but_a_long_one_does(measured: Admission) -> None:
    with measured.enter() as long, measured.enter() as short, measured.enter() as second:
        long.hold(3600.0)
        short.hold(3.0)
        with pytest.raises(ServerBusyError, match="takes another 360 seconds") as busy:
            second.hold(3600.0)
        assert busy.value.retry_after_s == 351
        second.hold(3.0)


def test_one_who_floods_the_server_is_told_to_wait_and_others_are_not(measured: Admission) -> None:
    with ExitStack() as inside:
        for _ in range(3):
            inside.enter_context(measured.enter(measured.caller("flood"))).hold(50.0)
        assert retry_after_s(measured, "flood") == 5
        with measured.enter(measured.caller("other")) as place:
            place.hold(50.0)
            assert retry_after_s(measured, "flood") == 10
            assert measured.wait_s(Holding(Caller("other"), Priority.SHORT_FILE)) == 10
            assert measured.wait_s(Holding(Caller("twice", 2.0), Priority.SHORT_FILE)) == 0


def test_an_urgent_client_does_not_wait_for_others(measured: Admission) -> None:
    with measured.enter(measured.caller("a")) as place:
        place.hold(50.0)
        with measured.enter(measured.caller("urgent")) as urgent:
            urgent.hold(50.0)
            assert urgent.holding.turn < place.holding.turn
            assert measured.wait_s(Holding(measured.caller("urgent"))) == 5
            assert measured.wait_s(Holding(measured.caller("a"))) == 5 + 5
        assert measured.caller("twice") == Caller("twice", weight=2.0)


def test_nothing_is_refused_for_its_wait_before_anything_was_measured() -> None:
    admission = admission_of(max_estimated_wait_s=0.1)
    with admission.enter() as place:
        place.hold(10_000.0)
        with admission.enter() as other:
            other.hold(10_000.0)


# Audio in memory


def test_audio_that_does_not_fit_is_told_when_it_will(clock: Clock) -> None:
    """At a tenth of real time 100 and 300 s, side by side, are done after 20 and 40 s."""
    admission = admission_of(clock=clock, max_buffered_audio_s=500.0)
    admission.note(1000.0, 100.0)
    with admission.enter() as one, admission.enter() as other, admission.enter() as third:
        one.hold(100.0)
        other.hold(300.0)
        assert admission.buffered_audio_s == 400
        for wanted_s, after_s in ((150.0, 20), (250.0, 40)):
            with pytest.raises(ServerBusyError, match="holds 400 seconds") as busy:
                third.hold(wanted_s)
            assert busy.value.retry_after_s == after_s
        third.hold(100.0)
        assert refusal(admission).message.startswith("The server holds 500 seconds of audio"), "at the door"
    assert admission.counters.refused[Refusal.BUFFERED_AUDIO] == 3
    with admission.enter() as place:
        place.hold(500.0)


def test_audio_that_can_never_fit_is_not_told_to_come_back() -> None:
    admission = admission_of(max_buffered_audio_s=100.0, clients={"a": ClientLimits(max_buffered_audio_s=50)})
    with admission.enter() as place, admission.enter(admission.caller("a")) as limited:
        with pytest.raises(AudioTooLongError, match="longer than 100 seconds, the most this server holds"):
            place.hold(100.5)
        with pytest.raises(AudioTooLongError, match="longer than 50 seconds, the most the client 'a'"):
            limited.hold(50.5)
        limited.hold(30.0)
        with pytest.raises(AudioTooLongError, match="50 seconds"):
            limited.hold(30.0)  # another recording of the same request


def test_audio_that_is_being_decoded_takes_room_as_it_grows() -> None:
    admission = admission_of(max_buffered_audio_s=100.0)
    with admission.enter() as one, admission.enter() as other:
        one.reserve(30.0)
        one.reserve(60.0)
        assert admission.buffered_audio_s == 60
        other.reserve(30.0)
        with pytest.raises(ServerBusyError, match="holds 60 seconds of audio and has no room"):
            other.reserve(60.0)
        assert admission.buffered_audio_s == 60, "what was refused is dropped"
        one.hold(70.0)
        assert admission.buffered_audio_s == 70
        one.reserve(30.0)  # another recording of the same request
        assert admission.buffered_audio_s == 100
        one.hold(30.0)
        with pytest.raises(AudioTooLongError, match="the most this server holds"):
            one.reserve(30.0)
    assert admission.buffered_audio_s == 0
    assert admission.counters.refused[Refusal.BUFFERED_AUDIO] == 1


def test_audio_of_a_client_that_is_being_decoded_counts_for_the_client() -> None:
    admission = admission_of(clients={"a": ClientLimits(max_buffered_audio_s=50.0)})
    caller = admission.caller("a")
    with admission.enter(caller) as one, admission.enter(caller) as other, admission.enter() as stranger:
        stranger.reserve(1000.0)
        one.reserve(30.0)
        with pytest.raises(ServerBusyError, match="'a' has 30 seconds of audio inside"):
            other.reserve(30.0)
        with pytest.raises(AudioTooLongError, match="50 seconds, the most the client 'a'"):
            one.reserve(60.0)


# Limits of single clients


def test_a_client_has_limits_of_its_own_and_all_others_those_of_the_default() -> None:
    clients = {"a": ClientLimits(max_requests=2), "default": ClientLimits(max_requests=1)}
    admission = admission_of(3, clients=clients)
    with admission.enter(admission.caller("a")), admission.enter(admission.caller("a")):
        assert "'a' has 2 requests inside" in refusal(admission, "a").message
        with admission.enter(admission.caller("b")):
            assert "'b' has 1 requests inside" in refusal(admission, "b").message
            assert "busy with 3 requests" in refusal(admission, "c").message
    assert admission.counters.refused[Refusal.CLIENT_REQUESTS] == 2
    assert admission.counters.refused[Refusal.REQUESTS] == 1


def test_a_client_may_hold_so_much_audio(clock: Clock) -> None:
    admission = admission_of(clock=clock, clients={"a": ClientLimits(max_buffered_audio_s=100.0)})
    admission.note(1000.0, 100.0)
    caller = admission.caller("a")
    with admission.enter(caller) as one, admission.enter(caller) as other, admission.enter() as stranger:
        stranger.hold(1000.0)
        one.hold(60.0)
        with pytest.raises(ServerBusyError, match="'a' has 60 seconds of audio inside, and may have 100"):
            other.hold(60.0)
        other.hold(40.0)
        assert retry_after_s(admission, "a") == 12, "three share one lane; the 40 s are done first"
        with admission.enter():
            pass
    assert admission.counters.refused[Refusal.CLIENT_BUFFERED_AUDIO] == 2


def test_a_server_that_stops_takes_nobody_in_and_says_when_it_is_gone(clock: Clock) -> None:
    admission = admission_of(clock=clock)
    with admission.enter() as place:
        admission.drain(30.0)
        place.hold(10.0)
        clock.now_s += 10.4
        error = refusal(admission)
        assert type(error) is ServerDrainingError
        assert error.retry_after_s == 20
    assert admission.is_draining
    assert admission.counters.refused[Refusal.DRAINING] == 1


# Over HTTP.

AUDIO = wav(tone(2.0))
LIMITS = {"max_waiting_requests": 2}


def transcribe(url: str) -> httpx.Response:
    return request("POST", f"{url}{ROUTE}", files={"file": AUDIO})


def inside(url: str, count: int) -> None:
    wait_until(url, lambda state: state["requests_inside"] == count)


def test_the_third_of_two_is_told_to_come_back_and_the_others_are_served() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step("first", gate=gate)], then=Step("later"))
    with scripted_server(engine, limits=LIMITS) as url:
        first = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        second = Background(lambda: transcribe(url))
        inside(url, 2)
        with OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            with pytest.raises(RateLimitError) as busy:
                client.audio.transcriptions.create(file=AUDIO, model="demo")
            assert client.models.list().data, "only work is limited"
        gate.set()
        assert first.result().json()["text"] == "first"
        assert second.result().json()["text"] == "later"
        inside(url, 0)
        assert transcribe(url).json()["text"] == "later"
    assert busy.value.code == "server_busy"
    assert busy.value.type == "rate_limit_error"
    assert int(busy.value.response.headers["retry-after"]) >= 1
    assert busy.value.response.headers["x-should-retry"] == "true"
    error_of(busy.value.response)
    assert len(engine.windows) == 3


def test_the_upload_of_a_refused_request_is_not_read() -> None:
    """It is refused before it is asked to go on, and before a byte of its body has come."""
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    with scripted_server(engine, limits={"max_waiting_requests": 1}) as url:
        first = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        for more in ({"Expect": "100-continue"}, {}):
            with connection(url) as wire:
                wire.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": "20000000", **more}))
                answer = read_until(wire, b"server_busy")
            assert answer.startswith(b"HTTP/1.1 429 ")
        gate.set()
        first.result().raise_for_status()


def test_a_refused_client_that_sends_everything_first_can_still_read_why() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    with scripted_server(engine, limits={"max_waiting_requests": 1}) as url:
        first = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        size = 20_000_000
        with connection(url) as wire:
            headers = {"Content-Type": FORM_TYPE, "Content-Length": str(size), "Connection": "close"}
            wire.sendall(head(headers))
            wire.sendall(bytes(size))
            assert read_until(wire, b"server_busy").startswith(b"HTTP/1.1 429 ")
        gate.set()
        first.result().raise_for_status()


def test_the_sdk_tries_again_by_itself_and_is_served() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    with scripted_server(engine, limits={"max_waiting_requests": 1}) as url:
        first = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        refused = threading.Event()

        def release(response: Any) -> None:
            if response.status_code == 429:
                refused.set()
                gate.set()

        http = DefaultHttpxClient(event_hooks={"response": [release]})
        with OpenAI(base_url=f"{url}/v1", api_key="x", http_client=http, max_retries=5) as client:
            assert client.audio.transcriptions.create(file=AUDIO, model="demo").text == "as scripted"
        assert refused.is_set()
        first.result().raise_for_status()


def test_an_engine_that_fails_fails_one_request_and_leaves_no_trace_in_the_count() -> None:
    gate = threading.Event()
    failure = RuntimeError("CUDA error in /secret/path/kernel.cu")
    engine = ScriptedEngine(
        [Step("fine", gate=gate), Step(error=failure), Step("fine")],
        capabilities=scripted_capabilities(parallel_calls=2),
    )
    with scripted_server(engine, limits=LIMITS) as url:
        neighbour = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        failed = transcribe(url)
        gate.set()
        assert neighbour.result().json()["text"] == "fine"
        assert transcribe(url).json()["text"] == "fine"
        inside(url, 0)
    assert failed.status_code == 500
    error = error_of(failed)
    assert (error["type"], error["code"], error["param"]) == ("server_error", "inference_failed", None)
    assert "secret" not in failed.text
    assert "CUDA" not in failed.text


def test_bad_requests_take_no_place_for_good() -> None:
    with scripted_server(ScriptedEngine(), limits={"max_waiting_requests": 1}) as url:
        for _ in range(5):
            assert request("POST", f"{url}{ROUTE}", files={"file": b"no audio"}).status_code == 400
            assert request("POST", f"{url}{ROUTE}").status_code == 400
        assert transcribe(url).status_code == 200
