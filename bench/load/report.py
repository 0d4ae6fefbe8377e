"""Tables, verdicts and the machine they hold for."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from bench.load.measures import NOISY_SPREAD, spread

Cell: TypeAlias = str | float | int | None

_PACKAGES = ("whisper-server", "ctranslate2", "faster-whisper", "numpy", "httpx")
_CPU_FACTS = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was measured.

    Attributes:
        claim: what is measured, with its unit.
        measured: None where it could not be.
        limit: the measured number may reach it, but not pass it.
        is_floor: the measured number may not be below the limit, instead of above it.
    """

    claim: str
    measured: float | None
    limit: float
    is_floor: bool = False

    @property
    def word(self) -> str:
        """PASS, FAIL or NOT MEASURED."""
        if self.measured is None:
            return "NOT MEASURED"
        is_met = self.measured >= self.limit if self.is_floor else self.measured <= self.limit
        return "PASS" if is_met else "FAIL"


@dataclass(slots=True)
class Result:
    """What a scenario found.

    Attributes:
        scenario: its name.
        columns: heads of the table.
        rows: of the table.
        verdicts: against the targets.
        notes: what a reader must know.
    """

    scenario: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_noise(self, what: str, rounds: Sequence[float]) -> None:
        """Say so if the rounds of a measurement lie far apart."""
        if len(rounds) > 1 and spread(rounds) > NOISY_SPREAD:
            self.notes.append(f"noisy: {what} varies by {spread(rounds):.0%} between rounds")

    @property
    def is_passed(self) -> bool:
        """Whether every target was measured and met."""
        return bool(self.verdicts) and all(verdict.word == "PASS" for verdict in self.verdicts)


def ratio(value: float | None, base: float | None) -> float | None:
    """How many times `base` it is; None where one is missing."""
    return value / base if value is not None and base else None


def render(result: Result, *, is_quick: bool) -> str:
    """The table, the verdicts and the notes as text for people."""
    lines = [f"## {result.scenario}", ""]
    if result.rows:
        lines += [*_table(result.columns, result.rows), ""]
    if result.verdicts:
        rows = [
            (
                verdict.claim,
                verdict.measured,
                f"{'≥' if verdict.is_floor else '≤'} {verdict.limit:.3g}",
                verdict.word,
            )
            for verdict in result.verdicts
        ]
        lines += [*_table(("target", "measured", "limit", ""), rows), ""]
    lines += [f"- {note}" for note in result.notes]
    if is_quick:
        lines.append("- quick: shortened to try the benchmark itself; these numbers are no results")
    return "\n".join(lines).rstrip() + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """A Markdown table whose columns are aligned."""
    cells = [list(columns), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)


def machine_facts() -> dict[str, str]:
    """Processor, cores, system and versions."""
    facts = {
        "processor": _processor(),
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    return facts | {name: importlib.metadata.version(name) for name in _PACKAGES}


def render_facts(facts: Mapping[str, str]) -> str:
    """What a run holds for as text for people, a line each and an empty one."""
    return "\n".join(f"{name}: {value}" for name, value in facts.items()) + "\n"


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    if _CPU_FACTS.exists():
        for line in _CPU_FACTS.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, facts: dict[str, str], results: Sequence[Result], *, is_quick: bool) -> None:
    """Everything as one JSON object."""
    content = {
        "machine": facts,
        "is_quick": is_quick,
        "results": [
            asdict(result) | {"verdicts": [asdict(each) | {"word": each.word} for each in result.verdicts]}
            for result in results
        ],
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
