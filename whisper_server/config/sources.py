"""The places settings come from, each read into a layer of raw values that knows where they stood."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from whisper_server.config.leaves import ENVIRONMENT_PREFIX, Leaf, Shape, nearest_name
from whisper_server.config.profiles import none_from_text
from whisper_server.core.errors import ConfigurationError

CONFIG_VARIABLE = "WHISPER_CONFIG"
"""The environment name of the settings file."""

MODEL_CONFIG_VARIABLE = "WHISPER_MODEL_CONFIG"
"""The environment name of the second settings file."""

_OTHER_PREFIX = "STT_"

KeyPath: TypeAlias = tuple[str, ...]
"""The keys that lead to a value, such as ("server", "port")."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands where a value should be that could not be read from its text.

    It is reported only if no higher layer replaces it.
    """

    text: str
    problem: str


@dataclass
class Layer:
    """What one place says.

    Attributes:
        values: raw values, nested as the settings are.
        origins: for the path of each value, words that say where it stood.
        problems: what keeps the place from being read.
        warnings: what the operator should know.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def put(self, path: KeyPath, value: object, origin: str) -> None:
        """Set one value, or each value of a mapping."""
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                self.put((*path, str(key)), item, origin)
            return
        section = self.values
        for key in path[:-1]:
            section = section.setdefault(key, {})
        section[path[-1]] = value
        self.origins[path] = origin


def file_layer(path: Path, named_by: str, leaves: Iterable[Leaf]) -> Layer:
    """What a TOML or YAML file says.

    Args:
        path: the file; the suffix tells the format.
        named_by: what asked for it, for the message when it is missing.
        leaves: every known leaf.
    """
    layer = Layer()
    try:
        document = _parse_file(path, named_by)
    except ConfigurationError as error:
        layer.problems.append(error.message)
        return layer
    known = {leaf.path: leaf for leaf in leaves}
    for leaf in known.values():
        _rename_other_keys(document, leaf, layer, str(path))
    _put_document(layer, document, (), str(path), known)
    return layer


def environment_layer(environ: Mapping[str, str], leaves: Iterable[Leaf]) -> Layer:
    """What the environment says; an empty variable counts as not set."""
    layer = Layer()
    known = {CONFIG_VARIABLE, MODEL_CONFIG_VARIABLE}
    for leaf in leaves:
        known.update(leaf.environment_names)
        names = [name for name in leaf.environment_names if environ.get(name, "").strip()]
        if names:
            winner = names[0]
            _put_text(layer, leaf, environ[winner], f"environment variable {winner}")
            layer.warnings.extend(
                f"The environment variables {winner} and {name} differ; {winner} counts."
                for name in names[1:]
                if environ[name].strip() != environ[winner].strip()
            )
    for name in sorted(environ.keys() - known):
        if name.startswith((ENVIRONMENT_PREFIX, _OTHER_PREFIX)):
            layer.warnings.append(
                f"The environment variable {name} is not a setting and is ignored; "
                f"the nearest known name is {nearest_name(name, sorted(known))}."
            )
    return layer


def command_line_layer(overrides: Mapping[str, tuple[str, str]], leaves: Iterable[Leaf]) -> Layer:
    """What the command line says.

    Args:
        overrides: for the dotted name of each leaf that is given, its text and the flag.
        leaves: every known leaf.

    Raises:
        KeyError: there is no leaf of such a name.
    """
    layer = Layer()
    known = {leaf.name: leaf for leaf in leaves}
    for name, (text, flag) in overrides.items():
        _put_text(layer, known[name], text, f"command line {flag}")
    return layer


def _put_text(layer: Layer, leaf: Leaf, text: str, origin: str) -> None:
    try:
        value = _value_from_text(leaf, text)
    except ValueError as error:
        value = Malformed(text, str(error))
    layer.put(leaf.path, value, origin)


def _value_from_text(leaf: Leaf, text: str) -> object:
    """One string as a raw value; numbers, booleans and words are left to the leaf's type."""
    if leaf.is_nullable and none_from_text(text) is None:
        return None
    if leaf.shape is Shape.MAPPING:
        return _from_json(text, dict, 'must be a JSON object such as {"a": "b"}')
    if leaf.shape is Shape.LIST:
        if text.lstrip().startswith("["):
            return _from_json(text, list, 'must be a list such as a,b or ["a", "b"]')
        return [item.strip() for item in text.split(",") if item.strip()]
    return text


def _from_json(text: str, expected: type, problem: str) -> object:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(problem) from error
    if not isinstance(value, expected):
        raise ValueError(problem)
    return value


def _parse_file(path: Path, named_by: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: there is no such file; {named_by} names it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    suffix = path.suffix.lower()
    if suffix == ".toml":
        document = _parse_toml(path, text)
    elif suffix in (".yaml", ".yml"):
        document = _parse_yaml(path, text)
    else:
        raise ConfigurationError(f"{path}: the name of a settings file ends in .toml, .yaml or .yml")
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: must hold a table of settings, not {type(document).__name__}")
    return document


def _parse_toml(path: Path, text: str) -> object:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: is not valid TOML: {error}") from error


def _parse_yaml(path: Path, text: str) -> object:
    import yaml  # here, not above: few runs read YAML, and it takes as long to import as the settings

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigurationError(f"{path}: is not valid YAML: {problem}") from error


def _rename_other_keys(document: dict[str, Any], leaf: Leaf, layer: Layer, origin: str) -> None:
    section = document.get(leaf.path[0])
    if not isinstance(section, dict):
        return
    key = leaf.path[-1]
    for other in leaf.setting.keys:
        if other not in section:
            continue
        value = section.pop(other)
        if section.setdefault(key, value) != value:
            layer.warnings.append(
                f"{origin}: `{leaf.name}` and its other name `{other}` differ; `{leaf.name}` counts."
            )


def _put_document(
    layer: Layer, table: Mapping[Any, Any], path: KeyPath, origin: str, known: Mapping[KeyPath, Leaf]
) -> None:
    """Put a file's values leaf by leaf; what is unknown goes in too and fails when the tree is built."""
    for key, value in table.items():
        here = (*path, str(key))
        leaf = known.get(here)
        if value is None and _says_nothing(here, known):
            continue
        if leaf is None and isinstance(value, Mapping):
            _put_document(layer, value, here, origin, known)
        elif leaf is not None and leaf.value_type in (int, float) and isinstance(value, bool):
            # The type alone would read true as 1.
            layer.put(here, Malformed(str(value).lower(), "must be a number"), origin)
        else:
            layer.put(here, value, origin)


def _says_nothing(path: KeyPath, known: Mapping[KeyPath, Leaf]) -> bool:
    """Whether null at a path means "not set": at a section, and at a leaf that is never None."""
    if path in known:
        return not known[path].is_nullable
    return any(other[: len(path)] == path for other in known)
