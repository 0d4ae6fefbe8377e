"""What clients in the field do that OpenAI's contract does not say: one test or more for each of them.

Where a client is built on OpenAI's SDK for Python, the SDK sends what it sends; the others are bytes on the
wire. Vercel's SDK is among the Node clients.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from faster_whisper import decode_audio
from openai import OpenAI
from openai.types.audio import Transcription

from bench.word_errors import WordErrors
from tests.live_server import make_settings, running_server
from tests.media import encode, silence, tone, wav
from tests.wire import FORM_TYPE, error_of, form, part, request, scripted_server
from whisper_server.engines.scripted import ScriptedEngine, scripted_capabilities

_API_KEY = "azure-key-for-this-test"

MODEL = {"aliases": {"whisper-1": "demo", "house/model": "demo"}}
SHORT = wav(tone(1.0))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The demo model under the names that clients have built in, without `/v1`."""
    with running_server(make_settings(model=MODEL)) as url:
        yield url


@pytest.fixture(scope="module")
def sdk(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0)


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    can = scripted_capabilities()
    return ScriptedEngine(capabilities=replace(can, languages=can.languages | {"tl"}))


@pytest.fixture(scope="module")
def scripted_url(engine: ScriptedEngine) -> Iterator[str]:
    """A server that always says the same, and asks for no key."""
    with scripted_server(engine, model=MODEL, transcription={"vad_filter": False}) as url:
        yield url


@pytest.fixture(scope="module")
def english(sample_recordings: list[dict[str, Any]]) -> dict[str, Any]:
    return next(sample for sample in sample_recordings if sample["path"].name == "kitchen_en.wav")


@pytest.fixture(scope="module")
def long(sample_recordings: list[dict[str, Any]]) -> dict[str, Any]:
    return next(sample for sample in sample_recordings if sample["seconds"] > 60)


def is_said(sample: dict[str, Any], text: str, *, most_errors: float = 0.2) -> bool:
    errors = WordErrors()
    errors.add(" ".join(segment["text"] for segment in sample["segments"]), text)
    return errors.rate <= most_errors


# LiveKit


def test_livekit_gets_verbose_json_for_whisper_1(sdk: OpenAI, english: dict[str, Any]) -> None:
    transcript = sdk.audio.transcriptions.create(
        file=("file.wav", english["path"].read_bytes(), "audio/wav"),
        model="whisper-1",
        language="en",
        prompt="",
        response_format="verbose_json",
        timeout=30,
    )
    assert is_said(english, transcript.text)
    assert transcript.language == "english"
    assert transcript.duration == pytest.approx(english["seconds"], abs=0.1)
    assert transcript.segments


def test_livekit_gets_json_for_every_other_model(sdk: OpenAI, english: dict[str, Any]) -> None:
    for model in ("gpt-4o-mini-transcribe", "demo"):
        transcript = sdk.audio.transcriptions.create(
            file=("file.wav", english["path"].read_bytes(), "audio/wav"), model=model, response_format="json"
        )
        assert is_said(english, transcript.text)


# pipecat


def test_pipecat_gets_the_logprobs_it_asks_for(sdk: OpenAI, english: dict[str, Any]) -> None:
    transcript = sdk.audio.transcriptions.create(
        file=("audio.wav", english["path"].read_bytes(), "audio/wav"),
        model="gpt-4o-transcribe",
        language="en",
        response_format="json",
        include=["logprobs"],
        temperature=0,
    )
    assert isinstance(transcript, Transcription)
    assert is_said(english, transcript.text)
    assert transcript.logprobs
    assert all(entry.logprob is not None and entry.logprob <= 0 for entry in transcript.logprobs)


# open-webui


def open_webui_form(recording: bytes, fields: dict[str, str]) -> bytes:
    """A form as aiohttp writes it: each text part declares its type, the file is octet-stream."""
    text_type = "text/plain; charset=utf-8"
    texts = [part(name, value, content_type=text_type) for name, value in fields.items()]
    name = "2f1c9a54-8b0e-4c1f-9d1e-5f6a7b8c9d0e.wav"
    return form(*texts, part("file", recording, filename=name, content_type="application/octet-stream"))


def post_chunked(url: str, body: bytes, **headers: str) -> httpx.Response:
    """Post a form without its length."""
    blocks = (body[start : start + 4096] for start in range(0, len(body), 4096))
    return request("POST", url, content=blocks, headers={"content-type": FORM_TYPE, **headers})


