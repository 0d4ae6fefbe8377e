"""`/v1/realtime` in the raw protocol: what each client event does, in which order the server tells what."""

import base64
import contextlib
import dataclasses
import json
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close

from tests.live_speech import WORDS, HearingEngine, PerfectDetector, hear, speech
from tests.realtime_client import Client, Event, deltas, realtime_server, talking, types
from whisper_server.api.openai.realtime.config import ConfigDefaults, Dialect, RealtimeConfig
from whisper_server.api.openai.realtime.deltas import SentText
from whisper_server.api.openai.realtime.events import EventWriter
from whisper_server.api.openai.realtime.session import RealtimeLimits
from whisper_server.cli.logs import RequestIdFilter
from whisper_server.core.errors import EngineError
from whisper_server.core.scheduling import Priority
from whisper_server.core.stream_events import (
    BufferCleared,
    FinalTranscript,
    PartialTranscript,
    Replacement,
    SpeechTimedOut,
    UtteranceCommitted,
)
from whisper_server.core.types import SAMPLE_RATE, Decoded, Samples, Segment, TokenLogprob, Window
from whisper_server.services.streaming import StreamLimits

ONE = speech(0.5, "alpha bravo charlie", 0.7)
TEXT = "alpha bravo charlie"
PCM_16K = {"format": {"type": "audio/pcm", "rate": 16000}}
MANUAL = {"turn_detection": None}


@pytest.fixture(scope="module")
def engine() -> HearingEngine:
    return HearingEngine()


