"""Whatever a client sends, it gets an error that says what to change, and its neighbours notice nothing."""

import io
import json
import threading
import wave
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI

from tests.live_server import make_settings, running_server
from tests.media import encode, pictures, silence, tone, wav, wav_from_bytes
from tests.wire import (
    FORM_TYPE,
    ROUTE,
    connection,
    error_of,
    form,
    head,
    part,
    raw_part,
    read_until,
    request,
)

MIB = 1 << 20
KITCHEN = "Send a message to David on Monday."
AUDIO = wav(tone(1.0))
GOOD_FORM = form(part("model", "demo"), part("file", AUDIO))


def fields(**data: Any) -> dict[str, Any]:
    """A good request but for these fields."""
    return {"files": {"file": ("a.wav", AUDIO)}, "data": data}


def named(data: dict[str, Any]) -> dict[str, Any]:
    """The same, for names with brackets."""
    return fields(**data)


def upload(content: bytes, name: str = "speech.mp3") -> dict[str, Any]:
    """A request with this file."""
    return {"files": {"file": (name, content)}}


def body(content: bytes, content_type: str = FORM_TYPE) -> dict[str, Any]:
    """A request with this body."""
    return {"content": content, "headers": {"Content-Type": content_type.encode("latin-1")}}


@dataclass(frozen=True)
class Row:
    """A bad request and its answer; 400 `invalid_request_error` unless it says otherwise."""

    name: str
    send: dict[str, Any] = field(repr=False)
    code: str | None
    param: str | None = None
    status: int = 400
    method: str = "POST"
    path: str = ROUTE


def png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(200)


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("speech.wav", AUDIO)
    return file.getvalue()


def wav_without_samples() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(16_000)
    return file.getvalue()


PLAYLIST = b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\nhttp://127.0.0.1/x.mp3\n#EXT-X-ENDLIST\n"
RANDOM = np.random.default_rng(0).bytes(50_000)
DEEP = "[" * 100_000

BODIES = [
    Row("no body", {}, "unsupported_content_type"),
    Row("plain text", body(b"hello", "text/plain"), "unsupported_content_type"),
    Row("JSON without audio", {"json": {"model": "demo"}}, "missing_required_parameter", "audio"),
    Row("form without parts", {"data": {"model": "demo"}}, "unsupported_content_type"),
    Row("no boundary", body(GOOD_FORM, "multipart/form-data"), "unsupported_content_type"),
    Row("empty boundary", body(GOOD_FORM, "multipart/form-data; boundary="), "unsupported_content_type"),
    Row("mixed parts", body(GOOD_FORM, "multipart/mixed; boundary=x"), "unsupported_content_type"),
    Row("nonsense type", body(GOOD_FORM, ";;;=\xff"), "unsupported_content_type"),
    Row(
        "endless boundary", body(GOOD_FORM, f"multipart/form-data; boundary={'b' * 300}"), "invalid_multipart"
    ),
    Row("other boundary", body(GOOD_FORM, "multipart/form-data; boundary=other"), "invalid_multipart"),
    Row("empty form body", body(b""), "invalid_multipart"),
    Row("audio as body", body(AUDIO), "invalid_multipart"),
    Row("cut in the file", body(GOOD_FORM[:-2000]), "invalid_multipart"),
    Row("cut in a header", body(GOOD_FORM[:40]), "invalid_multipart"),
    Row("cut in the last boundary", body(GOOD_FORM[:-5]), "invalid_multipart"),
    Row("part without a name", body(form(part(None, "x"))), "invalid_multipart"),
    Row("part without headers", body(form(raw_part(b"", b"x"))), "invalid_multipart"),
    Row("header of junk", body(form(raw_part(b"\x00\x01\xff\xfe: x\r\n", b"x"))), "invalid_multipart"),
    Row("header without end", body(form(raw_part(b"X: " + b"x" * 100_000, b"x"))), "invalid_multipart"),
    Row("many headers", body(form(raw_part(b"X-A: 1\r\n" * 50, b"x"))), "invalid_multipart"),
    Row("many parts", body(form(part("file", AUDIO), *[part("x", "1")] * 500)), "too_many_fields"),
    Row("no file", body(form(part("model", "demo"))), "missing_required_parameter", "file"),
    Row("file under another name", {"files": {"audio": AUDIO}}, "missing_required_parameter", "file"),
    Row("two files", {"files": [("file", AUDIO), ("file", AUDIO)]}, "duplicate_field", "file"),
    Row("text too large", fields(prompt="x" * (MIB + 1)), "field_too_large", "prompt"),
    Row(
        "text in Latin-1", body(form(part("prompt", b"\xfc"), part("file", AUDIO))), "invalid_value", "prompt"
    ),
]

