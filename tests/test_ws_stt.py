"""`/ws/stt` to the letter of its protocol, over real WebSockets."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.live_speech import HearingEngine, Speech, speech
from tests.stream_server import stream_server
from tests.wire import request
from whisper_server.api.error_table import stt_code
from whisper_server.api.streams import websocket
from whisper_server.api.streams.messages import (
    Cancel,
    EndSession,
    Flush,
    MessageError,
    StartSession,
    parse_message,
    timing,
)
from whisper_server.api.streams.options import StreamWishes, stream_options
from whisper_server.config import Settings
from whisper_server.core import errors
from whisper_server.core.errors import EngineError, InvalidRequestError, WhisperServerError
from whisper_server.core.stream_events import DecodeTiming, Eagerness, Endpointing, StreamOptions
from whisper_server.core.types import SAMPLE_RATE, Task
from whisper_server.services.streaming import StreamLimits

Message = dict[str, Any]

WAIT_S = 20.0
SENTENCE = speech(0.3, "alpha bravo charlie", 1.0)

FINAL_KEYS = {
    *("type", "session_id", "segment_id", "text", "confidence", "is_final", "words", "audio_duration_ms"),
    *("timing", "language", "audio_start_ms"),
}
PARTIAL_KEYS = {
    *("type", "session_id", "segment_id", "text", "stable_text", "confidence", "is_final", "timing"),
}
TIMING_KEYS = {"preprocess_ms", "queue_wait_ms", "inference_ms", "postprocess_ms", "server_total_ms"}


class Client:
    """One connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, type_: str, **fields: Any) -> None:
        self.connection.send(json.dumps({"type": type_, **fields}))

    def start(self, session_id: str | None = "one", **config: Any) -> Message:
        named = {} if session_id is None else {"session_id": session_id}
        self.send("start_session", **named, config=config)
        return self.receive()

    def speak(self, said: Speech | bytes, chunk_bytes: int = 1280) -> None:
        data = said if isinstance(said, bytes) else said.pcm.tobytes()
        for start in range(0, len(data), chunk_bytes):
            self.connection.send(data[start : start + chunk_bytes])

    def receive(self) -> Message:
        message: Message = json.loads(self.connection.recv(timeout=WAIT_S))
        return message

    def until(self, type_: str) -> list[Message]:
        """All messages up to and with the next one of this type."""
        messages = [self.receive()]
        while messages[-1]["type"] != type_:
            messages.append(self.receive())
        return messages

    def end(self) -> list[Message]:
        self.send("end_session")
        return self.until("session_ended")


def of_type(messages: list[Message], type_: str) -> list[Message]:
    return [message for message in messages if message["type"] == type_]


def texts(messages: list[Message]) -> list[str]:
    return [message["text"] for message in of_type(messages, "final_transcript")]


@contextmanager
def connected(url: str, **options: Any) -> Iterator[Client]:
    with connect(f"{url.replace('http', 'ws')}/ws/stt", open_timeout=WAIT_S, **options) as connection:
        yield Client(cast("ClientConnection", connection))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stream_server(HearingEngine()) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with connected(url) as client:
        yield client


# A session


def test_a_session_goes_as_the_protocol_says(client: Client) -> None:
    assert client.start("my-session") == {"type": "session_started", "session_id": "my-session"}
    client.speak(SENTENCE)
    messages = client.until("final_transcript")
    messages += client.end()
    assert all(message["session_id"] == "my-session" for message in messages)
    begin, end = of_type(messages, "vad_event")
    assert (begin["state"], end["state"]) == ("speech_start", "speech_end")
    assert 250 <= begin["t_ms"] <= 350 < 1400 <= end["t_ms"] <= 1600
    assert begin.keys() == {"type", "session_id", "state", "t_ms"}
    (final,) = of_type(messages, "final_transcript")
    assert final.keys() == FINAL_KEYS
    assert final["text"] == "alpha bravo charlie"
    assert final["is_final"] is True
    assert re.fullmatch(r"seg-\w+", final["segment_id"])
    assert [word["word"] for word in final["words"]] == ["alpha", "bravo", "charlie"]
    assert final["words"][0].keys() == {"word", "start", "end", "probability"}
    assert final["words"][0]["start"] == pytest.approx(0.3, abs=0.01)  # on the session's clock
    assert final["audio_duration_ms"] > 1200
    assert final["timing"].keys() == TIMING_KEYS
    for value in final["timing"].values():
        assert value == round(value, 1) >= 0
    assert messages[-1] == {
        "type": "session_ended",
        "session_id": "my-session",
        "reason": "completed",
        "total_audio_ms": len(SENTENCE.pcm) / SAMPLE_RATE * 1000,
        "total_segments": 1,
    }