@pytest.fixture(scope="module")
def url(engine: HearingEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    second = tmp_path_factory.mktemp("second")
    for name in ("config.json", "model.bin", "tokenizer.json", "vocabulary.json"):
        (second / name).write_text("a file that the scripted engine does not read")
    model = {"aliases": {"second": str(second)}}
    with realtime_server(engine, model=model, streaming={"partial_interval_ms": 1}) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """A client whose session is set up for made-up speech."""
    with talking(url) as client:
        assert client.receive()["type"] == "session.created"
        client.configure()
        yield client


def error_of(event: Event) -> tuple[str | None, str | None]:
    assert event["type"] == "error"
    assert event["error"].keys() == {"type", "code", "message", "param", "event_id"}
    return event["error"]["code"], event["error"]["event_id"]


# Turns


def test_a_turn_is_told_in_openai_s_order_under_one_item_id(client: Client) -> None:
    client.speak(ONE.pcm)
    events = client.until(".completed")
    assert [name for name in types(events) if name != "delta"] == [
        "buffer.speech_started",
        "buffer.speech_stopped",
        "buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "completed",
    ]
    items = [event.get("item_id") or event["item"]["id"] for event in events]
    assert len(set(items)) == 1
    assert deltas(events) == events[-1]["transcript"] == TEXT
    assert events[0]["audio_start_ms"] == pytest.approx(500 - 300, abs=40)
    assert events[-1]["usage"]["type"] == "tokens"
    assert events[-1]["usage"]["output_tokens"] == 3
    assert events[-1]["languages"] == [{"code": "en"}]
    assert "logprobs" not in events[-1]


def test_each_turn_names_the_one_before(client: Client) -> None:
    client.speak(speech(0.4, "alpha bravo", 0.8, "golf hotel", 0.8).pcm)
    events = client.until(".completed") + client.until(".completed")
    first, second = (event for event in events if event["type"].endswith(".committed"))
    assert (first["previous_item_id"], second["previous_item_id"]) == (None, first["item_id"])
    transcripts = [event["transcript"] for event in events if event["type"].endswith(".completed")]
    assert transcripts == ["alpha bravo", "golf hotel"]


def test_text_is_sent_while_somebody_speaks_where_a_client_asks_for_that(
    client: Client, engine: HearingEngine
) -> None:
    client.configure(transcription={"delay": "minimal"})
    words = " ".join(["alpha bravo charlie delta echo"] * 2)
    audio = speech(0.3, words, 0.7).pcm
    events: list[Event] = []
    for start in range(0, len(audio), 8000):
        decoded = len(engine.windows)
        client.speak(audio[start : start + 8000])
        # Round trips leave time for a partial; the first and the last pieces give none.
        for _ in range(100):
            client.send("conversation.item.retrieve", item_id="none")
            events += client.until("error")
            if len(engine.windows) > decoded:
                break
    if not any(event["type"].endswith(".completed") for event in events):
        events += client.until(".completed")
    names = types(events)
    # The answer to the last round trip may come after it.
    assert deltas(events) == events[names.index("completed")]["transcript"] == words
    assert names.index("delta") < names.index("buffer.committed")
    assert names.count("delta") > 2


def test_unless_a_client_asks_for_it_early_text_comes_after_the_commit_and_is_the_final_s(
    client: Client,
) -> None:
    client.speak(ONE.pcm)
    names = types(client.until(".completed"))
    assert names.index("delta") > names.index("conversation.item.done")
    assert names.count("delta") == 1


def test_without_turn_detection_the_client_commits(client: Client) -> None:
    client.configure(**MANUAL)
    client.speak(ONE.pcm)
    client.send("input_audio_buffer.commit", event_id="mine")
    events = client.until(".completed")
    assert "buffer.speech_started" not in types(events)
    assert events[-1]["transcript"] == TEXT


def test_nobody_s_speech_is_an_empty_transcript_without_deltas(client: Client) -> None:
    client.configure(**MANUAL)
    client.speak(np.zeros(16000, dtype=np.int16))
    client.send("input_audio_buffer.commit")
    events = client.until(".completed")
    assert types(events)[-1] == "completed"
    assert (deltas(events), events[-1]["transcript"], events[-1]["languages"]) == ("", "", [])
    assert events[-1]["usage"]["total_tokens"] == 50


def test_too_little_to_commit_is_told_in_turn_with_the_client_s_event_id(client: Client) -> None:
    client.configure(**MANUAL)
    client.speak(ONE.pcm[:1599])
    client.send("input_audio_buffer.commit", event_id="last")
    client.send("input_audio_buffer.clear")
    error, cleared = client.receive(), client.receive()
    assert error_of(error) == ("input_audio_buffer_commit_empty", "last")
    assert cleared["type"] == "input_audio_buffer.cleared"


def test_a_commit_and_a_clear_before_any_audio_are_answered(client: Client) -> None:
    client.send("input_audio_buffer.commit", event_id="first")
    client.send("input_audio_buffer.clear")
    assert error_of(client.receive()) == ("input_audio_buffer_commit_empty", "first")
    assert client.receive()["type"] == "input_audio_buffer.cleared"


def test_what_is_cleared_is_not_transcribed(client: Client) -> None:
    client.configure(**MANUAL)
    client.speak(speech("golf hotel").pcm)
    client.send("input_audio_buffer.clear")
    client.speak(speech("alpha bravo", 0.2).pcm)
    client.send("input_audio_buffer.commit")
    events = client.until(".completed")
    assert types(events)[0] == "buffer.cleared"
    assert events[-1]["transcript"] == "alpha bravo"


def test_silence_times_out_where_that_is_asked_for(client: Client) -> None:
    client.configure(turn_detection={"type": "server_vad", "idle_timeout_ms": 1000})
    client.speak(np.zeros(20000, dtype=np.int16))
    events = client.until(".completed")
    assert types(events)[:2] == ["buffer.timeout_triggered", "buffer.committed"]
    assert (events[0]["audio_start_ms"], events[0]["audio_end_ms"]) == pytest.approx((0, 1000), abs=40)
    assert events[0]["item_id"] == events[-1]["item_id"]


def test_a_failed_transcript_ends_its_item_and_not_the_session(client: Client, engine: HearingEngine) -> None:
    client.configure(**MANUAL)
    engine.error = EngineError("The model failed.")
    try:
        client.speak(ONE.pcm)
        client.send("input_audio_buffer.commit")
        failed = client.until(".failed")[-1]
    finally:
        engine.error = None
    assert failed["error"].keys() == {"type", "code", "message", "param"}
    assert (failed["error"]["type"], failed["error"]["code"]) == ("server_error", "inference_failed")
    client.speak(ONE.pcm)
    client.send("input_audio_buffer.commit")
    assert client.until(".completed")[-1]["transcript"] == TEXT


def test_logprobs_and_words_come_where_they_are_asked_for(client: Client) -> None:
    names = [f"item.input_audio_transcription.{name}" for name in ("logprobs", "words")]
    client.configure(**MANUAL, include=names)
    client.speak(ONE.pcm)
    client.send("input_audio_buffer.commit")
    completed = client.until(".completed")[-1]
    assert [word["word"] for word in completed["words"]] == TEXT.split()
    assert completed["words"][0]["start"] == pytest.approx(0.5, abs=0.05)
    assert completed["logprobs"] == []  # made-up speech has none; below, tokens are given


# Audio


@pytest.mark.parametrize(
    ("format_", "audio"),
    [
        ({"type": "audio/pcm", "rate": None}, np.zeros(24000, dtype=np.int16).tobytes()),
        ({"type": "audio/pcm", "rate": 48000}, np.zeros(48000, dtype=np.int16).tobytes()),
        ({"type": "audio/pcmu"}, b"\xff" * 8000),
        ({"type": "audio/pcma"}, b"\xd5" * 8000),
    ],
)
def test_a_second_of_audio_is_a_second_in_every_format(
    client: Client, format_: dict[str, Any], audio: bytes
) -> None:
    client.configure(**MANUAL)
    session = {"audio": {"input": {"format": format_}}}
    client.send("session.update", session=session)
    client.until("session.updated")
    for start in range(0, len(audio), 4801):  # cut in the middle of a sample
        client.append(audio[start : start + 4801])
    client.send("input_audio_buffer.commit")
    usage = client.until(".completed")[-1]["usage"]
    assert usage["input_tokens"] == 50


def test_a_long_append_is_transcribed_whole(client: Client) -> None:
    sentence = "alpha bravo charlie delta echo foxtrot golf hotel"
    client.configure(**MANUAL)
    parts: list[str | float] = [sentence, 0.6] * 12
    long = speech(*parts).pcm
    assert len(long) > 16000 * 40
    client.append(long.tobytes())
    client.send("input_audio_buffer.commit")
    assert client.until(".completed")[-1]["transcript"].split() == sentence.split() * 12


def test_a_change_of_format_loses_nothing(client: Client) -> None:
    client.configure(**MANUAL)
    client.speak(speech("alpha bravo").pcm)
    client.send("session.update", session={"audio": {"input": {"format": {"type": "audio/pcmu"}}}})
    client.append(b"\xff" * 1600)
    client.send("input_audio_buffer.commit")
    completed = client.until(".completed")[-1]
    assert completed["transcript"] == "alpha bravo"
    assert completed["usage"]["input_tokens"] == 50


# Updates


def test_another_model_settles_what_was_sent_and_goes_on_in_the_same_session(client: Client) -> None:
    client.configure(**MANUAL)
    client.speak(speech("alpha bravo").pcm)
    audio = {"input": {"transcription": {"model": "second"}, "turn_detection": {"type": "server_vad"}}}
    client.send("session.update", session={"audio": audio})
    events = client.until("session.updated")
    first = next(event for event in events if event["type"].endswith(".completed"))
    assert first["transcript"] == "alpha bravo"
    assert events[-1]["session"]["audio"]["input"]["transcription"]["model"] == "second"
    client.speak(speech(0.4, "golf hotel", 0.7).pcm)
    events = client.until(".completed")
    (committed,) = (event for event in events if event["type"].endswith(".committed"))
    assert committed["previous_item_id"] == first["item_id"]
    assert events[0]["audio_start_ms"] == pytest.approx(800 + 400 - 300, abs=40)
    assert events[-1]["transcript"] == "golf hotel"


@pytest.mark.parametrize(
    ("session", "code"),
    [
        ({"type": "realtime", "voice": "alloy"}, "invalid_parameter"),
        ({"audio": {"input": {"transcription": {"model": "no-such-model"}}}}, "model_not_found"),
        ({"audio": {"input": {"transcription": {"language": "xx"}}}}, "unsupported_language"),
        ({"turn_detection": {"type": "server_vad", "threshold": 2}}, "invalid_value"),
        (None, "invalid_value"),
    ],
)
def test_a_wrong_update_changes_nothing_and_the_session_goes_on(
    client: Client, session: Any, code: str
) -> None:
    client.send("session.update", event_id="wrong", session=session)
    assert error_of(client.receive()) == (code, "wrong")
    client.speak(ONE.pcm)
    assert client.until(".completed")[-1]["transcript"] == TEXT


def test_the_beta_shape_has_its_own_names(url: str) -> None:
    headers = {"OpenAI-Beta": "realtime=v1"}
    with talking(url, additional_headers=headers) as client:
        created = client.receive()
        assert created["type"] == "transcription_session.created"
        assert created["session"]["input_audio_format"] == "pcm16"
        session = {"turn_detection": None, "input_audio_transcription": {"model": "demo"}}
        client.send("transcription_session.update", session=session)
        updated = client.receive()
        assert updated["type"] == "transcription_session.updated"
        assert updated["session"]["turn_detection"] is None
        client.append(np.zeros(4800, dtype=np.int16).tobytes())
        client.send("input_audio_buffer.commit")
        assert types(client.until(".completed")) == [
            "buffer.committed",
            "conversation.item.created",
            "completed",
        ]


def test_an_update_in_the_beta_shape_makes_a_session_speak_it(client: Client) -> None:
    client.send("transcription_session.update", session={"turn_detection": None})
    assert client.receive()["type"] == "transcription_session.updated"
    client.speak(ONE.pcm)
    client.send("input_audio_buffer.commit")
    assert "conversation.item.created" in types(client.until(".completed"))


# Items


def test_items_are_retrieved_and_deleted(client: Client) -> None:
    client.speak(ONE.pcm)
    item_id = client.until(".completed")[-1]["item_id"]
    client.send("conversation.item.retrieve", item_id=item_id)
    retrieved = client.receive()
    assert retrieved["type"] == "conversation.item.retrieved"
    assert retrieved["item"]["content"] == [{"type": "input_audio", "transcript": TEXT}]
    client.send("conversation.item.delete", item_id=item_id)
    deleted = client.receive()
    assert (deleted["type"], deleted["item_id"]) == ("conversation.item.deleted", item_id)
    for name in ("retrieve", "delete"):
        client.send(f"conversation.item.{name}", item_id=item_id, event_id=name)
        assert error_of(client.receive()) == (f"item_{name}_invalid_item_id", name)


# What is not understood


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_json"),
        ("[1]", "invalid_json"),
        ("null", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        (b"\x00\x01", "invalid_message"),
        ("{}", "missing_required_parameter"),
        ('{"type": "response.create"}', "unknown_event_type"),
        ('{"type": 7}', "unknown_event_type"),
        ('{"type": {}}', "unknown_event_type"),
        ('{"type": "input_audio_buffer.append"}', "missing_required_parameter"),
        ('{"type": "input_audio_buffer.append", "audio": 5}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "no base64!"}', "invalid_base64"),
        ('{"type": "conversation.item.retrieve"}', "missing_required_parameter"),
    ],
)
def test_a_message_that_is_not_understood_is_an_error_and_the_session_goes_on(
    client: Client, message: str | bytes, code: str
) -> None:
    client.connection.send(message)
    assert error_of(client.receive())[0] == code
    client.speak(ONE.pcm)
    assert client.until(".completed")[-1]["transcript"] == TEXT


