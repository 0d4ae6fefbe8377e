"""A live stream of livekit-agents over `/ws/stt`."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import numpy as np
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, LanguageCode, stt, utils
from livekit.agents.types import TimedString
from livekit.agents.utils.audio import AudioByteStream

from whisper_server.clients.livekit_errors import api_errors, error_of_message
from whisper_server.clients.replay import Chunk, Mark, ReplayBuffer

logger = logging.getLogger(__name__)

_MAX_REPLAY_S = 60.0
_HEARTBEAT_S = 15.0
"""A server that does not answer a ping for so long is gone."""

_CLOSE_S = 1.0
_CHUNKS_PER_SECOND = 50


class WhisperStream(stt.RecognizeStream):
    """Speech of one person. Made by `WhisperSTT.stream`; belongs to one event loop.

    A session of the server begins with the first audio. One that ends because no audio came for long (a muted
    microphone) is followed by another when audio comes again. After a lost connection, and after new options,
    the audio that is not transcribed yet goes to the next session, at most its last 60 s.

    Args:
        stt: what made it.
        conn_options: how long to wait for a connection, and how often to try again.
        sample_rate: of the audio sent, Hz; other frames are resampled.
        connect: opens a WebSocket; `ws_connect` of aiohttp with the address filled in.
        config: `config` of `start_session`.
    """

    def __init__(
        self,
        *,
        stt: stt.STT[Any],
        conn_options: APIConnectOptions,
        sample_rate: int,
        connect: Callable[..., Any],
        config: Mapping[str, Any],
    ) -> None:
        self._connect = connect
        self._config = dict(config)
        self._rate_hz = sample_rate
        self._chunks = AudioByteStream(sample_rate, 1, sample_rate // _CHUNKS_PER_SECOND)
        self._replay = ReplayBuffer(_MAX_REPLAY_S)
        self._config_changed = asyncio.Event()
        self._is_input_over = False
        self._is_end_asked = False
        self._first_offset_s: float | None = None
        self._first_taken_at_s = 0.0
        self._heard_s = 0.0
        self._reported_s = 0.0
        self._language = ""
        self._is_speaking = False
        self._has_voice_events = False
        super().__init__(stt=stt, conn_options=conn_options, sample_rate=sample_rate)

    async def __aenter__(self) -> Self:
        return self

    def push_frame(self, frame: rtc.AudioFrame) -> None:
        """Take audio of any rate. Several channels are mixed."""
        super().push_frame(mono(frame))

    def set_config(self, config: Mapping[str, Any]) -> None:
        """Go on with another `config`. It counts from the utterance that is being spoken."""
        if self._config != config:
            self._config = dict(config)
            self._language = ""
            self._config_changed.set()

    async def _run(self) -> None:
        if self._first_offset_s is None:
            self._first_offset_s = self.start_time_offset
        self._replay.rewind()
        while await self._wait_for_audio():
            self._config_changed.clear()
            with api_errors():
                async with self._session() as connection:
                    await self._serve(connection)
            self._replay.rewind()
        self._stop_speaking()
        self._report_usage()

    # Audio

    async def _wait_for_audio(self) -> bool:
        """Whether there is audio to send; False when no more will come."""
        while not self._replay.has_unsent_audio:
            if self._is_input_over:
                return False
            await self._take_input()
        return True

    async def _take_input(self) -> None:
        """Move what was pushed next, or its end, to the replay buffer."""
        try:
            item = await self._input_ch.recv()
        except utils.aio.ChanClosed:
            self._is_input_over = True
            frames, mark = self._chunks.flush(), None
        else:
            if isinstance(item, rtc.AudioFrame):
                frames, mark = self._chunks.push(item.data.cast("B")), None
            else:
                frames, mark = self._chunks.flush(), Mark.FLUSH
        for frame in frames:
            self._replay.put(Chunk(bytes(frame.data.cast("B")), frame.duration, time.time()))
            self._heard_s += frame.duration
        if mark is not None:
            self._replay.put(mark)

    # The session

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Connect, and start a session."""
        began_s = time.perf_counter()
        timeout = aiohttp.ClientWSTimeout(ws_close=_CLOSE_S)
        async with asyncio.timeout(self._conn_options.timeout) as deadline:
            async with self._connect(heartbeat=_HEARTBEAT_S, timeout=timeout) as connection:
                await self._start(connection)
                deadline.reschedule(None)
                self._report_connection_acquired(time.perf_counter() - began_s, False)
                yield connection

    async def _start(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        # The id of a lost session may still be taken, so every attempt has its own.
        session_id = f"livekit-{uuid.uuid4().hex}"
        start = {"type": "start_session", "session_id": session_id, "config": self._config}
        await connection.send_str(json.dumps(start))
        while (message := await _receive(connection))["type"] != "session_started":
            if message["type"] == "error":
                raise error_of_message(message)
        self._is_end_asked = False
        self._has_voice_events = False
        self._set_clock()
        logger.debug("Session %s has started", session_id)

    def _set_clock(self) -> None:
        """Tell the base class when the audio of this session begins: its transcripts are counted from there.

        Gaps in the input make the wall clock run ahead of the audio, input faster than real time the
        audio ahead of the wall clock.
        """
        oldest = self._replay.oldest
        taken_at_s = oldest.taken_at_s if oldest else time.time()
        self._first_taken_at_s = self._first_taken_at_s or taken_at_s
        passed_s = max(self._replay.origin_s, taken_at_s - self._first_taken_at_s)
        self.start_time = taken_at_s
        self.start_time_offset = (self._first_offset_s or 0.0) + passed_s

    async def _serve(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        """Run the session to its end, or until there are new options."""
        sender = asyncio.create_task(self._send(connection))
        receiver = asyncio.create_task(self._receive_all(connection))
        change = asyncio.create_task(self._config_changed.wait())
        try:
            await asyncio.wait((sender, receiver, change), return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
                await asyncio.wait((receiver, change), return_when=asyncio.FIRST_COMPLETED)
            if receiver.done():
                receiver.result()
        finally:
            tasks = (sender, receiver, change)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        """Send what comes in, and at its end ask for the end of the session."""
        try:
            while not (self._is_input_over and not self._replay.has_unsent):
                item = self._replay.take()
                if item is None:
                    await self._take_input()
                elif isinstance(item, Chunk):
                    await connection.send_bytes(item.pcm)
                else:
                    await connection.send_str(json.dumps({"type": "flush"}))
            self._is_end_asked = True
            await connection.send_str(json.dumps({"type": "end_session"}))
        except (aiohttp.ClientError, ConnectionError):
            # Whoever receives reads the server's last words first and then finds it gone.
            logger.debug("The connection is lost", exc_info=True)

    async def _receive_all(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        """Tell what the server says, until the session ends."""
        while (message := await _receive(connection))["type"] != "session_ended":
            match message["type"]:
                case "vad_event":
                    self._on_voice(message)
                case "partial_transcript":
                    self._on_partial(message)
                case "final_transcript":
                    self._on_final(message)
                case "error":
                    self._on_error(message)
        reason = message.get("reason")
        if reason not in ("completed", "timeout"):
            raise APIConnectionError(f"The server ended the session: {reason}.")
        # Where the session ended by itself, the last chunks may have come too late.
        is_all_heard = reason == "completed" and self._is_end_asked
        self._replay.settle(None if is_all_heard else message["total_audio_ms"] / 1000)

    # Its messages

    def _on_voice(self, message: Mapping[str, Any]) -> None:
        self._has_voice_events = True
        at_s = self.start_time + message["t_ms"] / 1000
        if message["state"] == "speech_start":
            self._start_speaking(at_s)
        else:
            self._stop_speaking(at_s)

    def _on_partial(self, message: Mapping[str, Any]) -> None:
        if not self._has_voice_events:
            self._start_speaking()
        data = stt.SpeechData(
            language=LanguageCode("en") if self._is_translation() else self._spoken_language(),
            text=message["text"],
            confidence=message.get("confidence") or 0.0,
            metadata={"stable_text": message.get("stable_text", "")},
        )
        self._tell(stt.SpeechEventType.INTERIM_TRANSCRIPT, message["segment_id"], data)

    def _on_final(self, message: Mapping[str, Any]) -> None:
        if not self._has_voice_events:
            self._start_speaking()
        self._language = message.get("language") or self._language
        self._tell(stt.SpeechEventType.FINAL_TRANSCRIPT, message["segment_id"], self._final_data(message))
        if not self._has_voice_events:
            self._stop_speaking()
        end_s = None
        if "audio_start_ms" in message:
            end_s = (message["audio_start_ms"] + message["audio_duration_ms"]) / 1000
        self._replay.settle(end_s)
        self._report_usage(message["segment_id"])

    def _final_data(self, message: Mapping[str, Any]) -> stt.SpeechData:
        words = timed_words(message.get("words") or (), self.start_time_offset)
        start_s = self.start_time_offset + message.get("audio_start_ms", 0.0) / 1000
        end_s = start_s + message["audio_duration_ms"] / 1000
        spoken, is_translation = self._spoken_language(), self._is_translation()
        return stt.SpeechData(
            language=LanguageCode("en") if is_translation else spoken,
            source_languages=[spoken] if is_translation else None,
            text=message["text"],
            start_time=float(words[0].start_time or start_s) if words else start_s,
            end_time=float(words[-1].end_time or end_s) if words else end_s,
            confidence=message.get("confidence") or 0.0,
            words=words or None,
        )

    def _is_translation(self) -> bool:
        return self._config.get("task") == "translate"

    def _spoken_language(self) -> LanguageCode:
        """What the last final was spoken in, or else what was asked for."""
        asked = self._config.get("lang_code", "")
        return LanguageCode(self._language or ("" if asked == "auto" else asked))

    def _on_error(self, message: Mapping[str, Any]) -> None:
        error = error_of_message(message)
        if "segment_id" not in message:
            raise error
        # One utterance is lost and the session goes on.
        logger.warning("The server could not transcribe an utterance: %s", error.message)
        self._emit_error(error, recoverable=True)

    # Events

    def _start_speaking(self, at_s: float | None = None) -> None:
        if not self._is_speaking:
            self._is_speaking = True
            self._event_ch.send_nowait(
                stt.SpeechEvent(stt.SpeechEventType.START_OF_SPEECH, speech_start_time=at_s)
            )

    def _stop_speaking(self, at_s: float | None = None) -> None:
        if self._is_speaking:
            self._is_speaking = False
            self._event_ch.send_nowait(
                stt.SpeechEvent(stt.SpeechEventType.END_OF_SPEECH, speech_end_time=at_s)
            )

    def _tell(self, kind: stt.SpeechEventType, request_id: str, data: stt.SpeechData) -> None:
        self._event_ch.send_nowait(stt.SpeechEvent(kind, request_id=request_id, alternatives=[data]))

    def _report_usage(self, request_id: str = "") -> None:
        """Report the audio since the last report."""
        new_s, self._reported_s = self._heard_s - self._reported_s, self._heard_s
        if new_s > 0:
            self._event_ch.send_nowait(
                stt.SpeechEvent(
                    stt.SpeechEventType.RECOGNITION_USAGE,
                    request_id=request_id,
                    recognition_usage=stt.RecognitionUsage(audio_duration=new_s),
                )
            )


def mono(frame: rtc.AudioFrame) -> rtc.AudioFrame:
    """The mean of the channels of a frame."""
    if frame.num_channels == 1:
        return frame
    samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
    mixed = samples.mean(axis=1).astype(np.int16)
    return rtc.AudioFrame(mixed.tobytes(), frame.sample_rate, 1, frame.samples_per_channel)


def timed_words(words: Any, offset_s: float) -> list[TimedString]:
    """Words of the server, moved by `offset_s`."""
    return [
        TimedString(
            word["word"],
            start_time=word["start"] + offset_s,
            end_time=word["end"] + offset_s,
            confidence=word.get("probability", 0.0),
            start_time_offset=offset_s,
        )
        for word in words
    ]


async def _receive(connection: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """The next message.

    Raises:
        APIConnectionError: the connection is lost.
        APIError: it is none of this protocol.
    """
    received = await connection.receive()
    if received.type is not aiohttp.WSMsgType.TEXT:
        raise APIConnectionError(f"The server has closed the connection (code {connection.close_code}).")
    try:
        message = json.loads(received.data)
        if isinstance(message["type"], str):
            return dict(message)
    except (ValueError, TypeError, LookupError):
        pass  # as any other message that has no type
    raise APIError("The server does not speak the protocol of /ws/stt. Check service_url.", retryable=False)
