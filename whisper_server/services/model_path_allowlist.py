"""Which folders and repositories the operator's `model_path` may name."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from whisper_server.core.errors import ConfigurationError
from whisper_server.services.model_catalog import is_path

_HUB_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]*)?")
"""An owner at the hub, or the id of one repository."""


def check_prefixes(prefixes: Iterable[str]) -> None:
    """Check `admin.model_path_allowlist`.

    Raises:
        ConfigurationError: an entry is neither a path nor the beginning of a repository id.
    """
    for prefix in prefixes:
        if not is_path(prefix) and _HUB_PREFIX.fullmatch(prefix) is None:
            raise ConfigurationError(
                f"admin.model_path_allowlist does not know '{prefix}'. Write a folder that begins with a "
                "slash, such as /models/, or an owner at the Hugging Face hub, such as openai/."
            )


def is_allowed(place: str, prefixes: Sequence[str]) -> bool:
    """Whether a folder or a repository id begins with one of the prefixes, in whole components.

    Symbolic links and `..` are resolved before folders are compared, in the prefixes too. No prefix at all
    allows any place. Blocking: it looks at the disk.
    """
    if not prefixes:
        return True
    place = place.strip()
    if is_path(place):
        return _is_inside(place, [prefix for prefix in prefixes if is_path(prefix)])
    return any(f"{place}/".startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes)


def _is_inside(place: str, folders: Iterable[str]) -> bool:
    try:
        path = Path(place).resolve()
        return any(path.is_relative_to(Path(folder).resolve()) for folder in folders)
    except (OSError, RuntimeError, ValueError):
        return False  # a circle of links, a zero byte, a name too long for the disk