def test_partials_come_while_somebody_speaks(client: Client) -> None:
    client.start(partial_interval_ms=100)
    client.speak(speech(0.3, "alpha bravo charlie delta echo"))
    (*_, partial) = client.until("partial_transcript")
    assert partial.keys() == PARTIAL_KEYS
    assert partial["is_final"] is False
    assert partial["text"].startswith(partial["stable_text"])
    assert partial["timing"].keys() == TIMING_KEYS
    messages = client.end()
    assert of_type(messages, "final_transcript")[0]["segment_id"] == partial["segment_id"]


def test_no_partials_where_none_are_wanted(client: Client) -> None:
    client.start(partial_results=False, word_timestamps=False)
    client.speak(speech(0.3, "alpha bravo charlie delta echo foxtrot golf hotel"))
    messages = client.end()
    assert not of_type(messages, "partial_transcript")
    (final,) = of_type(messages, "final_transcript")
    assert final["words"] == []


def test_flush_ends_the_utterance_at_once(client: Client) -> None:
    client.start()
    client.speak(speech(0.3, "alpha bravo"))
    client.send("flush")
    assert texts(client.until("final_transcript")) == ["alpha bravo"]
    client.speak(speech("charlie", 0.2))
    client.send("flush")
    assert texts(client.until("final_transcript")) == ["charlie"]
    assert client.end()[-1]["total_segments"] == 2


def test_flush_without_speech_is_answered_by_nothing(client: Client) -> None:
    client.start()
    client.send("flush")
    client.speak(speech(1.0))
    client.send("flush")
    client.send("flush")
    (ended,) = client.end()
    assert ended["total_segments"] == 0
    assert ended["total_audio_ms"] == 1000.0


def test_without_voice_detection_a_flush_always_gives_a_final(client: Client) -> None:
    client.start(vad_enabled=False)
    client.speak(speech(0.2, "alpha", 0.2))
    client.send("flush")
    messages = client.until("final_transcript")
    assert texts(messages) == ["alpha"]
    assert not of_type(messages, "vad_event")


def test_the_last_final_comes_before_the_end() -> None:
    engine = HearingEngine()
    with stream_server(engine) as url, connected(url) as client:
        client.start(partial_results=False)
        engine.gate.clear()
        client.speak(speech(0.3, "alpha bravo"))
        client.send("end_session")
        client.send("end_session")  # once more does nothing
        client.send("flush")
        engine.gate.set()
        messages = client.until("session_ended")
        assert texts(messages) == ["alpha bravo"]
        assert messages[-1]["reason"] == "completed"


def test_cancel_drops_everything() -> None:
    engine = HearingEngine()
    with stream_server(engine) as url, connected(url) as client:
        client.start()
        engine.gate.clear()
        client.speak(speech(0.3, "alpha bravo"))
        client.send("flush")
        client.send("cancel")
        messages = client.until("session_ended")
        assert messages[-1]["reason"] == "cancelled"
        assert not texts(messages)
        engine.gate.set()
        # The next session may have the same name, though a decode of the last one was still running.
        assert client.start()["type"] == "session_started"
        client.speak(speech("charlie"))
        assert texts(client.end()) == ["charlie"]


