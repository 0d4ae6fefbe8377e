"""From the name in a request to where the model is."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from whisper_server.core.errors import ConfigurationError, ModelNotFoundError

DEMO_NAME: Final = "demo"
DIARIZE_NAME: Final = "gpt-4o-transcribe-diarize"

# Converted weights on the Hugging Face hub; the choice per size is that of faster-whisper 1.2.
REPOSITORIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{
            size: f"Systran/faster-whisper-{size}"
            for size in (
                *("tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en"),
                *("large-v1", "large-v2", "large-v3"),
            )
        },
        "large": "Systran/faster-whisper-large-v3",
        "large-v3-turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "turbo": "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        **{
            f"distil-{size}": f"Systran/faster-distil-whisper-{size}"
            for size in ("small.en", "medium.en", "large-v2", "large-v3")
        },
        "distil-large-v3.5": "distil-whisper/distil-large-v3.5-ct2",
    }
)

# Names that OpenAI's clients send; here each means the operator's default model.
OPENAI_NAMES: Final = (
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-mini-transcribe-2025-12-15",
    "gpt-live-transcribe",
    "gpt-realtime-whisper",
)

_REPOSITORY_ID = re.compile(r"{part}/{part}".format(part=r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"))
_MAX_REPOSITORY_ID_CHARS = 96
_MAX_NAME_CHARS = 100
"""Longer names are neither compared with the known ones nor repeated whole in a message."""


@dataclass(frozen=True, slots=True)
class ModelReference:
    """One model and where it is: at the hub or in a folder, never both.

    Attributes:
        id: the same for every name of the model; the key of the loaded models.
        repo_id: its repository at the hub, or None.
        path: its folder, symbolic links resolved, or None.
        requested: the name the client used; two references to one model are equal whatever it is.
    """

    id: str
    repo_id: str | None = None
    path: Path | None = None
    requested: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A line of the models list.

    Attributes:
        id: the name a request may use.
        owned_by: who published the weights: an owner at the hub, `whisper-server` for the demo, else `local`.
    """

    id: str
    owned_by: str


