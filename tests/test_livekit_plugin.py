"""The LiveKit plugin: real livekit-agents against live servers, one of them behind a line that can be cut."""

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import soundfile
from livekit import rtc
from livekit.agents import APIConnectionError, APIConnectOptions, APIError, APIStatusError, APITimeoutError
from livekit.agents.stt import SpeechEvent, SpeechEventType, STTError
from livekit.agents.types import TimedString
from livekit.plugins import openai
from websockets.asyncio.server import ServerConnection, serve

from tests.live_speech import HearingEngine, speech
from tests.stream_server import stream_server
from whisper_server.clients.livekit_errors import error_of_message
from whisper_server.clients.livekit_plugin import WhisperSTT
from whisper_server.clients.livekit_stream import WhisperStream
from whisper_server.clients.replay import Chunk, Item, Mark, ReplayBuffer
from whisper_server.core.types import SAMPLE_RATE, Pcm16

pytestmark = pytest.mark.anyio

START, END = SpeechEventType.START_OF_SPEECH, SpeechEventType.END_OF_SPEECH
INTERIM, FINAL = SpeechEventType.INTERIM_TRANSCRIPT, SpeechEventType.FINAL_TRANSCRIPT
USAGE = SpeechEventType.RECOGNITION_USAGE

QUICK = APIConnectOptions(max_retry=3, retry_interval=0.0, timeout=20.0)
ONCE = APIConnectOptions(max_retry=0, timeout=20.0)
WAIT_S = 30.0


class Heard:
    """What a stream tells, gathered while it runs."""

    def __init__(self, stream: WhisperStream) -> None:
        self._stream = stream
        self.events: list[SpeechEvent] = []

    async def until(self, wanted: SpeechEventType, count: int = 1) -> SpeechEvent:
        """The event of this type with this number, counted from the beginning."""
        async with asyncio.timeout(WAIT_S):
            while len(self.of(wanted)) < count:
                self.events.append(await anext(self._stream))
        return self.of(wanted)[count - 1]

    async def rest(self) -> "Heard":
        async with asyncio.timeout(WAIT_S):
            async for event in self._stream:
                self.events.append(event)
        return self

    def of(self, kind: SpeechEventType) -> list[SpeechEvent]:
        return [event for event in self.events if event.type is kind]

    @property
    def texts(self) -> list[str]:
        return [event.alternatives[0].text for event in self.of(FINAL)]

    @property
    def turns(self) -> list[SpeechEventType]:
        return [event.type for event in self.events if event.type in (START, END)]

    @property
    def usage_s(self) -> float:
        return sum(
            event.recognition_usage.audio_duration for event in self.of(USAGE) if event.recognition_usage
        )


def frames(pcm: Pcm16, rate_hz: int = SAMPLE_RATE, frame_ms: int = 20) -> list[rtc.AudioFrame]:
    """Frames of mono or interleaved audio, (samples,) or (samples, channels)."""
    channels = 1 if pcm.ndim == 1 else pcm.shape[1]
    size = rate_hz * frame_ms // 1000
    parts = [pcm[start : start + size] for start in range(0, len(pcm), size)]
    return [rtc.AudioFrame(part.tobytes(), rate_hz, channels, len(part)) for part in parts]


def push(stream: WhisperStream, pcm: Pcm16, rate_hz: int = SAMPLE_RATE) -> None:
    for frame in frames(pcm, rate_hz):
        stream.push_frame(frame)


def recording(samples: Sequence[dict[str, Any]], name: str) -> tuple[Pcm16, int, list[str]]:
    """A bundled recording: its audio, rate and sentences."""
    sample = next(sample for sample in samples if sample["file"] == name)
    pcm, rate_hz = soundfile.read(sample["path"], dtype="int16")
    return pcm, rate_hz, [segment["text"] for segment in sample["segments"]]


def plugin(url: str, **options: Any) -> WhisperSTT:
    return WhisperSTT(url.replace("http", "ws") + "/ws/stt", **options)


