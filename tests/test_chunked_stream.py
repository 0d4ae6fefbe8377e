"""`POST /v1/audio/transcriptions/stream`: audio goes in while events come out, over real connections."""

import dataclasses
import http.client
import json
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import httpx
import numpy as np
import pytest
from starlette.types import Message

from tests.live_speech import HearingEngine, Speech, speech
from tests.media import Signal, encode, pictures, wav
from tests.stream_server import stream_server
from tests.wire import Background, error_of, request
from whisper_server.api.streams import chunked
from whisper_server.api.streams.chunked_request import LiveRequest, StreamFormat
from whisper_server.api.streams.options import StreamWishes, stream_options
from whisper_server.api.streams.transcript_events import TranscriptEvents
from whisper_server.core.errors import EngineError
from whisper_server.core.stream_events import FinalTranscript, Replacement, StreamEvent, StreamOptions
from whisper_server.services.raw_audio import RawAudio
from whisper_server.services.streaming import LiveStream, StreamLimits

Event = dict[str, Any]

ROUTE = "/v1/audio/transcriptions/stream"
WAIT_S = 20.0
PCM = {"content-type": "audio/pcm;rate=16000"}
SENTENCES = speech(0.3, "alpha bravo", 1.0, "charlie delta", 1.0)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with stream_server(HearingEngine()) as url:
        yield url


def bytes_of(said: Speech) -> bytes:
    return said.pcm.astype("<i2").tobytes()


def floats(said: Speech) -> Signal:
    return (said.pcm / np.float32(32768)).astype(np.float32)


def as_wav(said: Speech, size: int | None = None) -> bytes:
    whole = wav(floats(said))
    if size is None:
        return whole
    data, field = whole.index(b"data"), size.to_bytes(4, "little")
    return whole[:4] + field + whole[8 : data + 4] + field + whole[data + 8 :]


class Upload:
    """A request whose body is sent bit by bit, and whose answer is read meanwhile."""

    def __init__(self, url: str, query: str = "", **headers: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT_S)
        self._connection.putrequest("POST", f"{ROUTE}?{query}")
        for name, value in {"transfer-encoding": "chunked", **headers}.items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        self._answer: http.client.HTTPResponse | None = None

    def send(self, data: bytes, chunk_bytes: int = 3200) -> None:
        for start in range(0, len(data), chunk_bytes):
            part = data[start : start + chunk_bytes]
            self._connection.send(b"%x\r\n%s\r\n" % (len(part), part))

    def finish(self) -> None:
        self._connection.send(b"0\r\n\r\n")

    @property
    def answer(self) -> http.client.HTTPResponse:
        if self._answer is None:
            self._answer = self._connection.getresponse()
        return self._answer

    def event(self) -> Event:
        """The next one; comments are skipped."""
        while True:
            line = self.answer.readline().decode()
            assert line, "the answer ended"
            if line.startswith("data: "):
                event: Event = json.loads(line.removeprefix("data: "))
                return event

    def until(self, *types: str) -> list[Event]:
        events = [self.event()]
        while events[-1].get("type") not in types:
            events.append(self.event())
        return events

    def rest(self) -> list[Event]:
        return sse_events(self.answer.read().decode().lstrip("\n"))

    def leave(self) -> None:
        assert self._connection.sock is not None
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


@contextmanager
def uploading(url: str, query: str = "", headers: dict[str, str] | None = None) -> Iterator[Upload]:
    upload = Upload(url, query, **(PCM if headers is None else headers))
    try:
        yield upload
    finally:
        upload._connection.close()


def sse_events(text: str) -> list[Event]:
    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    assert all(frame.startswith("data: ") for frame in frames), text
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def send(url: str, body: bytes, query: str = "", **headers: str) -> httpx.Response:
    return request("POST", f"{url}{ROUTE}?{query}", content=body, headers=headers or PCM)


