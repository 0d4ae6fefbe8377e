"""JSON bodies: the same request as a form, however the audio is written, and nothing malformed gets in."""

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from openai import OpenAI
from starlette.requests import Request

from tests.live_server import make_settings, running_server
from tests.media import noise, tone, wav
from tests.wire import connection, error_of, head, read_until, request
from whisper_server.api.openai.fields import Fields
from whisper_server.api.openai.json_body import (
    audio_json_response,
    form_fields,
    read_body,
    read_json,
    read_object,
)
from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.types import Task
from whisper_server.services.transcription import Transcription

WAV = wav(tone(0.5)[1:])
BASE64 = base64.b64encode(WAV).decode()
assert BASE64.endswith("=")
WAIT_S = 20


def post(url: str, content: str | bytes | dict[str, Any], **headers: str) -> httpx.Response:
    """Post a body as JSON to a route that takes audio and no model."""
    body = json.dumps(content) if isinstance(content, dict) else content
    all_headers = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return request("POST", f"{url}/debug/audio-info", content=body, headers=all_headers)


def refusal(response: httpx.Response, status: int = 400) -> tuple[str | None, str | None]:
    """The code and the parameter of a refusal."""
    assert response.status_code == status, response.text
    error = error_of(response)
    return error["code"], error["param"]


# --- The audio ---


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        base64.urlsafe_b64encode(WAV).decode(),
        base64.encodebytes(WAV).decode(),
        f"  {BASE64}\r\n",
        f"data:audio/wav;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f" DATA:audio/webm;codecs=opus;BASE64,{BASE64}",
    ],
    ids=[
        "plain",
        "unpadded",
        "url-safe",
        "in lines",
        "spaced",
        "data URL",
        "without type",
        "with parameters",
    ],
)
@pytest.mark.parametrize("shape", ["audio", "input_audio"])
def test_every_way_to_write_base64_is_the_uploaded_file(server_url: str, text: str, shape: str) -> None:
    body = {"audio": text} if shape == "audio" else {"input_audio": {"data": text, "format": "mp3"}}
    as_form = request("POST", f"{server_url}/debug/audio-info", files={"file": WAV}).json()
    assert as_form["format"] == "wav"
    assert post(server_url, body).json() == as_form


def test_a_body_larger_than_memory_is_spared_for_comes_through_disk(server_url: str) -> None:
    recording = wav(noise(70))
    answer = post(server_url, {"audio": base64.b64encode(recording).decode()}).json()
    assert answer["size_bytes"] == len(recording) > 2 << 20


def test_escaped_slashes_as_php_writes_them_are_slashes(server_url: str) -> None:
    body = json.dumps({"audio": base64.b64encode(wav(noise(0.5))).decode()})
    assert "/" in body
    assert post(server_url, body.replace("/", r"\/")).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        BASE64 + "=",
        BASE64.rstrip("=")[:-1],
        "héllo",
        f"data:audio/wav,{BASE64}",
        f"data:audio/wav{BASE64}",
        "data:;base64",
    ],
)
def test_anything_else_is_refused_with_its_place(server_url: str, text: str) -> None:
    assert refusal(post(server_url, {"audio": text})) == ("invalid_base64", "audio")
    answer = post(server_url, {"input_audio": {"data": text}})
    assert refusal(answer) == ("invalid_base64", "input_audio.data")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "audio"),
        ({"model": "demo"}, "missing_required_parameter", "audio"),
        ({"audio": None}, "missing_required_parameter", "audio"),
        ({"audio": ""}, "missing_required_parameter", "audio"),
        ({"audio": 1234}, "invalid_value", "audio"),
        ({"audio": [BASE64]}, "invalid_value", "audio"),
        ({"audio": {"data": BASE64}}, "invalid_value", "audio"),
        ({"audio": BASE64, "input_audio": {"data": BASE64}}, "duplicate_field", "input_audio"),
        ({"input_audio": BASE64}, "invalid_value", "input_audio"),
        ({"input_audio": {"format": "wav"}}, "missing_required_parameter", "input_audio.data"),
        ({"input_audio": {"data": 1}}, "invalid_value", "input_audio.data"),
        ({"audio": base64.b64encode(b"no audio").decode()}, "unsupported_format", "file"),
    ],
)
def test_missing_or_odd_audio_is_refused(server_url: str, body: Any, code: str, param: str) -> None:
    assert refusal(post(server_url, body)) == (code, param)