FILES = [
    Row("empty file", upload(b""), "empty_audio", "file"),
    Row("file of text", upload(b"This is not a recording at all.\n" * 100), "unsupported_format", "file"),
    Row("HTML", upload(b"<!doctype html><html>404</html>"), "unsupported_format", "file"),
    Row("PNG", upload(png()), "unsupported_format", "file"),
    Row("PDF", upload(b"%PDF-1.7\n" + bytes(2000)), "unsupported_format", "file"),
    Row("ZIP", upload(zip_file()), "unsupported_format", "file"),
    Row("playlist", upload(PLAYLIST, "list.m3u8"), "unsupported_format", "file"),
    Row("concat script", upload(b"ffconcat version 1.0\nfile /etc/passwd\n"), "unsupported_format", "file"),
    Row("random bytes", upload(RANDOM), "unsupported_format", "file"),
    Row("zeros", upload(bytes(50_000)), "unsupported_format", "file"),
    Row("one byte", upload(b"R"), "unsupported_format", "file"),
    Row("WAV without samples", upload(wav_without_samples()), "empty_audio", "file"),
    Row("WAV that ends in its header", upload(AUDIO[:20]), "invalid_audio", "file"),
    Row("WAV at 10 Hz", upload(wav_from_bytes(bytes(2000), rate=10)), "unsupported_format", "file"),
    Row("FLAC that is only a name", upload(b"fLaC" + bytes(500)), "invalid_audio", "file"),
    Row("Ogg of noise", upload(b"OggS" + RANDOM[:2000]), "invalid_audio", "file"),
    Row("MP4 of noise", upload(b"\0\0\0\x20ftypisom" + RANDOM[:2000]), "invalid_audio", "file"),
    Row("film without sound", upload(pictures(1.0), "film.mp4"), "no_audio_stream", "file"),
]

MODELS = [
    Row("unknown model", fields(model="whisper-9000"), "model_not_found", "model", 404),
    Row("model by a foreign path", fields(model="/etc"), "model_not_found", "model", 404),
    Row("model by a relative path", fields(model="../../etc"), "model_not_found", "model", 404),
    Row("model by a missing path", fields(model="/no/such/folder"), "model_not_found", "model", 404),
    Row("model with a zero byte", fields(model="/etc\0"), "model_not_found", "model", 404),
    Row("endless model name", fields(model="m" * 5000), "model_not_found", "model", 404),
    Row("endless model path", fields(model="/" + "m/" * 5000), "model_not_found", "model", 404),
    Row("model of lines", fields(model="a\nERROR forged"), "model_not_found", "model", 404),
    Row("model with dots for a name", fields(model="a/.."), "model_not_found", "model", 404),
    Row("diarizing model", fields(model="gpt-4o-transcribe-diarize"), "model_not_found", "model", 404),
]