def test_sessions_follow_each_other_on_one_connection(client: Client) -> None:
    for name in ("one", "two", None):
        started = client.start(name)
        assert started["type"] == "session_started"
        client.speak(SENTENCE)
        messages = client.end()
        assert messages[-1]["session_id"] == started["session_id"]
        assert texts(messages) == ["alpha bravo charlie"]
        client.speak(bytes(4000))  # still on its way when the session ended


@pytest.mark.parametrize("chunk_bytes", [1, 3, 4001, 10_000_000])
def test_it_does_not_matter_how_audio_is_cut(client: Client, chunk_bytes: int) -> None:
    said = speech(0.1, "alpha", 0.05)
    client.start(partial_results=False)
    client.speak(said, chunk_bytes)
    messages = client.end()
    assert texts(messages) == ["alpha"]
    assert messages[-1]["total_audio_ms"] == pytest.approx(len(said.pcm) / 16, abs=0.1)


def test_half_a_sample_at_a_flush_waits_for_its_other_half(client: Client) -> None:
    first, second = speech(0.2, "alpha", 0.2).pcm.tobytes(), speech(0.1, "bravo", 0.1).pcm.tobytes()
    client.start(sample_rate=16000)
    client.speak((first + second)[: len(first) + 1])
    client.send("flush")
    client.speak(second[1:])
    assert texts(client.end()) == ["alpha", "bravo"]


@pytest.mark.parametrize(
    ("config", "rate", "width"),
    [
        ({"sample_rate": 48_000}, 48_000, 2),
        ({"sample_rate": 8_000}, 8_000, 2),
        ({"encoding": "pcmu"}, 8_000, 1),
        ({"sample_rate": 44_100, "channels": 2}, 44_100, 4),
    ],
)
def test_other_rates_and_encodings_are_taken(client: Client, config: Message, rate: int, width: int) -> None:
    client.start(**config)
    client.speak((b"\xff" if config.get("encoding") else b"\0") * rate * width)
    (ended,) = client.end()
    assert ended["total_audio_ms"] == pytest.approx(1000, abs=1)


def test_an_utterance_that_fails_costs_no_other() -> None:
    engine = HearingEngine()
    with stream_server(engine) as url, connected(url) as client:
        client.start(partial_results=False)
        engine.error = EngineError("The model failed.")
        client.speak(speech(0.3, "alpha"))
        client.send("flush")
        (*_, error) = client.until("error")
        assert error["code"] == "INFERENCE_ERROR"
        assert error["session_id"] == "one"
        assert error["segment_id"].startswith("seg-")
        engine.error = None
        client.speak(speech("bravo"))
        assert texts(client.end()) == ["bravo"]


def test_an_automatic_end_ends_the_session(client: Client) -> None:
    client.start(endpointing="auto_end")
    client.speak(speech(0.3, "alpha", 2.0))
    messages = client.until("session_ended")
    assert texts(messages) == ["alpha"]
    assert messages[-1]["reason"] == "completed"


def test_audio_that_stops_coming_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(*args: Any, **options: Any) -> StreamOptions:
        return dataclasses.replace(stream_options(*args, **options), idle_timeout_s=0.05)

    monkeypatch.setattr("whisper_server.api.streams.websocket.stream_options", impatient)
    with stream_server(HearingEngine()) as url, connected(url) as client:
        client.start()
        assert client.until("session_ended")[-1]["reason"] == "timeout"


def test_a_connection_without_a_session_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_MAX_WITHOUT_SESSION_S", 0.05)
    with stream_server(HearingEngine()) as url, connected(url) as client:
        with pytest.raises(ConnectionClosed):
            client.receive()
        assert client.connection.close_code == 1000


