"""Transcripts over HTTP: every answer's form, every way a request may be written, every option."""

import io
import json
import math
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from openai import AsyncOpenAI, OpenAI

from tests.live_server import running_server
from tests.media import noise, silence, tone, wav
from tests.wire import FORM_TYPE, ROUTE, form, part, request, scripted_server
from whisper_server.core.types import AudioContext, DecodeOptions, Task, Timestamps, Window
from whisper_server.engines.scripted import ScriptedEngine, Step, scripted_capabilities

SEGMENT_FIELDS = {
    "id": int,
    "seek": int,
    "start": float,
    "end": float,
    "text": str,
    "tokens": list,
    "temperature": float,
    "avg_logprob": float,
    "compression_ratio": float,
    "no_speech_prob": float,
}
KITCHEN = "Send a message to David on Monday."
SHORT = wav(tone(2.0))


@pytest.fixture(scope="session")
def kitchen(sample_recordings: list[dict[str, Any]]) -> Path:
    """A recording that says `KITCHEN`."""
    path: Path = next(s["path"] for s in sample_recordings if s["path"].name == "kitchen_en.wav")
    return path


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[ScriptedEngine, str]]:
    """A server that always says the same, and what it was asked."""
    engine = ScriptedEngine(then=Step("as scripted"))
    with scripted_server(engine, transcription={"vad_filter": False}) as url:
        yield engine, url


@pytest.fixture(scope="module")
def sdk(scripted: tuple[ScriptedEngine, str]) -> OpenAI:
    """The OpenAI SDK on that server."""
    return OpenAI(base_url=f"{scripted[1]}/v1", api_key="x", max_retries=0)


def post(url: str, data: dict[str, Any] | None = None, *, audio: bytes = SHORT, **options: Any) -> Any:
    """The parsed answer to a plain request."""
    response = request(
        "POST", f"{url}{ROUTE}", files={"file": ("speech.wav", audio)}, data=data or {}, **options
    )
    assert response.status_code == 200, response.text
    return response


def asked(scripted: tuple[ScriptedEngine, str], data: dict[str, Any] | None = None, **more: Any) -> Window:
    """The window that the engine was asked to decode for a request."""
    engine, url = scripted
    before = len(engine.windows)
    post(url, data, **more)
    return engine.windows[before]


# The answers.


def test_json_is_the_text_and_the_usage(server_url: str, kitchen: Path) -> None:
    response = post(server_url, {"response_format": "json"}, audio=kitchen.read_bytes())
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"text": KITCHEN, "usage": {"type": "duration", "seconds": 3.679}}


def test_json_is_the_default(client: OpenAI, kitchen: Path) -> None:
    transcript = client.audio.transcriptions.create(file=kitchen, model="demo")
    assert transcript.text == KITCHEN
    assert transcript.usage is not None
    assert transcript.usage.type == "duration"
    assert transcript.usage.seconds == pytest.approx(3.68, abs=0.01)


def test_text_is_plain_text_that_ends_with_a_line_break(
    server_url: str, client: OpenAI, kitchen: Path
) -> None:
    response = post(server_url, {"response_format": "text"}, audio=kitchen.read_bytes())
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == f"{KITCHEN}\n"
    text = client.audio.transcriptions.create(file=kitchen, model="demo", response_format="text")
    assert text == f"{KITCHEN}\n"


def test_text_beyond_ascii_is_utf8(client: OpenAI, sample_recordings: list[dict[str, Any]]) -> None:
    sample = next(s for s in sample_recordings if s["path"].name == "train_de.ogg")
    text = client.audio.transcriptions.create(file=sample["path"], model="demo", response_format="text")
    assert "fährt" in text


def test_verbose_json_has_all_that_strict_clients_ask_for(server_url: str, kitchen: Path) -> None:
    response = post(server_url, {"response_format": "verbose_json"}, audio=kitchen.read_bytes())
    body = response.json()
    assert body.keys() == {"task", "language", "duration", "text", "segments", "usage"}
    assert body["task"] == "transcribe"
    assert body["language"] == "english"
    assert isinstance(body["duration"], float)
    assert body["duration"] == pytest.approx(3.68, abs=0.01)
    assert body["text"] == KITCHEN
    assert body["usage"] == {"type": "duration", "seconds": body["duration"]}
    assert [s["id"] for s in body["segments"]] == list(range(len(body["segments"])))
    for segment in body["segments"]:
        assert segment.keys() == SEGMENT_FIELDS.keys()
        for name, kind in SEGMENT_FIELDS.items():
            assert type(segment[name]) is kind, name
        assert 0 <= segment["start"] < segment["end"] <= body["duration"]
        assert all(type(token) is int for token in segment["tokens"])
    assert "".join(s["text"] for s in body["segments"]).strip() == KITCHEN