def test_what_is_said_while_the_server_still_listens_to_what_came_before_is_not_held_back() -> None:
    is_listening, gate = threading.Event(), threading.Event()

    class SlowDetector(PerfectDetector):
        def probabilities(self, samples: Samples) -> Samples:
            if len(samples) > SAMPLE_RATE:
                is_listening.set()
                assert gate.wait(30)
            return super().probabilities(samples)

    pcm = speech(0.3, TEXT, 0.6).pcm
    before = int(1.9 * SAMPLE_RATE)  # the silence that ends the utterance is not over there
    with realtime_server(HearingEngine(), new_detector=SlowDetector) as url, talking(url) as client:
        client.receive()
        client.configure()
        client.append(pcm[:before].tobytes())
        assert is_listening.wait(30)
        client.append(pcm[before:].tobytes())
        client.send("conversation.item.retrieve", item_id="none")
        error_of(client.receive())  # so the last audio has come too
        gate.set()
        assert client.until(".completed")[-1]["transcript"] == TEXT


def test_wrong_audio_in_the_silence_is_told_and_the_silence_counts(client: Client) -> None:
    client.speak(ONE.pcm[:4000], chunk_samples=100)
    client.send("input_audio_buffer.append", audio="no base64!", event_id="wrong")
    assert error_of(client.receive()) == ("invalid_base64", "wrong")
    client.speak(ONE.pcm[4000:], chunk_samples=100)
    events = client.until(".completed")
    assert events[0]["audio_start_ms"] == pytest.approx(500 - 300, abs=40)
    assert events[-1]["transcript"] == TEXT