@pytest.fixture(scope="module")
def engine() -> HearingEngine:
    return HearingEngine()


@pytest.fixture(scope="module")
def hearing_url(engine: HearingEngine) -> Iterator[str]:
    """A server that hears made-up speech."""
    with stream_server(engine) as url:
        yield url


# The demo model


async def test_a_stream_tells_interim_and_final_text(
    server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    pcm, rate_hz, (text,) = recording(sample_recordings, "kitchen_en.wav")
    pcm = pcm[: int(3.2 * rate_hz)]  # speech to the end
    async with plugin(server_url, language="en") as stt, stt.stream() as stream:
        assert stt.capabilities.streaming
        assert stt.capabilities.interim_results
        heard = Heard(stream)
        push(stream, pcm[: 2 * rate_hz])
        interim = await heard.until(INTERIM)
        push(stream, pcm[2 * rate_hz :])
        stream.end_input()
        await heard.rest()
    assert interim.alternatives[0].text.startswith("Send")
    assert interim.alternatives[0].language == "en"
    assert heard.turns == [START, END]
    assert heard.texts == [text]
    (final,) = heard.of(FINAL)
    (data,) = final.alternatives
    assert data.language == "en"
    assert data.confidence > 0.5
    assert final.request_id == interim.request_id != ""
    assert data.words is not None
    assert all(isinstance(word, TimedString) for word in data.words)
    assert " ".join(data.words) == text
    assert 0.0 < data.start_time < data.end_time < 3.3
    assert heard.usage_s == pytest.approx(3.2, abs=0.001)
    assert heard.events[0].type is START
    assert heard.events[-1].type is USAGE


async def test_two_streams_at_once_hear_their_own_words_at_any_rate(
    server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    async with plugin(server_url, language="pt", interim_results=False, min_silence_ms=300) as stt:

        async def listen(name: str, language: str) -> None:
            pcm, rate_hz, sentences = recording(sample_recordings, name)
            async with stt.stream(language=language) as stream:
                push(stream, pcm, rate_hz)
                stream.end_input()
                heard = await Heard(stream).rest()
            assert heard.texts == sentences
            assert {event.alternatives[0].language for event in heard.of(FINAL)} == {language}
            assert not heard.of(INTERIM)

        # One is 44.1 kHz stereo, the other 48 kHz mono.
        await asyncio.gather(listen("meeting_pt.mp3", "pt"), listen("household_en.flac", "en"))


async def test_a_recording_is_recognized(server_url: str, sample_recordings: list[dict[str, Any]]) -> None:
    pcm, rate_hz, (text,) = recording(sample_recordings, "kitchen_en.wav")
    metrics: list[Any] = []
    async with plugin(server_url) as stt:
        stt.on("metrics_collected", metrics.append)
        event = await stt.recognize(frames(pcm, rate_hz), language="en")
        with pytest.raises(APIStatusError) as refused:
            await stt.recognize(frames(pcm, rate_hz), language="xx")
    (data,) = event.alternatives
    assert event.type is FINAL
    assert event.request_id.startswith("req_")
    assert (data.text, data.language) == (text, "en")
    assert data.words is not None
    assert " ".join(data.words) == text
    assert 0.5 < data.confidence <= 1.0
    assert metrics[0].audio_duration == pytest.approx(len(pcm) / rate_hz, abs=0.01)
    assert (refused.value.status_code, refused.value.retryable) == (400, False)
    assert "xx" in refused.value.message
    assert refused.value.request_id


async def test_a_recording_is_translated(server_url: str, demo_test_set: list[dict[str, Any]]) -> None:
    clip = next(clip for clip in demo_test_set if clip["language"] == "pt")
    pcm, rate_hz = soundfile.read(clip["path"], dtype="int16")
    async with plugin(server_url, task="translate", word_timestamps=False) as stt:
        (data,) = (await stt.recognize(frames(pcm, rate_hz), language="pt")).alternatives
        assert (data.text, data.language, data.words) == (clip["english"], "en", None)
        async with stt.stream(language="pt") as stream:
            push(stream, pcm, rate_hz)
            stream.end_input()
            heard = await Heard(stream).rest()
    assert heard.texts == [clip["english"]]
    data = heard.of(FINAL)[0].alternatives[0]
    assert (data.language, data.source_languages) == ("en", ["pt"])


async def test_the_openai_plugin_of_livekit_recognizes_over_rest(
    server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    pcm, rate_hz, (text,) = recording(sample_recordings, "kitchen_en.wav")
    stt = openai.STT(base_url=f"{server_url}/v1", api_key="none-needed", model="demo", language="en")
    try:
        (data,) = (await stt.recognize(frames(pcm, rate_hz), conn_options=ONCE)).alternatives
    finally:
        await stt._client.close()  # it has no method that does
    assert (data.text, data.language) == (text, "en")


# Made-up speech: every word counts


async def test_flush_ends_the_utterance_and_the_stream_goes_on(hearing_url: str) -> None:
    async with plugin(hearing_url) as stt, stt.stream() as stream:
        assert stt.capabilities.manual_flush
        heard = Heard(stream)
        push(stream, speech(0.3, "alpha bravo").pcm)
        stream.flush()
        assert (await heard.until(FINAL)).alternatives[0].text == "alpha bravo"
        push(stream, speech("charlie", 1.0, "delta").pcm)
        stream.end_input()
        await heard.rest()
    assert heard.texts == ["alpha bravo", "charlie", "delta"]
    assert heard.turns == [START, END] * 3


async def test_words_have_times_on_the_clock_of_the_agent(hearing_url: str) -> None:
    async with plugin(hearing_url) as stt, stt.stream() as stream:
        stream.start_time_offset = 100.0  # as an agent sets it
        push(stream, speech(0.5, "alpha bravo", 0.5).pcm)
        stream.end_input()
        heard = await Heard(stream).rest()
        begin, end = heard.of(START)[0], heard.of(END)[0]
        assert begin.speech_start_time == pytest.approx(stream.start_time + 0.5, abs=0.1)
        assert end.speech_end_time == pytest.approx(stream.start_time + 1.3, abs=0.1)
    (data,) = heard.of(FINAL)[0].alternatives
    assert data.words is not None
    assert [float(word.start_time or 0) for word in data.words] == pytest.approx([100.5, 100.9], abs=0.02)
    assert data.words[0].start_time_offset == pytest.approx(100.0, abs=0.01)
    assert (data.start_time, data.end_time) == pytest.approx((100.5, 101.3), abs=0.05)


async def test_without_voice_detection_turns_follow_the_text(hearing_url: str) -> None:
    async with plugin(hearing_url, vad_enabled=False) as stt, stt.stream() as stream:
        heard = Heard(stream)
        push(stream, speech(0.2, "alpha", 0.2).pcm)
        stream.flush()
        await heard.until(END)
        push(stream, speech("bravo").pcm)
        stream.end_input()
        await heard.rest()
    assert heard.texts == ["alpha", "bravo"]
    assert heard.turns == [START, END] * 2


async def test_all_options_reach_the_server(hearing_url: str, engine: HearingEngine) -> None:
    options: dict[str, Any] = {
        **{"language": "pt-BR", "model": "demo", "task": "transcribe", "prompt": "Olá", "hotwords": "uma"},
        **{"decode_profile": "accurate", "interim_results": False, "word_timestamps": False},
        **{"vad_enabled": True, "vad_threshold": 0.4, "min_speech_ms": 100, "min_silence_ms": 300},
        **{"prefix_padding_ms": 200, "endpointing": "manual", "eagerness": "low"},
        **{"partial_interval_ms": 250, "max_utterance_s": 20.0},
    }
    engine.windows.clear()
    async with plugin(hearing_url, **options) as stt, stt.stream() as stream:
        assert stt.model == "demo"
        stt._update_session_keyterms(["dois", "três"])  # what AgentSession calls
        push(stream, speech(0.2, "alpha", 1.0, "bravo").pcm)
        stream.end_input()
        heard = await Heard(stream).rest()
    assert heard.texts == ["alpha bravo"]  # one utterance: manual endpointing
    assert heard.of(FINAL)[0].alternatives[0].words is None
    assert heard.of(FINAL)[0].alternatives[0].language == "pt"
    assert {window.language for window in engine.windows} == {"pt"}
    assert {window.options.hotwords for window in engine.windows} == {"uma, dois, três"}
    with pytest.raises(TypeError, match="no option 'langage'"):
        plugin(hearing_url, langage="pt")
    with pytest.raises(TypeError, match="no option 'colour'"):
        stt.update_options(colour="red")  # type: ignore[call-arg]  # what a type checker would find


async def test_new_options_count_from_the_utterance_that_is_spoken(
    hearing_url: str,
) -> None:
    async with (
        plugin(hearing_url, language="en") as stt,
        stt.stream() as stream,
        stt.stream(language="de") as other,
    ):
        heard = Heard(stream)
        push(stream, speech(0.3, "alpha", 1.0, "bravo charlie").pcm)
        await heard.until(FINAL)
        await heard.until(START, 2)
        stt.update_options(language="pt")
        push(stream, speech("delta", 0.1).pcm)
        push(other, speech("echo").pcm)
        stream.end_input()
        other.end_input()
        await heard.rest()
        (own,) = (await Heard(other).rest()).of(FINAL)
    assert heard.texts == ["alpha", "bravo charlie delta"]
    assert [event.alternatives[0].language for event in heard.of(FINAL)] == ["en", "pt"]
    assert own.alternatives[0].language == "de"
    assert heard.turns == [START, END] * 2
    assert heard.usage_s == pytest.approx(3.0, abs=0.02)


async def test_an_utterance_that_fails_does_not_end_the_stream() -> None:
    engine = HearingEngine()
    errors: list[STTError] = []
    is_told = asyncio.Event()
    with stream_server(engine) as url:
        async with plugin(url, interim_results=False) as stt, stt.stream(conn_options=ONCE) as stream:
            stt.on("error", errors.append)
            stt.on("error", lambda _: is_told.set())
            heard = Heard(stream)
            engine.error = RuntimeError("broken")
            push(stream, speech(0.3, "alpha").pcm)
            stream.flush()
            await heard.until(END)
            await asyncio.wait_for(is_told.wait(), WAIT_S)
            engine.error = None
            push(stream, speech("bravo").pcm)
            stream.end_input()
            await heard.rest()
    assert heard.texts == ["bravo"]
    (error,) = errors
    assert error.recoverable
    assert "INFERENCE_ERROR" in str(error.error)


# A line that can be cut


class Line:
    """Relays connections to a server, and can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, server_writer]
        await asyncio.gather(self._pump(reader, server_writer), self._pump(server_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # it was cut
        finally:
            writer.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def line_to(url: str) -> AsyncIterator[tuple[Line, str]]:
    """A line to a server, and its URL."""
    line = Line(int(url.rpartition(":")[2]))
    server = await asyncio.start_server(line.relay, "127.0.0.1", 0)
    try:
        yield line, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        line.cut()


async def test_a_lost_connection_loses_no_words_and_doubles_none(hearing_url: str) -> None:
    errors: list[STTError] = []
    async with line_to(hearing_url) as (line, url), plugin(url) as stt:
        stt.on("error", errors.append)
        async with stt.stream(conn_options=QUICK) as stream:
            heard = Heard(stream)
            push(stream, speech(0.3, "alpha bravo", 1.0, "charlie delta").pcm)
            await heard.until(FINAL)
            await heard.until(START, 2)
            line.cut()
            push(stream, speech("echo", 1.0).pcm)
            await heard.until(FINAL, 2)
            line.cut()  # in silence
            push(stream, speech("foxtrot").pcm)
            stream.end_input()
            await heard.rest()
    assert heard.texts == ["alpha bravo", "charlie delta echo", "foxtrot"]
    assert heard.turns == [START, END] * 3
    assert line.connections == 3
    assert [error.recoverable for error in errors] == [True, True]
    starts = [event.alternatives[0].start_time for event in heard.of(FINAL)]
    assert starts == pytest.approx([0.3, 2.1, 4.3], abs=0.6)  # linear, whatever the retries took
    assert heard.usage_s == pytest.approx(4.7, abs=0.02)


async def test_a_server_that_is_gone_ends_the_stream_after_the_retries(hearing_url: str) -> None:
    async with line_to(hearing_url) as (line, url):
        pass
    options = APIConnectOptions(max_retry=1, retry_interval=0.0)
    errors: list[STTError] = []
    async with plugin(url) as stt:
        stt.on("error", errors.append)
        async with stt.stream(conn_options=options) as stream:
            push(stream, speech("alpha").pcm)
            with pytest.raises(APIConnectionError, match="after 1 attempts"):
                await Heard(stream).rest()
        with pytest.raises(APIConnectionError):
            await stt.recognize(frames(speech("alpha").pcm), conn_options=ONCE)
    assert [error.recoverable for error in errors] == [True, False, False]
    assert line.connections == 0


async def test_a_stream_without_audio_does_not_connect(hearing_url: str) -> None:
    async with line_to(hearing_url) as (line, url), plugin(url) as stt, stt.stream() as stream:
        stream.flush()
        stream.end_input()
        heard = await Heard(stream).rest()
    assert heard.events == []
    assert line.connections == 0


async def test_closing_ends_streams_and_their_sessions(hearing_url: str) -> None:
    stt = plugin(hearing_url)
    stream = stt.stream()
    heard = Heard(stream)
    push(stream, speech("alpha bravo").pcm)
    await heard.until(START)
    await stt.aclose()
    with pytest.raises(RuntimeError):
        push(stream, speech("charlie").pcm)


# What is refused


async def refusal(stt: WhisperSTT, options: APIConnectOptions = QUICK) -> APIError:
    """Why a stream ends."""
    async with stt.stream(conn_options=options) as stream:
        push(stream, speech("alpha").pcm)
        with pytest.raises(APIError) as caught:
            await Heard(stream).rest()
    return caught.value


async def test_a_wrong_option_is_not_tried_again(hearing_url: str) -> None:
    async with line_to(hearing_url) as (line, url), plugin(url, language="klingon") as stt:
        error = await refusal(stt)
    assert isinstance(error, APIStatusError)
    assert (error.status_code, error.retryable) == (400, False)
    assert "config.lang_code" in error.message
    assert line.connections == 1


async def test_a_key_is_sent_and_a_wrong_one_is_not_tried_again() -> None:
    key = "a-key-only-for-this-test"
    with stream_server(HearingEngine(), security={"api_keys": (key,)}) as url:
        async with plugin(url, api_key=key) as stt, stt.stream() as stream:
            push(stream, speech("alpha").pcm)
            stream.end_input()
            assert (await Heard(stream).rest()).texts == ["alpha"]
        async with plugin(url, api_key="another") as stt:
            error = await refusal(stt)
    assert isinstance(error, APIStatusError)
    assert (error.status_code, error.retryable) == (401, False)


@pytest.mark.parametrize(
    ("code", "status", "is_retryable"),
    [
        ("INVALID_MESSAGE", 400, False),
        ("SESSION_EXISTS", 503, True),
        ("MAX_SESSIONS_REACHED", 429, True),
        ("QUEUE_FULL", 429, True),
        ("QUEUE_CONGESTION", 429, True),
        ("INFERENCE_ERROR", 500, True),
        ("INTERNAL_ERROR", 500, True),
        ("A_NEW_ONE", 500, True),
    ],
)
async def test_the_codes_of_the_server_say_whether_to_try_again(
    code: str, status: int, is_retryable: bool
) -> None:
    error = error_of_message({"type": "error", "code": code, "message": "No.", "session_id": "s"})
    assert (error.status_code, error.retryable, error.request_id) == (status, is_retryable, "s")
    assert error.message == f"{code}: No."


# A server that says what a test wants

Script = Callable[[ServerConnection], Any]


@asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[str]:
    """A server that plays one script for each connection; yields its URL."""
    left = list(scripts)

    async def play(connection: ServerConnection) -> None:
        await left.pop(0)(connection)

    async with serve(play, "127.0.0.1", 0, max_queue=None) as server:
        yield f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


async def say(connection: ServerConnection, type_: str, **fields: Any) -> None:
    await connection.send(json.dumps({"type": type_, "session_id": "s", **fields}))


async def begin(connection: ServerConnection) -> dict[str, Any]:
    start: dict[str, Any] = json.loads(await connection.recv())
    await say(connection, "session_started")
    return start


async def take_all(connection: ServerConnection) -> float:
    """Take audio until the client asks for the end; its length."""
    size = 0
    while json_or_audio := await connection.recv():
        if isinstance(json_or_audio, bytes):
            size += len(json_or_audio)
        elif "end_session" in json_or_audio:
            break
    return size / 2 / SAMPLE_RATE


async def complete(connection: ServerConnection) -> None:
    """A whole session with one final. It is as the first servers of this protocol sent it."""
    await begin(connection)
    length_s = await take_all(connection)
    await say(
        connection,
        "final_transcript",
        segment_id="seg-1",
        text=f"{length_s:.2f} s",
        is_final=True,
        audio_duration_ms=length_s * 1000,
    )
    await say(connection, "session_ended", reason="completed", total_audio_ms=length_s * 1000)


async def test_a_refusal_for_now_is_tried_again_under_another_id() -> None:
    ids = []

    async def busy(connection: ServerConnection) -> None:
        ids.append(json.loads(await connection.recv())["session_id"])
        await say(connection, "error", code="QUEUE_FULL", message="Queue full: 20/20")

    async def broken(connection: ServerConnection) -> None:
        ids.append((await begin(connection))["session_id"])
        await say(connection, "error", code="INTERNAL_ERROR", message="The server failed.")

    async with (
        scripted(busy, broken, complete) as url,
        plugin(url) as stt,
        stt.stream(conn_options=QUICK) as stream,
    ):
        push(stream, speech(1.0).pcm)
        stream.end_input()
        heard = await Heard(stream).rest()
    assert heard.texts == ["1.00 s"]
    assert len(set(ids)) == 2


async def test_a_session_that_ends_in_a_pause_is_followed_by_another() -> None:
    is_over = asyncio.Event()

    async def time_out(connection: ServerConnection) -> None:
        await begin(connection)
        for _ in range(25):
            await connection.recv()
        await say(connection, "new_message_of_a_later_version")
        # Its last 0.1 s came too late.
        await say(connection, "session_ended", reason="timeout", total_audio_ms=400.0)
        is_over.set()
        await connection.wait_closed()

    errors: list[STTError] = []
    async with scripted(time_out, complete) as url, plugin(url) as stt:
        stt.on("error", errors.append)
        async with stt.stream(conn_options=ONCE) as stream:
            push(stream, speech(0.5).pcm)
            await is_over.wait()
            push(stream, speech(1.0).pcm)
            stream.end_input()
            heard = await Heard(stream).rest()
    assert heard.texts == ["1.10 s"]
    assert not errors


async def test_a_server_that_does_not_answer_times_out() -> None:
    async def silent(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with scripted(silent) as url, plugin(url) as stt:
        error = await refusal(stt, APIConnectOptions(max_retry=0, timeout=0.05))
    assert isinstance(error, APITimeoutError)


async def test_a_server_of_something_else_is_told_at_once(server_url: str) -> None:
    async def chat(connection: ServerConnection) -> None:
        await connection.send("Welcome!")
        await connection.wait_closed()

    async with scripted(chat) as url, plugin(url) as stt:
        assert "service_url" in str(await refusal(stt))
    async with WhisperSTT(f"{server_url}/nothing/here") as stt:
        error = await refusal(stt)
        assert isinstance(error, APIStatusError)
        assert error.retryable is False


async def test_a_session_called_off_by_the_server_is_tried_again() -> None:
    async def cancelled(connection: ServerConnection) -> None:
        await begin(connection)
        await say(connection, "session_ended", reason="cancelled", total_audio_ms=0.0)

    async with (
        scripted(cancelled, complete) as url,
        plugin(url) as stt,
        stt.stream(conn_options=QUICK) as stream,
    ):
        push(stream, speech(1.0).pcm)
        stream.end_input()
        assert (await Heard(stream).rest()).texts == ["1.00 s"]


# Parts


@pytest.mark.parametrize(
    ("service_url", "live", "files"),
    [
        ("ws://whisper-stt:8000/ws/stt", "ws://whisper-stt:8000/ws/stt", "http://whisper-stt:8000/v1/audio/"),
        ("wss://a.example/stt/ws/stt/", "wss://a.example/stt/ws/stt/", "https://a.example/stt/v1/audio/"),
        ("https://a.example", "wss://a.example/ws/stt", "https://a.example/v1/audio/"),
        ("ws://[::1]:8089/?a=b", "ws://[::1]:8089/ws/stt?a=b", "http://[::1]:8089/v1/audio/"),
    ],
)
async def test_the_addresses_come_from_one(service_url: str, live: str, files: str) -> None:
    stt = WhisperSTT(service_url=service_url, language="pt")
    assert stt._stream_url == live
    assert stt._file_urls["transcribe"] == f"{files}transcriptions"
    assert stt._file_urls["translate"] == f"{files}translations"


@pytest.mark.parametrize("service_url", ["whisper-stt:8000", "ftp://a/ws/stt", "ws:///ws/stt", ""])
async def test_an_address_that_is_none_is_refused(service_url: str) -> None:
    with pytest.raises(ValueError, match="service_url must be like ws://"):
        WhisperSTT(service_url)


async def test_without_livekit_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "whisper_server.clients.livekit_plugin"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "livekit.agents", None)
    with pytest.raises(ImportError, match=r'pip install "whisper-server\[livekit\]"'):
        importlib.import_module(name)


def chunk(name: bytes, duration_s: float = 1.0) -> Chunk:
    return Chunk(name, duration_s, 0.0)


def drain(buffer: ReplayBuffer) -> list[Item]:
    return list(iter(buffer.take, None))


async def test_what_is_not_settled_is_sent_again_in_order() -> None:
    buffer = ReplayBuffer(60.0)
    one, two, three = chunk(b"1"), chunk(b"2"), chunk(b"3")
    for item in (one, Mark.FLUSH, two, Mark.FLUSH, three):
        buffer.put(item)
    assert [buffer.take() for _ in range(4)] == [one, Mark.FLUSH, two, Mark.FLUSH]
    buffer.settle(1.0)
    buffer.settle(0.5)
    assert buffer.oldest is two
    buffer.rewind()
    assert buffer.origin_s == 1.0
    assert drain(buffer) == [two, Mark.FLUSH, three]
    buffer.settle(1.9999)  # of the new session
    buffer.rewind()
    assert buffer.origin_s == 3.0
    assert drain(buffer) == []
    buffer.put(Mark.FLUSH)
    assert buffer.has_unsent
    assert not buffer.has_unsent_audio


async def test_of_what_is_sent_the_latest_is_kept() -> None:
    buffer = ReplayBuffer(2.0)
    for name in (b"1", b"2", b"3", b"4"):
        buffer.put(chunk(name))
    assert len(drain(buffer)) == 4
    buffer.rewind()
    assert buffer.origin_s == 2.0
    assert [item.pcm for item in drain(buffer) if isinstance(item, Chunk)] == [b"3", b"4"]
    buffer.settle(None)
    assert buffer.oldest is None