def types(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


def text_of(events: list[Event]) -> str:
    """The text, which is the same as deltas, as segments, and as a whole."""
    deltas = "".join(event["delta"] for event in events if event["type"] == "transcript.text.delta")
    segments = [event["text"] for event in events if event["type"] == "transcript.text.segment"]
    done = events[-1]
    assert done["type"] == "transcript.text.done"
    assert done["text"] == deltas == " ".join(segments)
    return deltas


def sessions(url: str) -> int:
    active: int = request("GET", f"{url}/health/status").json()["sessions"]["active"]
    return active


def wait_until_free(url: str) -> None:
    for _ in range(3000):
        if not sessions(url):
            return
    raise AssertionError("the session stayed")


# Both ways at once


def test_events_come_while_the_body_is_still_sent(url: str) -> None:
    with uploading(url, "session_id=live&language=en") as upload:
        assert upload.answer.status == 200  # before the first sample
        assert upload.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert upload.answer.headers["x-session-id"] == "live"
        created = upload.event()
        assert created == {
            "type": "session.created",
            "session": {"id": "live", "model": "demo", "language": "en", "task": "transcribe"},
        }
        upload.send(bytes_of(speech(0.3, "alpha bravo", 1.0)))
        events = upload.until("transcript.text.segment")
        upload.send(bytes_of(speech("charlie", 0.3)))
        upload.finish()
        events += upload.rest()
    assert text_of(events) == "alpha bravo charlie"
    assert [t for t in types(events) if t.startswith("vad.")] == [
        "vad.speech_started",
        "vad.speech_stopped",
    ] * 2
    segment = next(event for event in events if event["type"] == "transcript.text.segment")
    assert segment["start"] == pytest.approx(0.3, abs=0.05)
    assert segment["end"] == pytest.approx(1.1, abs=0.05)
    assert [word["word"] for word in segment["words"]] == ["alpha", "bravo"]
    assert segment["id"].startswith("seg-")
    usage = events[-1]["usage"]
    assert usage["type"] == "tokens"
    assert usage["output_tokens"] == 3
    assert usage["total_tokens"] == usage["input_tokens"] + 3


def test_partials_show_what_is_stable(url: str) -> None:
    with uploading(url, "partial_interval_ms=100") as upload:
        upload.send(bytes_of(speech(0.3, "alpha bravo charlie delta echo foxtrot")))
        (*_, partial) = upload.until("transcript.text.partial")
        upload.finish()
        assert text_of([*upload.rest()]) == "alpha bravo charlie delta echo foxtrot"
    assert partial["text"].startswith(partial["stable_text"])
    assert partial.keys() == {*("type", "segment_id", "text", "stable_text", "confidence", "language")}


def test_lines_of_json_where_they_are_wanted(url: str) -> None:
    for query, headers in (
        ("stream_format=ndjson&partials=false&words=false", PCM),
        ("partials=false&words=false", PCM | {"accept": "application/x-ndjson"}),
    ):
        answer = send(url, bytes_of(SENTENCES), query, **headers)
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        events = [json.loads(line) for line in answer.text.splitlines()]
        assert text_of(events) == "alpha bravo charlie delta"
        assert "transcript.text.partial" not in types(events)
        assert all(not e["words"] for e in events if e["type"] == "transcript.text.segment")


def test_pauses_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked.LiveAnswer.__init__, "__kwdefaults__", {"keep_alive_s": 0.01})
    with stream_server(HearingEngine()) as url:
        with uploading(url) as upload:
            upload.event()
            while upload.answer.readline() != b": keep-alive\n":
                pass
        with uploading(url, "stream_format=ndjson") as upload:
            upload.answer.readline()
            assert json.loads(upload.answer.readline()) == {"type": "keep_alive"}


def test_a_client_that_sends_everything_before_it_reads_gets_everything(url: str) -> None:
    many = speech(*(part for _ in range(30) for part in ("alpha bravo", 0.8)))
    assert text_of(sse_events(send(url, bytes_of(many), "partial_interval_ms=50").text)) == " ".join(
        ["alpha bravo"] * 30
    )