def test_too_much_audio_in_one_event_is_refused(client: Client) -> None:
    audio = base64.b64encode(bytes((15 << 20) + 3)).decode()
    client.send("input_audio_buffer.append", audio=audio, event_id="big")
    assert error_of(client.receive()) == ("audio_too_large", "big")
    client.send("input_audio_buffer.append", audio="%", event_id="half \ud83d")
    assert error_of(client.receive()) == ("invalid_base64", None)


# The handshake


def test_every_way_to_name_model_and_intent_opens_a_session(url: str) -> None:
    for query, model in (
        ("", "demo"),
        ("intent=transcription", "demo"),
        ("model=tiny", "tiny"),
        ("model=tiny&intent=transcription", "tiny"),
        ("model=gpt-4o-realtime-preview", "demo"),
        ("model=gpt-realtime-whisper", "gpt-realtime-whisper"),
        ("deployment=tiny&api-version=2024-10-01-preview", "tiny"),
    ):
        for base in (url, url.removesuffix("/v1"), url.replace("/v1", "/openai/v1")):
            with talking(base, query) as client:
                session = client.receive()["session"]
                assert session["audio"]["input"]["transcription"]["model"] == model, query


def test_an_unknown_model_in_the_url_counts_only_where_no_update_names_another(url: str) -> None:
    with talking(url, "model=no-such-model") as client:
        client.receive()
        client.configure(transcription={"model": "demo"})
        client.speak(ONE.pcm)
        assert client.until(".completed")[-1]["transcript"] == TEXT
    with talking(url, "model=no-such-model") as client:
        client.receive()
        client.speak(ONE.pcm[:1600])
        assert error_of(client.receive())[0] == "model_not_found"
        assert closing(client).code == 1008


