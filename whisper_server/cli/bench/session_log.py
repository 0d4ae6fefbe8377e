"""Session records as rows: JSON Lines, CSV, TSV or a Markdown table."""

import csv
import io
import json
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TextIO

from whisper_server.cli.bench.session import SessionRecord

Cell = str | int | float | None


class LogFormat(StrEnum):
    """How rows are written."""

    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    MARKDOWN = "markdown"


class Column(NamedTuple):
    """A column of the log.

    Attributes:
        name: of the column, and key in JSON.
        meaning: for people.
        value: of a record; floats are seconds, or ratios of them.
    """

    name: str
    meaning: str
    value: Callable[[SessionRecord], Cell]


COLUMNS = (
    Column("channel", "number of the channel, from 1", lambda record: record.channel),
    Column("iteration", "number of the session in its channel, from 1", lambda record: record.iteration),
    Column("session_id", "name of the session at the server", lambda record: record.session_id),
    Column(
        "status",
        "ok, wrong_text (transcribed, but not what was to be heard) or failed",
        lambda record: record.status.value,
    ),
    Column("error_code", "code of the first failure", lambda record: record.error_code),
    Column(
        "error_message", "what the server, or this command, said of it", lambda record: record.error_message
    ),
    Column(
        "audio_seconds",
        "audio that the server took, where it tells; else the length of the recording",
        lambda record: record.audio_s,
    ),
    Column("wall_seconds", "from asking for the session to its end", lambda record: record.wall_s),
    Column("rtf", "wall_seconds per second of audio", lambda record: record.rtf),
    Column(
        "first_partial_seconds",
        "from the beginning of the audio to the first partial",
        lambda record: record.first_partial_s,
    ),
    Column(
        "first_final_seconds",
        "from the beginning of the audio to the first final",
        lambda record: record.first_final_s,
    ),
    Column(
        "final_after_last_chunk_seconds",
        "from sending the last audio to the last final; 0 where that came before",
        lambda record: record.final_after_last_chunk_s,
    ),
    Column("partials", "partial results", lambda record: record.partials),
    Column("finals", "final results", lambda record: record.finals),
    Column(
        "decode_buffer_wait_seconds",
        "server: gathering audio before a decode was asked for",
        lambda record: record.decode.buffer_wait_s,
    ),
    Column(
        "decode_queue_wait_seconds",
        "server: waiting for the model",
        lambda record: record.decode.queue_wait_s,
    ),
    Column("decode_inference_seconds", "server: in the model", lambda record: record.decode.inference_s),
    Column(
        "decode_response_emit_seconds",
        "server: handing results to the client",
        lambda record: record.decode.response_emit_s,
    ),
    Column(
        "decode_total_seconds",
        "server: all of it, summed over the decodes of the session",
        lambda record: record.decode.total_s,
    ),
    Column("decode_count", "server: decodes of the session", lambda record: record.decode.count),
    Column("text", "all finals", lambda record: record.text),
)

_DECIMALS = 3


class RowWriter:
    """Turns records into rows of text. What a server does not tell is empty, or null in JSON.

    Only Markdown has more than rows: a head with the start and the columns' meanings, a foot with the end.

    Args:
        kind: of the rows.
        title: of a Markdown log.
    """

    def __init__(self, kind: LogFormat, title: str) -> None:
        self._kind = kind
        self._title = title

    def head(self, started_at: datetime) -> str:
        """What comes before the rows, with its line end."""
        if self._kind is not LogFormat.MARKDOWN:
            return ""
        meanings = "\n".join(f"- `{column.name}`: {column.meaning}" for column in COLUMNS)
        names = " | ".join(column.name for column in COLUMNS)
        return (
            f"# {self._title}\n\nStarted: {_moment(started_at)}\n\n"
            f"Times are seconds on the client's clock, but for those of the server.\n\n{meanings}\n\n"
            f"| {names} |\n{'|---' * len(COLUMNS)}|\n"
        )

    def row(self, record: SessionRecord) -> str:
        """A record, with its line end."""
        values = [column.value(record) for column in COLUMNS]
        match self._kind:
            case LogFormat.JSONL:
                names = (column.name for column in COLUMNS)
                rounded = (round(value, _DECIMALS) if isinstance(value, float) else value for value in values)
                return json.dumps(dict(zip(names, rounded, strict=True)), ensure_ascii=False) + "\n"
            case LogFormat.MARKDOWN:
                return f"| {' | '.join(_in_table(_text(value)) for value in values)} |\n"
            case LogFormat.CSV | LogFormat.TSV:
                line = io.StringIO()
                delimiter = "," if self._kind is LogFormat.CSV else "\t"
                # Only characters of the line end are sure to be quoted, and a text may hold both.
                writer = csv.writer(line, delimiter=delimiter, lineterminator="\r\n")
                writer.writerow([_text(value) for value in values])
                return line.getvalue().removesuffix("\r\n") + "\n"

    def foot(self, ended_at: datetime) -> str:
        """What comes after the rows, with its line end."""
        return f"\nEnded: {_moment(ended_at)}\n" if self._kind is LogFormat.MARKDOWN else ""


class Sink:
    """Writes rows to a stream. When that fails it writes no more; the load test goes on.

    Args:
        writer: makes them.
        stream: takes them.
        most: rows; None is all.

    Attributes:
        error: why writing failed; None while it has not.
    """

    def __init__(self, writer: RowWriter, stream: TextIO, most: int | None) -> None:
        self.error: OSError | None = None
        self._writer = writer
        self._stream = stream
        self._left = most

    def begin(self, at: datetime) -> None:
        """Before the first row."""
        self._write(self._writer.head(at))

    def add(self, record: SessionRecord) -> None:
        """Write a row, unless there are enough."""
        if self._left is not None:
            if not self._left:
                return
            self._left -= 1
        self._write(self._writer.row(record))

    def end(self, at: datetime) -> None:
        """After the last row."""
        self._write(self._writer.foot(at))

    def _write(self, text: str) -> None:
        if self.error is None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except OSError as error:
                self.error = error


def _text(value: Cell) -> str:
    if value is None:
        return ""
    return f"{value:.{_DECIMALS}f}" if isinstance(value, float) else str(value)


def _in_table(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
