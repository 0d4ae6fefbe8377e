"""What `whisper-server bench` keeps of sessions: percentiles, and rows in four formats."""

import csv
import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_server.cli.bench.histogram import RELATIVE_ERROR, Histogram
from whisper_server.cli.bench.session import DecodeTimes, SessionRecord, Status
from whisper_server.cli.bench.session_log import COLUMNS, LogFormat, RowWriter, Sink
from whisper_server.cli.bench.totals import Totals

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
    assert histogram.buckets <= 129


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


# Totals


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
