"""How far the work is, on standard error: bars on a terminal, else a line per finished recording."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID
    from rich.text import Text


_MAX_NAME_COLUMNS = 40


@dataclass(slots=True, eq=False)
class Track:
    """A recording at work.

    Attributes:
        name: as it is shown.
        started_s: when the work on it began, monotonic.
        position_s: how far its text reaches.
        duration_s: how long it is, once that is known.
        task_id: of its bar.
    """

    name: str
    started_s: float
    position_s: float = 0.0
    duration_s: float | None = None
    task_id: "TaskID | None" = None


class Reporter:
    """Tells of failures and warnings, and of nothing else. A context manager; for one thread.

    Args:
        total: recordings to transcribe.
        stream: where to write; None is standard error.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = sys.stderr if stream is None else stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was. Doing it twice is harmless."""

    def note(self, message: str) -> None:
        """Say something that may as well go unsaid."""

    def warn(self, message: str) -> None:
        """Say something in any case, on one line."""
        self._print(shown(message))

    def fail(self, name: str, message: str) -> None:
        """Say why there is no transcript of a recording."""
        self.warn(f"{name}: {message}")

    def start(self, name: str) -> Track:
        """Begin with a recording."""
        return Track(name, time.perf_counter())

    def advance(self, track: Track, position_s: float, duration_s: float) -> None:
        """Show how far a recording is; seconds of audio."""
        track.position_s, track.duration_s = position_s, duration_s

    def finish(self, track: Track) -> None:
        """A recording is done, and its results are written."""

    def end(self, track: Track) -> None:
        """A recording is at work no more, whatever came of it."""

    def busy(self, what: str) -> AbstractContextManager[None]:
        """Show that something unmeasured goes on while the block runs."""
        return nullcontext()

    def aside(self) -> AbstractContextManager[None]:
        """Keep away from the terminal while the block prints to it."""
        return nullcontext()

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LineReporter(Reporter):
    """A line for each finished recording: for logs and pipes."""

    def note(self, message: str) -> None:
        """Print it."""
        self.warn(message)

    def finish(self, track: Track) -> None:
        """Print its length, and how long it took."""
        self.note(f"{track.name}: {finished_line(track, time.perf_counter())}")


class BarReporter(LineReporter):
    """Bars on a terminal: one for each recording at work, and one for all; finished ones become lines."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        super().__init__(total, stream)
        self._progress: Progress | None = None
        self._overall: TaskID | None = None

    def __enter__(self) -> Self:
        from rich.console import Console

        self._progress = _make_progress(Console(file=self._stream))
        self._progress.start()
        if self._total > 1:
            self._overall = self._progress.add_task("all recordings", total=self._total)
        return self

    def close(self) -> None:
        """Take the bars away and show the cursor again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def start(self, name: str) -> Track:
        """Show a bar."""
        track = super().start(name)
        if self._progress is not None:
            track.task_id = self._progress.add_task(_end_of(shown(name)), total=None, track=track)
        return track

    def advance(self, track: Track, position_s: float, duration_s: float) -> None:
        """Move the bar."""
        super().advance(track, position_s, duration_s)
        if self._progress is not None and track.task_id is not None:
            self._progress.update(track.task_id, completed=position_s, total=duration_s)

    def end(self, track: Track) -> None:
        """Take the bar away."""
        if self._progress is None or track.task_id is None:
            return
        self._progress.remove_task(track.task_id)
        if self._overall is not None:
            self._progress.advance(self._overall)

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show a bar that only moves to and fro."""
        assert self._progress is not None
        task_id = self._progress.add_task(what, total=None, track=Track(what, time.perf_counter()))
        try:
            yield
        finally:
            self._progress.remove_task(task_id)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bars away, and show them again."""
        assert self._progress is not None
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def _print(self, line: str) -> None:
        if self._progress is None:
            super()._print(line)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def make_reporter(total: int, *, is_quiet: bool, stream: TextIO | None = None) -> Reporter:
    """The reporter that fits where standard error leads."""
    if is_quiet:
        return Reporter(total, stream)
    is_terminal = (sys.stderr if stream is None else stream).isatty()
    return BarReporter(total, stream) if is_terminal else LineReporter(total, stream)


def finished_line(track: Track, now_s: float) -> str:
    """What there is to say of a finished recording: `132.7 s of audio in 9.8 s (13.5 x real time)`."""
    took_s = now_s - track.started_s
    if track.duration_s is None:
        return f"done in {took_s:.1f} s"
    speed = f" ({track.duration_s / took_s:.1f} x real time)" if took_s > 0 else ""
    return f"{track.duration_s:.1f} s of audio in {took_s:.1f} s{speed}"


def state_line(track: Track, now_s: float) -> str:
    """What stands behind a bar: `1:10 / 2:12  13.5 x  ETA 0:05`."""
    took_s = now_s - track.started_s
    if track.duration_s is None:
        return clock(took_s)
    state = f"{clock(track.position_s)} / {clock(track.duration_s)}"
    if track.position_s <= 0 or took_s <= 0:
        return state
    speed = track.position_s / took_s
    left_s = max(0.0, track.duration_s - track.position_s) / speed
    return f"{state}  {speed:.1f} x  ETA {clock(left_s)}"


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any: `2:05`, `1:00:00`."""
    minutes, second = divmod(math.floor(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def shown(text: str) -> str:
    """A text as it may stand on one line of a terminal; file names may hold anything."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _end_of(name: str) -> str:
    """As much of a path's end as leaves room for the bar."""
    return name if len(name) <= _MAX_NAME_COLUMNS else f"…{name[1 - _MAX_NAME_COLUMNS :]}"


def _make_progress(console: "Console") -> "Progress":
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class StateColumn(ProgressColumn):
        """Position, length, speed and remaining time of a recording, or the count of all."""

        def render(self, task: "Task") -> "Text":
            track = task.fields.get("track")
            if isinstance(track, Track):
                return Text(state_line(track, time.perf_counter()))
            return Text(f"{task.completed:.0f} / {task.total:.0f}")

    name = TextColumn("{task.description}", markup=False)
    # Standard output is for results: rich would send it to the console, which writes to standard error.
    return Progress(name, BarColumn(), StateColumn(), console=console, transient=True, redirect_stdout=False)
