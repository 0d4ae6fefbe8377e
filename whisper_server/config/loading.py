"""Settings from defaults, files, the environment and the command line, each over the one before."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import PydanticBaseSettingsSource

from whisper_server.config.leaves import Leaf, leaves_of, nearest_name
from whisper_server.config.profiles import DecodeProfile
from whisper_server.config.schema import Settings
from whisper_server.config.sources import (
    CONFIG_VARIABLE,
    MODEL_CONFIG_VARIABLE,
    KeyPath,
    Layer,
    Malformed,
    command_line_layer,
    environment_layer,
    file_layer,
)
from whisper_server.config.values import effective_values
from whisper_server.core.errors import ConfigurationError

DEFAULT_FILE = Path("config.toml")
"""Read from the working directory when no file is named."""

DEFAULT_SOURCE = "default"
"""The source of what nothing sets."""

_MAX_SHOWN_CHARACTERS = 80

_TYPE_PROBLEMS = MappingProxyType(
    {
        "model_type": "must be a table of settings",
        "mapping_type": "must be a table",
        "dict_type": "must be a table",
        "tuple_type": "must be a list",
    }
)


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings and where they came from.

    Attributes:
        settings: the tree.
        sources: for the dotted name of each value, words such as `environment variable STT_PORT`.
        warnings: what the operator should know, one sentence or two each.
    """

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...]


def load_settings(
    *,
    config: Path | None = None,
    model_config: Path | None = None,
    overrides: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    environ: Mapping[str, str] = os.environ,
) -> LoadedSettings:
    """Merge every source: defaults < `config` < `model_config` < `environ` < `overrides`.

    Tables merge key by key; any other value replaces the one below it.

    Args:
        config: a TOML or YAML file. Where it is None, the one that WHISPER_CONFIG names, or else
            `config.toml` in the working directory if there is one.
        model_config: a second file, over the first; where it is None, the one WHISPER_MODEL_CONFIG names.
        overrides: from the command line: dotted name to its text and its flag.
        environ: the environment.

    Raises:
        ConfigurationError: files cannot be read, or values are wrong or unknown; all of them are listed.
        KeyError: `overrides` names what is not a setting.
    """
    leaves = leaves_of(Settings)
    layers = [file_layer(path, how, leaves) for path, how in _files(config, model_config, environ)]
    layers += [environment_layer(environ, leaves), command_line_layer(overrides, leaves)]
    origins: dict[KeyPath, str] = {}
    for layer in layers:
        origins.update(layer.origins)
    problems = [problem for layer in layers for problem in layer.problems]
    settings = None
    try:
        # Highest first, as pydantic-settings wants its sources.
        settings = Settings(_build_sources=(tuple(_LayerSource(layer) for layer in reversed(layers)), {}))
    except ValidationError as error:
        problems += [_problem(details, origins, leaves) for details in error.errors(include_url=False)]
    if settings is None or problems:
        raise ConfigurationError(_message(problems))
    sources = {".".join(path): _source(path, origins) for path, _ in effective_values(settings)}
    warnings = [warning for layer in layers for warning in layer.warnings]
    return LoadedSettings(settings, MappingProxyType(sources), tuple(warnings))


class _LayerSource(PydanticBaseSettingsSource):
    """A layer as pydantic-settings merges it with the others."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(Settings)
        self._values = layer.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def _files(
    config: Path | None, model_config: Path | None, environ: Mapping[str, str]
) -> Iterator[tuple[Path, str]]:
    """The files to read, the lower one first, with what names each."""
    if config is not None:
        yield config, "--config"
    elif environ.get(CONFIG_VARIABLE):
        yield Path(environ[CONFIG_VARIABLE]), f"environment variable {CONFIG_VARIABLE}"
    elif DEFAULT_FILE.is_file():
        yield DEFAULT_FILE, "the working directory"
    if model_config is not None:
        yield model_config, "--model-config"
    elif environ.get(MODEL_CONFIG_VARIABLE):
        yield Path(environ[MODEL_CONFIG_VARIABLE]), f"environment variable {MODEL_CONFIG_VARIABLE}"


def _source(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """Where the value at a path came from: itself, its parts, or the whole it is a part of."""
    if path in origins:
        return origins[path]
    parts = dict.fromkeys(origin for other, origin in origins.items() if other[: len(path)] == path)
    if parts:
        return ", ".join(parts)
    wholes = (origins[path[:length]] for length in range(len(path), 0, -1) if path[:length] in origins)
    return next(wholes, DEFAULT_SOURCE)


def _problem(details: ErrorDetails, origins: Mapping[KeyPath, str], leaves: Iterable[Leaf]) -> str:
    """One error of pydantic in the operator's words."""
    context = details.get("ctx", {})
    value = context.get("value", details["input"])
    path = tuple(context["setting"].split(".")) if "setting" in context else _key_path(details["loc"])
    name, source = ".".join(path), _source(path, origins)
    if details["type"] == "extra_forbidden":
        nearest = nearest_name(name, _known_beside(path, value, leaves))
        return f"{source}: unknown key `{name}`; the nearest known key is `{nearest}`"
    shown = _hidden if _is_secret(path, leaves) else _shown
    if isinstance(value, Malformed):
        return f"{name}: {value.problem}; got {shown(value.text)} from {source}"
    problem = _TYPE_PROBLEMS.get(details["type"]) or _rephrased(details["msg"])
    return f"{name}: {problem}; got {shown(value)} from {source}"


def _key_path(location: tuple[int | str, ...]) -> KeyPath:
    """The path of the value at fault; positions in a list do not count."""
    return tuple(part for part in location if isinstance(part, str))


def _known_beside(path: KeyPath, value: object, leaves: Iterable[Leaf]) -> list[str]:
    """The names a mistaken one may have meant."""
    if path[0] == "decode_profiles":
        return [".".join((*path[:-1], key)) for key in DecodeProfile.model_fields]
    if len(path) == 1 and isinstance(value, Mapping):
        return list(Settings.model_fields)
    names = [leaf.name for leaf in leaves]
    return names + [".".join((*leaf.path[:-1], key)) for leaf in leaves for key in leaf.setting.keys]


def _rephrased(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message.replace("Input should ", "must ").replace("String should ", "must ").replace("'", "`")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[: _MAX_SHOWN_CHARACTERS - 1]}…"


def _hidden(_: object) -> str:
    return "a value that is not shown"


def _is_secret(path: KeyPath, leaves: Iterable[Leaf]) -> bool:
    return any(leaf.setting.is_secret and path[: len(leaf.path)] == leaf.path for leaf in leaves)


def _message(problems: list[str]) -> str:
    if len(problems) == 1:
        return f"A setting is wrong. {problems[0]}"
    lines = "".join(f"\n  {problem}" for problem in problems)
    return f"{len(problems)} settings are wrong:{lines}"