def test_the_subprotocol_is_answered_and_the_key_is_not(url: str) -> None:
    offered: Any = ["realtime", "openai-insecure-api-key.secret", "openai-beta.realtime-v1"]
    with talking(url, subprotocols=offered) as client:
        assert client.connection.subprotocol == "realtime"
        assert client.receive()["type"] == "transcription_session.created"
    with talking(url) as client:
        assert client.connection.subprotocol is None


def test_calls_are_refused_in_the_handshake(url: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):  # the second one comes after all that is logged of the first
        with pytest.raises(InvalidStatus) as caught, talking(url, "call_id=rtc_1"):
            pass
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert caught.value.response.status_code == 400
    body = json.loads(caught.value.response.body or b"")
    assert body["error"]["param"] == "call_id"


# Ends


def test_the_session_expires_with_its_transcripts_told_and_closes_cleanly() -> None:
    limits = RealtimeLimits(session_s=1.5)
    with realtime_server(HearingEngine(), limits=limits) as url, talking(url) as client:
        client.receive()
        client.configure(**MANUAL)
        client.speak(ONE.pcm)
        events = client.until("error")
        assert error_of(events[-1]) == ("session_expired", None)
        assert [e["transcript"] for e in events if e["type"].endswith(".completed")] == [TEXT]
        assert closing(client).code == 1000


