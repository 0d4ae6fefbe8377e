"""The totals of a load test: tables for people, one JSON object for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

from whisper_server.cli.bench.histogram import Histogram
from whisper_server.cli.bench.load import LoadPlan
from whisper_server.cli.bench.session import Status
from whisper_server.cli.bench.totals import CLIENT_MEASURES, SERVER_MEASURES, Measure, Totals

if TYPE_CHECKING:
    from rich.table import Table

PERCENTS = (50, 90, 95, 99)

_WIDTH = 100
"""Columns where the output is no terminal."""

_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """A load test that is over.

    Attributes:
        door: that was tested.
        target: the server's address.
        audio: name of the recording.
        audio_s: its length.
        is_realtime: audio was sent as fast as it is spoken.
        is_text_checked: texts were compared with what is said.
        plan: how much load.
        started_at: of the first session that counts, or of the warm-up.
        ended_at: likewise the end.
        elapsed_s: that the sessions that count took together.
        interrupted: sessions that were broken off.
        totals: of the others.
    """

    door: str
    target: str
    audio: str
    audio_s: float
    is_realtime: bool
    is_text_checked: bool
    plan: LoadPlan
    started_at: datetime
    ended_at: datetime
    elapsed_s: float
    interrupted: int
    totals: Totals

    @property
    def sessions_per_s(self) -> float:
        """Sessions that were transcribed, per second."""
        totals = self.totals
        done = totals.sessions - totals.statuses[Status.FAILED]
        return done / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def rtfx(self) -> float:
        """Audio seconds transcribed per second, by all sessions together."""
        return self.totals.audio_s / self.elapsed_s if self.elapsed_s else 0.0


def print_report(run: Run, stream: TextIO) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDTH)
    plan = run.plan
    pace = "in real time" if run.is_realtime else "flat out"
    title = (
        f"{run.door} at {run.target}: {_counted(plan.channels, 'channel')} × "
        f"{_counted(plan.iterations, 'session')} of {run.audio} ({run.audio_s:.2f} s), {pace}"
    )
    console.print(Text(title), soft_wrap=True)
    console.print(_sessions_table(run))
    histograms = run.totals.histograms
    if histograms["wall_seconds"].count:
        console.print(_times_table("Client's clock, s", CLIENT_MEASURES, histograms))
    if histograms["decode_total_seconds"].count:
        console.print(
            _times_table("Server's own times, s, summed over a session", SERVER_MEASURES, histograms)
        )


def json_report(run: Run) -> dict[str, Any]:
    """The same as an object. Times are seconds."""
    totals, plan = run.totals, run.plan
    return {
        "door": run.door,
        "server": run.target,
        "audio": run.audio,
        "session_audio_seconds": round(run.audio_s, _DECIMALS),
        "realtime": run.is_realtime,
        "text_checked": run.is_text_checked,
        "channels": plan.channels,
        "iterations": plan.iterations,
        "warmup_iterations": plan.warmup_iterations,
        "started_at": run.started_at.isoformat(timespec="milliseconds"),
        "ended_at": run.ended_at.isoformat(timespec="milliseconds"),
        "elapsed_seconds": round(run.elapsed_s, _DECIMALS),
        "sessions": {
            **{status.value: totals.statuses[status] for status in Status},
            "interrupted": run.interrupted,
        },
        "errors": dict(totals.errors.most_common()),
        "sessions_per_second": round(run.sessions_per_s, _DECIMALS),
        "audio_seconds": round(totals.audio_s, _DECIMALS),
        "rtfx": round(run.rtfx, _DECIMALS),
        "times": {name: _json_times(histogram) for name, histogram in totals.histograms.items()},
    }


def _sessions_table(run: Run) -> "Table":
    from rich.table import Table
    from rich.text import Text

    totals = run.totals
    table = Table(title="Sessions", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    table.add_row("ok", str(totals.statuses[Status.OK]), "")
    if run.is_text_checked:
        table.add_row("wrong text", str(totals.statuses[Status.WRONG_TEXT]), "")
    table.add_row("failed", str(totals.statuses[Status.FAILED]), "")
    for code, count in totals.errors.most_common():
        table.add_row(Text(f"  {code}"), str(count), Text(totals.first_messages[code]))
    if run.interrupted:
        table.add_row("interrupted", str(run.interrupted), "")
    table.add_row("sessions/s", f"{run.sessions_per_s:.2f}", f"in {run.elapsed_s:.1f} s")
    table.add_row("RTFx", f"{run.rtfx:.1f}", "seconds of audio transcribed per second")
    return table


def _times_table(title: str, measures: Sequence[Measure], histograms: dict[str, Histogram]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for head in ("sessions", "mean", *(f"p{percent}" for percent in PERCENTS), "max"):
        table.add_column(head, justify="right")
    for measure in measures:
        histogram = histograms[measure.name]
        if histogram.count:
            times = (
                histogram.mean,
                *(histogram.percentile(percent) for percent in PERCENTS),
                histogram.max,
            )
            table.add_row(measure.label, str(histogram.count), *map(_shown, times))
    return table


def _json_times(histogram: Histogram) -> dict[str, float | int | None]:
    times: dict[str, float | None] = {"mean": histogram.mean}
    times |= {f"p{percent}": histogram.percentile(percent) for percent in PERCENTS}
    times["max"] = histogram.max
    rounded = {name: None if time is None else round(time, _DECIMALS) for name, time in times.items()}
    return {"count": histogram.count, **rounded}


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _shown(time_s: float | None) -> str:
    return "" if time_s is None else f"{time_s:.{_DECIMALS}f}"