# --- The JSON ---

FINE = f'"audio": "{BASE64}"'

INVALID: dict[str, str | bytes] = {
    "empty": b"",
    "no JSON": b"audio=1",
    "cut short": f"{{{FINE}",
    "two values": f"{{{FINE}}} {{}}",
    "array": f"[{{{FINE}}}]",
    "string": f'"{BASE64}"',
    "null": b"null",
    "not UTF-8": b'{"model": "\xff"}',
    "UTF-16": f"{{{FINE}}}".encode("utf-16"),
    "half a character": f'{{{FINE}, "prompt": "\\ud83d"}}',
    "half a character in a key": f'{{{FINE}, "\\uDE00": 1}}',
    "raw line break in a string": f'{{{FINE}, "prompt": "a\nb"}}',
    "NaN": f'{{{FINE}, "temperature": NaN}}',
    "infinity": f'{{{FINE}, "temperature": -Infinity}}',
    "overflow": f'{{{FINE}, "temperature": 1e999}}',
    "huge whole number": f'{{{FINE}, "temperature": {"9" * 5000}}}',
    "key twice": f'{{{FINE}, "model": "demo", "model": "demo"}}',
    "inner key twice": f'{{{FINE}, "a": {{"b": 1, "b": 1}}}}',
    "nesting bomb": b"[" * 30_000,
    "deep": f'{{{FINE}, "a": {"[" * 20}{"]" * 20}}}',
    "bomb of objects": f'{{{FINE}, "a": [{"{}," * 60_000}{{}}]}}',
    "long key": f'{{{FINE}, "{"k" * 300}": 1}}',
}


@pytest.mark.parametrize("name", INVALID)
def test_a_body_that_is_no_plain_json_object_is_refused(server_url: str, name: str) -> None:
    assert refusal(post(server_url, INVALID[name])) == ("invalid_json", None)


def test_the_place_of_a_syntax_error_is_told(server_url: str) -> None:
    answer = post(server_url, '{\n "audio": "AAAA",,\n}')
    assert "line 2, column 18" in error_of(answer)["message"]


def test_unicode_is_taken_in_all_its_forms(server_url: str) -> None:
    body = f'{{{FINE}, "prompt": "\\ud83d\\ude00 é", "Größe": "\u2028"}}'
    assert post(server_url, body.encode("utf-8-sig")).status_code == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
        ("application/octet-stream", 400),
        ("", 400),
    ],
)
def test_only_what_is_declared_json_is_read_as_json(server_url: str, content_type: str, status: int) -> None:
    response = post(server_url, {"audio": BASE64}, content_type=content_type)
    if status == 400:
        assert refusal(response) == ("unsupported_content_type", None)
    else:
        assert response.status_code == status


# --- The limits ---


@pytest.fixture(scope="module")
def small_url() -> Iterator[str]:
    """A server that takes files of up to 0.1 MB."""
    with running_server(make_settings(limits={"max_audio_file_size_mb": 0.1})) as url:
        yield url


FILE_LIMIT = int(0.1 * (1 << 20))
BODY_LIMIT = FILE_LIMIT * 4 // 3 + (1 << 20) + 4


def test_a_file_up_to_the_limit_is_taken_and_a_larger_one_is_not(small_url: str) -> None:
    largest = WAV + bytes(FILE_LIMIT - len(WAV))
    assert post(small_url, {"audio": base64.b64encode(largest).decode()}).status_code == 200
    answer = post(small_url, {"audio": base64.b64encode(largest + b"\0").decode()})
    assert refusal(answer, 413) == ("file_too_large", "audio")


def test_a_body_too_large_by_its_header_is_refused_unread(small_url: str) -> None:
    headers = {"content-type": "application/json", "content-length": str(BODY_LIMIT + 1)}
    with connection(small_url) as client:
        client.sendall(head(headers | {"expect": "100-continue"}, path="/debug/audio-info"))
        assert read_until(client, b"\r\n").startswith(b"HTTP/1.1 413")
    assert refusal(post(small_url, b" " * (BODY_LIMIT + 1)), 413) == ("file_too_large", None)


