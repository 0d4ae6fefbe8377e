"""`whisper-server config`: the settings in effect, and where each came from."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from whisper_server.cli.settings_flags import add_settings_arguments, settings_from
from whisper_server.config import (
    LoadedSettings,
    Settings,
    effective_values,
    leaves_of,
    toml_key,
    toml_value,
)

_HIDDEN = "not shown"


def configure(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of this command."""
    # argparse's own usage would list some fifty flags before the help begins.
    parser.usage = "%(prog)s [--json] [--config PATH] [--model-config PATH] [--<setting> VALUE ...]"
    parser.add_argument("--json", action="store_true", help="print JSON: value and source by dotted name")
    add_settings_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the settings that a server started with the same files, environment and flags would use.

    Returns:
        The exit code, 0.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    loaded = settings_from(arguments)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(_as_json(loaded) if arguments.json else _as_toml(loaded))
    return 0


def _as_json(loaded: LoadedSettings) -> str:
    entries = {}
    for path, value in effective_values(loaded.settings):
        name = ".".join(path)
        shown = _HIDDEN if _is_secret(path, value) else _plain(value)
        entries[name] = {"value": shown, "source": loaded.sources[name]}
    return json.dumps(entries, indent=2, ensure_ascii=False)


def _is_secret(path: tuple[str, ...], value: Any) -> bool:
    """Whether there is something to hide at a path."""
    return bool(value) and any(leaf.setting.is_secret and leaf.path == path for leaf in leaves_of(Settings))


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return str(value) if isinstance(value, Path) else value


def _as_toml(loaded: LoadedSettings) -> str:
    return "\n\n".join("\n".join(lines) for lines in _tables(loaded))


def _tables(loaded: LoadedSettings) -> Iterator[list[str]]:
    """The lines of each table: its header, then a key, its value and its source per line."""
    for table, entries in groupby(effective_values(loaded.settings), key=lambda entry: entry[0][:-1]):
        lines = [f"[{'.'.join(toml_key(key) for key in table)}]"]
        for path, value in entries:
            source = loaded.sources[".".join(path)]
            if _is_secret(path, value):
                # A comment: what is printed is a settings file, and must not set another secret.
                lines.append(f"# {toml_key(path[-1])}: {_HIDDEN}  # {source}")
            else:
                lines.append(f"{toml_key(path[-1])} = {toml_value(value)}  # {source}")
        yield lines