def test_times_of_a_long_recording_are_in_order_and_within_it(
    client: OpenAI, sample_recordings: list[dict[str, Any]]
) -> None:
    sample = next(s for s in sample_recordings if s["path"].name == "household_en.flac")
    transcript = client.audio.transcriptions.create(
        file=sample["path"],
        model="demo",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert transcript.segments
    assert transcript.words
    for row in (transcript.segments, transcript.words):
        times = [(item.start, item.end) for item in row]
        assert times == sorted(times)
        assert all(0 <= start <= end <= transcript.duration for start, end in times)
    assert "".join(word.word for word in transcript.words) == transcript.text.replace(" ", "")


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
@pytest.mark.parametrize(
    ("granularities", "parts"),
    [
        ([], {"segments"}),
        (["segment"], {"segments"}),
        (["word"], {"words"}),
        (["word", "segment"], {"words", "segments"}),
    ],
)
def test_only_the_granularities_asked_for_are_listed(
    scripted: tuple[ScriptedEngine, str], name: str, granularities: list[str], parts: set[str]
) -> None:
    body = post(scripted[1], {"response_format": "verbose_json", name: granularities}).json()
    assert body.keys() & {"words", "segments"} == parts
    if "words" in parts:
        assert body["words"] == [
            {"word": "as", "start": 0.0, "end": 1.0, "probability": 0.5},
            {"word": "scripted", "start": 1.0, "end": 2.0, "probability": 0.5},
        ]


def test_silence_is_an_empty_text_in_every_format(server_url: str) -> None:
    quiet = wav(silence(3.0))
    assert post(server_url, audio=quiet).json()["text"] == ""
    assert post(server_url, {"response_format": "text"}, audio=quiet).text == "\n"
    body = post(server_url, {"response_format": "verbose_json"}, audio=quiet).json()
    assert (body["text"], body["segments"], body["language"], body["duration"]) == ("", [], "unknown", 3.0)


def test_every_number_in_an_answer_is_finite(server_url: str) -> None:
    hiss = wav(noise(4.0, amplitude=0.9))
    data = {
        "response_format": "verbose_json",
        "vad_filter": "false",
        "no_speech_threshold": "none",
        "timestamp_granularities[]": ["word", "segment"],
    }
    body = json.loads(post(server_url, data, audio=hiss).text, parse_constant=pytest.fail)
    numbers = [s[k] for s in body["segments"] for k in ("avg_logprob", "compression_ratio", "no_speech_prob")]
    assert all(math.isfinite(number) for number in numbers)


# The headers.


def test_a_request_has_an_id_and_a_time(server_url: str, client: OpenAI, kitchen: Path) -> None:
    raw = client.audio.transcriptions.with_raw_response.create(file=kitchen, model="demo")
    assert raw.request_id
    assert raw.request_id.startswith("req_")
    assert int(raw.headers["openai-processing-ms"]) > 0
    assert raw.request_id != request("GET", f"{server_url}/health").headers["x-request-id"]


@pytest.mark.parametrize("given", ["ticket-7", "a", "A.b_c:d-1", "x" * 128])
def test_a_plain_request_id_is_kept(server_url: str, given: str) -> None:
    response = request("GET", f"{server_url}/v1/models", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "a;b", "é", '"><script>', "a\tb"])
def test_any_other_request_id_is_replaced(server_url: str, given: str) -> None:
    response = request("GET", f"{server_url}/v1/models", headers={"X-Request-Id": given.encode()})
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers.get_list("x-request-id") == [response.headers["x-request-id"]]


# The ways to write a request.