def test_a_fault_of_the_server_is_told_and_costs_only_one_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    with connected(url) as client, connected(url) as other:
        other.start("other")
        client.start("broken")
        with monkeypatch.context() as patch:
            patch.setattr("whisper_server.api.streams.messages.vad_event", broken)
            client.speak(speech(0.3, "alpha"))
            error = client.receive()
            assert (error["code"], error["session_id"]) == ("INTERNAL_ERROR", "broken")
            assert "ZeroDivision" not in error["message"]
            with pytest.raises(ConnectionClosed):
                client.receive()
            assert client.connection.close_code == 1011
        other.speak(speech("bravo"))
        assert texts(other.end()) == ["bravo"]


@pytest.mark.anyio
async def test_a_client_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "_MAX_UNREAD_S", 0.01)
    incoming = iter(({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "no JSON"}))

    async def receive() -> Any:
        for message in incoming:
            return message
        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        if message["type"] != "websocket.accept":
            await anyio.sleep_forever()

    scope = {"type": "websocket", "subprotocols": [], "state": {"services": None}, "headers": []}
    with anyio.fail_after(WAIT_S):
        await websocket.stt(WebSocket(scope, receive, send))


def test_a_client_that_vanishes_frees_its_session() -> None:
    with stream_server(HearingEngine(), limits=StreamLimits(max_sessions=1)) as url:
        for _ in range(2):
            with connected(url) as client:
                client.start()
                client.speak(speech(0.3, "alpha"))
                client.connection.socket.close()
            wait_until_free(url)


def wait_until_free(url: str) -> None:
    for _ in range(2000):
        if request("GET", f"{url}/health/status").json()["sessions"]["active"] == 0:
            return
    raise AssertionError("the session stayed")


# What is refused


def refusal(client: Client) -> tuple[str, str]:
    error = client.receive()
    assert error.keys() == {"type", "code", "message", "session_id"}
    assert error["type"] == "error"
    return error["code"], error["message"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no JSON", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "JSON object"),
        ("{}", "'type'"),
        ('{"type": "flash"}', "'type' must be one of start_session, flush, end_session, cancel"),
        ('{"type": 7}', "'type'"),
        ('{"type": "flush"}', "No session"),
        ('{"type": "end_session"}', "No session"),
        ('{"type": "cancel"}', "No session"),
        ('{"type": "start_session", "session_id": 5}', "'session_id'"),
        ('{"type": "start_session", "session_id": ""}', "'session_id'"),
        ('{"type": "start_session", "config": []}', "'config'"),
        ('{"type": "start_session", "config": {"sample_rate": "16000"}}', "'config.sample_rate'"),
        ('{"type": "start_session", "config": {"sample_rate": 1}}', "'config.sample_rate'"),
        ('{"type": "start_session", "config": {"vad_threshold": 1.5}}', "'config.vad_threshold'"),
        ('{"type": "start_session", "config": {"vad_threshold": NaN}}', "'config.vad_threshold'"),
        ('{"type": "start_session", "config": {"vad_enabled": 1}}', "'config.vad_enabled'"),
        ('{"type": "start_session", "config": {"lang_code": 5}}', "'config.lang_code'"),
        ('{"type": "start_session", "config": {"lang_code": "xx"}}', "'config.lang_code'"),
        ('{"type": "start_session", "config": {"lang_code": "fi"}}', "language"),
        ('{"type": "start_session", "config": {"partial_results": "no"}}', "'config.partial_results'"),
        ('{"type": "start_session", "config": {"task": "sing"}}', "'config.task'"),
        ('{"type": "start_session", "config": {"endpointing": "never"}}', "'config.endpointing'"),
        ('{"type": "start_session", "config": {"decode_profile": "x"}}', "'decode_profile'"),
        ('{"type": "start_session", "config": {"model": "no-such-model"}}', "no-such-model"),
    ],
)
def test_a_wrong_message_is_named_and_the_connection_stays(client: Client, text: str, words: str) -> None:
    client.connection.send(text)
    code, message = refusal(client)
    assert code == "INVALID_MESSAGE"
    assert words in message
    assert client.start()["type"] == "session_started"


