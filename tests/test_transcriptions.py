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


@pytest.mark.timeout(400)
def test_word_error_rate_over_http_is_that_in_process(
    client: OpenAI, demo_test_set: list[dict[str, Any]], demo_model_path: Path
) -> None:
    """Half of the test set, four clients at once, against faster-whisper with the same options."""
    clips = demo_test_set[::2]
    model = WhisperModel(str(demo_model_path), device="cpu", compute_type="int8", cpu_threads=1)

    def over_http(clip: dict[str, Any]) -> Any:
        return client.audio.transcriptions.create(
            file=clip["path"],
            model="demo",
            response_format="verbose_json",
            extra_body={"beam_size": 1, "temperatures": [0]},
        )

    def in_process(clip: dict[str, Any]) -> str:
        segments, _ = model.transcribe(
            str(clip["path"]),
            beam_size=1,
            temperature=0.0,
            vad_filter=True,
            condition_on_previous_text=False,
        )
        return "".join(segment.text for segment in segments)

    with ThreadPoolExecutor(5) as pool:
        reference = pool.submit(lambda: [in_process(clip) for clip in clips])
        transcripts = list(pool.map(over_http, clips))
        texts = reference.result()
    here, there = WordErrors(), WordErrors()
    right_languages = 0
    for clip, text, transcript in zip(clips, texts, transcripts, strict=True):
        here.add(clip["text"], text)
        there.add(clip["text"], transcript.text)
        right_languages += CODES.get(transcript.language) == clip["language"]
    assert there.rate <= here.rate + 0.001
    assert there.rate <= 0.04
    assert right_languages >= 0.98 * len(clips)


@pytest.mark.parametrize("threshold", [0.1, 1.0], ids=["sure at once", "never sure"])
def test_a_language_may_be_told_from_several_windows(
    client: OpenAI, sample_recordings: list[dict[str, Any]], threshold: float
) -> None:
    long = next(sample for sample in sample_recordings if sample["seconds"] > 60)
    transcript = client.audio.transcriptions.create(
        file=long["path"],
        model="demo",
        response_format="verbose_json",
        extra_body={
            "language_detection_segments": 3,
            "language_detection_threshold": threshold,
            "clip_timestamps": "0,5",
            "beam_size": 1,
        },
    )
    assert transcript.language == "english"


def test_the_realtime_profile_leaves_timestamps_out_of_short_text(
    client: OpenAI, sample_recordings: list[dict[str, Any]]
) -> None:
    realtime = {"decode_profile": "realtime"}
    text = client.audio.transcriptions.create(
        file=sample_recordings[0]["path"], model="demo", extra_body=realtime
    ).text
    assert text == "Send a message to David on Monday."
    timed = client.audio.transcriptions.create(
        file=sample_recordings[1]["path"], model="demo", response_format="verbose_json", extra_body=realtime
    )
    assert timed.segments is not None
    assert len(timed.segments) == 3