def test_a_file_part_may_come_first_or_last_and_without_name_and_type(
    scripted: tuple[ScriptedEngine, str],
) -> None:
    model, file = part("model", "demo"), part("file", SHORT, filename="a.wav", content_type="audio/wav")
    for body in (form(file, model), form(model, file), form(model, part("file", SHORT)), form(file)):
        response = request("POST", f"{scripted[1]}{ROUTE}", content=body, headers={"Content-Type": FORM_TYPE})
        assert response.json()["text"] == "as scripted"


@pytest.mark.parametrize(
    "file",
    [
        SHORT,
        io.BytesIO(SHORT),
        (None, SHORT),
        ("étude ☃.wav", SHORT),
        ("unknown_file", SHORT),
        ("no_extension", SHORT, "audio/webm;codecs=opus"),
        ("../../etc/passwd", SHORT, "text/plain"),
    ],
    ids=["bytes", "stream", "no name", "other letters", "no type", "another type", "a path"],
)
def test_every_kind_of_file_the_sdk_takes_is_heard(sdk: OpenAI, file: Any) -> None:
    assert sdk.audio.transcriptions.create(file=file, model="demo").text == "as scripted"


def test_a_body_without_a_length_is_read_to_its_end(scripted: tuple[ScriptedEngine, str]) -> None:
    body = form(part("model", "demo"), part("file", wav(tone(40.0))))

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 10_007):
            yield body[start : start + 10_007]

    response = request("POST", f"{scripted[1]}{ROUTE}", content=pieces(), headers={"Content-Type": FORM_TYPE})
    assert "content-length" not in response.request.headers
    assert response.json()["usage"]["seconds"] == 40.0


def test_text_parts_may_have_a_content_type_and_any_text(scripted: tuple[ScriptedEngine, str]) -> None:
    text = "Grüße, 東京 😀"
    body = form(
        part("prompt", text, content_type="text/plain; charset=utf-8"),
        part("language", "pt", content_type="text/plain; charset=utf-8"),
        part("file", SHORT, filename="3f2b.wav", content_type="application/octet-stream"),
    )
    engine, url = scripted
    before = len(engine.windows)
    request("POST", f"{url}{ROUTE}", content=body, headers={"Content-Type": FORM_TYPE}).raise_for_status()
    window = engine.windows[before]
    assert (window.prompt, window.language) == (text, "pt")


def test_empty_fields_count_as_absent(scripted: tuple[ScriptedEngine, str]) -> None:
    names = (
        "model",
        "language",
        "prompt",
        "response_format",
        "temperature",
        "stream",
        "beam_size",
        "include[]",
    )
    window = asked(scripted, dict.fromkeys(names, ""))
    assert (window.language, window.prompt, window.options) == (None, "", DecodeOptions())


def test_unknown_fields_are_ignored(scripted: tuple[ScriptedEngine, str]) -> None:
    window = asked(scripted, {"user": "me", "vad": "x", "future[setting]": "1", "": "nameless", "a[]": "1"})
    assert window.options == DecodeOptions()


@pytest.mark.parametrize("prefix", ["", "/v1", "/v1/"])
def test_a_base_url_may_have_v1_or_not(scripted: tuple[ScriptedEngine, str], prefix: str) -> None:
    with OpenAI(base_url=f"{scripted[1]}{prefix}", api_key="x", max_retries=0) as client:
        assert client.audio.transcriptions.create(file=SHORT, model="demo").text == "as scripted"
        assert client.models.list().data


def test_any_key_and_none_is_welcome(scripted: tuple[ScriptedEngine, str]) -> None:
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer"}, {"api-key": "x"}):
        assert post(scripted[1], headers=headers).json()["text"] == "as scripted"


async def test_the_asynchronous_sdk_works_too(scripted: tuple[ScriptedEngine, str]) -> None:
    async with AsyncOpenAI(base_url=f"{scripted[1]}/v1", api_key="x", max_retries=0) as client:
        transcript = await client.audio.transcriptions.create(file=SHORT, model="gpt-4o-transcribe")
    assert transcript.text == "as scripted"