def test_a_silent_client_gives_its_stream_up_and_gets_another_with_its_next_audio() -> None:
    streaming = {"session_timeout_s": 0.1}
    with realtime_server(HearingEngine(), streaming=streaming) as url, talking(url) as client:
        client.receive()
        client.configure(**MANUAL)
        client.speak(speech("alpha bravo").pcm)
        first = client.until(".completed")[-1]  # what was spoken is settled, not dropped
        assert first["transcript"] == "alpha bravo"
        client.append(speech("golf hotel").pcm.tobytes())
        client.send("input_audio_buffer.commit")
        events = client.until(".completed")
        assert events[-1]["transcript"] == "golf hotel"
        assert events[0]["previous_item_id"] == first["item_id"]


def test_a_client_that_does_not_read_is_closed_with_a_reason() -> None:
    limits = RealtimeLimits(send_timeout_s=0.2)
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with realtime_server(HearingEngine(word_s=0.05), limits=limits) as url:
        parts = urlsplit(url)
        narrow.connect((parts.hostname, parts.port))
        with log_line("The session ends") as has_ended, talking(url, sock=narrow, compression=None) as client:
            client.receive()
            client.configure(**MANUAL)
            client.append(speech(" ".join(WORDS * 150), word_s=0.05).pcm.tobytes())
            client.send("input_audio_buffer.commit")
            item_id = client.until(".completed")[-1]["item_id"]
            for _ in range(1000):  # of about 10 KB each, more than sockets hold
                client.send("conversation.item.retrieve", item_id=item_id)
            assert has_ended.wait(30)
            closed = closing(client)
        assert closed.code == 1008
        assert "does not read" in closed.reason


def closing(client: Client) -> Close:
    """How the server closes, after whatever else it has told."""
    while True:
        try:
            client.receive()
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise
            return closed.rcvd


