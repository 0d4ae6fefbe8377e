"""Form fields as the OpenAI SDKs encode them, read by name and checked.

Arrays are repeated `name[]` parts, and bare `name` parts are taken too; objects are `name[key]` parts, and a
JSON object in a bare `name` part is taken too. An empty value counts as absent.
"""

import json
import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TypeVar

from whisper_server.core.errors import InvalidRequestError

_MAX_SHOWN = 100
_NONE_WORDS = ("none", "null")
_TRUE_WORDS = ("true", "1", "yes", "on")
_FALSE_WORDS = ("false", "0", "no", "off")

_Choice = TypeVar("_Choice", bound=StrEnum)


class Fields:
    """The text fields of a form. Each reader gives None where the field is absent.

    All readers raise `InvalidRequestError` with the field as `param`.

    Args:
        pairs: (name, value) in order; of several bare values the last one counts.
        prefix: of the names in messages, for fields of an object.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]], prefix: str = "") -> None:
        self._pairs = [(name.strip(), value) for name, value in pairs if value.strip()]
        self._prefix = prefix

    def text(self, name: str) -> str | None:
        """A string, without the white space around it."""
        values = [value for key, value in self._pairs if key == name]
        return values[-1].strip() if values else None

    def flag(self, name: str) -> bool | None:
        """A boolean."""
        value = self.text(name)
        if value is None or value.lower() in _NONE_WORDS:
            return None
        if value.lower() in _TRUE_WORDS:
            return True
        if value.lower() in _FALSE_WORDS:
            return False
        raise self.invalid(name, "must be true or false")

    def number(self, name: str, least: float = -math.inf, most: float = math.inf) -> float | None:
        """A finite number within bounds."""
        value = self.text(name)
        return None if value is None else self._number(name, value, least, most)

    def integer(self, name: str, least: int, most: int) -> int | None:
        """A whole number within bounds."""
        value = self.text(name)
        return None if value is None else self._integer(name, value, least, most)

    def is_none(self, name: str) -> bool:
        """Whether the field says `none` or `null`."""
        return (self.text(name) or "").lower() in _NONE_WORDS

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings."""
        names = (name, f"{name}[]")
        return tuple(value.strip() for key, value in self._pairs if key in names)

    def numbers(
        self, name: str, least: float = -math.inf, most: float = math.inf, *, max_count: int
    ) -> tuple[float, ...]:
        """An array of numbers; one value may hold several, parted by commas."""
        return tuple(self._number(name, part, least, most) for part in self._parts(name, max_count))

    def integers(self, name: str, least: int, most: int, *, max_count: int) -> tuple[int, ...]:
        """An array of whole numbers, as `numbers`."""
        return tuple(self._integer(name, part, least, most) for part in self._parts(name, max_count))

    def choice(self, name: str, kind: type[_Choice]) -> _Choice | None:
        """One of the values of `kind`."""
        value = self.text(name)
        return None if value is None else self._choice(name, value, kind)

    def choices(self, name: str, kind: type[_Choice]) -> tuple[_Choice, ...]:
        """An array of values of `kind`."""
        return tuple(self._choice(name, value, kind) for value in self.texts(name))

    def group(self, name: str) -> "Fields | None":
        """The fields of an object."""
        start = f"{name}["
        own = [(key[len(start) : -1], value) for key, value in self._pairs if _is_key_of(key, start)]
        bare = self.text(name)
        if bare is not None:
            own += self._json_object(name, bare)
        return Fields(own, prefix=f"{self._prefix}{name}.") if own else None

    def is_given(self, name: str) -> bool:
        """Whether the field is there in any of its encodings."""
        return any(key == name or key.startswith(f"{name}[") for key, _ in self._pairs)

    def keys(self) -> set[str]:
        """The names of all fields."""
        return {key for key, _ in self._pairs}

    def invalid(self, name: str, problem: str) -> InvalidRequestError:
        """The error that says what is wrong with a field."""
        param = f"{self._prefix}{name}"
        return InvalidRequestError(f"'{param}' {problem}.", param=param, code="invalid_value")

    def unsupported(self, name: str, value: str, allowed: Sequence[str]) -> InvalidRequestError:
        """The error for a value that is not offered."""
        param = f"{self._prefix}{name}"
        return InvalidRequestError(
            f"'{param}' does not support '{shown(value)}'. Supported values: {', '.join(allowed)}.",
            param=param,
            code="unsupported_value",
        )

    def _choice(self, name: str, value: str, kind: type[_Choice]) -> _Choice:
        try:
            return kind(value.lower())
        except ValueError:
            raise self.unsupported(name, value, [member.value for member in kind]) from None

    def _parts(self, name: str, max_count: int) -> list[str]:
        parts = [part for value in self.texts(name) for part in value.split(",") if part.strip()]
        if len(parts) > max_count:
            raise self.invalid(name, f"must have at most {max_count} values")
        return parts

    def _integer(self, name: str, value: str, least: int, most: int) -> int:
        try:
            number = int(value)
        except ValueError:
            raise self.invalid(name, "must be a whole number") from None
        return int(self._within(name, number, least, most))

    def _number(self, name: str, value: str, least: float, most: float) -> float:
        try:
            number = float(value)
        except ValueError:
            raise self.invalid(name, "must be a number") from None
        if not math.isfinite(number):
            raise self.invalid(name, "must be a finite number")
        return self._within(name, number, least, most)

    def _within(self, name: str, number: float, least: float, most: float) -> float:
        if least <= number <= most:
            return number
        if most == math.inf:
            raise self.invalid(name, f"must be at least {least:g}")
        if least == -math.inf:
            raise self.invalid(name, f"must be at most {most:g}")
        raise self.invalid(name, f"must be between {least:g} and {most:g}")

    def _json_object(self, name: str, value: str) -> list[tuple[str, str]]:
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise self.invalid(name, "must be an object")
        return [(key, _as_text(item)) for key, item in parsed.items() if item is not None]


def shown(value: str) -> str:
    """A client's value as it may stand in a message and in a log line: its beginning, on one line."""
    return "".join(char if char.isprintable() else "�" for char in value[:_MAX_SHOWN])


def _is_key_of(key: str, start: str) -> bool:
    return key.startswith(start) and key.endswith("]") and len(key) > len(start) + 1


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
