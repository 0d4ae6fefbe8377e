"""How `whisper-server bench` runs sessions: traces, pace, ramp, warm-up, failures, the recording."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_server.cli.bench.drivers.driver import Pace, send_audio
from whisper_server.cli.bench.load import Listeners, LoadPlan, LoadTest
from whisper_server.cli.bench.session import (
    SessionFailedError,
    SessionRecord,
    SessionTrace,
    Status,
)
from whisper_server.cli.bench.speech import Speech, load_speech, same_words
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.types import SAMPLE_RATE

pytestmark = pytest.mark.anyio

quietly = settings(derandomize=True, database=None, deadline=None)

# One session


class Clock:
    """Time that passes when a test says so. `sleep` waits until it has come."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        event = asyncio.Event()
        self._sleepers.append((self.now_s + seconds, event))
        await event.wait()

    async def advance(self, seconds: float) -> None:
        self.now_s += seconds
        for due_s, event in self._sleepers:
            if due_s <= self.now_s:
                event.set()
        await anyio.wait_all_tasks_blocked()


def finish(trace: SessionTrace, is_right: Callable[[str], bool] = lambda _: True) -> SessionRecord:
    return trace.finish(channel=1, iteration=1, audio_s=2.0, is_right=is_right)


async def test_a_trace_measures_from_the_audio_and_the_request() -> None:
    clock = Clock()
    trace = SessionTrace("one", clock)
    await clock.advance(1)
    trace.begin_audio()
    for step in (trace.note_partial, trace.note_partial, lambda: trace.note_final(" Yes. ")):
        await clock.advance(1)
        step()
    trace.end_audio()
    for text in ("", "No."):
        await clock.advance(0.5)
        trace.note_final(text)
    await clock.advance(2)
    record = finish(trace)
    assert (record.first_partial_s, record.first_final_s, record.final_after_last_chunk_s) == (1, 3, 1)
    assert (record.wall_s, record.rtf, record.partials, record.finals) == (7, 3.5, 2, 3)
    assert (record.text, record.status) == ("Yes. No.", Status.OK)


async def test_a_final_before_the_last_chunk_keeps_nobody_waiting() -> None:
    clock = Clock()
    trace = SessionTrace("one", clock)
    trace.begin_audio()
    trace.note_final("Yes.")
    await clock.advance(1)
    trace.end_audio()
    assert finish(trace).final_after_last_chunk_s == 0


def test_the_first_failure_counts_and_no_text_makes_it_good() -> None:
    trace = SessionTrace("one")
    trace.fail("ERR2002", "One\nline.")
    trace.fail("CANCELLED", "Later.")
    record = finish(trace)
    assert (record.status, record.error_code, record.error_message) == (Status.FAILED, "ERR2002", "One line.")


def test_a_text_that_is_not_what_was_said_is_wrong() -> None:
    trace = SessionTrace("one")
    trace.note_final("No.")
    assert finish(trace, lambda text: text == "Yes.").status is Status.WRONG_TEXT


def test_the_audio_is_what_the_server_took() -> None:
    trace = SessionTrace("one")
    trace.audio_s = 0.0
    record = finish(trace)
    assert (record.audio_s, record.rtf) == (0.0, None)


async def test_in_real_time_a_chunk_leaves_when_its_last_sample_is_spoken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("whisper_server.cli.bench.drivers.driver.time.perf_counter", clock)
    monkeypatch.setattr("whisper_server.cli.bench.drivers.driver.asyncio.sleep", clock.sleep)
    sent: list[tuple[float, str]] = []

    async def send(message: str) -> None:
        sent.append((clock.now_s, message))

    trace = SessionTrace("one", clock)
    async with asyncio.TaskGroup() as group:
        group.create_task(send_audio(["a", "b", "c"], send, trace, Pace(0.5, 1.25)))
        await anyio.wait_all_tasks_blocked()
        for _ in range(5):
            await clock.advance(0.25)
    assert sent == [(0.5, "a"), (1.0, "b"), (1.25, "c")]


# Many sessions


class FakeDriver:
    """Sessions that do what a test says. Notes who ran, in order."""

    door = "fake"

    def __init__(self, session: Callable[[SessionTrace], Awaitable[None]] | None = None) -> None:
        self.begun: list[str] = []
        self.closed = 0
        self._session = session

    async def check(self) -> None:
        pass

    @asynccontextmanager
    async def channel(self) -> AsyncIterator["FakeDriver"]:
        try:
            yield self
        finally:
            self.closed += 1

    async def run_session(self, trace: SessionTrace) -> None:
        self.begun.append(trace.session_id.split("-", 2)[2])
        if self._session is not None:
            await self._session(trace)


class Heard:
    """What a load test tells."""

    def __init__(self) -> None:
        self.records: list[SessionRecord] = []
        self.warmups: list[SessionRecord] = []
        self.listeners = Listeners(self.records.append, self.warmups.append)


plans = st.integers(1, 60).flatmap(
    lambda channels: st.builds(
        LoadPlan,
        channels=st.just(channels),
        ramp_steps=st.integers(1, channels),
        ramp_interval_s=st.just(2.0),
    )
)