def test_unknown_fields_and_nulls_are_ignored(client: Client) -> None:
    client.send(
        "start_session", session_id="one", more=1, config={"lang_code": None, "sample_rate": None, "x": {}}
    )
    assert client.receive()["type"] == "session_started"


def test_audio_before_a_session_is_told_once(client: Client) -> None:
    client.speak(bytes(12800))
    code, message = refusal(client)
    assert code == "INVALID_MESSAGE"
    assert "start_session" in message
    assert client.start()["type"] == "session_started"


def test_a_second_session_is_refused_and_the_first_goes_on(client: Client) -> None:
    client.start("first")
    assert client.start("second")["code"] == "SESSION_EXISTS"
    client.speak(SENTENCE)
    messages = client.end()
    assert texts(messages) == ["alpha bravo charlie"]
    assert messages[-1]["session_id"] == "first"


def test_a_name_in_use_elsewhere_is_refused(url: str, client: Client) -> None:
    with connected(url) as other:
        other.start("taken")
        assert client.start("taken")["code"] == "SESSION_EXISTS"
        assert client.start("free")["type"] == "session_started"


def test_a_full_server_says_so_in_the_words_of_the_protocol() -> None:
    limits = StreamLimits(max_sessions=1)
    with stream_server(HearingEngine(), limits=limits) as url, connected(url) as one, connected(url) as two:
        one.start("one")
        error = two.start("two")
        assert error["code"] == "MAX_SESSIONS_REACHED"
        assert "1/1" in error["message"]
        assert error["session_id"] == "two"
        one.end()
        assert two.start("two")["type"] == "session_started"


def test_a_full_queue_says_so_in_the_words_of_the_protocol() -> None:
    limits = StreamLimits(max_queue_depth=0)
    with stream_server(HearingEngine(), limits=limits) as url, connected(url) as client:
        assert client.start() == {
            "type": "error",
            "code": "QUEUE_FULL",
            "message": "Queue full: 0/0",
            "session_id": "one",
        }


def test_a_server_with_keys_asks_for_one_and_takes_it_from_browsers() -> None:
    with stream_server(HearingEngine(), security={"api_keys": ("a-key-only-for-this-test",)}) as url:
        with pytest.raises(Exception, match="401"), connected(url):
            pass
        with connected(url, subprotocols=["stt", "openai-insecure-api-key.a-key-only-for-this-test"]) as one:
            assert one.connection.subprotocol == "stt"
            assert one.start()["type"] == "session_started"


# The example client


def example_client(url: str, audio: Path) -> str:
    """The example of the protocol's description, with the address and the file of the test."""
    source = (Path(__file__).parent / "assets" / "ws_stt_example_client.txt").read_text()
    assert source.count('"ws://localhost:8000/ws/stt"') == source.count('"audio.raw"') == 1
    address = url.replace("http", "ws") + "/ws/stt"
    return source.replace("ws://localhost:8000/ws/stt", address).replace("audio.raw", str(audio))


def test_the_example_client_runs_unchanged(url: str, tmp_path: Path) -> None:
    audio = tmp_path / "audio.raw"
    audio.write_bytes(speech(0.1, "alpha bravo", 0.1).pcm.tobytes())
    run = subprocess.run(
        [sys.executable, "-c", example_client(url, audio)], capture_output=True, text=True, timeout=60
    )
    assert run.stderr == ""
    assert run.stdout == "Transcript: alpha bravo\n"


def test_a_recording_is_heard_by_a_real_model(
    server_url: str, sample_recordings: list[dict[str, Any]], tmp_path: Path
) -> None:
    (sample,) = (one for one in sample_recordings if one["path"].name == "kitchen_en.wav")
    audio = tmp_path / "audio.raw"
    audio.write_bytes(sample["path"].read_bytes()[44:])
    with connected(server_url) as client:
        client.start("real", lang_code="en-US")
        client.speak(audio.read_bytes())
        messages = client.end()
    said = " ".join(segment["text"].strip() for segment in sample["segments"])
    assert " ".join(texts(messages)) == said
    assert messages[-1]["reason"] == "completed"


