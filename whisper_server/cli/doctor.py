"""`whisper-server doctor`: what this machine offers, and what the server makes of it."""

import argparse
import dataclasses
import importlib.metadata
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from whisper_server.cli.settings_flags import add_settings_arguments, settings_from
from whisper_server.config import ModelSettings
from whisper_server.core.calibration import candidates, machine_fingerprint
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.hardware import Decision, HardwareFacts
from whisper_server.engines.hardware_probe import gather_facts
from whisper_server.services.calibration_cache import Calibration, CalibrationCache, platform_cache_folder
from whisper_server.services.compute_choice import decide

_CANNOT_WORK = 2
"""Exit code, as argparse's for a wrong command line."""

_PACKAGES = ("ctranslate2", "faster-whisper", "transformers", "torch", "librosa", "soundfile")

_LABEL_COLUMNS = 20
_LINE_COLUMNS = 100

_Row: TypeAlias = tuple[str, str]
"""A label and its value."""


@dataclass(frozen=True, slots=True)
class _Report:
    """Everything the command found.

    Attributes:
        facts: of the machine.
        packages: installed version by name, or None.
        cache_folder: where downloaded models are kept.
        cache_free_bytes: free disk there, or None where it cannot be told.
        decision: the choice, or None where what was set cannot work.
        error: why it cannot, for the operator.
        calibration_place: where calibrations are kept.
        calibrations: those for this machine, the oldest first.
    """

    facts: HardwareFacts
    packages: dict[str, str | None]
    cache_folder: Path
    cache_free_bytes: int | None
    decision: Decision | None
    error: str | None
    calibration_place: str
    calibrations: list[Calibration]


def configure(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of this command."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_settings_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the machine's facts, the packages, the model cache, the choice with its reasons, calibrations.

    Returns:
        The exit code: 0, or 2 when what is set cannot work on this machine.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    loaded = settings_from(arguments)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    report = _examine(loaded.settings.model)
    print(_as_json(report) if arguments.json else _as_text(report))
    if report.error is not None:
        print(report.error, file=sys.stderr)
        return _CANNOT_WORK
    return 0


def _examine(settings: ModelSettings) -> _Report:
    facts = gather_facts()
    decision, error = None, None
    try:
        decision = decide(settings, facts)
    except ConfigurationError as refusal:
        error = refusal.message
    cache_folder = _cache_folder(settings)
    calibrations = CalibrationCache(platform_cache_folder())
    return _Report(
        facts=facts,
        packages={name: _version(name) for name in _PACKAGES},
        cache_folder=cache_folder,
        cache_free_bytes=_free_bytes(cache_folder),
        decision=decision,
        error=error,
        calibration_place=calibrations.place,
        calibrations=calibrations.for_machine(machine_fingerprint(facts)),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache_folder(settings: ModelSettings) -> Path:
    if settings.cache_dir is not None:
        return settings.cache_dir
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _free_bytes(folder: Path) -> int | None:
    """Free disk where the folder is or would be made."""
    folder = folder.absolute()
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(nearest).free
    except (OSError, StopIteration):
        return None


def _as_json(report: _Report) -> str:
    document = dataclasses.asdict(report)
    document["facts"]["usable_cores"] = report.facts.usable_cores
    return json.dumps(document, indent=2, ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    """A value as JSON has it, where `json` does not know it."""
    return sorted(value) if isinstance(value, frozenset) else str(value)


def _as_text(report: _Report) -> str:
    sections = [
        ("Machine", _rows(_machine_rows(report.facts))),
        ("Packages", _rows((name, version or "not installed") for name, version in report.packages.items())),
        ("Model cache", _rows(_cache_rows(report))),
    ]
    if report.decision is not None:
        sections.append(("Choice", _rows(_choice_rows(report.decision))))
        sections.append(("Why", map(_item, report.decision.reasons)))
        sections.append(("Warnings", map(_item, report.decision.warnings)))
        sections.append(("Calibration", _rows(_calibration_rows(report, report.decision))))
    blocks = ["\n".join((title, *lines)) for title, content in sections if (lines := list(content))]
    return "\n\n".join(blocks)


def _machine_rows(facts: HardwareFacts) -> Iterator[_Row]:
    usable = f"{facts.usable_cores} usable"
    limit = f"limited to {_number(facts.cpu_limit)}" if facts.cpu_limit is not None else "not limited"
    yield "system", f"{facts.system} {facts.architecture}"
    yield "processor", facts.cpu_name or "unknown"
    yield "instruction sets", _words(facts.instruction_sets, "unknown")
    yield "cores", f"{facts.physical_cores} physical, {facts.logical_cores} logical, {limit}, {usable}"
    yield "memory", _bytes(facts.memory_bytes)
    yield "memory limit", _bytes(facts.memory_limit_bytes, "none")
    yield "CPU compute types", _words(facts.cpu_compute_types, "unknown")
    if not facts.gpus:
        yield "CUDA devices", "none"
    for gpu in facts.gpus:
        name = gpu.name or "name unknown"
        yield f"CUDA device {gpu.index}", f"{name}, {_bytes(gpu.vram_bytes, 'memory unknown')}"
        yield "  compute types", _words(gpu.supported_compute_types, "unknown")
    yield "NVIDIA driver", "present" if facts.has_nvidia_driver else "not found"
    if facts.missing_cuda_libraries:
        yield "missing libraries", _words(facts.missing_cuda_libraries, "")
    yield "MPS", "available" if facts.mps_available else "not available"
    yield "engines", _words(facts.installed_engines, "none")


def _cache_rows(report: _Report) -> Iterator[_Row]:
    yield "folder", str(report.cache_folder)
    yield "free disk", _bytes(report.cache_free_bytes)


def _choice_rows(decision: Decision) -> Iterator[_Row]:
    choice = decision.choice
    yield "engine", choice.engine
    yield "device", f"{choice.device} {choice.device_index}" if choice.device == "cuda" else choice.device
    yield "compute type", choice.compute_type
    yield "CPU threads", f"{choice.cpu_threads} per worker"
    yield "workers", str(choice.workers)


def _calibration_rows(report: _Report, decision: Decision) -> Iterator[_Row]:
    tried = candidates(decision, report.facts)
    yield "candidates", ", ".join(map(str, tried)) if len(tried) > 1 else "none: there is nothing to choose"
    yield "kept in", report.calibration_place
    for entry in report.calibrations:
        yield "model", entry.folder
        yield "  chosen", f"{entry.chosen} for {entry.key.compute_type}"
        yield "  measured", f"{entry.measured_at}, {entry.key.libraries}"
        for measurement in entry.measurements:
            yield "", str(measurement)
        if entry.note:
            yield "", entry.note
        if entry.key.candidates != tried:
            yield "", "not used: the settings leave other candidates"


def _rows(rows: Iterable[_Row]) -> Iterator[str]:
    return (f"  {label:<{_LABEL_COLUMNS}}{value}" for label, value in rows)


def _item(sentence: str) -> str:
    return textwrap.fill(sentence, _LINE_COLUMNS, initial_indent="  - ", subsequent_indent="    ")


def _words(names: frozenset[str], if_none: str) -> str:
    return " ".join(sorted(names)) or if_none


def _bytes(number: int | None, if_unknown: str = "unknown") -> str:
    return if_unknown if number is None else f"{number / 1000**3:.1f} GB"


def _number(value: float) -> str:
    """A number without needless decimals: 2, 1.5."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
