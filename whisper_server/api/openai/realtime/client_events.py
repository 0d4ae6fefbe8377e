"""What clients send: one JSON object per text frame."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.validators import decode_base64

APPEND = "input_audio_buffer.append"

_MAX_EVENT_ID_CHARS = 512


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """An event as it came.

    Attributes:
        type: what the client wants; anything but a known name is refused by whoever obeys it.
        event_id: the client's own, for errors; None where there is none that can be sent back.
        body: all of it.
    """

    type: object
    event_id: str | None
    body: Mapping[str, Any]


def parse_event(text: str) -> ClientEvent:
    """Read a frame. Takes about a millisecond per 100 KB.

    Raises:
        InvalidRequestError: it is no JSON object.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("The message is not valid JSON.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise InvalidRequestError("The message must be a JSON object.", code="invalid_json")
    return ClientEvent(body.get("type"), _event_id(body.get("event_id")), body)


def decode_audio(event: ClientEvent, *, max_bytes: int) -> bytes:
    """The audio of an `input_audio_buffer.append`.

    Raises:
        InvalidRequestError: it is missing, too much, or no base64.
    """
    audio = event.body.get("audio")
    if not isinstance(audio, str):
        raise InvalidRequestError(
            "'audio' must be a string of base64.",
            param="audio",
            code="missing_required_parameter" if audio is None else "invalid_value",
        )
    if len(audio) * 3 // 4 > max_bytes + 2:
        raise InvalidRequestError(
            f"'audio' holds more than {max_bytes >> 20} MiB. Send it in several events.",
            param="audio",
            code="audio_too_large",
        )
    try:
        return b"".join(decode_base64(audio))
    except ValueError as error:
        raise InvalidRequestError(
            "'audio' is not valid base64.", param="audio", code="invalid_base64"
        ) from error


def audio_of(message: str | bytes, *, max_bytes: int) -> bytes | None:
    """The audio that a frame brings; None where it is another event or something is wrong with it."""
    if isinstance(message, bytes):
        return None
    try:
        event = parse_event(message)
        return decode_audio(event, max_bytes=max_bytes) if event.type == APPEND else None
    except InvalidRequestError:
        return None


def item_id_of(event: ClientEvent) -> str:
    """The item that an event names.

    Raises:
        InvalidRequestError: it names none.
    """
    item_id = event.body.get("item_id")
    if not isinstance(item_id, str) or not item_id:
        raise InvalidRequestError(
            "'item_id' must be the id of an item.", param="item_id", code="missing_required_parameter"
        )
    return item_id


def _event_id(value: object) -> str | None:
    """What may be sent back: not half a character, which UTF-8 cannot write, and not a book."""
    is_good = isinstance(value, str) and len(value) <= _MAX_EVENT_ID_CHARS and value.isprintable()
    return value if is_good and isinstance(value, str) else None
