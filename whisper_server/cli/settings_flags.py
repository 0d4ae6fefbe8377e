"""A command-line flag for every setting."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from whisper_server.config import (
    Leaf,
    LoadedSettings,
    Settings,
    Shape,
    leaves_of,
    load_settings,
    section_summary,
    toml_value,
)

_DESTINATION_PREFIX = "setting:"

_METAVARS = {bool: "true|false", int: "N", float: "X", Path: "PATH", str: "TEXT"}


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `--model-config` and one flag per setting, grouped by section.

    Values are not checked here: `load_settings` does that for every source alike. It gets
    `arguments.config`, `arguments.model_config` and `overrides_from(arguments)`.
    """
    files = parser.add_argument_group("settings files")
    files.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="TOML or YAML file with settings (default: config.toml if there is one; "
        "environment: WHISPER_CONFIG)",
    )
    files.add_argument(
        "--model-config",
        type=Path,
        metavar="PATH",
        help="a second such file, over the first (environment: WHISPER_MODEL_CONFIG)",
    )
    for section, leaves in groupby(leaves_of(Settings), key=lambda leaf: leaf.path[0]):
        group = parser.add_argument_group(f"{section} settings", section_summary(section))
        for leaf in leaves:
            group.add_argument(
                *leaf.flags,
                action=_StoreOverride,
                dest=_DESTINATION_PREFIX + leaf.name,
                default=argparse.SUPPRESS,
                metavar=_metavar(leaf),
                help=_help(leaf),
            )


def overrides_from(arguments: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """The settings that flags give: dotted name to the text and the flag as it was written."""
    return {
        name.removeprefix(_DESTINATION_PREFIX): value
        for name, value in vars(arguments).items()
        if name.startswith(_DESTINATION_PREFIX)
    }


def settings_from(arguments: argparse.Namespace) -> LoadedSettings:
    """The settings by the parsed flags, the files they name, and the environment.

    Raises:
        ConfigurationError: a setting is wrong.
    """
    return load_settings(
        config=arguments.config,
        model_config=arguments.model_config,
        overrides=overrides_from(arguments),
    )


class _StoreOverride(argparse.Action):
    """Keep the text together with the flag that gave it, for error messages."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, (str(values), option_string or self.option_strings[0]))


def _metavar(leaf: Leaf) -> str:
    if leaf.shape is Shape.LIST:
        return "A,B"
    if leaf.shape is Shape.MAPPING:
        return "JSON"
    return "|".join(leaf.choices) or _METAVARS[leaf.value_type]


def _help(leaf: Leaf) -> str:
    facts = [f"environment: {', '.join(leaf.environment_names)}"]
    facts[:0] = _default(leaf)
    return f"{leaf.description} ({'; '.join(facts)})".replace("%", "%%")


def _default(leaf: Leaf) -> Iterator[str]:
    if leaf.shape is Shape.SCALAR:
        yield f"default: {toml_value(leaf.default)}"
    elif leaf.shape is Shape.LIST and leaf.default:
        yield f"default: {','.join(leaf.default)}"
