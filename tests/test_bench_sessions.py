"""The parts of `whisper-server bench` that need no server: histogram, rows, ramp, the running of sessions."""

import asyncio
import csv
import io
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_server.cli.bench.drivers.driver import Pace, send_audio
from whisper_server.cli.bench.histogram import RELATIVE_ERROR, Histogram
from whisper_server.cli.bench.load import Listeners, LoadPlan, LoadTest
from whisper_server.cli.bench.session import (
    DecodeTimes,
    SessionFailedError,
    SessionRecord,
    SessionTrace,
    Status,
)
from whisper_server.cli.bench.session_log import COLUMNS, LogFormat, RowWriter, Sink
from whisper_server.cli.bench.speech import Speech, load_speech, same_words
from whisper_server.cli.bench.totals import Totals
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.types import SAMPLE_RATE

pytestmark = pytest.mark.anyio

quietly = settings(derandomize=True, database=None, deadline=None)

# The histogram

values = st.lists(st.floats(0, 1e9, allow_nan=False), min_size=1, max_size=200)


@quietly
@given(values, st.floats(0, 100))
def test_a_percentile_is_the_nearest_rank_within_the_error(values: list[float], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
    found = histogram.percentile(percent)
    assert found == pytest.approx(exact, rel=RELATIVE_ERROR * 1.0001, abs=1e-300)
    assert RELATIVE_ERROR < 0.01


@quietly
@given(values)
def test_count_mean_and_maximum_are_exact_and_percentiles_rise(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    assert (histogram.count, histogram.max) == (len(values), max(values))
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    found = [histogram.percentile(percent) or 0.0 for percent in (0, 50, 90, 99, 100)]
    assert found == sorted(found)
    assert min(values) <= found[0]
    assert found[-1] <= max(values)


def test_a_histogram_without_values_has_none() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.mean, histogram.max, histogram.percentile(50)) == (0, None, None, None)


@pytest.mark.parametrize("value", [-0.001, math.nan, math.inf])
def test_what_is_no_time_is_not_recorded(value: float) -> None:
    with pytest.raises(ValueError, match="cannot be recorded"):
        Histogram().record(value)


def test_memory_depends_on_the_spread_and_not_on_the_count() -> None:
    histogram = Histogram()
    for number in range(50_000):
        histogram.record(1 + number / 50_000)
    assert len(histogram._counts) <= 129


# Rows

RECORD = SessionRecord(
    channel=2,
    iteration=1,
    session_id="bench-1",
    status=Status.OK,
    error_code="",
    error_message="",
    audio_s=3.679,
    wall_s=0.27949,
    first_partial_s=None,
    first_final_s=0.2,
    final_after_last_chunk_s=0.1996,
    partials=0,
    finals=2,
    decode=DecodeTimes(0.1, 0.0004, 0.15, 0.001, 0.2514, 2),
    text='Yes, "one"\tor\ntwo | three\\.',
)
FAILED = replace(
    RECORD, status=Status.FAILED, error_code="ERR1008", error_message="Full.", decode=DecodeTimes(), text=""
)
STARTED_AT = datetime(2026, 1, 2, 3, 4, 5, 678_900, UTC)
ENDED_AT = datetime(2026, 1, 2, 3, 5, 0, 0, UTC)


def log(kind: LogFormat, *records: SessionRecord) -> str:
    writer = RowWriter(kind, "Load test of here")
    return writer.head(STARTED_AT) + "".join(map(writer.row, records)) + writer.foot(ENDED_AT)


def test_json_lines_hold_one_object_a_session_and_null_for_what_is_not_told() -> None:
    assert log(LogFormat.JSONL, RECORD, FAILED) == (
        '{"channel": 2, "iteration": 1, "session_id": "bench-1", "status": "ok", "error_code": "", '
        '"error_message": "", "audio_seconds": 3.679, "wall_seconds": 0.279, "rtf": 0.076, '
        '"first_partial_seconds": null, "first_final_seconds": 0.2, "final_after_last_chunk_seconds": 0.2, '
        '"partials": 0, "finals": 2, "decode_buffer_wait_seconds": 0.1, "decode_queue_wait_seconds": 0.0, '
        '"decode_inference_seconds": 0.15, "decode_response_emit_seconds": 0.001, '
        '"decode_total_seconds": 0.251, "decode_count": 2, '
        '"text": "Yes, \\"one\\"\\tor\\ntwo | three\\\\."}\n'
        '{"channel": 2, "iteration": 1, "session_id": "bench-1", "status": "failed", '
        '"error_code": "ERR1008", "error_message": "Full.", "audio_seconds": 3.679, "wall_seconds": 0.279, '
        '"rtf": 0.076, "first_partial_seconds": null, "first_final_seconds": 0.2, '
        '"final_after_last_chunk_seconds": 0.2, "partials": 0, "finals": 2, '
        '"decode_buffer_wait_seconds": null, "decode_queue_wait_seconds": null, '
        '"decode_inference_seconds": null, "decode_response_emit_seconds": null, '
        '"decode_total_seconds": null, "decode_count": null, "text": ""}\n'
    )


def test_csv_holds_only_data_rows() -> None:
    assert log(LogFormat.CSV, RECORD, FAILED) == (
        "2,1,bench-1,ok,,,3.679,0.279,0.076,,0.200,0.200,0,2,0.100,0.000,0.150,0.001,0.251,2,"
        '"Yes, ""one""\tor\ntwo | three\\."\n'
        "2,1,bench-1,failed,ERR1008,Full.,3.679,0.279,0.076,,0.200,0.200,0,2,,,,,,,\n"
    )


def test_tsv_holds_only_data_rows() -> None:
    assert log(LogFormat.TSV, RECORD) == (
        "2\t1\tbench-1\tok\t\t\t3.679\t0.279\t0.076\t\t0.200\t0.200\t0\t2\t0.100\t0.000\t0.150\t0.001\t0.251\t2\t"
        '"Yes, ""one""\tor\ntwo | three\\."\n'
    )


def test_markdown_has_a_head_what_the_columns_mean_and_both_times() -> None:
    lines = log(LogFormat.MARKDOWN, RECORD).splitlines()
    assert lines[:3] == ["# Load test of here", "", "Started: 2026-01-02T03:04:05.678+00:00"]
    assert lines[-2:] == ["", "Ended: 2026-01-02T03:05:00.000+00:00"]
    for column in COLUMNS:
        assert f"- `{column.name}`: {column.meaning}" in lines
    head, rule, row = lines[-5:-2]
    assert head == f"| {' | '.join(column.name for column in COLUMNS)} |"
    assert rule == "|" + "---|" * len(COLUMNS)
    assert row == (
        "| 2 | 1 | bench-1 | ok |  |  | 3.679 | 0.279 | 0.076 |  | 0.200 | 0.200 | 0 | 2 | 0.100 | 0.000 | "
        '0.150 | 0.001 | 0.251 | 2 | Yes, "one" or two \\| three\\\\. |'
    )


@quietly
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_each_format_for_programs(text: str) -> None:
    record = replace(RECORD, text=text)
    assert json.loads(log(LogFormat.JSONL, record))["text"] == text
    for kind, delimiter in ((LogFormat.CSV, ","), (LogFormat.TSV, "\t")):
        rows = list(csv.reader(io.StringIO(log(kind, record), newline=""), delimiter=delimiter))
        assert [len(row) for row in rows] == [len(COLUMNS)]
        assert rows[0][-1] == text


@quietly
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_breaks_a_markdown_table(text: str) -> None:
    row = RowWriter(LogFormat.MARKDOWN, "").row(replace(RECORD, text=text))
    assert len(row.splitlines()) == 1
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == len(COLUMNS) + 1


def test_a_sink_writes_no_more_rows_than_it_may() -> None:
    stream = io.StringIO()
    sink = Sink(RowWriter(LogFormat.CSV, ""), stream, 2)
    sink.begin(STARTED_AT)
    for _ in range(3):
        sink.add(FAILED)
    sink.end(ENDED_AT)
    assert stream.getvalue().count("\n") == 2
    assert sink.error is None


def test_a_sink_that_cannot_write_remembers_why_and_stops() -> None:
    class Full(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            raise OSError(28, "No space left on device")

    stream = Full()
    sink = Sink(RowWriter(LogFormat.CSV, ""), stream, None)
    sink.add(RECORD)
    sink.add(RECORD)
    assert sink.error is not None
    assert stream.writes == 1


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


def test_times_of_failed_sessions_do_not_count() -> None:
    totals = Totals()
    for record in (RECORD, replace(RECORD, status=Status.WRONG_TEXT), FAILED, FAILED):
        totals.add(record)
    assert totals.statuses == {Status.OK: 1, Status.WRONG_TEXT: 1, Status.FAILED: 2}
    assert totals.errors == {"ERR1008": 2}
    assert totals.histograms["wall_seconds"].count == 2
    assert totals.histograms["first_partial_seconds"].count == 0
    assert totals.audio_s == pytest.approx(2 * 3.679)
    assert not totals.is_clean


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
