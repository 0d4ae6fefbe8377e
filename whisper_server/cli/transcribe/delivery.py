"""Where transcripts go: files that appear whole or not at all, or standard output in the inputs' order."""

import io
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, TextIO

from whisper_server.cli.transcribe.planning import Job, OutputFormat


class Delivery(Protocol):
    """Takes the results of each job as it ends. For one thread."""

    def deliver(self, index: int, job: Job, texts: Mapping[OutputFormat, str]) -> None:
        """Write the results of the job with this place among all jobs.

        Raises:
            OSError: they cannot be written.
        """

    def skip(self, index: int) -> None:
        """A job has failed: there will be no results of it."""


class FileDelivery:
    """Writes files. It blocks, so that no signal handled by the event loop finds half of a job written."""

    def deliver(self, index: int, job: Job, texts: Mapping[OutputFormat, str]) -> None:
        """Write all files of a job; on an error none of those not finished yet stays."""
        write_whole({job.outputs[kind]: text for kind, text in texts.items()})

    def skip(self, index: int) -> None:
        """Nothing was written."""


class StdoutDelivery:
    """Prints results in the order of the jobs, each as soon as those before it are there.

    Args:
        aside: gives the terminal to whoever is in its block.
        stream: where to print; None is standard output.
    """

    def __init__(
        self, aside: Callable[[], AbstractContextManager[None]], stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        is_terminal = self._stream.isatty()
        self._aside = aside if is_terminal else nullcontext
        if isinstance(self._stream, io.TextIOWrapper) and not is_terminal:
            self._stream.reconfigure(encoding="utf-8")
        self._waiting: dict[int, str] = {}
        self._next = 0

    def deliver(self, index: int, job: Job, texts: Mapping[OutputFormat, str]) -> None:
        """Print the result of a job, or keep it until its turn comes."""
        self._waiting[index] = "".join(texts.values())
        self._print_ready()

    def skip(self, index: int) -> None:
        """Let the jobs after a failed one go ahead."""
        self._waiting[index] = ""
        self._print_ready()

    def _print_ready(self) -> None:
        with self._aside():
            while self._next in self._waiting:
                self._stream.write(self._waiting.pop(self._next))
                self._next += 1
            self._stream.flush()


def write_whole(texts: Mapping[Path, str]) -> None:
    """Write files through temporary ones in the same folders, so that each is there whole or not at all.

    Blocking. An existing file is replaced.

    Raises:
        OSError: one cannot be written; no temporary file is left.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
            temporaries[path] = temporary
            with temporary.open("x", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