def test_browsers_of_the_allowed_origin_may_read_the_answer_and_its_id(
    scripted: tuple[ScriptedEngine, str],
) -> None:
    origin = {"Origin": "http://localhost:3000"}
    preflight = request(
        "OPTIONS", f"{scripted[1]}{ROUTE}", headers=origin | {"Access-Control-Request-Method": "POST"}
    )
    assert preflight.headers["access-control-allow-origin"] == origin["Origin"]
    response = post(scripted[1], headers=origin)
    assert response.headers["access-control-allow-origin"] == origin["Origin"]
    assert "x-request-id" in response.headers["access-control-expose-headers"]
    failed = request("POST", f"{scripted[1]}{ROUTE}", headers=origin)
    assert failed.headers["access-control-allow-origin"] == origin["Origin"]
    other = post(scripted[1], headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


# The options reach the engine.


@pytest.mark.parametrize("name", ["pt", "PT", "pt-BR", "pt_br", "Portuguese", " portuguese "])
def test_a_language_goes_by_code_region_or_name(scripted: tuple[ScriptedEngine, str], name: str) -> None:
    assert asked(scripted, {"language": name}).language == "pt"


@pytest.mark.parametrize("name", ["", "auto", "AUTO"])
def test_no_language_is_detected(scripted: tuple[ScriptedEngine, str], name: str) -> None:
    assert asked(scripted, {"language": name}).language is None
    assert (
        post(scripted[1], {"language": name, "response_format": "verbose_json"}).json()["language"]
        == "english"
    )


def test_without_options_the_engine_gets_the_defaults(scripted: tuple[ScriptedEngine, str]) -> None:
    window = asked(scripted)
    assert window.options == DecodeOptions()
    assert (window.task, window.prompt, window.prefix, window.language) == (Task.TRANSCRIBE, "", "", None)
    assert window.timestamps is Timestamps.SEGMENT
    assert window.duration_s == 2.0


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"beam_size": 7}, {"beam_size": 7}),
        ({"best_of": 3}, {"best_of": 3}),
        ({"patience": 1.5}, {"patience": 1.5}),
        ({"patience": 0.25, "beam_size": 4}, {"patience": 0.25, "beam_size": 4}),
        ({"length_penalty": 0.8}, {"length_penalty": 0.8}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
        ({"temperatures": [0, 0.5]}, {"temperatures": (0.0, 0.5)}),
        ({"temperatures": [0.3]}, {"temperatures": (0.3,)}),
        ({"compression_ratio_threshold": 2.0}, {"compression_ratio_threshold": 2.0}),
        ({"compression_ratio_threshold": "none"}, {"compression_ratio_threshold": None}),
        ({"log_prob_threshold": -0.5}, {"log_prob_threshold": -0.5}),
        ({"log_prob_threshold": "null"}, {"log_prob_threshold": None}),
        ({"no_speech_threshold": 0.1}, {"no_speech_threshold": 0.1}),
        ({"no_speech_threshold": "None"}, {"no_speech_threshold": None}),
        ({"no_speech_threshold": []}, {}),
        ({"suppress_blank": False}, {"suppress_blank": False}),
        ({"suppress_tokens": [-1, 220]}, {"suppress_tokens": (-1, 220)}),
        ({"max_initial_timestamp": 0.5}, {"max_initial_timestamp_s": 0.5}),
        ({"max_new_tokens": 20}, {"max_new_tokens": 20}),
        ({"max_new_tokens": "none"}, {"max_new_tokens": None}),
        ({"hotwords": "Zermatt, Gornergrat"}, {"hotwords": "Zermatt, Gornergrat"}),
        ({"prepend_punctuations": "¿"}, {"prepend_punctuations": "¿"}),
        ({"append_punctuations": "?"}, {"append_punctuations": "?"}),
    ],
    ids=str,
)
def test_decode_options_from_the_sdk_reach_the_engine(
    scripted: tuple[ScriptedEngine, str], sdk: OpenAI, given: dict[str, Any], changed: dict[str, Any]
) -> None:
    engine, _ = scripted
    before = len(engine.windows)
    sdk.audio.transcriptions.create(file=SHORT, model="demo", extra_body=given)
    assert engine.windows[before].options == DecodeOptions(**changed)


def test_a_threshold_in_brackets_does_not_switch_it_off(scripted: tuple[ScriptedEngine, str]) -> None:
    names = ("compression_ratio_threshold[]", "max_new_tokens[]", "suppress_tokens[a]")
    assert asked(scripted, dict.fromkeys(names, "1")).options == DecodeOptions()