OPENAI_FIELDS = [
    Row("unknown language", fields(language="klingon"), "unsupported_language", "language"),
    Row("language of one letter", fields(language="x"), "unsupported_language", "language"),
    Row("temperature 2", fields(temperature="2"), "invalid_value", "temperature"),
    Row("temperature -1", fields(temperature="-1"), "invalid_value", "temperature"),
    Row("temperature nan", fields(temperature="nan"), "invalid_value", "temperature"),
    Row("temperature inf", fields(temperature="inf"), "invalid_value", "temperature"),
    Row("temperature of words", fields(temperature="abc"), "invalid_value", "temperature"),
    Row("unknown format", fields(response_format="yaml"), "unsupported_value", "response_format"),
    Row("speakers", fields(response_format="diarized_json"), "unsupported_value", "response_format"),
    Row("format of lines", fields(response_format="x\ny\x1b"), "unsupported_value", "response_format"),
    Row(
        "granularity without verbose_json",
        named({"timestamp_granularities[]": "word"}),
        "unsupported_value",
        "timestamp_granularities",
    ),
    Row(
        "unknown granularity",
        named({"timestamp_granularities[]": "letter", "response_format": "verbose_json"}),
        "unsupported_value",
        "timestamp_granularities",
    ),
    Row("stream of perhaps", fields(stream="perhaps"), "invalid_value", "stream"),
    Row(
        "stream of segments",
        fields(stream="true", response_format="verbose_json"),
        "unsupported_value",
        "stream",
    ),
    Row("unknown inclusion", named({"include[]": "speakers"}), "unsupported_value", "include"),
    Row("known names", named({"known_speaker_names[]": "A"}), "unsupported_parameter", "known_speaker_names"),
    Row(
        "known voices",
        named({"known_speaker_references[]": "data:audio/wav;base64,AA"}),
        "unsupported_parameter",
        "known_speaker_references",
    ),
    Row("unknown chunking", fields(chunking_strategy="never"), "unsupported_value", "chunking_strategy"),
    Row("chunking of lists", named({"chunking_strategy[x]": "1"}), "invalid_value", "chunking_strategy"),
    Row(
        "chunking beyond bounds",
        named({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "7"}),
        "invalid_value",
        "chunking_strategy.threshold",
    ),
]

OWN_FIELDS = [
    *(
        Row(f"{name}={value}", named({name: value}), "invalid_value", name.removesuffix("[]"))
        for name, values in {
            "beam_size": ("0", "-5", "101", "1e9", "1000000000", "1.5", "abc"),
            "best_of": ("0", "1e9"),
            "patience": ("0", "-1", "11", "0.01"),
            "length_penalty": ("nan", "11"),
            "repetition_penalty": ("0", "-1"),
            "no_repeat_ngram_size": ("-1", "449"),
            "temperatures[]": ("-1", "nan", "6", "0,0,0,0,0,0,0,0,0,0,0"),
            "suppress_tokens[]": ("abc", "1.5", "-2", "51864", "99999999"),
            "max_initial_timestamp": ("-1", "31"),
            "max_new_tokens": ("0", "449", "-1", "many"),
            "compression_ratio_threshold": ("-1", "nan"),
            "log_prob_threshold": ("1", "-inf"),
            "no_speech_threshold": ("-0.1", "1.5"),
            "hallucination_silence_threshold": ("0", "31"),
            "prompt_reset_on_temperature": ("-1", "9"),
            "language_detection_segments": ("0", "101"),
            "language_detection_threshold": ("-1", "2"),
            "chunk_length": ("0", "31"),
            "batch_size": ("0", "65"),
            "clip_timestamps": ("3,1", "1,abc", "-1", "nan", ",".join(["1"] * 1001)),
            "vad_filter": ("perhaps",),
            "vad_parameters": ("7", "[1]", "{", '"x"', DEEP),
            "without_timestamps": ("2",),
            "word_timestamps": ("x",),
            "condition_on_previous_text": ("x",),
            "multilingual": ("x",),
            "suppress_blank": ("x",),
            "normalize": ("x",),
            "trim_silence": ("x",),
        }.items()
        for value in values
    ),
    Row("unknown profile", fields(decode_profile="fastest"), "unsupported_value", "decode_profile"),
    Row("unknown audio context", fields(audio_context="1500"), "unsupported_value", "audio_context"),
    Row("unknown long form", fields(long_form="random"), "unsupported_value", "long_form"),
    Row(
        "unknown VAD parameter",
        named({"vad_parameters[loudness]": "1"}),
        "unsupported_value",
        "vad_parameters",
    ),
    Row(
        "VAD parameter that is no text",
        fields(vad_parameters=json.dumps({"\ud800": 1})),
        "unsupported_value",
        "vad_parameters",
    ),
    Row(
        "VAD parameter of words",
        named({"vad_parameters[threshold]": "loud"}),
        "invalid_value",
        "vad_parameters.threshold",
    ),
    Row(
        "VAD parameter that is an object",
        fields(vad_parameters='{"threshold": {"a": [1]}}', vad_filter="false"),
        "invalid_value",
        "vad_parameters.threshold",
    ),
    Row(
        "more tokens than the model has",
        fields(vad_filter="false", max_new_tokens="448"),
        "context_length_exceeded",
        "max_new_tokens",
    ),
    Row(
        "a prompt that leaves no room for the tokens",
        fields(vad_filter="false", prompt="one two three " * 200, max_new_tokens="300"),
        "context_length_exceeded",
        "max_new_tokens",
    ),
]

