"""How far a load test is, on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from whisper_server.cli.bench.load import LoadPlan

_REFRESHES_PER_S = 2
"""Few: the server under test may run on the same machine."""


class Bar(NamedTuple):
    """What moves the bar, and what leaves the terminal as it was."""

    advance: Callable[[], None]
    close: Callable[[], None]


@contextmanager
def progress_bar(plan: LoadPlan, *, is_shown: bool) -> Iterator[Bar]:
    """A bar on standard error until the block ends; it moves with each session.

    Args:
        plan: how many there are.
        is_shown: otherwise there is none. Nor is there where standard error is no terminal.
    """
    if not is_shown or not sys.stderr.isatty():
        yield Bar(lambda: None, lambda: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("sessions"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, refresh_per_second=_REFRESHES_PER_S, transient=True) as progress:
        total = plan.channels * (plan.warmup_iterations + plan.iterations)
        task = progress.add_task("", total=total)
        yield Bar(lambda: progress.advance(task), progress.stop)
