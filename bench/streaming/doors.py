"""The doors of a server for live streams, and how each is spoken to."""

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake

from bench.load.own_server import NotMeasurableError
from whisper_server.core.types import SAMPLE_RATE, Samples

SILENCE_MS = 500
"""Silence that ends an utterance, asked for at every door."""

FRAME_MS = 50

REALTIME = "/v1/realtime"
STT = "/ws/stt"

Message = str | bytes

_OPEN_S = 60.0
_MAX_MESSAGE_BYTES = 1 << 24
_TRANSCRIPTION = "conversation.item.input_audio_transcription."


class Kind(Enum):
    """What the server told of an utterance.

    It began; it takes no more audio; its text so far; more of its text; its final text; a failure.
    """

    STARTED = auto()
    COMMITTED = auto()
    TEXT = auto()
    MORE = auto()
    FINAL = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Told:
    """Something the server told.

    Attributes:
        kind: what.
        item: the server's name for the utterance; empty where it is of the whole session.
        text: so far, more of it, or final; of a failure its reason.
        audio_start_s: where the utterance's audio starts on the stream's clock; None where it is not told.
    """

    kind: Kind
    item: str
    text: str = ""
    audio_start_s: float | None = None


class Door(Protocol):
    """How to speak to one route."""

    @property
    def name(self) -> str:
        """The route."""

    def frames(self, samples: Samples) -> list[Message]:
        """16 kHz audio as messages of `FRAME_MS` each, made beforehand so that sending them costs little."""

    def opening(self, session_id: str) -> tuple[Message, str]:
        """The message that sets a session up, and the type of the answer that it is."""

    def closing(self) -> tuple[Message, str]:
        """The message after the last frame, and the type of the answer that says all was listened to."""

    def read(self, message: Mapping[str, Any]) -> Told | None:
        """What a message says of an utterance."""


@dataclass(frozen=True, slots=True)
class RealtimeDoor:
    """`/v1/realtime` as OpenAI has it: 24 kHz, `server_vad`. Its deltas bring only text that stays.

    Attributes:
        model: the server's name for it.
        language: code of what is spoken; None lets the server find out.
        delay: of the deltas; None leaves it to the server, and some then send none before the end.
        name: the route.
    """

    model: str
    language: str | None = "en"
    delay: str | None = None
    name: str = REALTIME

    def frames(self, samples: Samples) -> list[Message]:
        """Audio as `input_audio_buffer.append`."""
        import soxr

        pcm = _pcm(soxr.resample(samples, SAMPLE_RATE, 24_000))
        return [
            json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(part).decode()})
            for part in _parts(pcm, 24_000)
        ]

    def opening(self, session_id: str) -> tuple[Message, str]:
        """`session.update`; the server names the session itself."""
        wishes = {"language": self.language, "delay": self.delay}
        told = {name: value for name, value in wishes.items() if value is not None}
        content = {
            "format": {"type": "audio/pcm", "rate": 24_000},
            "transcription": {"model": self.model, **told},
            "turn_detection": {
                "type": "server_vad",
                "threshold": 0.5,
                "prefix_padding_ms": 300,
                "silence_duration_ms": SILENCE_MS,
            },
        }
        update = {
            "type": "session.update",
            "session": {"type": "transcription", "audio": {"input": content}},
        }
        return json.dumps(update), "session.updated"

    def closing(self) -> tuple[Message, str]:
        """`input_audio_buffer.clear`: it takes its place behind the audio, of which only silence is left."""
        return json.dumps({"type": "input_audio_buffer.clear"}), "input_audio_buffer.cleared"

    def read(self, message: Mapping[str, Any]) -> Told | None:
        """What an event says."""
        type_, item = message["type"], message.get("item_id", "")
        match type_.removeprefix(_TRANSCRIPTION):
            case "input_audio_buffer.speech_started":
                return Told(Kind.STARTED, item, audio_start_s=message["audio_start_ms"] / 1000)
            case "input_audio_buffer.committed":
                return Told(Kind.COMMITTED, item)
            case "delta":
                return Told(Kind.MORE, item, message["delta"])
            case "completed":
                return Told(Kind.FINAL, item, message["transcript"])
            case "failed" | "error":
                return Told(Kind.FAILED, item, message["error"].get("message") or type_)
        return None


@dataclass(frozen=True, slots=True)
class SttDoor:
    """`/ws/stt`: 16 kHz in binary messages. Its partials bring all text, also what may still change."""

    model: str
    language: str | None = "en"
    name: str = STT

    def frames(self, samples: Samples) -> list[Message]:
        """Audio as bare samples."""
        return list(_parts(_pcm(samples), SAMPLE_RATE))

    def opening(self, session_id: str) -> tuple[Message, str]:
        """`start_session`."""
        config = {
            "model": self.model,
            "lang_code": self.language,
            "sample_rate": SAMPLE_RATE,
            "min_silence_ms": SILENCE_MS,
        }
        start = {"type": "start_session", "session_id": session_id, "config": config}
        return json.dumps(start), "session_started"

    def closing(self) -> tuple[Message, str]:
        """`end_session`."""
        return json.dumps({"type": "end_session"}), "session_ended"

    def read(self, message: Mapping[str, Any]) -> Told | None:
        """What a message says. A `vad_event` names no utterance and says nothing here."""
        item = message.get("segment_id", "")
        match message["type"]:
            case "partial_transcript":
                return Told(Kind.TEXT, item, message["text"])
            case "final_transcript":
                return Told(Kind.FINAL, item, message["text"], message["audio_start_ms"] / 1000)
            case "error":
                return Told(Kind.FAILED, item, f"{message['code']}: {message['message']}")
        return None


def _pcm(samples: Samples) -> bytes:
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def _parts(pcm: bytes, rate_hz: int) -> Sequence[bytes]:
    size = rate_hz * FRAME_MS // 1000 * 2
    return [pcm[start : start + size] for start in range(0, len(pcm), size)]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: its URL without `/v1`, and the key it asks for."""

    url: str
    api_key: str | None = None


@asynccontextmanager
async def session(door: Door, address: Address, session_id: str) -> AsyncIterator[ClientConnection]:
    """An open session that is set up, until the block ends.

    Raises:
        NotMeasurableError: the server has no such door, or refuses the session.
    """
    headers = {"Authorization": f"Bearer {address.api_key}"} if address.api_key else {}
    query = "?intent=transcription" if isinstance(door, RealtimeDoor) else ""
    url = f"{address.url.replace('http', 'ws', 1)}{door.name}{query}"
    try:
        connection = await connect(
            url,
            additional_headers=headers,
            compression=None,
            proxy=None,
            open_timeout=_OPEN_S,
            # Whoever sends faster than real time has much audio under way, and a ping waits behind it.
            ping_interval=None,
            max_size=_MAX_MESSAGE_BYTES,
        )
    except (OSError, InvalidHandshake) as error:
        raise NotMeasurableError(f"{url} does not open: {error}") from error
    async with connection:
        message, answer = door.opening(session_id)
        await connection.send(message)
        async for raw in connection:
            event = json.loads(raw)
            if event["type"] == answer:
                break
            if event["type"] == "error":
                raise NotMeasurableError(f"{door.name} refuses the session: {raw!r}")
        yield connection