def test_a_session_that_ends_itself_ends_the_answer_though_audio_goes_on(url: str) -> None:
    endless = bytes_of(speech(0.3, "alpha", 60.0))
    assert text_of(sse_events(send(url, endless, "endpointing=auto_end").text)) == "alpha"
    with uploading(url, "endpointing=auto_end") as upload:
        upload.send(endless[:100_000])
        assert text_of(upload.rest()) == "alpha"


def test_a_client_that_leaves_frees_its_session() -> None:
    with stream_server(HearingEngine(), limits=StreamLimits(max_sessions=1)) as url:
        for body, headers in ((bytes_of(SENTENCES), PCM), (as_wav(SENTENCES), {}), (b"OggS", {})):
            with uploading(url, headers=headers) as upload:
                upload.event()
                upload.send(body)
                upload.leave()
            wait_until_free(url)


def test_a_decode_that_fails_costs_no_other() -> None:
    engine = HearingEngine()
    with stream_server(engine) as url, uploading(url, "partials=false") as upload:
        upload.event()
        engine.error = EngineError("The model failed.")
        upload.send(bytes_of(speech(0.3, "alpha", 1.0)))
        (*_, failed) = upload.until("transcript.text.failed")
        assert failed["error"].keys() == {"message", "type", "param", "code"}
        assert failed["error"]["code"] == "inference_failed"
        engine.error = None
        upload.send(bytes_of(speech("bravo")))
        upload.finish()
        assert text_of(upload.rest()) == "bravo"


def test_an_upload_that_stops_ends_with_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(*args: Any, **options: Any) -> StreamOptions:
        return dataclasses.replace(stream_options(*args, **options), idle_timeout_s=0.05)

    monkeypatch.setattr("whisper_server.api.streams.chunked.stream_options", impatient)
    with stream_server(HearingEngine()) as url, uploading(url) as upload:
        (*_, last) = upload.rest()
        assert last["error"]["code"] == "session_timeout"


@pytest.mark.anyio
async def test_a_client_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_MAX_UNREAD_S", 0.01)
    is_closed = anyio.Event()
    resources = AsyncExitStack()
    resources.callback(is_closed.set)

    class Stream:
        """A stream on which nothing happens."""

        id = "one"
        options = StreamOptions()

        def __aiter__(self) -> AsyncIterator[StreamEvent]:
            raise AssertionError("it was read")

    asked: list[Message] = []

    async def never() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        asked.append(message)
        if message["type"] == "http.response.body":
            await never()

    request = LiveRequest(StreamWishes(), None, RawAudio(), StreamFormat.SSE)
    answer = chunked.LiveAnswer(cast("LiveStream", Stream()), request, "demo", resources)
    with anyio.fail_after(WAIT_S):
        await answer({"type": "http"}, never, send)
    assert is_closed.is_set()
    assert [message["type"] for message in asked] == ["http.response.start", "http.response.body"]


# What the body may be


@pytest.mark.parametrize(
    ("body", "headers", "query"),
    [
        (as_wav(SENTENCES), {}, ""),
        (as_wav(SENTENCES, 0xFFFF_FFFF), {"content-type": "audio/wav"}, ""),
        (as_wav(SENTENCES), {"content-type": "application/x-www-form-urlencoded"}, "format=wav"),
        (encode(floats(SENTENCES), 16_000, "flac", "flac"), {"content-type": "audio/flac"}, ""),
        (bytes_of(SENTENCES), PCM, ""),
        (bytes_of(SENTENCES), {}, "format=s16le&sample_rate=16000"),
        (SENTENCES.pcm.astype(">i2").tobytes(), {"content-type": "audio/L16; rate=16000; channels=1"}, ""),
        (bytes_of(SENTENCES), {"content-type": "audio/l16;rate=16000;endianness=little-endian"}, ""),
        (bytes_of(SENTENCES), {"content-type": "audio/x-raw;format=S16LE;rate=16000"}, ""),
        (np.repeat(SENTENCES.pcm, 2).tobytes(), {"content-type": "audio/pcm;channels=2"}, ""),
    ],
)
def test_every_kind_of_body_is_heard(url: str, body: bytes, headers: dict[str, str], query: str) -> None:
    answer = request("POST", f"{url}{ROUTE}?{query}", content=iter([body[:7], body[7:]]), headers=headers)
    assert text_of(sse_events(answer.text)) == "alpha bravo charlie delta"