@pytest.mark.parametrize("base", ["/v1/", "/"])
def test_open_webui_uploads_in_chunks_to_a_path_with_two_slashes(
    url: str, english: dict[str, Any], base: str
) -> None:
    body = open_webui_form(english["path"].read_bytes(), {"model": "whisper-1", "language": "en"})
    headers = {"authorization": "Bearer x", "x-openwebui-user-name": "J%C3%B6rg", "x-openwebui-user-id": "7"}
    response = post_chunked(f"{url}{base}/audio/transcriptions", body, **headers)
    assert response.status_code == 200
    assert not response.history
    assert is_said(english, response.json()["text"])


def test_open_webui_names_no_model_by_default(url: str, english: dict[str, Any]) -> None:
    body = open_webui_form(english["path"].read_bytes(), {"model": ""})
    response = post_chunked(f"{url}/v1/audio/transcriptions", body)
    assert is_said(english, response.raise_for_status().json()["text"])


def test_open_webui_asks_again_without_the_language_that_was_refused(
    url: str, english: dict[str, Any]
) -> None:
    recording = english["path"].read_bytes()
    fields = {"model": "whisper-1", "language": "klingon"}
    refused = post_chunked(f"{url}/v1/audio/transcriptions", open_webui_form(recording, fields))
    assert refused.status_code == 400
    error = error_of(refused)
    assert (error["param"], error["code"]) == ("language", "unsupported_language")
    del fields["language"]
    again = post_chunked(f"{url}/v1/audio/transcriptions", open_webui_form(recording, fields))
    assert is_said(english, again.raise_for_status().json()["text"])


@pytest.mark.parametrize("language", [{}, {"language": "en"}])
def test_open_webui_may_send_json_with_base64(
    url: str, english: dict[str, Any], language: dict[str, str]
) -> None:
    data = base64.b64encode(english["path"].read_bytes()).decode()
    body = {"model": "whisper-1", "input_audio": {"data": data, "format": "wav"}} | language
    response = request("POST", f"{url}/v1/audio/transcriptions", json=body)
    assert is_said(english, response.raise_for_status().json()["text"])


def test_open_webui_reads_the_error_of_json_as_an_object(url: str) -> None:
    body = {"model": "", "input_audio": {"data": base64.b64encode(b"no audio").decode(), "format": "mp3"}}
    response = request("POST", f"{url}/v1/audio/transcriptions", json=body)
    assert response.status_code == 400
    assert error_of(response)["code"] == "unsupported_format"


# wyoming_openai