# Parts


def test_messages_are_parsed() -> None:
    assert isinstance(parse_message('{"type": "flush", "extra": 1}'), Flush)
    assert isinstance(parse_message('{"type": "end_session"}'), EndSession)
    assert isinstance(parse_message('{"type": "cancel"}'), Cancel)
    start = parse_message('{"type": "start_session"}')
    assert isinstance(start, StartSession)
    assert (start.session_id, start.config) == (None, None)
    with pytest.raises(MessageError) as caught:
        parse_message('{"type": "start_session", "session_id": "x", "config": 1}')
    assert caught.value.session_id == "x"


def test_the_settings_count_where_the_client_says_nothing() -> None:
    settings = Settings(
        model={"language": "pt", "languages": ("pt", "en"), "task": "translate"},
        vad={"threshold": 0.3, "min_silence_ms": 900, "enabled": False},
        streaming={"partial_interval_ms": 200, "max_partial_window_s": 5, "max_utterance_s": 20},
    )
    options = stream_options(StreamWishes(), settings, language_param="language")
    assert (options.language, options.languages, options.task) == ("pt", (), Task.TRANSLATE)
    assert (options.voice.threshold, options.voice.min_silence_ms) == (0.3, 900)
    assert not options.voice.enabled
    assert (options.partial_interval_ms, options.max_partial_window_s) == (200, 5)
    assert options.max_utterance_s == 20
    assert options.final_decode.beam_size == 1  # the profile realtime
    wishes = StreamWishes(
        language="pt-BR",
        task=Task.TRANSCRIBE,
        decode_profile="accurate",
        vad_enabled=True,
        vad_threshold=0.9,
        endpointing=Endpointing.MANUAL,
        eagerness=Eagerness.LOW,
        partials=False,
        prompt="Olá",
    )
    options = stream_options(wishes, settings, language_param="language")
    assert (options.language, options.task, options.prompt) == ("pt", Task.TRANSCRIBE, "Olá")
    assert (options.voice.enabled, options.voice.threshold, options.voice.min_silence_ms) == (True, 0.9, 900)
    assert (options.endpointing, options.eagerness) == (Endpointing.MANUAL, Eagerness.LOW)
    assert options.final_decode.beam_size == 5
    assert not options.partials
    detected = stream_options(StreamWishes(language="auto"), settings, language_param="language")
    assert detected.language is None
    with pytest.raises(InvalidRequestError) as caught:
        stream_options(StreamWishes(language="klingon"), settings, language_param="lang")
    assert caught.value.param == "lang"


def test_every_fault_has_a_code_of_the_protocol() -> None:
    known = {
        *("INVALID_MESSAGE", "SESSION_EXISTS", "MAX_SESSIONS_REACHED", "QUEUE_FULL", "QUEUE_CONGESTION"),
        *("INFERENCE_ERROR", "INTERNAL_ERROR"),
    }
    kinds: list[type[WhisperServerError]] = [WhisperServerError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    codes = {kind: stt_code(kind.__new__(kind)) for kind in kinds}
    assert set(codes.values()) == known
    assert codes[errors.QueueCongestedError] == codes[errors.AudioMemoryFullError] == "QUEUE_CONGESTION"
    assert codes[errors.VoiceDetectorsExhaustedError] == "MAX_SESSIONS_REACHED"
    assert codes[errors.EngineCrashedError] == "INFERENCE_ERROR"
    assert codes[errors.ModelLoadError] == "INTERNAL_ERROR"


def test_times_are_rounded_to_a_tenth_of_a_millisecond() -> None:
    took = DecodeTiming(9.0, 0.00123, 0.00534, 0.14561, 0.00078)
    assert timing(took) == {
        "preprocess_ms": 1.2,
        "queue_wait_ms": 5.3,
        "inference_ms": 145.6,
        "postprocess_ms": 0.8,
        "server_total_ms": 153.0,
    }
