"""What a settings tree says about itself: every leaf with its names in files, environment and flags."""

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ENVIRONMENT_PREFIX = "WHISPER_"
"""Every leaf has the environment name WHISPER_<SECTION>_<KEY>."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Further names of a leaf, declared beside its type in `Annotated`.

    Attributes:
        env: environment names besides WHISPER_<SECTION>_<KEY>.
        flags: command-line flags besides --<section>-<key>.
        keys: names besides its own that a file may use, in the same section.
        is_secret: its value is never shown.
    """

    env: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    is_secret: bool = False


class Shape(Enum):
    """How a leaf is written as one string: as it is, as a list with commas, or as a JSON object."""

    SCALAR = "scalar"
    LIST = "list"
    MAPPING = "mapping"


@dataclass(frozen=True)
class Leaf:
    """One value of a settings tree.

    Attributes:
        path: the keys that lead to it, such as ("server", "port").
        info: its field.
        setting: its further names.
    """

    path: tuple[str, ...]
    info: FieldInfo
    setting: Setting

    @property
    def name(self) -> str:
        """The dotted name, such as `server.port`."""
        return ".".join(self.path)

    @property
    def description(self) -> str:
        """What it means, in one line."""
        return self.info.description or ""

    @property
    def default(self) -> Any:
        """Its value where no source sets it."""
        return self.info.get_default(call_default_factory=True)

    @cached_property
    def environment_names(self) -> tuple[str, ...]:
        """The names it has in the environment, the one that wins first."""
        primary = ENVIRONMENT_PREFIX + "_".join(self.path).upper()
        return tuple(dict.fromkeys((primary, *self.setting.env)))

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """Its command-line flags, the short ones first."""
        long = "--" + "-".join(self.path).replace("_", "-")
        return tuple(dict.fromkeys((*self.setting.flags, long)))

    @cached_property
    def is_nullable(self) -> bool:
        """Whether None is one of its values."""
        return any(option is types.NoneType for option in _options(self.info.annotation))

    @cached_property
    def value_type(self) -> Any:
        """Its type without None and metadata, such as `int` or `tuple[str, ...]`."""
        return next(option for option in _options(self.info.annotation) if option is not types.NoneType)

    @cached_property
    def shape(self) -> Shape:
        """How it is written as one string."""
        origin = get_origin(self.value_type)
        if origin is tuple:
            return Shape.LIST
        return Shape.MAPPING if origin is Mapping else Shape.SCALAR

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """The values it may take, where these are a few words; else empty."""
        return get_args(self.value_type) if get_origin(self.value_type) is Literal else ()


def leaves_of(model: type[BaseModel], path: tuple[str, ...] = ()) -> tuple[Leaf, ...]:
    """Every leaf of a tree of models, in the order of their declaration."""
    leaves: list[Leaf] = []
    for key, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            leaves.extend(leaves_of(info.annotation, (*path, key)))
        else:
            setting = next((item for item in info.metadata if isinstance(item, Setting)), Setting())
            leaves.append(Leaf((*path, key), info, setting))
    return tuple(leaves)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The known dotted name a mistaken one most likely means.

    The same key in another section comes before a name that is merely spelled alike; of a key without a
    section, the first section that has it.
    """
    names = list(known)
    key = name.rpartition(".")[2]
    same_key = [candidate for candidate in names if candidate.rpartition(".")[2] == key]
    if same_key and key == name:
        return same_key[0]
    return difflib.get_close_matches(name, same_key or names, n=1, cutoff=0.0)[0]


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union without their metadata, or the one type."""
    if get_origin(annotation) is Annotated:
        yield from _options(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _options(member)
    else:
        yield annotation