@pytest.mark.parametrize("path", ["/v1/readyz", "/v1/test", "/readyz", "/test"])
def test_wyoming_does_not_take_this_server_for_another(url: str, path: str) -> None:
    response = request("GET", f"{url}{path}")
    assert response.status_code == 404
    error = error_of(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", "not_found")


def test_wyoming_does_not_take_this_server_for_speaches(url: str) -> None:
    """That one's health is the word OK."""
    response = request("GET", f"{url}/health")
    assert response.status_code == 200
    assert response.text.strip().strip('"') != "OK"
    assert response.json()["status"] == "ok"


def test_wyoming_comes_without_a_key(url: str, english: dict[str, Any]) -> None:
    """The SDK sends no Authorization, or an empty one."""
    for headers in ({}, {"authorization": "Bearer"}):
        response = request(
            "POST",
            f"{url}/v1/audio/transcriptions",
            files={"file": ("audio.wav", english["path"].read_bytes())},
            data={"model": "demo", "temperature": "0", "language": "en"},
            headers=headers,
        )
        assert is_said(english, response.raise_for_status().json()["text"])


def test_wyoming_gets_the_whole_text_from_deltas_alone(sdk: OpenAI, long: dict[str, Any]) -> None:
    events = sdk.audio.transcriptions.create(
        file=("audio.wav", long["path"].read_bytes()), model="whisper-1", stream=True, response_format="json"
    )
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert len(deltas) > 1
    assert is_said(long, "".join(deltas), most_errors=0.25)


def test_wyoming_may_switch_the_voice_filter_off(scripted_url: str, engine: ScriptedEngine) -> None:
    client = OpenAI(base_url=f"{scripted_url}/v1", api_key="x", max_retries=0)
    transcript = client.audio.transcriptions.create(
        file=("audio.wav", wav(silence(1.0))), model="demo", extra_body={"vad_filter": False}
    )
    assert transcript.text == "as scripted"


# Home Assistant


@pytest.mark.parametrize(("language", "code"), [("en", "en"), ("fil", "tl")])
@pytest.mark.parametrize("prompt", ["", "The lamp in the hall"])
def test_home_assistant_sends_bare_languages_and_always_a_prompt(
    scripted_url: str, engine: ScriptedEngine, language: str, code: str, prompt: str
) -> None:
    before = len(engine.windows)
    response = request(
        "POST",
        f"{scripted_url}/v1/audio/transcriptions",
        files={"file": ("a.wav", SHORT)},
        data={
            "model": "gpt-4o-mini-transcribe",
            "response_format": "json",
            "language": language,
            "prompt": prompt,
        },
    )
    assert response.raise_for_status().json()["text"] == "as scripted"
    window = engine.windows[before]
    assert (window.language, window.prompt) == (code, prompt)


def test_home_assistant_may_send_ogg(sdk: OpenAI, sample_recordings: list[dict[str, Any]]) -> None:
    german = next(sample for sample in sample_recordings if sample["path"].suffix == ".ogg")
    transcript = sdk.audio.transcriptions.create(
        file=("a.ogg", german["path"].read_bytes()),
        model="whisper-1",
        language="de",
        prompt="",
        response_format="json",
    )
    assert is_said(german, transcript.text)


def test_home_assistant_gets_an_empty_text_for_silence(sdk: OpenAI) -> None:
    transcript = sdk.audio.transcriptions.create(
        file=("a.wav", wav(silence(2.0))), model="whisper-1", language="en", prompt="", response_format="json"
    )
    assert transcript.text == ""


# LangChain


def named(content: bytes) -> io.BytesIO:
    """What LangChain sends for a piece of a recording."""
    piece = io.BytesIO(content)
    piece.name = "part_0.mp3"
    return piece


@pytest.mark.parametrize("base", ["/v1", "", "/v1/"])
def test_langchain_has_any_base_url(url: str, english: dict[str, Any], base: str) -> None:
    mp3 = encode(decode_audio(str(english["path"])), 16_000, "mp3", "libmp3lame", bit_rate=64_000)
    client = OpenAI(base_url=f"{url}{base}", api_key="none-needed", max_retries=0)
    transcript = client.audio.transcriptions.create(model="whisper-1", file=named(mp3))
    assert is_said(english, transcript.text)


def test_langchain_sends_mp3_pieces_of_20_minutes(scripted_url: str) -> None:
    mp3 = encode(silence(1200.0), 16_000, "mp3", "libmp3lame", bit_rate=64_000)
    client = OpenAI(base_url=scripted_url, api_key="none-needed", max_retries=0)
    transcript = client.audio.transcriptions.create(model="whisper-1", file=named(mp3))
    assert 40 <= transcript.text.count("as scripted") <= 41


def test_langchain_takes_a_string_for_text(sdk: OpenAI, english: dict[str, Any]) -> None:
    transcript = sdk.audio.transcriptions.create(
        model="whisper-1", file=named(english["path"].read_bytes()), response_format="text"
    )
    assert isinstance(transcript, str)
    assert is_said(english, transcript)


# Azure


@pytest.fixture(scope="module")
def azure_url() -> Iterator[str]:
    settings = make_settings(model=MODEL, security={"api_keys": (_API_KEY,)})
    with running_server(settings) as url:
        yield url


@pytest.mark.parametrize("deployment", ["demo", "house%2Fmodel", "house/model"])
def test_azure_names_the_model_in_the_path_and_the_key_in_a_header(
    azure_url: str, english: dict[str, Any], deployment: str
) -> None:
    response = request(
        "POST",
        f"{azure_url}/openai/deployments/{deployment}/audio/transcriptions?api-version=2024-10-21",
        files={"file": ("a.wav", english["path"].read_bytes())},
        headers={"api-key": _API_KEY},
    )
    assert is_said(english, response.raise_for_status().json()["text"])


def test_azures_deployment_is_the_model_that_is_looked_for(azure_url: str) -> None:
    response = request(
        "POST",
        f"{azure_url}/openai/deployments/nobody/audio/transcriptions?api-version=2024-10-21",
        files={"file": ("a.wav", SHORT)},
        headers={"api-key": _API_KEY},
    )
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


def test_azures_deployment_answers_chats(azure_url: str, english: dict[str, Any]) -> None:
    data = base64.b64encode(english["path"].read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    response = request(
        "POST",
        f"{azure_url}/openai/deployments/demo/chat/completions?api-version=2024-10-21",
        json={"messages": [{"role": "user", "content": [audio]}]},
        headers={"api-key": _API_KEY},
    )
    message = response.raise_for_status().json()["choices"][0]["message"]
    assert is_said(english, message["content"])


def test_azure_without_a_right_key_is_refused(azure_url: str) -> None:
    path = "/openai/deployments/demo/audio/transcriptions?api-version=2024-10-21"
    for headers in ({"api-key": "wrong"}, {}):
        response = request("POST", f"{azure_url}{path}", files={"file": ("a.wav", SHORT)}, headers=headers)
        assert response.status_code == 401
        error_of(response)