@contextlib.contextmanager
def log_line(beginning: str) -> Iterator[threading.Event]:
    """An event that is set when the server logs such a line."""
    seen = threading.Event()
    watch = logging.Handler()

    def note(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(beginning):
            seen.set()
        return False

    watch.addFilter(note)
    logger = logging.getLogger("whisper_server")
    logger.addHandler(watch)
    try:
        yield seen
    finally:
        logger.removeHandler(watch)


def test_too_many_sessions_is_told_and_closed_so_that_clients_come_back() -> None:
    limits = StreamLimits(max_sessions=1)
    with (
        realtime_server(HearingEngine(), stream_limits=limits) as url,
        talking(url) as first,
        talking(url) as second,
    ):
        for client in (first, second):
            client.receive()
            client.configure(**MANUAL)
        first.speak(ONE.pcm)
        first.send("input_audio_buffer.commit")
        assert first.until(".completed")[-1]["transcript"] == TEXT
        second.append(ONE.pcm.tobytes())
        error = second.receive()
        assert error_of(error)[0] == "too_many_sessions"
        assert error["error"]["type"] == "rate_limit_error"
        assert closing(second).code == 1013
        with pytest.raises(InvalidStatus) as refused, talking(url):
            pass
        assert refused.value.response.status_code == 429
        first.speak(ONE.pcm)
        first.send("input_audio_buffer.commit")
        assert first.until(".completed")[-1]["transcript"] == TEXT


class NotingEngine(HearingEngine):
    """Notes the words of every window whose decoding begins."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: set[str] = set()

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        self.heard.update(segment.text.strip() for window in windows for segment in hear(window).segments)
        return super().decode(windows, priority)


def test_when_the_client_leaves_nothing_of_it_is_decoded_any_more() -> None:
    engine = NotingEngine()
    with realtime_server(engine) as url:
        with talking(url) as client:
            client.receive()
            client.configure(**MANUAL)
            engine.gate.clear()
            for word in WORDS[:6]:
                client.speak(speech(word).pcm)
                client.send("input_audio_buffer.commit")
                client.until(".done")
        with talking(url) as other:
            other.receive()
            other.configure(**MANUAL)
            engine.gate.set()
            other.speak(speech("golf").pcm)
            other.send("input_audio_buffer.commit")
            assert other.until(".completed")[-1]["transcript"] == "golf"
        assert "golf" in engine.heard
        # What had begun cannot be taken back; what waited was never begun.
        assert "foxtrot" not in engine.heard


def test_log_lines_carry_the_request_s_and_the_session_s_id(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(RequestIdFilter())
    with log_line("The session is over") as is_over, caplog.at_level("INFO", "whisper_server"):
        with talking(url, additional_headers={"X-Request-Id": "mine"}) as client:
            session_id = client.receive()["session"]["id"]
            client.configure()
            client.speak(ONE.pcm)
            client.until(".completed")
        assert is_over.wait(30)
    ids = {getattr(record, "request_id", "-") for record in caplog.records if "ession" in record.getMessage()}
    assert ids == {f"mine/{session_id}"}


# The translation alone


def writer(*, include: tuple[str, ...] = ()) -> EventWriter:
    config = dataclasses.replace(RealtimeConfig.new(ConfigDefaults("demo")), include=include)
    return EventWriter("sess_1", 0, config, Dialect.GA)


def partial(stable: str, *, utterance: str = "item_1") -> PartialTranscript:
    return PartialTranscript(utterance, stable, " tail", 0.9, "en")


def final(text: str, *, utterance: str = "item_1", **fields: Any) -> FinalTranscript:
    tokens = (TokenLogprob(text, text.encode(), -0.25),)
    segment = Segment(0, 1, text, (1,), -0.2, 1, 0, 0, text_token_count=1, token_logprobs=tokens)
    return FinalTranscript(utterance, text, (segment,), "en", 1.0, 0.9, 0.0, 1.0, 1.0, **fields)


def test_deltas_never_take_back_what_was_sent_and_join_to_the_transcript() -> None:
    sent = SentText()
    assert sent.grow("one ") == "one"
    assert sent.grow("one") == ""
    assert sent.grow("one two") == " two"
    assert sent.finish(final("one two three")) == (" three", "one two three")


def test_a_final_that_contradicts_what_was_sent_goes_on_from_it_and_says_so() -> None:
    events_of = writer()
    events = [*events_of.translate(partial("one too"))]
    events += events_of.translate(UtteranceCommitted("item_1", None, 0, 1))
    told = final(
        "one two three",
        stable_text="one too",
        continuation=" three",
        replaced=(Replacement("too", "two"),),
    )
    events += events_of.translate(told)
    assert deltas(events) == events[-1]["transcript"] == "one too three"
    assert events[-1]["corrected_transcript"] == "one two three"


def test_a_final_that_contradicts_only_what_was_not_sent_is_the_transcript() -> None:
    sent = SentText()
    assert sent.grow("one") == "one"
    told = final("one two", stable_text="one too", continuation="", replaced=(Replacement("too", "two"),))
    assert sent.finish(told) == (" two", "one two")


def test_a_clear_forgets_what_was_sent_of_the_dropped_turn() -> None:
    events_of = writer()
    assert deltas([*events_of.translate(partial("one"))]) == "one"
    (cleared,) = events_of.translate(BufferCleared())
    assert cleared["type"] == "input_audio_buffer.cleared"
    assert deltas([*events_of.translate(partial("two", utterance="item_2"))]) == "two"


def test_logprobs_belong_to_the_final_s_tokens() -> None:
    events_of = writer(include=("item.input_audio_transcription.logprobs",))
    delta, completed = events_of.translate(final("one"))
    expected = [{"token": "one", "logprob": -0.25, "bytes": [111, 110, 101]}]
    assert delta["logprobs"] == completed["logprobs"] == expected
    live = [*events_of.translate(partial("on", utterance="item_2"))]
    live += events_of.translate(final("one", utterance="item_2"))
    assert ["logprobs" in event for event in live] == [False, False, True]


def test_times_count_all_audio_of_the_session() -> None:
    (timed_out,) = writer().translate(SpeechTimedOut("item_1", 1.0, 2.5), offset_s=10.0)
    assert (timed_out["audio_start_ms"], timed_out["audio_end_ms"]) == (11000, 12500)
