"""Sessions of `/v1/realtime`, as OpenAI's clients speak: 24 kHz as base64 in JSON."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from whisper_server.cli.bench.drivers.driver import Address, Pace, Wishes, call_off, send_audio
from whisper_server.cli.bench.drivers.web import WebDoor, broken, parsed
from whisper_server.cli.bench.session import SessionFailedError, SessionTrace
from whisper_server.cli.bench.speech import Speech

_RATE_HZ = 24_000
_TRANSCRIPTION = "conversation.item.input_audio_transcription."
_COMMIT = json.dumps({"type": "input_audio_buffer.commit"})
_CLEAR = json.dumps({"type": "input_audio_buffer.clear"})
_USUAL_SILENCE_MS = 500
_MORE_SILENCE_MS = 500
"""After the silence that ends a turn: a voice detector hears an end only a little later."""


class RealtimeDriver:
    """Speaks to `/v1/realtime`, of this server or of another one.

    Args:
        address: of the server.
        speech: what every session says.
        wishes: what every session asks for.
        chunk_ms: audio of one event.
        pace: of the audio.

    Raises:
        ConfigurationError: the address is none, or a certificate cannot be read.
    """

    def __init__(
        self, address: Address, speech: Speech, wishes: Wishes, *, chunk_ms: int, pace: Pace
    ) -> None:
        self._web = WebDoor(address, "/v1/realtime?intent=transcription")
        self._wishes = wishes
        self._events = [append_event(chunk) for chunk in speech.chunks(chunk_ms, _RATE_HZ)]
        self._pace = pace

    @property
    def door(self) -> str:
        """Its name, for people."""
        return "/v1/realtime"

    async def check(self) -> None:
        """See `Driver`."""
        await self._web.check()

    @asynccontextmanager
    async def channel(self) -> "AsyncIterator[RealtimeChannel]":
        """Sessions one after the other; here each is a connection of its own."""
        yield RealtimeChannel(self._web, self._wishes, self._events, self._pace)


class RealtimeChannel:
    """See `Channel`."""

    def __init__(self, web: WebDoor, wishes: Wishes, events: list[str], pace: Pace) -> None:
        self._web = web
        self._wishes = wishes
        self._events = events
        self._pace = pace

    async def run_session(self, trace: SessionTrace) -> None:
        """Run a session; see `Channel`."""
        connection = await self._web.open()
        try:
            await _Conversation(connection, self._wishes, self._events, self._pace, trace).hold()
        except ConnectionClosed as error:
            raise broken(error) from error
        finally:
            await connection.close()


class _Conversation:
    """One session on one connection."""

    def __init__(
        self,
        connection: ClientConnection,
        wishes: Wishes,
        events: list[str],
        pace: Pace,
        trace: SessionTrace,
    ) -> None:
        self._connection = connection
        self._wishes = wishes
        self._events = events
        self._pace = pace
        self._trace = trace
        self._sending: asyncio.Task[None] | None = None
        self._started: set[str] = set()
        self._committed: set[str] = set()
        self._is_cleared = False

    async def hold(self) -> None:
        """Send everything, and listen until every turn has its transcript.

        Raises:
            SessionFailedError: the server refuses the session or ends it.
            ConnectionClosed: likewise.
        """
        await self._connection.send(json.dumps(session_update(self._wishes)))
        try:
            async for raw in self._connection:
                self._hear(parsed(raw))
                if self._is_cleared and not self._committed:
                    return
        finally:
            if self._sending is not None:
                await call_off(self._sending)
        raise SessionFailedError("CONNECTION_LOST", "The server closed the connection in the session.")

    def _hear(self, event: Mapping[str, Any]) -> None:
        match event["type"]:
            case "session.created":
                self._trace.session_id = str(event.get("session", {}).get("id") or self._trace.session_id)
            case "session.updated" if self._sending is None:
                self._sending = asyncio.create_task(self._send(_silence_ms(event)))
            case "error":
                self._trace.fail(*_error(event))
                if self._sending is None:
                    raise SessionFailedError(*_error(event))
            case _:
                self._hear_turn(event)

    def _hear_turn(self, event: Mapping[str, Any]) -> None:
        item = str(event.get("item_id", ""))
        match event["type"].removeprefix(_TRANSCRIPTION):
            case "input_audio_buffer.speech_started":
                self._started.add(item)
            case "input_audio_buffer.committed":
                self._started.discard(item)
                self._committed.add(item)
            case "input_audio_buffer.cleared":
                self._is_cleared = True
                if self._started:
                    self._trace.fail(
                        "TURN_NOT_ENDED", "The server did not end the last turn after its silence."
                    )
            case "delta" if item not in self._committed:
                self._trace.note_partial()
            case "completed":
                self._committed.discard(item)
                self._trace.note_final(str(event.get("transcript", "")))
            case "failed":
                self._committed.discard(item)
                self._trace.fail(*_error(event))

    async def _send(self, silence_ms: int) -> None:
        send = self._connection.send
        await send_audio(self._events, send, self._trace, self._pace)
        if self._wishes.vad_mode == "manual":
            await send(_COMMIT)
        else:
            # A commit would make a turn of the silence after the last one, for the model to hear.
            await send(append_event(bytes((silence_ms + _MORE_SILENCE_MS) * _RATE_HZ // 1000 * 2)))
        # It takes its place behind the audio, so its answer says that all was listened to.
        await send(_CLEAR)


def session_update(wishes: Wishes) -> dict[str, Any]:
    """The event that sets a session up. What is not wished for is absent."""
    transcription = {"model": wishes.model, "language": wishes.language, "delay": wishes.delay}
    content: dict[str, Any] = {
        "format": {"type": "audio/pcm", "rate": _RATE_HZ},
        "transcription": {name: value for name, value in transcription.items() if value is not None},
    }
    turns = {"threshold": wishes.vad_threshold, "silence_duration_ms": wishes.vad_silence_ms}
    told = {name: value for name, value in turns.items() if value is not None}
    if wishes.vad_mode == "manual":
        content["turn_detection"] = None
    else:
        content["turn_detection"] = {"type": "server_vad", **told}
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": content}}}


def append_event(pcm: bytes) -> str:
    """Audio as `input_audio_buffer.append`."""
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()})


def _silence_ms(event: Mapping[str, Any]) -> int:
    """The silence that ends a turn, as the server has it."""
    try:
        return int(event["session"]["audio"]["input"]["turn_detection"]["silence_duration_ms"])
    except (KeyError, TypeError, ValueError):
        return _USUAL_SILENCE_MS


def _error(event: Mapping[str, Any]) -> tuple[str, str]:
    error = event.get("error")
    details = error if isinstance(error, Mapping) else {}
    return str(details.get("code") or details.get("type") or "ERROR"), str(details.get("message") or "")