def test_the_route_is_there_without_its_prefix_and_for_put(url: str) -> None:
    for method, path in (("PUT", ROUTE), ("POST", "/audio/transcriptions/stream")):
        answer = request(method, f"{url}{path}", content=bytes_of(SENTENCES), headers=PCM)
        assert text_of(sse_events(answer.text)) == "alpha bravo charlie delta"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"this is no recording" * 100, "unsupported_format", "format=s16le"),
        (encode(floats(SENTENCES), 16_000, "mp4", "aac"), "invalid_audio", "fragmented"),
        (pictures(1.0, "matroska"), "no_audio_stream", "audio"),
        (b"", "empty_audio", "no sound"),
    ],
)
def test_a_body_that_cannot_be_decoded_ends_the_stream_with_an_error(
    url: str, body: bytes, code: str, words: str
) -> None:
    answer = request("POST", f"{url}{ROUTE}", content=iter([body] if body else []))
    first, last = sse_events(answer.text)
    assert first["type"] == "session.created"
    assert last["error"]["code"] == code
    assert words in last["error"]["message"]


def test_what_came_before_the_damage_is_transcribed(url: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 400_000, dtype=np.uint8).tobytes()
    whole = encode(floats(speech(0.3, "alpha", 1.5)), 16_000, "ogg", "flac")
    events = sse_events(send(url, whole + noise + whole, **{"content-type": "audio/ogg"}).text)
    assert "transcript.text.segment" in types(events[:-1])
    assert events[-1]["error"]["code"] == "invalid_audio"


# What is refused before the answer begins


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        ("language=klingon", {}, "language"),
        ("language=fi", {}, "language"),
        ("task=sing", {}, "task"),
        ("partials=perhaps", {}, "partials"),
        ("vad_threshold=2", {}, "vad_threshold"),
        ("min_silence_ms=-1", {}, "min_silence_ms"),
        ("endpointing=never", {}, "endpointing"),
        ("stream_format=xml", {}, "stream_format"),
        ("format=mod", {}, "format"),
        ("format=s16le&sample_rate=1", {}, "sample_rate"),
        ("format=s16le&channels=99", {}, "channels"),
        ("", {"content-type": "audio/pcm;rate=fast"}, "rate"),
        ("decode_profile=x", {}, "decode_profile"),
        ("session_id=" + "x" * 200, {}, "session_id"),
        ("", {"content-type": "multipart/form-data; boundary=x"}, None),
        ("", {"content-type": "application/json"}, None),
    ],
)
def test_a_wrong_request_is_refused_with_a_status(
    url: str, query: str, headers: dict[str, str], param: str | None
) -> None:
    answer = request("POST", f"{url}{ROUTE}?{query}", content=iter([b"x"]), headers=headers)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


def test_other_refusals_have_their_status(url: str) -> None:
    assert send(url, b"x", "model=no-such-model").status_code == 404
    assert error_of(send(url, b""))["code"] == "empty_audio"
    with uploading(url, "session_id=taken") as upload:
        upload.event()
        assert error_of(send(url, b"x", "session_id=taken"))["code"] == "session_exists"
    with stream_server(HearingEngine(), limits=StreamLimits(max_queue_depth=0)) as full:
        answer = send(full, b"x")
        assert answer.status_code == 429
        assert error_of(answer)["code"] == "queue_full"
        assert answer.headers["retry-after"]


# Other clients


def curl(*arguments: str, body: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["curl", "-sS", "-N", *arguments], input=body, capture_output=True, timeout=60)


