"""Translations, and OpenAI's `chunking_strategy` in each of its encodings."""

import json
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from bench.word_errors import WordErrors
from tests.live_server import make_settings, running_server
from tests.media import silence, wav
from whisper_server.core.types import Task
from whisper_server.engines.scripted import ScriptedEngine

# The SDK has marked the method deprecated; the route stays.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")


def test_translations_are_english(client: OpenAI, demo_test_set: list[dict[str, Any]]) -> None:
    errors = WordErrors()
    for clip in [clip for clip in demo_test_set if clip["language"] != "en"][:12]:
        errors.add(clip["english"], client.audio.translations.create(file=clip["path"], model="demo").text)
    assert errors.rate <= 0.05


def test_a_verbose_translation_says_what_it_is(client: OpenAI, demo_test_set: list[dict[str, Any]]) -> None:
    clip = next(clip for clip in demo_test_set if clip["language"] == "de")
    verbose = client.audio.translations.create(
        file=clip["path"], model="demo", response_format="verbose_json"
    )
    assert verbose.language == "english"
    assert verbose.segments
    assert getattr(verbose, "task") == "translate"  # noqa: B009 # outside the SDK's type


@pytest.mark.parametrize("response_format", ["text", "srt", "vtt"])
def test_translations_have_every_format(
    client: OpenAI, demo_test_set: list[dict[str, Any]], response_format: Any
) -> None:
    clip = next(clip for clip in demo_test_set if clip["language"] == "pt")
    answer = client.audio.translations.create(
        file=clip["path"], model="demo", response_format=response_format
    )
    assert clip["english"].split()[0] in str(answer)


def test_chunking_auto_gives_the_text(client: OpenAI, sample_recordings: list[dict[str, Any]]) -> None:
    sample = next(sample for sample in sample_recordings if sample["seconds"] > 60)
    errors = WordErrors()
    text = client.audio.transcriptions.create(
        file=sample["path"], model="demo", chunking_strategy="auto"
    ).text
    errors.add(" ".join(segment["text"] for segment in sample["segments"]), text)
    assert errors.rate <= 0.25


def test_chunking_by_server_vad_takes_its_numbers(
    client: OpenAI, sample_recordings: list[dict[str, Any]]
) -> None:
    sample = sample_recordings[0]
    text = client.audio.transcriptions.create(
        file=sample["path"],
        model="demo",
        chunking_strategy={
            "type": "server_vad",
            "threshold": 0.4,
            "prefix_padding_ms": 200,
            "silence_duration_ms": 300,
        },
    ).text
    assert text == "Send a message to David on Monday."
    deaf = client.audio.transcriptions.create(
        file=sample["path"],
        model="demo",
        chunking_strategy={"type": "server_vad", "threshold": 1.0},
    ).text
    assert deaf == ""


def test_a_hand_written_client_may_send_json(
    server_url: str, sample_recordings: list[dict[str, Any]]
) -> None:
    strategy = json.dumps({"type": "server_vad", "threshold": 1.0})
    with sample_recordings[0]["path"].open("rb") as file:
        response = httpx.post(
            f"{server_url}/v1/audio/transcriptions",
            files={"file": file},
            data={"model": "demo", "chunking_strategy": strategy},
        )
    assert response.json()["text"] == ""


@pytest.mark.parametrize(
    "strategy", ["never", {"type": "semantic"}, {"threshold": 0.5}, {"type": "server_vad", "threshold": 2}]
)
def test_a_wrong_strategy_is_named(client: OpenAI, strategy: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.audio.transcriptions.create(
            file=wav(silence(1.0), 16_000), model="demo", chunking_strategy=strategy
        )
    assert (caught.value.param or "").startswith("chunking_strategy")


def test_clips_and_batches_do_not_go_together(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.audio.transcriptions.create(
            file=wav(silence(1.0), 16_000),
            model="demo",
            extra_body={"long_form": "batched", "clip_timestamps": "0,0.5"},
        )
    assert caught.value.param == "clip_timestamps"


def test_the_default_task_is_a_setting() -> None:
    engine = ScriptedEngine()
    settings = make_settings(model={"task": "translate"}, transcription={"vad_filter": False})
    with running_server(settings, engines={"faster-whisper": engine.load}) as url:
        files = {"file": wav(silence(1.0), 16_000)}
        httpx.post(f"{url}/audio/transcriptions", files=files).raise_for_status()
    assert [window.task for window in engine.windows] == [Task.TRANSLATE]


def test_keywords_are_hotwords() -> None:
    engine = ScriptedEngine()
    settings = make_settings(transcription={"vad_filter": False})
    with running_server(settings, engines={"faster-whisper": engine.load}) as url:
        data = {"keywords[]": ["Vienna", "Lisbon"], "hotwords": "tickets"}
        files = {"file": wav(silence(1.0), 16_000)}
        httpx.post(f"{url}/audio/transcriptions", files=files, data=data).raise_for_status()
    assert [window.options.hotwords for window in engine.windows] == ["Vienna, Lisbon, tickets"]


@pytest.mark.parametrize(
    ("languages", "expected"), [(["de", "pt"], "german"), (["en", "pt"], None), (["German"], "german")]
)
def test_the_language_is_one_of_those_given(
    client: OpenAI, sample_recordings: list[dict[str, Any]], languages: list[str], expected: str | None
) -> None:
    german = next(sample for sample in sample_recordings if sample["language"] == "de")
    transcript = client.audio.transcriptions.create(
        file=german["path"],
        model="demo",
        response_format="verbose_json",
        extra_body={"languages": languages, "beam_size": 1},
    )
    if expected is None:
        assert transcript.language in ("english", "portuguese")
    else:
        assert transcript.language == expected


@pytest.mark.parametrize("more", [{"languages": ["de", "klingon"]}, {"languages": ["de"], "language": "en"}])
def test_wrong_languages_are_named(client: OpenAI, more: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.audio.transcriptions.create(file=wav(silence(1.0), 16_000), model="demo", extra_body=more)
    assert caught.value.param == "languages"
