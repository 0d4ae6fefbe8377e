"""What is transcribed, and where each result goes; decided before any work starts."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from whisper_server.core.errors import ConfigurationError

STDIN: Final = "-"
"""The word that stands for standard input."""

MEDIA_SUFFIX: Final = re.compile(
    r"\.(3gp|aac|aif[cf]?|aiff|amr|caf|flac|m4[abv]|mk[av]|mov|mp[234]|mpe?g|mpga|og[agv]|opus|spx|wave?|web[am])",
    re.IGNORECASE,
)
"""What a recording in a folder is told by. A file that is named itself is always tried."""


class OutputFormat(StrEnum):
    """How a transcript is written down."""

    TEXT = "text"
    JSON = "json"
    VERBOSE_JSON = "verbose_json"
    SRT = "srt"
    VTT = "vtt"
    TSV = "tsv"

    @property
    def suffix(self) -> str:
        """Of the files in this format."""
        return {"text": ".txt", "verbose_json": ".json"}.get(self.value, f".{self.value}")

    @property
    def is_json(self) -> bool:
        """Whether it is a JSON object."""
        return self in (OutputFormat.JSON, OutputFormat.VERBOSE_JSON)

    @property
    def is_timed(self) -> bool:
        """Whether it tells when something was said."""
        return self not in (OutputFormat.TEXT, OutputFormat.JSON)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How inputs become jobs.

    Attributes:
        formats: of the results, each once.
        recursive: look into the folders of folders too.
        output_dir: where results go; None puts them next to the recordings.
        to_stdout: results go to standard output; None does that for a single file in a single format.
        overwrite: do again what is there already.
        keep_suffix: name results `a.mp3.txt` instead of `a.txt`.
    """

    formats: tuple[OutputFormat, ...] = (OutputFormat.TEXT,)
    recursive: bool = False
    output_dir: Path | None = None
    to_stdout: bool | None = None
    overwrite: bool = False
    keep_suffix: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One recording and where its results go.

    Attributes:
        name: of the recording, as it is shown.
        path: of the recording; None is standard input.
        formats: of the results.
        outputs: the file of each format; empty where they go to standard output.
    """

    name: str
    path: Path | None
    formats: tuple[OutputFormat, ...]
    outputs: Mapping[OutputFormat, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """All there is to do.

    Attributes:
        jobs: in the order of the inputs, those of a folder by name.
        skipped: how many recordings have all their results already.
        problems: (input, message) of inputs that cannot be used.
        to_stdout: whether results go to standard output.
    """

    jobs: tuple[Job, ...]
    skipped: int
    problems: tuple[tuple[str, str], ...]
    to_stdout: bool


@dataclass(frozen=True, slots=True)
class _Recording:
    """A recording, and its place below the folder that was named, which the results keep."""

    path: Path | None
    relative: Path


def make_plan(inputs: Sequence[str], options: PlanOptions) -> Plan:
    """Decide everything that can be decided before the work.

    Args:
        inputs: files, folders and `-`.
        options: how they become jobs.

    Raises:
        ConfigurationError: two results would be one file, a result would replace a recording, or results
            cannot be written where they belong.
    """
    to_stdout = _goes_to_stdout(inputs, options)
    problems: list[tuple[str, str]] = []
    recordings = list(_recordings(inputs, options, problems))
    if to_stdout:
        jobs = tuple(Job(_name(r), r.path, options.formats) for r in recordings)
        return Plan(jobs, 0, tuple(problems), to_stdout)
    all_jobs = [_file_job(recording, options) for recording in recordings]
    _refuse_collisions(all_jobs)
    wanted = all_jobs if options.overwrite else [job for job in map(_missing_part, all_jobs) if job.outputs]
    _check_folders(wanted, options.output_dir)
    return Plan(tuple(wanted), len(all_jobs) - len(wanted), tuple(problems), to_stdout)


def _goes_to_stdout(inputs: Sequence[str], options: PlanOptions) -> bool:
    is_single = len(inputs) == 1 and len(options.formats) == 1 and not Path(inputs[0]).is_dir()
    to_stdout = options.to_stdout
    if to_stdout is None:
        to_stdout = is_single and options.output_dir is None
    if to_stdout and options.output_dir is not None:
        raise ConfigurationError("Results go to standard output or into a folder: --stdout or --output-dir.")
    if to_stdout and len(options.formats) > 1:
        raise ConfigurationError(
            "Standard output takes one format. Leave --stdout or all but one --format out."
        )
    return to_stdout


def _recordings(
    inputs: Iterable[str], options: PlanOptions, problems: list[tuple[str, str]]
) -> Iterator[_Recording]:
    """Every recording once, however often and by whatever folder it was named."""
    seen = set()
    for word in inputs:
        for recording in _of_input(word, options, problems):
            key = None if recording.path is None else os.path.abspath(recording.path)
            if key not in seen:
                seen.add(key)
                yield recording


def _of_input(word: str, options: PlanOptions, problems: list[tuple[str, str]]) -> Iterator[_Recording]:
    path = Path(word)
    if word == STDIN:
        yield _Recording(None, Path("stdin"))
    elif path.is_file():
        yield _Recording(path, Path(path.name))
    elif path.is_dir():
        found = sorted(_media_files(path, options.recursive))
        if not found:
            hint = "" if options.recursive else " (with --recursive its folders count too)"
            problems.append((word, f"no recordings in this folder{hint}"))
        for file in found:
            yield _Recording(file, file.relative_to(path))
    elif path.exists():
        problems.append((word, "not a regular file; pipe it into '-'"))
    else:
        problems.append((word, "no such file"))


def _media_files(folder: Path, recursive: bool) -> Iterator[Path]:
    """The visible recordings in a folder. Links to folders are not followed: they may lead in a circle."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if MEDIA_SUFFIX.fullmatch(path.suffix) and not name.startswith(".") and path.is_file():
                yield path


