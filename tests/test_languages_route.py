"""`POST /v1/audio/languages`: which language a recording is in, and how sure that is."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.live_server import make_settings, running_server
from tests.media import noise, pictures, silence, tone, wav
from tests.wire import error_of, request
from whisper_server.engines.scripted import ScriptedEngine, Step

NAMES = {"en": "english", "pt": "portuguese", "de": "german"}


def detect(url: str, recording: bytes, **fields: Any) -> httpx.Response:
    data = {"model": "demo"} | fields
    return request("POST", f"{url}/v1/audio/languages", files={"file": recording}, data=data)


@pytest.fixture(scope="module")
def kitchen(sample_recordings: list[dict[str, Any]]) -> bytes:
    """A recording in English."""
    content: bytes = next(s["path"] for s in sample_recordings if s["file"] == "kitchen_en.wav").read_bytes()
    return content


def test_every_sample_is_in_its_language(server_url: str, sample_recordings: list[dict[str, Any]]) -> None:
    for sample in sample_recordings:
        answer = detect(server_url, sample["path"].read_bytes()).json()
        assert answer["language"] == sample["language"], sample["file"]
        assert answer["language_name"] == NAMES[sample["language"]]
        assert answer["duration"] == pytest.approx(sample["seconds"], abs=0.1)
        assert answer["usage"] == {"type": "duration", "seconds": answer["duration"]}


def test_the_ranking_is_complete_and_in_order(server_url: str, kitchen: bytes) -> None:
    answer = detect(server_url, kitchen, top_k="100").json()
    ranking = answer["languages"]
    assert ranking[0] == {"code": "en", "name": "english", "probability": answer["probability"]}
    probabilities = [entry["probability"] for entry in ranking]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    assert {entry["code"] for entry in ranking} >= set(NAMES)


def test_five_languages_are_listed_unless_more_or_fewer_are_asked_for(
    server_url: str, kitchen: bytes
) -> None:
    everything = detect(server_url, kitchen, top_k="100").json()["languages"]
    assert detect(server_url, kitchen).json()["languages"] == everything[:5]
    assert detect(server_url, kitchen, top_k="1").json()["languages"] == everything[:1]


def test_json_gets_the_answer_of_the_form(server_url: str, kitchen: bytes) -> None:
    text = base64.b64encode(kitchen).decode()
    bodies = ({"audio": text}, {"input_audio": {"data": text, "format": "wav"}})
    for body in bodies:
        response = request(
            "POST", f"{server_url}/v1/audio/languages", json=body | {"model": "demo", "top_k": 2}
        )
        assert response.json() == detect(server_url, kitchen, top_k="2").json()


def test_the_route_is_there_without_v1(server_url: str, kitchen: bytes) -> None:
    response = request(
        "POST", f"{server_url}/audio/languages", files={"file": kitchen}, data={"model": "demo"}
    )
    assert response.json()["language"] == "en"


def test_where_nobody_speaks_there_is_no_language(server_url: str) -> None:
    for recording in (wav(silence(3)), wav(noise(3, amplitude=0.001))):
        assert detect(server_url, recording).json() == {
            "language": None,
            "language_name": None,
            "probability": None,
            "languages": [],
            "duration": 3.0,
            "usage": {"type": "duration", "seconds": 3.0},
        }


def test_without_the_voice_filter_silence_has_a_language_too(server_url: str) -> None:
    answer = detect(server_url, wav(silence(3)), vad_filter="false").json()
    assert answer["language"] == answer["languages"][0]["code"]


@pytest.fixture(scope="module")
def limited_url() -> Iterator[str]:
    """A server for 5 s and 0.5 MB, whose engine always hears German."""
    settings = make_settings(limits={"max_audio_s": 5, "max_audio_file_size_mb": 0.5})
    engine = ScriptedEngine(then=Step(language="de"))
    with running_server(settings, engines={"faster-whisper": engine.load}) as url:
        yield url


def test_the_engine_is_believed(limited_url: str) -> None:
    answer = detect(limited_url, wav(tone(1)), vad_filter="false").json()
    assert answer["languages"] == [{"code": "de", "name": "german", "probability": 1.0}]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"top_k": "0"}, 400, "invalid_value", "top_k"),
        ({"top_k": "101"}, 400, "invalid_value", "top_k"),
        ({"top_k": "some"}, 400, "invalid_value", "top_k"),
        ({"vad_filter": "perhaps"}, 400, "invalid_value", "vad_filter"),
        ({"model": "nobody"}, 404, "model_not_found", "model"),
    ],
)
def test_a_bad_field_is_refused(
    limited_url: str, fields: dict[str, str], status: int, code: str, param: str
) -> None:
    response = detect(limited_url, wav(tone(1)), **fields)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


@pytest.mark.parametrize(
    ("recording", "status", "code"),
    [
        (b"", 400, "empty_audio"),
        (b"no audio at all, only words", 400, "unsupported_format"),
        (wav(tone(1))[:44], 400, "empty_audio"),
        (pictures(1), 400, "no_audio_stream"),
        (wav(tone(6)), 400, "audio_too_long"),
        (wav(tone(20)), 413, "file_too_large"),
    ],
    ids=["empty", "text", "header only", "pictures", "too long", "too large"],
)
def test_bad_audio_is_refused_as_for_transcriptions(
    limited_url: str, recording: bytes, status: int, code: str
) -> None:
    response = detect(limited_url, recording)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, "file")


def test_a_request_without_a_file_is_refused(limited_url: str) -> None:
    response = request("POST", f"{limited_url}/v1/audio/languages", files={"other": b"x"})
    assert (response.status_code, error_of(response)["code"]) == (400, "missing_required_parameter")