ROUTES = [
    Row("GET", {}, "method_not_allowed", None, 405, "GET"),
    Row("PUT", upload(AUDIO), "method_not_allowed", None, 405, "PUT"),
    Row("PATCH", {}, "method_not_allowed", None, 405, "PATCH", "/v1/models/demo"),
    Row("POST of models", upload(AUDIO), "method_not_allowed", None, 405, "POST", "/v1/models"),
    Row("unknown route", upload(AUDIO), "not_found", None, 404, "POST", "/v1/audio/transcription"),
    Row("no route", {}, "not_found", None, 404, "GET", "/nothing"),
    Row("speech", {"json": {"input": "x"}}, "not_found", None, 404, "POST", "/v1/audio/speech"),
    Row("route of junk", {}, "not_found", None, 404, "GET", "/v1/%ff%00/%F0%9F"),
]

ROWS = [*BODIES, *FILES, *MODELS, *OPENAI_FIELDS, *OWN_FIELDS, *ROUTES]


class Neighbour:
    """A client that has the same recording transcribed over and over."""

    def __init__(self, url: str, recording: Path) -> None:
        self._client = OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        self._recording = recording
        self._is_enough = threading.Event()
        self.texts: list[str] = []
        self.errors: list[Exception] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_enough.is_set():
            try:
                transcript = self._client.audio.transcriptions.create(file=self._recording, model="demo")
                self.texts.append(transcript.text)
            except Exception as error:  # every one is a failure of the test, whatever it is
                self.errors.append(error)
                return

    def stop(self) -> None:
        self._is_enough.set()
        self._thread.join(30)


@pytest.fixture(scope="module")
def neighbour(server_url: str, sample_recordings: list[dict[str, Any]]) -> Iterator[Neighbour]:
    recording = next(s["path"] for s in sample_recordings if s["path"].name == "kitchen_en.wav")
    client = Neighbour(server_url, recording)
    yield client
    client.stop()


@pytest.fixture(scope="module")
def small_server() -> Iterator[str]:
    """A server that takes files of 1 MB and recordings of 5 s."""
    with running_server(make_settings(limits={"max_audio_file_size_mb": 1, "max_audio_s": 5})) as url:
        yield url


@pytest.fixture
def small_client(small_server: str) -> OpenAI:
    return OpenAI(base_url=f"{small_server}/v1", api_key="x", max_retries=0)


def assert_refused(response: httpx.Response, row: Row) -> None:
    assert response.status_code == row.status, response.text
    error = error_of(response)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", row.code, row.param)
    assert error["message"].isprintable()
    assert len(error["message"]) < 1000
    assert "x-should-retry" not in response.headers


@pytest.mark.usefixtures("neighbour")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name[:60].replace("\0", ""))
def test_a_bad_request_is_refused_by_name(server_url: str, row: Row) -> None:
    assert_refused(request(row.method, f"{server_url}{row.path}", **row.send), row)


