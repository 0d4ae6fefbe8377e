"""The main job: the OpenAI SDK sends recordings to a live server and gets right transcripts back."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faster_whisper import WhisperModel
from openai import OpenAI

from bench.word_errors import WordErrors

CODES = {"english": "en", "portuguese": "pt", "german": "de"}


def test_every_sample_comes_back_in_its_language(
    client: OpenAI, sample_recordings: list[dict[str, Any]]
) -> None:
    for sample in sample_recordings:
        transcript = client.audio.transcriptions.create(
            file=sample["path"], model="demo", response_format="verbose_json"
        )
        assert CODES[transcript.language] == sample["language"]
        assert transcript.duration == pytest.approx(sample["seconds"], abs=0.1)
        errors = WordErrors()
        errors.add(" ".join(s["text"] for s in sample["segments"]), transcript.text)
        assert errors.rate <= 0.2, sample["file"]


def test_word_error_rate_over_http_is_that_in_process(
    client: OpenAI, demo_test_set: list[dict[str, Any]], demo_model_path: Path
) -> None:
    """All 200 clips of the test set, four clients at once, against faster-whisper with the same options."""
    model = WhisperModel(str(demo_model_path), device="cpu", compute_type="int8", cpu_threads=1)

    def over_http(clip: dict[str, Any]) -> Any:
        return client.audio.transcriptions.create(
            file=clip["path"], model="demo", response_format="verbose_json", extra_body={"beam_size": 1}
        )

    with ThreadPoolExecutor(4) as pool:
        transcripts = list(pool.map(over_http, demo_test_set))
    options = {"vad_filter": True, "condition_on_previous_text": False}
    here, there = WordErrors(), WordErrors()
    right_languages = 0
    for clip, transcript in zip(demo_test_set, transcripts, strict=True):
        segments, _ = model.transcribe(str(clip["path"]), beam_size=1, **options)
        here.add(clip["text"], "".join(segment.text for segment in segments))
        there.add(clip["text"], transcript.text)
        right_languages += CODES.get(transcript.language) == clip["language"]
    assert there.rate <= here.rate + 0.001
    assert there.rate <= 0.04
    assert right_languages >= 0.98 * len(demo_test_set)