@quietly
@given(plans)
def test_channels_begin_in_even_batches(plan: LoadPlan) -> None:
    delays_s = plan.ramp_delays_s()
    batches = [delays_s.count(2.0 * step) for step in range(plan.ramp_steps)]
    assert delays_s == sorted(delays_s)
    assert sum(batches) == plan.channels
    assert max(batches) - min(batches) <= 1


async def test_a_ramp_lets_one_batch_begin_after_the_other() -> None:
    clock, never, heard = Clock(), asyncio.Event(), Heard()

    async def session(_: SessionTrace) -> None:
        await never.wait()

    driver = FakeDriver(session)
    plan = LoadPlan(channels=5, ramp_steps=3, ramp_interval_s=10)
    load = LoadTest(driver, plan, heard.listeners, audio_s=1, clock=clock, sleep=clock.sleep)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        begun = []
        for _ in range(4):
            await anyio.wait_all_tasks_blocked()
            begun.append(len(driver.begun))
            await clock.advance(9.5)
            await clock.advance(0.5)
        never.set()
    assert begun == [2, 4, 5, 5]
    assert len(heard.records) == 5
    assert load.elapsed_s == 40


async def test_the_warm_up_is_over_before_anything_counts() -> None:
    driver, heard = FakeDriver(), Heard()
    plan = LoadPlan(channels=3, iterations=2, warmup_iterations=2)
    await LoadTest(driver, plan, heard.listeners, audio_s=1).run()
    assert {name.split("-")[1] for name in driver.begun[:6]} == {"w1", "w2"}
    assert {name.split("-")[1] for name in driver.begun[6:]} == {"1", "2"}
    assert (len(heard.warmups), len(heard.records)) == (6, 6)
    assert {(record.channel, record.iteration) for record in heard.records} == {
        (channel, iteration) for channel in (1, 2, 3) for iteration in (1, 2)
    }
    assert driver.closed == 3


async def test_whatever_a_session_does_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    async def session(trace: SessionTrace) -> None:
        match driver.begun[-1].split("-")[1]:
            case "1":
                raise SessionFailedError("ERR1008", "Full.")
            case "2":
                await asyncio.Event().wait()
            case "3":
                raise KeyError("bug")
        trace.note_final("Yes.")

    driver, heard = FakeDriver(session), Heard()
    plan = LoadPlan(iterations=4, timeout_s=0.01)
    await LoadTest(driver, plan, heard.listeners, audio_s=1).run()
    assert [record.error_code for record in heard.records] == ["ERR1008", "TIMEOUT", "CLIENT_ERROR", ""]
    assert "KeyError" in heard.records[2].error_message
    assert "KeyError: 'bug'" in caplog.text
    assert [record.status for record in heard.records].count(Status.OK) == 1


@pytest.mark.parametrize("warmup_iterations", [0, 1])
async def test_stopping_calls_sessions_off_and_keeps_what_is_done(warmup_iterations: int) -> None:
    called_off: list[str] = []

    async def session(trace: SessionTrace) -> None:
        if trace.session_id.endswith("2") or warmup_iterations:
            try:
                await asyncio.Event().wait()
            finally:
                called_off.append(trace.session_id)

    driver, heard = FakeDriver(session), Heard()
    plan = LoadPlan(channels=2, iterations=3, warmup_iterations=warmup_iterations)
    load = LoadTest(driver, plan, heard.listeners, audio_s=1)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await anyio.wait_all_tasks_blocked()
        load.stop()
    assert len(called_off) == 2
    assert driver.closed == 2
    assert heard.warmups == []
    assert (len(heard.records), load.interrupted) == ((0, 0) if warmup_iterations else (2, 2))


# What is said


def test_chunks_joined_are_the_audio() -> None:
    speech = Speech("a", np.arange(-800, 850, dtype=np.int16), None)
    chunks = speech.chunks(30)
    assert [len(chunk) for chunk in chunks] == [960, 960, 960, 420]
    assert np.array_equal(np.frombuffer(b"".join(chunks), "<i2"), speech.pcm)
    assert speech.duration_s == 1650 / SAMPLE_RATE


def test_another_rate_keeps_the_length() -> None:
    chunks = Speech("a", np.zeros(SAMPLE_RATE, np.int16), None).chunks(100, 24_000)
    assert [len(chunk) for chunk in chunks] == [4800] * 10


def test_a_bundled_sample_has_its_text_whatever_it_is_called_by(tmp_path: Path) -> None:
    text = "Send a message to David on Monday."
    from whisper_server.demo import SAMPLES_PATH

    assert load_speech("kitchen_en.wav").text == text
    assert load_speech(str(SAMPLES_PATH / "kitchen_en.wav")).text == text
    assert load_speech("kitchen_en.wav", "Else.").text == "Else."
    copy = tmp_path / "kitchen_en.wav"
    copy.write_bytes((SAMPLES_PATH / "kitchen_en.wav").read_bytes())
    assert load_speech(str(copy)).text is None


def test_what_is_no_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(ConfigurationError, match=r"--audio .* format"):
        load_speech(str(tmp_path / "a.wav"))
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load_speech(str(tmp_path / "b.wav"))


def test_words_count_and_nothing_else() -> None:
    assert same_words("Call Anna at twelve o'clock.", "call anna  at twelve o'clock")
    assert not same_words("Call Anna.", "Call Anna, Anna.")
    assert not same_words("", "Yes.")