def test_the_neighbours_get_their_right_transcripts_all_the_while(
    server_url: str, neighbour: Neighbour
) -> None:
    for row in ROWS[:: len(ROWS) // 20]:
        assert_refused(request(row.method, f"{server_url}{row.path}", **row.send), row)
    neighbour.stop()
    assert neighbour.errors == []
    assert neighbour.texts
    assert set(neighbour.texts) == {KITCHEN}


def test_the_sdk_raises_what_it_raises_for_openai(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.audio.transcriptions.create(file=b"no audio", model="demo")
    assert (refused.value.code, refused.value.param) == ("unsupported_format", "file")
    assert "flac" in refused.value.message
    assert refused.value.request_id
    with pytest.raises(NotFoundError) as missing:
        client.audio.transcriptions.create(file=AUDIO, model="smalll")
    assert missing.value.code == "model_not_found"
    assert "Did you mean 'small'?" in missing.value.message


def test_a_wrong_method_says_which_is_right(server_url: str) -> None:
    assert request("GET", f"{server_url}{ROUTE}").headers["allow"] == "POST"


# Too large, too long.

TOO_LARGE = Row("too large", {}, "file_too_large", "file", 413)


def test_a_file_of_the_limit_is_taken(small_server: str) -> None:
    file = wav(silence(4.0)) + bytes(MIB)
    response = request("POST", f"{small_server}{ROUTE}", files={"file": file[:MIB]})
    assert response.status_code == 200, response.text


def test_a_file_over_the_limit_is_refused_through_the_sdk(small_client: OpenAI) -> None:
    for size in (MIB + 1, 3 * MIB, 30 * MIB):
        with pytest.raises(APIStatusError) as refused:
            small_client.audio.transcriptions.create(file=AUDIO + bytes(size - len(AUDIO)), model="demo")
        assert refused.value.status_code == 413
        assert refused.value.code == "file_too_large"
        assert "1 MB" in refused.value.message


def test_a_file_over_the_limit_is_refused_without_a_length(small_server: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield form(part("file", AUDIO))[:-30]
        for _ in range(300):
            yield bytes(100_000)

    response = request(
        "POST", f"{small_server}{ROUTE}", content=pieces(), headers={"Content-Type": FORM_TYPE}
    )
    assert_refused(response, TOO_LARGE)


@pytest.mark.parametrize("more", [{}, {"Connection": "close"}])
def test_a_client_that_sends_everything_first_can_still_read_why_not(
    small_server: str, more: dict[str, str]
) -> None:
    size = 20 * MIB
    with connection(small_server) as wire:
        wire.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": str(size), **more}))
        wire.sendall(bytes(size))
        answer = read_until(wire, b"file_too_large")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_reads_while_it_sends_learns_it_at_once(small_server: str) -> None:
    with connection(small_server) as wire:
        wire.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": str(10**12)}))
        assert b"file_too_large" in read_until(wire, b"file_too_large")


def test_a_client_that_asks_first_is_refused_before_it_sends(small_server: str) -> None:
    headers = {"Content-Type": FORM_TYPE, "Content-Length": str(3 * MIB), "Expect": "100-continue"}
    with connection(small_server) as wire:
        wire.sendall(head(headers))
        answer = read_until(wire, b"file_too_large")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_a_client_that_asks_first_and_then_sends_too_much_can_read_why_not(small_server: str) -> None:
    headers = {"Content-Type": FORM_TYPE, "Transfer-Encoding": "chunked", "Expect": "100-continue"}
    content = form(part("file", AUDIO))[:-30] + bytes(8 * MIB)
    with connection(small_server) as wire:
        wire.sendall(head({**headers, "Connection": "close"}))
        assert read_until(wire, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        wire.sendall(f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n")
        assert read_until(wire, b"file_too_large").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "recording",
    [
        wav(silence(5.1)),
        encode(tone(8.0, 48_000), 48_000, "mp3", "libmp3lame"),
        encode(silence(600.0, 8_000), 8_000, "ogg", "libopus", bit_rate=6_000, frame_samples=80_000),
    ],
    ids=["WAV", "MP3", "ten minutes in few bytes"],
)
def test_a_recording_over_the_limit_is_refused(small_client: OpenAI, recording: bytes) -> None:
    with pytest.raises(BadRequestError) as refused:
        small_client.audio.transcriptions.create(file=recording, model="demo")
    assert refused.value.code == "audio_too_long"
    assert "longer than 5 seconds" in refused.value.message


# Bytes that are no HTTP.


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET\r\n\r\n",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nX-A: " + b"a" * 200_000,
    ],
    ids=["TLS", "no path", "negative length", "length of letters", "bad chunk", "endless header"],
)
def test_what_is_no_http_does_no_harm(server_url: str, sent: bytes) -> None:
    with connection(server_url) as wire:
        wire.sendall(sent)
        assert read_until(wire, b"\r\n\r\n")[:12] in (b"HTTP/1.1 400", b"")
    assert request("GET", f"{server_url}/health").status_code == 200
