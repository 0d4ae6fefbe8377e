"""The types of settings, and how their text is read."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    WrapSerializer,
)

from whisper_server.config.profiles import none_from_text

_LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def lower(value: object) -> object:
    """Text in small letters without the space around it; anything else as it is."""
    return value.strip().lower() if isinstance(value, str) else value


def _language_code(value: object) -> object:
    if value is False:
        raise ValueError('must be a string: in YAML put "no" in quotes, bare it means false')
    if not isinstance(value, str):
        return value
    code = value.strip().lower()
    if not _LANGUAGE_CODE.fullmatch(code):
        raise ValueError("must be an ISO 639-1 code such as en")
    return code


def none_from_auto(value: object) -> object:
    """None for `auto` and for what stands for none."""
    is_auto = isinstance(value, str) and value.strip().lower() == "auto"
    return None if is_auto else none_from_text(value)


def _with_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError("must be a path whose ~ stands for a known home folder") from error


def _serialize_plain(value: Any, handler: SerializerFunctionWrapHandler) -> Any:
    return handler(dict(value))


_Value = TypeVar("_Value")
FrozenMapping: TypeAlias = Annotated[
    Mapping[str, _Value], AfterValidator(MappingProxyType), WrapSerializer(_serialize_plain)
]

Text = Annotated[str, Field(min_length=1)]
UserPath = Annotated[Path, AfterValidator(_with_home)]
NoneFromText = BeforeValidator(none_from_text)
LanguageCode = Annotated[str, BeforeValidator(_language_code)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)]
ComputeType = Literal[
    "auto",
    "default",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
    "float32",
]


class Section(BaseModel):
    """A part of the settings tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