def test_curl_uploads_from_a_pipe(url: str) -> None:
    run = curl("-T", "-", f"{url}{ROUTE}", body=as_wav(SENTENCES, 0xFFFF_FFFF))
    assert run.stderr == b""
    assert text_of(sse_events(run.stdout.decode())) == "alpha bravo charlie delta"
    header = ("-H", "Content-Type: audio/pcm;rate=16000", "-H", "Expect: 100-continue")
    run = curl("-X", "POST", "-T", "-", *header, f"{url}{ROUTE}", body=bytes_of(SENTENCES))
    assert text_of(sse_events(run.stdout.decode())) == "alpha bravo charlie delta"
    run = curl("--data-binary", "@-", f"{url}{ROUTE}", body=as_wav(SENTENCES))
    assert text_of(sse_events(run.stdout.decode())) == "alpha bravo charlie delta"


@pytest.mark.parametrize("source", ["-", "."])
def test_curl_prints_events_while_it_reads_from_the_pipe(url: str, source: str) -> None:
    arguments = ["curl", "-sS", "-N", "-T", source, "-X", "POST", f"{url}{ROUTE}?format=s16le"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdin
        assert run.stdout
        is_told = threading.Event()

        def record() -> None:
            assert run.stdin
            run.stdin.write(bytes_of(speech(0.3, "alpha bravo", 1.0)))
            run.stdin.flush()
            # A recorder goes on in silence. Between two blocks `-T -` does not look at the answer.
            while source == "-" and not is_told.wait(0.02):
                run.stdin.write(bytes(640))
                run.stdin.flush()

        recording = Background(record)
        while b"transcript.text.segment" not in (line := run.stdout.readline()):
            assert line
        is_told.set()
        recording.result()
        run.stdin.close()
        assert b"transcript.text.done" in run.stdout.read()


def test_a_client_that_asks_first_is_told_to_go_on(url: str) -> None:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    with socket.create_connection((host, port), timeout=WAIT_S) as connection:
        connection.sendall(f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: audio/pcm\r\n".encode())
        connection.sendall(b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        received = b""
        while b"session.created" not in received:
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        connection.sendall(b"0\r\n\r\n")
        while b"transcript.text.done" not in received:
            received += connection.recv(65536)


def test_a_recording_is_heard_by_a_real_model(
    server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    (sample,) = (one for one in sample_recordings if one["path"].name == "kitchen_en.wav")
    run = curl("-T", "-", f"{server_url}{ROUTE}?language=en", body=sample["path"].read_bytes())
    said = " ".join(segment["text"].strip() for segment in sample["segments"])
    assert text_of(sse_events(run.stdout.decode())) == said


def test_httpx_streams_a_body_and_reads_the_answer(url: str) -> None:
    def body() -> Iterator[bytes]:
        yield bytes_of(speech(0.3, "alpha", 1.0))
        yield bytes_of(speech("bravo", 1.0))

    client = httpx.Client(trust_env=False, timeout=WAIT_S)
    with client, client.stream("POST", f"{url}{ROUTE}", content=body(), headers=PCM) as answer:
        events = []
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    assert text_of(events) == "alpha bravo"


# Parts


def final(text: str, language: str = "en", **more: Any) -> FinalTranscript:
    return FinalTranscript("seg-1", text, (), language, 1.0, 0.9, 0.0, 1.0, 0.9, **more)


def test_the_last_event_repeats_no_more_than_it_may() -> None:
    events = TranscriptEvents(max_text_chars=12)
    for text in ("one two", "three", "four"):
        events.of(final(text))
    done = events.done(3.0)
    assert done["text"] == " three four"
    assert done["is_cut"] is True


def test_sentences_are_joined_as_the_language_joins_them() -> None:
    events = TranscriptEvents()
    for text in ("\u4f60\u597d", "\u518d\u89c1"):
        events.of(final(text, "zh"))
    assert events.done(1.0)["text"] == "\u4f60\u597d\u518d\u89c1"
    assert events.of(final("")) == []


def test_a_final_says_what_it_replaced() -> None:
    (_, segment) = TranscriptEvents().of(final("two", replaced=(Replacement("to", "two"),)))
    assert segment["replaced"] == [{"before": "to", "after": "two"}]
