"""Updates of a session's configuration, in either shape.

They are partial: what is absent stays, and null clears.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from whisper_server.api.openai.fields import shown
from whisper_server.api.openai.realtime.config import (
    BETA_FORMATS,
    INCLUDABLE,
    AudioFormat,
    NoiseReduction,
    Part,
    RealtimeConfig,
    SemanticVad,
    ServerVad,
    Transcription,
    TurnDetection,
)
from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.languages import language_code


def updated(config: RealtimeConfig, session: object) -> RealtimeConfig:
    """The configuration after an update.

    Args:
        config: before it.
        session: of the update, in either shape.

    Raises:
        InvalidRequestError: a field is malformed, out of range, or not offered; `param` names it.
    """
    return _Update(session).apply(config)


@dataclass(frozen=True, slots=True)
class _Given:
    """A section of an update: its value, and where it stands."""

    value: object
    param: str


class _Update:
    """One update, read section by section.

    Raises:
        InvalidRequestError: it is no object, or one for a conversation.
    """

    _FLAT: ClassVar[Mapping[str, str]] = {
        "format": "input_audio_format",
        "transcription": "input_audio_transcription",
        "noise_reduction": "input_audio_noise_reduction",
        "turn_detection": "turn_detection",
        "include": "include",
    }

    def __init__(self, session: object) -> None:
        values = _object(session, "session")
        _refuse_conversation(values)
        self._given: dict[str, _Given] = {
            section: _Given(values[name], f"session.{name}")
            for section, name in self._FLAT.items()
            if name in values
        }
        param = "session"
        for level in ("audio", "input"):
            param = f"{param}.{level}"
            # Null here names no field to clear: it is how some serializers write an absent object.
            values = _object(values.get(level) or {}, param)
        self._given |= {
            section: _Given(values[section], f"{param}.{section}")
            for section in ("format", "transcription", "noise_reduction", "turn_detection")
            if section in values
        }

    def apply(self, config: RealtimeConfig) -> RealtimeConfig:
        """The configuration after it; errors as `updated`."""
        for section, change in _SECTIONS.items():
            if section in self._given:
                config = change(config, self._given[section])
        return config


def _change_format(config: RealtimeConfig, given: _Given) -> RealtimeConfig:
    value = given.value
    if isinstance(value, str):
        if value not in BETA_FORMATS:
            raise _unsupported(given.param, value, BETA_FORMATS)
        value = {"type": BETA_FORMATS[value]}
    return replace(config, format=_merged(AudioFormat, config.format, value, given.param) or AudioFormat())


def _change_transcription(config: RealtimeConfig, given: _Given) -> RealtimeConfig:
    if given.value is None:
        return replace(config, transcription=Transcription(model=config.defaults.model))
    sent = _object(given.value, given.param)
    values = {name: None if value in ("", []) else value for name, value in sent.items()}
    if values.get("language") and values.get("languages"):
        raise InvalidRequestError(
            "Send 'language' or 'languages', not both.",
            param=f"{given.param}.languages",
            code="invalid_value",
        )
    for name, other in (("language", "languages"), ("languages", "language")):
        if values.get(name):
            values.setdefault(other, None)
    transcription = _merged(
        Transcription, config.transcription, values, given.param, {"model": config.defaults.model}
    )
    assert transcription is not None  # only null gives None
    _check_languages(transcription, given.param)
    return replace(config, transcription=transcription)


def _change_noise_reduction(config: RealtimeConfig, given: _Given) -> RealtimeConfig:
    changed = _merged(NoiseReduction, config.noise_reduction, given.value, given.param)
    return replace(config, noise_reduction=changed)


def _change_turn_detection(config: RealtimeConfig, given: _Given) -> RealtimeConfig:
    changed: TurnDetection | None = None
    if given.value is not None:
        current = config.turn_detection
        values = _object(given.value, given.param)
        kind = values.get("type") or ("server_vad" if current is None else current.type)
        if kind == "server_vad":
            usual = config.defaults.turn_detection or ServerVad()
            changed = _merged(ServerVad, current, values, given.param, usual.model_dump())
        elif kind == "semantic_vad":
            changed = _merged(SemanticVad, current, values, given.param)
        else:
            raise _unsupported(f"{given.param}.type", str(kind), ("server_vad", "semantic_vad"))
    return replace(config, given_turn_detection=changed, is_turn_detection_given=True)


def _change_include(config: RealtimeConfig, given: _Given) -> RealtimeConfig:
    value = [] if given.value is None else given.value
    if not isinstance(value, list):
        raise InvalidRequestError(
            f"'{given.param}' must be an array.", param=given.param, code="invalid_value"
        )
    for name in value:
        if name not in INCLUDABLE:
            raise _unsupported(given.param, str(name), INCLUDABLE)
    return replace(config, include=tuple(dict.fromkeys(value)))


_SECTIONS: Mapping[str, Callable[[RealtimeConfig, _Given], RealtimeConfig]] = MappingProxyType(
    {
        "format": _change_format,
        "transcription": _change_transcription,
        "noise_reduction": _change_noise_reduction,
        "turn_detection": _change_turn_detection,
        "include": _change_include,
    }
)

_Changed = TypeVar("_Changed", bound=Part)


def _merged(
    kind: type[_Changed],
    current: Part | None,
    given: object,
    param: str,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> _Changed | None:
    """A section after an update: null clears it, absent keys stay, null keys go back to their defaults.

    A section of another type begins anew.
    """
    if given is None:
        return None
    patch = _object(given, param)
    before: dict[str, Any] = {}
    own_type = getattr(current, "type", None)
    if isinstance(current, kind) and patch.get("type", own_type) == own_type:
        before = current.model_dump()
    values = {name: value for name, value in (before | dict(patch)).items() if value is not None}
    try:
        return kind.model_validate({**defaults, **values})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join([param, *map(str, first["loc"])])
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise InvalidRequestError(
            f"'{place}' is wrong: {problem}.", param=place, code="invalid_value"
        ) from error


def _check_languages(transcription: Transcription, param: str) -> None:
    named = [("language", transcription.language)] if transcription.language else []
    named += [("languages", code) for code in transcription.languages or ()]
    for name, code in named:
        if code != "auto" and language_code(code or "") is None:
            raise InvalidRequestError(
                f"'{param}.{name}' does not know '{shown(code or '')}'. Use an ISO 639-1 code such as 'en'.",
                param=f"{param}.{name}",
                code="unsupported_language",
            )


def _refuse_conversation(session: Mapping[str, Any]) -> None:
    kind = session.get("type")
    if kind in (None, "transcription"):
        return
    if kind != "realtime":
        raise _unsupported("session.type", str(kind), ("transcription",))
    raise InvalidRequestError(
        "Passing a realtime session to a transcription session is not allowed: this server transcribes and "
        "does not converse. Send a session of type 'transcription'.",
        param="session.type",
        code="invalid_parameter",
    )


def _object(value: object, param: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"'{param}' must be an object.", param=param, code="invalid_value")
    return value


def _unsupported(
    param: str, value: str, allowed: "Mapping[str, Any] | tuple[str, ...]"
) -> InvalidRequestError:
    return InvalidRequestError(
        f"'{param}' does not support '{shown(value)}'. Supported values: {', '.join(allowed)}.",
        param=param,
        code="unsupported_value",
    )
