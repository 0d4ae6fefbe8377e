"""Sessions of `/ws/stt`."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from whisper_server.cli.bench.drivers.driver import Address, Pace, Wishes, call_off, send_audio
from whisper_server.cli.bench.drivers.web import WebDoor, broken, parsed
from whisper_server.cli.bench.session import DecodeTimes, SessionFailedError, SessionTrace
from whisper_server.cli.bench.speech import Speech
from whisper_server.core.types import SAMPLE_RATE

_ENDPOINTING = {"continue": "continue", "auto": "auto_end", "manual": "manual"}
_FLUSH = json.dumps({"type": "flush"})
_END = json.dumps({"type": "end_session"})
_COMPLETED = "completed"


class SttDriver:
    """Speaks to `/ws/stt`.

    Args:
        address: of the server.
        speech: what every session says.
        wishes: what every session asks for.
        chunk_ms: audio of one message.
        pace: of the audio.

    Raises:
        ConfigurationError: the address is none, or a certificate cannot be read.
    """

    def __init__(
        self, address: Address, speech: Speech, wishes: Wishes, *, chunk_ms: int, pace: Pace
    ) -> None:
        self._web = WebDoor(address, "/ws/stt")
        self._wishes = wishes
        self._chunks = speech.chunks(chunk_ms)
        self._pace = pace

    @property
    def door(self) -> str:
        """Its name, for people."""
        return "/ws/stt"

    async def check(self) -> None:
        """See `Driver`."""
        await self._web.check()

    @asynccontextmanager
    async def channel(self) -> "AsyncIterator[SttChannel]":
        """A connection of its own."""
        channel = SttChannel(self._web, self._wishes, self._chunks, self._pace)
        try:
            yield channel
        finally:
            await channel.close()


class SttChannel:
    """A connection; see `Channel`. It is made anew when it broke."""

    def __init__(self, web: WebDoor, wishes: Wishes, chunks: list[bytes], pace: Pace) -> None:
        self._web = web
        self._wishes = wishes
        self._chunks = chunks
        self._pace = pace
        self._connection: ClientConnection | None = None

    async def run_session(self, trace: SessionTrace) -> None:
        """Run a session; see `Channel`."""
        if self._connection is None:
            self._connection = await self._web.open()
        connection = self._connection
        is_over = False
        try:
            is_over = await self._converse(connection, trace)
        except ConnectionClosed as error:
            raise broken(error) from error
        finally:
            if not is_over:
                # Closing calls the session off.
                await self.close()

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _converse(self, connection: ClientConnection, trace: SessionTrace) -> bool:
        """Run a session; true when it is over and the connection may be used for another.

        Raises:
            SessionFailedError: the server does something that is no session.
            ConnectionClosed: it went away.
        """
        start = {"type": "start_session", "session_id": trace.session_id, "config": config(self._wishes)}
        await connection.send(json.dumps(start))
        sending: asyncio.Task[None] | None = None
        try:
            async for raw in connection:
                message = parsed(raw)
                # An `end_session` that met the end of the session before is an error of no session.
                is_ours = message.get("session_id") == trace.session_id
                match message["type"]:
                    case "session_started" if is_ours:
                        sending = asyncio.create_task(self._send(connection, trace))
                    case "error" if is_ours and sending is None:
                        trace.fail(*_error(message))
                        return True
                    case "session_ended" if is_ours:
                        _note_end(message, trace)
                        return True
                    case _ if is_ours:
                        _note(message, trace)
        finally:
            if sending is not None:
                await call_off(sending)
        raise SessionFailedError("CONNECTION_LOST", "The server closed the connection in the session.")

    async def _send(self, connection: ClientConnection, trace: SessionTrace) -> None:
        await send_audio(self._chunks, connection.send, trace, self._pace)
        if self._wishes.vad_mode == "manual":
            await connection.send(_FLUSH)
        await connection.send(_END)


def config(wishes: Wishes) -> dict[str, Any]:
    """`config` of `start_session`. What is not wished for is absent."""
    content = {
        "lang_code": wishes.language,
        "sample_rate": SAMPLE_RATE,
        "vad_threshold": wishes.vad_threshold,
        "min_silence_ms": wishes.vad_silence_ms,
        "model": wishes.model,
        "task": wishes.task,
        "decode_profile": wishes.decode_profile,
        "endpointing": _ENDPOINTING[wishes.vad_mode],
    }
    return {name: value for name, value in content.items() if value is not None}


def _note(message: Mapping[str, Any], trace: SessionTrace) -> None:
    match message["type"]:
        case "partial_transcript":
            trace.note_partial()
            add_timing(trace.decode, message.get("timing"))
        case "final_transcript":
            trace.note_final(str(message.get("text", "")))
            add_timing(trace.decode, message.get("timing"))
        case "error":
            trace.fail(*_error(message))


def _note_end(message: Mapping[str, Any], trace: SessionTrace) -> None:
    reason = str(message.get("reason"))
    trace.audio_s = message["total_audio_ms"] / 1000
    if reason != _COMPLETED:
        trace.fail(reason.upper(), f"The server ended the session: {reason}.")


def add_timing(decode: DecodeTimes, timing: Any) -> None:
    """Add the `timing` of one message. It does not tell of waiting for audio and of handing results over."""
    if not isinstance(timing, Mapping):
        return
    decode.queue_wait_s = (decode.queue_wait_s or 0.0) + timing["queue_wait_ms"] / 1000
    decode.inference_s = (decode.inference_s or 0.0) + timing["inference_ms"] / 1000
    decode.total_s = (decode.total_s or 0.0) + timing["server_total_ms"] / 1000
    decode.count = (decode.count or 0) + 1


def _error(message: Mapping[str, Any]) -> tuple[str, str]:
    return str(message.get("code") or "ERROR"), str(message.get("message") or "")