def _name(recording: _Recording) -> str:
    return "standard input" if recording.path is None else str(recording.path)


def _file_job(recording: _Recording, options: PlanOptions) -> Job:
    if options.output_dir is not None:
        base = options.output_dir / recording.relative
    else:
        base = recording.relative if recording.path is None else recording.path
    outputs: dict[OutputFormat, Path] = {}
    for kind in options.formats:
        has_suffix = options.keep_suffix and recording.path is not None
        output = base.with_name(base.name + kind.suffix) if has_suffix else base.with_suffix(kind.suffix)
        if output in outputs.values():
            raise ConfigurationError(
                f"Two formats would both be written to {kind.suffix} files: json or verbose_json?"
            )
        outputs[kind] = output
    return Job(_name(recording), recording.path, options.formats, outputs)


def _missing_part(job: Job) -> Job:
    missing = {kind: path for kind, path in job.outputs.items() if not os.path.lexists(path)}
    return Job(job.name, job.path, tuple(missing), missing)


def _refuse_collisions(jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    recordings = {os.path.abspath(job.path) for job in jobs if job.path is not None}
    writers: dict[str, Job] = {}
    for job in jobs:
        for output in job.outputs.values():
            key = os.path.abspath(output)
            other = writers.setdefault(key, job)
            if other is not job:
                raise ConfigurationError(
                    f"{other.name} and {job.name} would both be written to {output}. "
                    "Use --keep-suffix or different folders."
                )
            if key in recordings:
                raise ConfigurationError(
                    f"The transcript of {job.name} would replace {output}, which is one of the recordings. "
                    "Use --keep-suffix or --output-dir."
                )


def _check_folders(jobs: Iterable[Job], output_dir: Path | None) -> None:
    """Make the folders of the results below `output_dir`, and see that results can be written."""
    for folder in sorted({output.parent for job in jobs for output in job.outputs.values()}):
        try:
            if output_dir is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"Cannot make the folder {folder}: {error.strerror}.") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigurationError(f"Cannot write to {folder}. Name another folder with --output-dir.")