@pytest.mark.parametrize(
    ("given", "temperatures"),
    [
        ({}, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ({"temperature": "0"}, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ({"temperature": "0.4"}, (0.4,)),
        ({"temperature": "1"}, (1.0,)),
        ({"temperature": "0.4", "temperatures[]": ["0", "1"]}, (0.0, 1.0)),
    ],
)
def test_temperature_zero_is_the_whole_ladder(
    scripted: tuple[ScriptedEngine, str], given: dict[str, Any], temperatures: tuple[float, ...]
) -> None:
    assert asked(scripted, given).options.temperatures == temperatures


def test_a_decode_profile_is_a_set_of_options_that_single_ones_change(
    scripted: tuple[ScriptedEngine, str],
) -> None:
    window = asked(scripted, {"decode_profile": "realtime"})
    assert window.options == DecodeOptions(beam_size=1, best_of=1, temperatures=(0.0,))
    assert window.timestamps is Timestamps.NONE, "the whole recording fits one window"
    window = asked(scripted, {"decode_profile": "realtime", "beam_size": "3", "temperature": "0.2"})
    assert window.options == DecodeOptions(beam_size=3, best_of=1, temperatures=(0.2,))


def test_a_profile_leaves_the_timestamps_that_are_needed(scripted: tuple[ScriptedEngine, str]) -> None:
    verbose = {"decode_profile": "realtime", "response_format": "verbose_json"}
    assert asked(scripted, verbose).timestamps is Timestamps.SEGMENT
    assert (
        asked(scripted, {"decode_profile": "realtime"}, audio=wav(tone(31.0))).timestamps
        is Timestamps.SEGMENT
    )


def test_prompt_and_prefix_reach_the_window(scripted: tuple[ScriptedEngine, str]) -> None:
    window = asked(scripted, {"prompt": " Zermatt is \n", "prefix": "And "})
    assert (window.prompt, window.prefix) == ("Zermatt is", "And")


@pytest.mark.parametrize(
    ("given", "timestamps"),
    [
        ({"word_timestamps": "true"}, Timestamps.WORD),
        ({"without_timestamps": "true"}, Timestamps.NONE),
        ({"without_timestamps": "true", "word_timestamps": "true"}, Timestamps.WORD_ONLY),
        ({"hallucination_silence_threshold": "2"}, Timestamps.WORD),
        ({"hallucination_silence_threshold": "none"}, Timestamps.SEGMENT),
    ],
)
def test_timestamps_are_as_fine_as_asked_for(
    scripted: tuple[ScriptedEngine, str], given: dict[str, str], timestamps: Timestamps
) -> None:
    assert asked(scripted, given).timestamps is timestamps


def test_the_encoder_looks_at_all_unless_asked_otherwise(scripted: tuple[ScriptedEngine, str]) -> None:
    assert asked(scripted, {}).audio_context is AudioContext.FULL
    assert asked(scripted, {"audio_context": "auto"}).audio_context is AudioContext.AUTO


def test_clips_are_all_that_is_decoded(scripted: tuple[ScriptedEngine, str]) -> None:
    engine, url = scripted
    before = len(engine.windows)
    body = post(
        url, {"clip_timestamps": "1,3,50,60", "response_format": "verbose_json"}, audio=wav(tone(95.0))
    ).json()
    assert [w.duration_s for w in engine.windows[before:]] == [2.0, 10.0]
    assert [(s["start"], s["end"], s["seek"]) for s in body["segments"]] == [(1, 3, 100), (50, 60, 5000)]
    assert body["duration"] == 95.0


def test_a_shorter_chunk_makes_more_windows(scripted: tuple[ScriptedEngine, str]) -> None:
    engine, url = scripted
    before = len(engine.windows)
    post(url, {"chunk_length": "10"}, audio=wav(tone(25.0)))
    assert [w.duration_s for w in engine.windows[before:]] == [10.0, 10.0, 5.0]


@pytest.mark.parametrize(("flag", "known"), [("true", (1, 2)), ("false", ())])
def test_text_before_a_window_is_its_prompt_when_asked_for(
    scripted: tuple[ScriptedEngine, str], flag: str, known: tuple[int, ...]
) -> None:
    engine, url = scripted
    before = len(engine.windows)
    post(url, {"condition_on_previous_text": flag}, audio=wav(tone(31.0)))
    assert [w.previous_tokens for w in engine.windows[before:]] == [(), known]


def test_silence_is_left_out_unless_the_filter_is_off(scripted: tuple[ScriptedEngine, str]) -> None:
    engine, url = scripted
    before = len(engine.windows)
    quiet = wav(silence(3.0))
    post(url, {"vad_filter": "true"}, audio=quiet)
    assert engine.windows[before:] == []
    post(url, {"vad_filter": "false"}, audio=quiet)
    assert len(engine.windows) == before + 1


@pytest.mark.parametrize(
    "given",
    [{"vad_parameters[threshold]": "1"}, {"vad_parameters": '{"threshold": 1, "speech_pad_ms": null}'}],
)
def test_the_voice_filters_own_options_count_in_both_encodings(
    server_url: str, kitchen: Path, given: dict[str, str]
) -> None:
    audio = kitchen.read_bytes()
    assert post(server_url, audio=audio).json()["text"] == KITCHEN
    assert post(server_url, given, audio=audio).json()["text"] == ""


def test_batched_windows_are_decoded_together(sample_recordings: list[dict[str, Any]]) -> None:
    sample = next(s for s in sample_recordings if s["path"].name == "morning_en.m4a")
    engine = ScriptedEngine()
    with scripted_server(engine) as url:
        options = {"long_form": "batched", "batch_size": "3", "vad_filter": "true"}
        post(url, options, audio=sample["path"].read_bytes())
    assert max(engine.calls) == 3
    assert all(w.duration_s <= 30 for w in engine.windows)


def test_options_the_engine_lacks_are_refused_by_name() -> None:
    plain = replace(
        scripted_capabilities(), word_timestamps=False, hotwords=False, languages=frozenset({"en"})
    )
    engine = ScriptedEngine(capabilities=plain)
    rows = [
        ({"hotwords": "x"}, "hotwords", "unsupported_value"),
        ({"word_timestamps": "true"}, "timestamp_granularities", "unsupported_value"),
        ({"language": "pt"}, "language", "unsupported_language"),
    ]
    with scripted_server(engine) as url:
        for data, param, code in rows:
            response = request("POST", f"{url}{ROUTE}", files={"file": SHORT}, data=data)
            assert response.status_code == 400
            error = response.json()["error"]
            assert (error["param"], error["code"]) == (param, code)
    assert engine.windows == []


# The event loop.


def test_nothing_blocks_the_event_loop(kitchen: Path, sample_recordings: list[dict[str, Any]]) -> None:
    """The server answers as ever while each call of its own that would block the loop is an error."""
    big = wav(tone(60.0))
    assert len(big) > 1 << 20
    verbose = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    every_step = {"normalize": "true", "trim_silence": "true", "long_form": "batched"}
    rows: list[tuple[int, str, str, dict[str, Any]]] = [
        *((200, "POST", ROUTE, {"files": {"file": s["path"].read_bytes()}}) for s in sample_recordings[:3]),
        (200, "POST", ROUTE, {"files": {"file": big}}),
        (200, "POST", ROUTE, {"files": {"file": kitchen.read_bytes()}, "data": verbose}),
        (200, "POST", ROUTE, {"files": {"file": kitchen.read_bytes()}, "data": every_step}),
        (200, "POST", ROUTE, {"files": {"file": big}, "data": {"response_format": "srt"}}),
        (200, "POST", ROUTE, {"files": {"file": kitchen.read_bytes()}, "data": {"stream": "true"}}),
        (200, "POST", ROUTE, {"json": {"audio": b64encode(big).decode()}}),
        (400, "POST", ROUTE, {"files": {"file": b"no audio" * (1 << 18)}}),
        (404, "POST", ROUTE, {"files": {"file": SHORT}, "data": {"model": "/etc/nowhere"}}),
        (200, "GET", "/v1/models", {}),
        (200, "GET", "/v1/models/demo", {}),
        (404, "GET", "/v1/models/%2Fetc", {}),
        (200, "GET", "/health", {}),
    ]
    # From the start of the server on: what happens before, delays nobody.
    with running_server() as url, blockbuster_ctx("whisper_server"):
        for status, method, path, options in rows:
            response = request(method, f"{url}{path}", **options)
            assert response.status_code == status, response.text
