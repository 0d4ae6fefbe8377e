"""The values of a settings tree one by one, and how each is written."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whisper_server.config.leaves import leaves_of
from whisper_server.config.profiles import NONE_WORD
from whisper_server.config.schema import Settings
from whisper_server.config.sources import KeyPath

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def effective_values(settings: Settings) -> Iterator[tuple[KeyPath, Any]]:
    """Every leaf with its value; of each decode profile, only what it changes."""
    for leaf in leaves_of(Settings):
        if leaf.path != ("decode_profiles",):
            value = settings
            for key in leaf.path:
                value = getattr(value, key)
            yield leaf.path, value
    for name, profile in settings.decode_profiles.items():
        changes = profile.overrides()
        for key, value in changes.items():
            yield ("decode_profiles", name, key), value
        if not changes:
            yield ("decode_profiles", name), changes


def toml_key(key: str) -> str:
    """A key as TOML writes it."""
    return key if _BARE_KEY.fullmatch(key) else _toml_string(key)


def toml_value(value: Any) -> str:
    """A value as TOML writes it; None, which TOML lacks, as the word that settings read as None."""
    match value:
        case None:
            return _toml_string(NONE_WORD)
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return _toml_string(str(value))
        case Mapping():
            items = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
            return f"{{ {items} }}" if items else "{}"
        case _:
            return f"[{', '.join(toml_value(item) for item in value)}]"


def _toml_string(text: str) -> str:
    # The escapes of JSON are among those of TOML, which wants one control character more escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
