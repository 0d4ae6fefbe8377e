"""OpenAI's SDK for Node and Vercel's AI SDK against a live server; the programs are in `tests/node`."""

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from bench.word_errors import WordErrors
from tests.live_server import make_settings, running_server
from tests.media import silence, wav
from tests.wire import scripted_server
from whisper_server.engines.scripted import ScriptedEngine, Step

_PROGRAMS = Path(__file__).parent / "node"
_INSTALL = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
_INSTALL_WAIT_S = 100
_PROGRAM_WAIT_S = 60

_API_KEY = "a-key-only-for-this-test"
_MIB = 1 << 20

Run = Callable[..., Any]

GREEDY = {"temperatures": [0]}
SEGMENT_FIELDS = {
    *("id", "seek", "start", "end", "text", "tokens"),
    *("temperature", "avg_logprob", "compression_ratio", "no_speech_prob"),
}


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a program of `tests/node` with keywords as its argument; gives what it printed.

    The first run on a machine installs the clients from the registry, as `package-lock.json` says.
    """
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    lock = (_PROGRAMS / "package-lock.json").read_bytes()
    stamp = _PROGRAMS / "node_modules" / ".installed-lock.json"
    if not stamp.is_file() or stamp.read_bytes() != lock:
        _execute(_INSTALL, _INSTALL_WAIT_S)
        stamp.write_bytes(lock)

    def run_program(program: str, /, **given: Any) -> Any:
        return json.loads(_execute(("node", f"{program}.mjs", json.dumps(given)), _PROGRAM_WAIT_S))

    return run_program


def _execute(command: tuple[str, ...], wait_s: float) -> str:
    done = subprocess.run(command, cwd=_PROGRAMS, capture_output=True, text=True, timeout=wait_s, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def run_openai(run: Run, server_url: str) -> Run:
    """The same on the shared server."""
    return functools.partial(run, baseURL=f"{server_url}/v1")


def by_name(samples: list[dict[str, Any]], start: str) -> dict[str, Any]:
    return next(sample for sample in samples if sample["path"].name.startswith(start))


@pytest.fixture(scope="session")
def english(sample_recordings: list[dict[str, Any]]) -> dict[str, Any]:
    return by_name(sample_recordings, "kitchen_en")


@pytest.fixture(scope="session")
def german(sample_recordings: list[dict[str, Any]]) -> dict[str, Any]:
    return by_name(sample_recordings, "train_de")


def is_said(sample: dict[str, Any], text: str) -> bool:
    errors = WordErrors()
    errors.add(" ".join(segment["text"] for segment in sample["segments"]), text)
    return errors.rate <= 0.2


# OpenAI's SDK: transcriptions


@pytest.fixture(scope="module")
def answers(run_openai: Run, german: dict[str, Any]) -> Any:
    """One recording in every format."""
    return run_openai("transcriptions", path=str(german["path"]))


def test_json_is_an_object_with_the_text(answers: Any, german: dict[str, Any], client: OpenAI) -> None:
    python = client.audio.transcriptions.create(file=german["path"], model="demo", extra_body=GREEDY)
    assert answers["json"]["text"] == python.text
    assert is_said(german, python.text)
    assert answers["json"]["usage"] == {
        "type": "duration",
        "seconds": pytest.approx(german["seconds"], abs=0.1),
    }


def test_text_is_a_string_with_its_newline(answers: Any) -> None:
    assert answers["text"] == f"{answers['json']['text']}\n"


def test_subtitles_are_strings(answers: Any) -> None:
    assert re.match(r"1\n00:00:\d\d,\d{3} --> 00:00:\d\d,\d{3}\n\S", answers["srt"])
    assert answers["srt"].endswith("\n")
    assert re.match(r"WEBVTT\n\n00:\S+\.\d{3} --> \S+\n\S", answers["vtt"])


def test_verbose_json_has_what_was_asked_for(answers: Any, german: dict[str, Any]) -> None:
    verbose, words, both = answers["verbose"], answers["words"], answers["both"]
    for answer in (verbose, words, both):
        assert (answer["task"], answer["language"]) == ("transcribe", "german")
        assert answer["duration"] == pytest.approx(german["seconds"], abs=0.1)
        assert isinstance(answer["duration"], float)
    assert "words" not in verbose
    assert "segments" not in words
    assert both["words"]
    assert "".join(segment["text"] for segment in both["segments"]).strip() == both["text"]
    for segment in (*verbose["segments"], *both["segments"]):
        assert segment.keys() >= SEGMENT_FIELDS
        assert None not in segment.values()
    ends = [word["end"] for word in both["words"]]
    assert ends == sorted(ends)
    assert " ".join(word["word"] for word in words["words"]) == words["text"]


def test_logprobs_spell_the_text(answers: Any) -> None:
    answer = answers["logprobs"]
    spelled = bytes(byte for entry in answer["logprobs"] for byte in entry["bytes"]).decode()
    assert spelled.strip() == answer["text"]


def test_a_chunking_object_is_understood(answers: Any, german: dict[str, Any]) -> None:
    assert is_said(german, answers["cutAtSilences"]["text"])


def test_a_recording_arrives_in_every_shape_in_which_node_has_it(
    run_openai: Run, english: dict[str, Any]
) -> None:
    results = run_openai("uploads", path=str(english["path"]))
    assert {result["text"] for result in results.values()} == {results["file"]["text"]}
    assert is_said(english, results["file"]["text"])
    assert results["readStream"]["isChunked"]
    assert not results["file"]["isChunked"]


@pytest.mark.parametrize("options", [{}, {"response_format": "text"}, {"include": ["logprobs"]}])
def test_streamed_deltas_joined_are_the_text(
    run_openai: Run, german: dict[str, Any], options: dict[str, Any]
) -> None:
    result = run_openai("stream", path=str(german["path"]), options=GREEDY | options)
    *deltas, done = result["events"]
    assert result["fault"] is None
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert is_said(german, done["text"])
    assert done["usage"]["type"] == "tokens"
    assert all(("logprobs" in event) is ("include" in options) for event in result["events"])


def test_a_fault_in_a_stream_is_raised(run: Run, tmp_path: Path) -> None:
    recording = tmp_path / "silence.wav"
    recording.write_bytes(wav(silence(90.0)))
    engine = ScriptedEngine([Step("one"), Step(error=RuntimeError("secret"))])
    with scripted_server(engine) as url:
        options = {"vad_filter": False, "without_timestamps": True}
        result = run("stream", baseURL=url, path=str(recording), options=options)
    assert [event["delta"] for event in result["events"]] == ["one"]
    assert result["fault"]["class"] == "APIError"
    assert result["fault"]["code"] == "inference_failed"
    assert "secret" not in result["fault"]["message"]


def test_translations_are_english(run_openai: Run, demo_test_set: list[dict[str, Any]]) -> None:
    clip = next(clip for clip in demo_test_set if clip["language"] == "de")
    result = run_openai("translations", path=str(clip["path"]))
    errors = WordErrors()
    errors.add(clip["english"], result["json"]["text"])
    assert errors.rate <= 0.2
    assert result["text"] == f"{result['json']['text']}\n"
    assert result["verbose"]["text"] == result["json"]["text"]
    assert result["verbose"]["language"] == "english"


# OpenAI's SDK: models, errors, chat


def test_a_model_with_a_slash_in_its_name_is_listed_shown_and_unloaded(
    run: Run, english: dict[str, Any]
) -> None:
    with running_server(make_settings(model={"aliases": {"org/model": "demo"}})) as url:
        client = OpenAI(base_url=url, api_key="none-needed", max_retries=0)
        client.audio.transcriptions.create(file=english["path"], model="org/model")
        result = run("models", baseURL=f"{url}/v1", name="org/model")
    assert {"org/model", "demo"} <= set(result["ids"])
    retrieved = result["retrieved"]
    assert (retrieved["id"], retrieved["object"]) == ("org/model", "model")
    assert isinstance(retrieved["created"], int)
    assert result["deleted"] == {"id": "org/model", "object": "model", "deleted": True}
    assert result["deletedTwice"]["class"] == "NotFoundError"


@pytest.fixture(scope="module")
def faults(
    run_openai: Run, english: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    large = tmp_path_factory.mktemp("large") / "large.wav"
    large.write_bytes(bytes(4 * _MIB))
    with (
        scripted_server(ScriptedEngine(), limits={"max_audio_file_size_mb": 1}) as limited,
        scripted_server(ScriptedEngine(), security={"api_keys": (_API_KEY,)}) as locked,
    ):
        yield run_openai(
            "errors",
            path=str(english["path"]),
            limitedURL=f"{limited}/v1",
            largePath=str(large),
            bytes=2 * _MIB,
            lockedURL=f"{locked}/v1",
            apiKey=_API_KEY,
        )


@pytest.mark.parametrize(
    ("name", "error_class", "status", "code", "param"),
    [
        ("field", "BadRequestError", 400, "unsupported_value", "response_format"),
        ("file", "BadRequestError", 400, "unsupported_format", "file"),
        ("model", "NotFoundError", 404, "model_not_found", "model"),
        ("streamedModel", "NotFoundError", 404, "model_not_found", "model"),
        ("unknownModel", "NotFoundError", 404, "model_not_found", "model"),
        ("tooLarge", "APIError", 413, "file_too_large", "file"),
        ("tooLargeChunked", "APIError", 413, "file_too_large", "file"),
        ("wrongKey", "AuthenticationError", 401, "invalid_api_key", None),
        ("chat", "BadRequestError", 400, "missing_required_parameter", "messages"),
    ],
)
def test_a_fault_has_its_class_and_tells_all(
    faults: dict[str, Any], name: str, error_class: str, status: int, code: str, param: str | None
) -> None:
    fault = faults[name]
    assert (fault["class"], fault["status"]) == (error_class, status)
    assert (fault["type"], fault["code"], fault["param"]) == ("invalid_request_error", code, param)
    assert fault["requestID"].startswith("req_")
    assert re.match(rf"{status} \S", fault["message"])


def test_the_right_key_opens_the_server(faults: dict[str, Any]) -> None:
    assert faults["rightKey"] is None


def test_chat_answers_with_the_transcript_whole_and_in_chunks(
    run_openai: Run, english: dict[str, Any]
) -> None:
    result = run_openai("chat", path=str(english["path"]))
    plain, chunks = result["plain"], result["chunks"]
    assert plain["object"] == "chat.completion"
    (choice,) = plain["choices"]
    assert (choice["finish_reason"], choice["message"]["role"]) == ("stop", "assistant")
    text = choice["message"]["content"]
    assert is_said(english, text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == text == result["gathered"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == plain["usage"]


# Vercel's AI SDK


@pytest.mark.parametrize(("recording", "code"), [("english", "en"), ("german", "de")])
def test_vercels_sdk_accepts_a_verbose_transcript(
    run_openai: Run, request: pytest.FixtureRequest, recording: str, code: str
) -> None:
    """It wants a numeric duration and all ten fields of a segment, and knows languages by English names."""
    sample = request.getfixturevalue(recording)
    options: list[dict[str, Any]] = [
        {"temperature": 0},
        {"language": code, "timestampGranularities": ["word", "segment"]},
        {"timestampGranularities": ["word"]},
    ]
    results = run_openai("vercel", path=str(sample["path"]), providerOptions=options)
    for result in results:
        assert is_said(sample, result["text"])
        assert result["language"] == code
        assert result["durationInSeconds"] == pytest.approx(sample["seconds"], abs=0.1)
        assert result["warnings"] == []
        assert result["segments"]
        assert all(segment["endSecond"] >= segment["startSecond"] for segment in result["segments"])
    for result in results[:2]:
        for segment in result["body"]["segments"]:
            assert segment.keys() >= SEGMENT_FIELDS
            assert None not in segment.values()
    assert "segments" not in results[2]["body"]
    assert " ".join(segment["text"] for segment in results[2]["segments"]) == results[2]["text"]


def test_vercels_sdk_accepts_plain_json(run_openai: Run, english: dict[str, Any]) -> None:
    (result,) = run_openai("vercel", path=str(english["path"]), providerOptions=[None])
    assert is_said(english, result["text"])
    assert result["durationInSeconds"] == pytest.approx(english["seconds"], abs=0.1)


def test_vercels_sdk_accepts_silence(run: Run, server_url: str, tmp_path: Path) -> None:
    """It raises on an empty text by itself, having accepted the answer."""
    recording = tmp_path / "silence.wav"
    recording.write_bytes(wav(silence(1.0)))
    with pytest.raises(AssertionError, match="AI_NoTranscriptGeneratedError"):
        run("vercel", baseURL=f"{server_url}/v1", path=str(recording), providerOptions=[{}])


def test_vercels_sdk_gets_its_chat_answered(run_openai: Run, english: dict[str, Any]) -> None:
    result = run_openai("vercel_chat", path=str(english["path"]))
    assert is_said(english, result["text"])
    assert is_said(english, "".join(result["deltas"]))
    assert result["finishReason"] == "stop"
    assert result["usage"]["outputTokens"] > 0


# gRPC


def test_a_client_made_from_the_proto_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "stt.sock"
    samples = Path(__file__).parent.parent / "whisper_server" / "demo" / "samples"
    with running_server(make_settings(grpc={"port": None, "unix_socket": path})):
        told = run(
            "grpc",
            address=f"unix:{path}",
            wav=str(samples / "kitchen_en.wav"),
            file=str(samples / "train_de.ogg"),
        )
    assert told["heard"]["texts"] == ["Send a message to David on Monday."]
    assert told["heard"]["words"] == ["Send", "a", "message", "to", "David", "on", "Monday."]
    assert told["heard"]["count"] >= 1
    assert (told["language"], told["tokenCharacters"]) == ("en", 32)
    assert told["recognized"].startswith("Die Nummer ist null, sieben, neun.")
    assert told["refused"] == {"code": "INVALID_ARGUMENT", "details": "ERR1001: 'session_id' is missing."}