def test_a_body_of_unknown_length_is_counted_as_it_comes(small_url: str) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 16)

    answer = request(
        "POST",
        f"{small_url}/debug/audio-info",
        content=endless(),
        headers={"content-type": "application/json"},
    )
    assert refusal(answer, 413) == ("file_too_large", None)


def test_text_beyond_its_limit_is_refused(server_url: str) -> None:
    answer = post(server_url, {"audio": BASE64, "prompt": "x" * (1 << 20)})
    assert refusal(answer) == ("field_too_large", "prompt")
    answer = post(server_url, {"audio": BASE64, "suppress_tokens": list(range(20_000))})
    assert refusal(answer) == ("too_many_fields", None)
    # Few bytes that would become many: each value of the array repeats the name.
    answer = post(server_url, {"audio": BASE64, "k" * 190: [0] * 9_000})
    assert refusal(answer) == ("field_too_large", "k" * 100)


# --- The fields ---


def test_every_kind_of_value_becomes_the_field_the_sdk_would_send() -> None:
    values = {
        "language": "auto",
        "stream": True,
        "vad_filter": False,
        "prompt": None,
        "beam_size": 3,
        "temperature": 0.2,
        "tiny": 1e-7,
        "timestamp_granularities": ["word", "segment"],
        "hotwords[]": ["a", None, "b"],
        "chunking_strategy": {"type": "server_vad", "threshold": 0.5, "off": None},
        "none": [],
        "deep": {"a": [1, {"b": True}]},
    }
    assert form_fields(values) == [
        ("language", "auto"),
        ("stream", "true"),
        ("vad_filter", "false"),
        ("beam_size", "3"),
        ("temperature", "0.2"),
        ("tiny", "1e-07"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
        ("hotwords[]", "a"),
        ("hotwords[]", "b"),
        ("chunking_strategy[type]", "server_vad"),
        ("chunking_strategy[threshold]", "0.5"),
        ("deep[a][]", "1"),
        ("deep[a][][b]", "true"),
    ]


def test_fields_from_json_read_like_those_of_a_form() -> None:
    fields = Fields(form_fields({"vad_parameters": {"threshold": 0.5}, "temperatures": [0, 0.4], "top_k": 3}))
    group = fields.group("vad_parameters")
    assert group is not None
    assert group.number("threshold") == 0.5
    assert fields.numbers("temperatures", max_count=2) == (0, 0.4)
    assert fields.integer("top_k", 1, 5) == 3


def test_a_bad_option_in_json_is_refused_like_one_in_a_form(server_url: str) -> None:
    def ask(**body: Any) -> httpx.Response:
        return request(
            "POST", f"{server_url}/v1/audio/languages", json={"audio": BASE64, "model": "demo", **body}
        )

    assert refusal(ask(top_k=0)) == ("invalid_value", "top_k")
    assert refusal(ask(top_k=True)) == ("invalid_value", "top_k")
    assert refusal(ask(vad_parameters={"threshold": 2})) == ("invalid_value", "vad_parameters.threshold")
    assert refusal(ask(model="nobody"), 404) == ("model_not_found", "model")
    assert ask(top_k=None, language="auto", unknown={"a": [1]}).status_code == 200


# --- Transcriptions ---

GREEDY = {"beam_size": 1, "temperatures": [0]}
FORMATS = {
    "kitchen_en.wav": "wav",
    "meeting_pt.mp3": "mp3",
    "browser_en.webm": "webm",
    "household_en.flac": "flac",
}


def transcribe(url: str, **body: Any) -> httpx.Response:
    return request("POST", f"{url}/v1/audio/transcriptions", json={"model": "demo"} | body)


def test_the_plain_shape_is_answered_in_the_plain_shape(
    client: OpenAI, server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    for sample in (sample for sample in sample_recordings if sample["file"] in FORMATS):
        as_form = client.audio.transcriptions.create(file=sample["path"], model="demo", extra_body=GREEDY)
        audio = base64.b64encode(sample["path"].read_bytes()).decode()
        answer = transcribe(server_url, audio=audio, language="auto", **GREEDY).json()
        assert answer.pop("processing_time") > 0
        assert answer == {"text": as_form.text, "model": "demo", "format": FORMATS[sample["file"]]}


def test_every_option_works_in_json(server_url: str, sample_recordings: list[dict[str, Any]]) -> None:
    audio = base64.b64encode(sample_recordings[0]["path"].read_bytes()).decode()
    nested = {"data": audio, "format": "wav"}
    verbose = transcribe(
        server_url,
        input_audio=nested,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        vad_parameters={"threshold": 0.4},
        suppress_blank=True,
    ).json()
    assert verbose["language"] == "english"
    assert verbose["words"]
    assert verbose["segments"]
    assert transcribe(server_url, input_audio=nested).json().keys() == {"text", "usage"}
    as_text = transcribe(server_url, audio=audio, response_format="text")
    assert as_text.headers["content-type"].startswith("text/plain")
    streamed = transcribe(server_url, audio=audio, stream=True)
    assert '"transcript.text.done"' in streamed.text


# --- In process ---


def make_request(*chunks: bytes, content_type: str = "application/json") -> Request:
    """A request whose body comes in these chunks."""
    waiting = list(chunks)

    async def receive() -> dict[str, Any]:
        body = waiting.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
    return Request(scope, receive)


@pytest.mark.anyio
async def test_the_form_is_the_same_however_the_body_is_cut() -> None:
    body = json.dumps({"audio": BASE64, "model": "demo", "language": "auto"}).encode()
    for size in (1, 7, 4096, len(body)):
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        with await read_json(make_request(*chunks), max_file_bytes=1 << 20) as read:
            assert read.form.fields == [("model", "demo"), ("language", "auto")]
            assert read.form.required_file().read() == WAV
            assert (read.is_audio_json, read.audio_format) == (True, "wav")
        assert read.form.required_file().closed


@pytest.mark.anyio
async def test_only_the_plain_shape_is_answered_in_the_plain_shape() -> None:
    nested = json.dumps({"input_audio": {"data": BASE64}}).encode()
    with await read_body(make_request(nested), max_file_bytes=1 << 20) as read:
        assert (read.is_audio_json, read.audio_format) == (False, "wav")
    form = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + WAV + b"\r\n--b--\r\n"
    request = make_request(form, content_type="multipart/form-data; boundary=b")
    with await read_body(request, max_file_bytes=1 << 20) as read:
        assert (read.is_audio_json, read.audio_format) == (False, None)
        assert read.form.required_file().read() == WAV


@pytest.mark.anyio
async def test_bodies_are_parsed_off_the_event_loop_and_few_at_once() -> None:
    gate, begun = threading.Event(), threading.Semaphore(0)
    threads: list[int] = []

    def build(_: dict[str, Any]) -> None:
        threads.append(threading.get_ident())
        begun.release()
        assert gate.wait(WAIT_S)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(lambda: read_object(make_request(b"{}"), build, max_file_bytes=1))
        for _ in range(2):
            assert await anyio.to_thread.run_sync(lambda: begun.acquire(timeout=WAIT_S))
        await anyio.wait_all_tasks_blocked()
        assert len(threads) == 2
        gate.set()
    assert len(threads) == 5
    assert threading.get_ident() not in threads


@pytest.mark.anyio
async def test_a_form_is_no_json_object() -> None:
    request = make_request(b"", content_type="multipart/form-data; boundary=b")
    with pytest.raises(InvalidRequestError) as caught:
        await read_object(request, dict, max_file_bytes=1)
    assert caught.value.code == "unsupported_content_type"


def test_the_plain_answer_has_the_four_keys_of_its_shape() -> None:
    transcription = Transcription((), "en", 1.0, 2.0, Task.TRANSCRIBE)
    answer = audio_json_response(transcription, "whisper-1", 1.23456, "m4a")
    assert answer == {"text": "", "processing_time": 1.235, "model": "whisper-1", "format": "m4a"}
    assert audio_json_response(transcription, "whisper-1", 1.0, None)["format"] == "unknown"