class ModelCatalog:
    """All names a request may use.

    A name is looked up among the operator's aliases first, so an alias may redefine a built-in name.
    A client may name a folder only inside `allowed_paths`; the default and the aliases are the
    operator's word and may name any.

    Immutable; may be shared by threads.

    Args:
        default: the model of requests without a name, and of OpenAI's names other than `whisper-1`.
        aliases: the operator's own names: name to any other name, repository id or folder.
        allowed_paths: folders inside which clients may name a model by its path.
        demo_path: the bundled model.

    Raises:
        ConfigurationError: the default or an alias leads nowhere or in a circle.
    """

    def __init__(
        self, default: str, aliases: Mapping[str, str], allowed_paths: Sequence[Path], demo_path: Path
    ) -> None:
        self._default = default.strip()
        self._aliases = {name.strip(): target.strip() for name, target in aliases.items()}
        self._allowed_paths = tuple(path.resolve() for path in allowed_paths)
        self._demo_path = demo_path.resolve()
        self._repositories = {
            "whisper-1": REPOSITORIES["tiny"],
            **{
                f"whisper-{size}": repo
                for size, repo in REPOSITORIES.items()
                if not size.startswith("distil-")
            },
            **REPOSITORIES,
        }
        self._check_configuration()

    def resolve(self, name: str) -> ModelReference:
        """Where the model of this name is. Empty means the default; white space around it does not count.

        A path is looked up on disk: call it from a worker thread where that matters.

        Raises:
            ModelNotFoundError: nothing goes by this name, or the folder is not among the allowed ones.
                Whether a folder outside them exists does not show.
        """
        name = name.strip() or self._default
        requested = _shown(name)
        target = self._follow(name)[-1]
        if target == DIARIZE_NAME:
            raise ModelNotFoundError(
                f"The model '{DIARIZE_NAME}' is not offered: this server does not tell speakers apart. "
                "Use 'gpt-4o-transcribe' for a transcript without speakers.",
                param="model",
            )
        if target == DEMO_NAME:
            return self._folder_reference(self._demo_path, requested)
        if repo_id := self._repository(target):
            return ModelReference(id=repo_id, repo_id=repo_id, requested=requested)
        if is_path(target):
            is_operators = target in (self._default, *self._aliases.values())
            return self._local(target, requested, is_operators=is_operators)
        raise ModelNotFoundError(self._not_found_message(name), param="model")

    def at_place(self, place: str) -> ModelReference:
        """The model at a place that is no name: a repository id of the hub, or any folder.

        Whoever calls this has made sure that the place may be used. Blocking, as `resolve`.

        Raises:
            ModelNotFoundError: it is neither.
        """
        place = place.strip()
        if _is_repository_id(place):
            return ModelReference(id=place, repo_id=place, requested=_shown(place))
        if is_path(place):
            return self._local(place, _shown(place), is_operators=True)
        raise ModelNotFoundError(
            f"'{_shown(place)}' is no place of a model: write a repository id of the hub, or a path that "
            "begins with '/', './' or '../'.",
            param="model_path",
        )

    def names(self) -> list[str]:
        """Every name worth listing: the aliases, the built-in names, and a default that is none of these."""
        known = (*self._aliases, *self._repositories, *OPENAI_NAMES, DEMO_NAME)
        listable_default = () if is_path(self._default) else (self._default,)
        return list(dict.fromkeys((*known, *listable_default)))

    def entries(self) -> list[ModelEntry]:
        """The models list, in the order of `names`. Touches no disk."""
        return [ModelEntry(id=name, owned_by=self._owner(name)) for name in self.names()]

    def _check_configuration(self) -> None:
        if not self._default:
            raise ConfigurationError("The default model has no name. Set it to a size such as 'small'.")
        if "" in self._aliases or "" in self._aliases.values():
            raise ConfigurationError("A model alias needs a name and a target; one of them is empty.")
        for name in (self._default, *self._aliases):
            role = f"The model alias '{name}'" if name in self._aliases else "The default model"
            route = self._follow(name)
            if len(set(route)) < len(route):
                raise ConfigurationError(f"{role} leads in a circle: {' -> '.join(route)}.")
            if not self._is_known(route[-1]):
                raise ConfigurationError(
                    f"{role} leads to an unknown model. {self._not_found_message(route[-1])}"
                )

    def _follow(self, name: str) -> list[str]:
        """The name and what it stands for, step by step; a circle ends with a repetition."""
        route = [name]
        while (step := self._step(route[-1])) is not None:
            is_circle = step in route
            route.append(step)
            if is_circle:
                break
        return route

    def _step(self, name: str) -> str | None:
        if name in self._aliases:
            return self._aliases[name]
        return self._default if name in OPENAI_NAMES else None

    def _is_known(self, target: str) -> bool:
        return target == DEMO_NAME or self._repository(target) is not None or is_path(target)

    def _repository(self, target: str) -> str | None:
        if target in self._repositories:
            return self._repositories[target]
        return target if _is_repository_id(target) else None

    def _owner(self, name: str) -> str:
        target = self._follow(name)[-1]
        if target == DEMO_NAME:
            return "whisper-server"
        repo_id = self._repository(target)
        return repo_id.split("/")[0] if repo_id else "local"

    def _local(self, target: str, requested: str, *, is_operators: bool) -> ModelReference:
        try:
            path = Path(target).resolve()
            is_allowed = is_operators or any(path.is_relative_to(folder) for folder in self._allowed_paths)
            if is_allowed and path.is_dir():
                return self._folder_reference(path, requested)
        except (OSError, RuntimeError, ValueError):
            pass  # a circle of links, a zero byte, a name too long for the disk: no such model either way
        raise ModelNotFoundError(
            f"The model '{requested}' does not exist, or is outside the folders that models may come from.",
            param="model",
        )

    def _folder_reference(self, path: Path, requested: str) -> ModelReference:
        model_id = DEMO_NAME if path == self._demo_path else str(path)
        return ModelReference(id=model_id, path=path, requested=requested)

    def _not_found_message(self, name: str) -> str:
        message = f"The model '{_shown(name)}' does not exist."
        return " ".join([message, *(f"Did you mean '{near}'?" for near in self._nearest(name))])

    def _nearest(self, name: str) -> Iterator[str]:
        if len(name) <= _MAX_NAME_CHARS:
            known = [other for other in self.names() if self._is_known(self._follow(other)[-1])]
            yield from difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)


def is_path(name: str) -> bool:
    """Whether this is written like a path, which no name and no repository id is."""
    return name.startswith(("./", "../")) or Path(name).is_absolute()


def _is_repository_id(name: str) -> bool:
    return (
        len(name) <= _MAX_REPOSITORY_ID_CHARS
        and _REPOSITORY_ID.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


def _shown(name: str) -> str:
    """The name as it may stand in a message or a log line."""
    short = name if len(name) <= _MAX_NAME_CHARS else name[:_MAX_NAME_CHARS] + "…"
    return "".join(char if char.isprintable() else "�" for char in short)
