"""The faster-whisper engine by itself: what a window gives does not depend on its company."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_whisper import decode_audio

from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.errors import InvalidRequestError, ModelLoadError, UnsupportedByEngineError
from whisper_server.core.types import Decoded, DecodeOptions, Task, Timestamps, Window
from whisper_server.engines import faster_whisper

# Float weights: int8 rounds the last bits by the company a row is in.
COMPUTE = ComputeChoice("faster-whisper", "cpu", "float32", cpu_threads=1, workers=1)
GREEDY = DecodeOptions(beam_size=1, best_of=1, temperatures=(0.0,))


@pytest.fixture(scope="module")
def engine(demo_model_path: Path) -> Iterator[Engine]:
    loaded = faster_whisper.load(demo_model_path, COMPUTE)
    yield loaded
    loaded.close()
    loaded.close()  # closing twice is harmless


@pytest.fixture(scope="module")
def windows(demo_test_set: list[dict[str, Any]]) -> list[Window]:
    """Windows of many kinds: languages given and not, tasks, prompts, timings, options."""
    rng = random.Random(5)
    beam = DecodeOptions(beam_size=3, temperatures=(0.0,))
    result = []
    for clip in demo_test_set[:24]:
        result.append(
            Window(
                decode_audio(str(clip["path"])),
                language=rng.choice([None, clip["language"]]),
                task=rng.choice(list(Task)),
                prompt=rng.choice(["", "Turn on the lamp.", "Call Anna at two o'clock. Open the door."]),
                timestamps=rng.choice(list(Timestamps)),
                options=rng.choice([GREEDY, beam]),
            )
        )
    return result


def summary(decoded: Decoded) -> tuple[Any, ...]:
    tokens = [segment.tokens for segment in decoded.segments]
    words = [(word.text, word.start_s, word.end_s) for word in decoded.alignment]
    return tokens, words, decoded.language, decoded.consumed_s, decoded.is_complete


def test_a_batched_row_gives_what_the_window_gives_alone(engine: Engine, windows: list[Window]) -> None:
    alone = [engine.decode([window])[0] for window in windows]
    shuffled = list(enumerate(windows))
    random.Random(3).shuffle(shuffled)
    for first in range(0, len(shuffled), 6):
        batch = shuffled[first : first + 6]
        for (index, _), decoded in zip(batch, engine.decode([w for _, w in batch]), strict=True):
            assert summary(decoded) == summary(alone[index])
            for ours, theirs in zip(decoded.segments, alone[index].segments, strict=True):
                assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=1e-4)


def test_failed_rows_alone_go_to_the_next_temperature(engine: Engine, windows: list[Window]) -> None:
    plain = [replace(w, timestamps=Timestamps.SEGMENT, prompt="", options=GREEDY) for w in windows[:8]]
    ratios = [engine.decode([w])[0].segments[0].compression_ratio for w in plain]
    threshold = sorted(ratios)[4]
    ladder = replace(GREEDY, temperatures=(0.0, 0.4), compression_ratio_threshold=threshold - 1e-9)
    decoded = engine.decode([replace(w, options=ladder) for w in plain])
    for ratio, result in zip(ratios, decoded, strict=True):
        assert result.temperature == (0.4 if ratio >= threshold else 0.0)


def test_languages_are_ranked(engine: Engine, demo_test_set: list[dict[str, Any]]) -> None:
    clips = demo_test_set[:6]
    rankings = engine.detect_language([Window(decode_audio(str(clip["path"]))) for clip in clips])
    for clip, ranking in zip(clips, rankings, strict=True):
        assert ranking[0][0] == clip["language"]
        probabilities = [probability for _, probability in ranking]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-3)


def test_what_the_model_calls_silence_gives_no_segments(engine: Engine) -> None:
    silence = Window(np.zeros(48_000, dtype=np.float32), options=replace(GREEDY, log_prob_threshold=None))
    (decoded,) = engine.decode([silence])
    assert decoded.segments == ()
    assert decoded.consumed_s == 3.0


def test_an_unknown_language_is_refused_by_name(engine: Engine) -> None:
    with pytest.raises(UnsupportedByEngineError, match="xx") as caught:
        engine.decode([Window(np.zeros(16_000, dtype=np.float32), language="xx")])
    assert caught.value.param == "language"


def test_a_prompt_that_leaves_no_room_is_refused(engine: Engine) -> None:
    window = Window(
        np.zeros(16_000, dtype=np.float32),
        language="en",
        prompt="Open the door. " * 100,
        options=replace(GREEDY, max_new_tokens=440),
    )
    with pytest.raises(InvalidRequestError, match="max_new_tokens") as caught:
        engine.decode([window])
    assert caught.value.code == "context_length_exceeded"


def test_a_token_id_beyond_the_vocabulary_is_refused(engine: Engine) -> None:
    """CTranslate2 would write outside its memory and kill the process."""
    window = Window(np.zeros(16_000, dtype=np.float32), options=replace(GREEDY, suppress_tokens=(10**6,)))
    with pytest.raises(InvalidRequestError) as caught:
        engine.decode([window])
    assert caught.value.param == "suppress_tokens"


@pytest.mark.parametrize("frames", [0, 1, 2, 5])
def test_words_of_a_few_frames_do_not_fail(
    engine: Engine, demo_test_set: list[dict[str, Any]], frames: int
) -> None:
    audio = decode_audio(str(demo_test_set[1]["path"]))[8_000 : 8_000 + 160 * frames]
    open_to_anything = replace(GREEDY, no_speech_threshold=None, log_prob_threshold=None)
    window = Window(audio, language="en", timestamps=Timestamps.WORD, options=open_to_anything)
    (decoded,) = engine.decode([window])
    assert all(word.start_s <= word.end_s for word in decoded.alignment)


def test_long_hotwords_and_a_long_prompt_leave_room_for_text(
    engine: Engine, demo_test_set: list[dict[str, Any]]
) -> None:
    clip = demo_test_set[1]
    window = Window(
        decode_audio(str(clip["path"])),
        language="en",
        prompt="Open the door of the kitchen. " * 60,
        options=replace(GREEDY, hotwords="kitchen lamp " * 300),
    )
    (decoded,) = engine.decode([window])
    assert decoded.segments


def test_control_tokens_in_a_prompt_are_only_left_out(
    engine: Engine, demo_test_set: list[dict[str, Any]]
) -> None:
    window = Window(decode_audio(str(demo_test_set[1]["path"])), language="en", options=GREEDY)
    texts = [
        "".join(s.text for s in engine.decode([replace(window, prompt=prompt)])[0].segments)
        for prompt in ("Open the door.", "<|endoftext|>Open the <|translate|>door.<|nospeech|>")
    ]
    assert texts[0] == texts[1] != ""


def test_capabilities_tell_what_was_loaded(engine: Engine, demo_model_path: Path) -> None:
    can = engine.capabilities
    assert (can.engine, can.device, can.compute_type) == ("faster-whisper", "cpu", "float32")
    assert {"en", "pt", "de"} <= can.languages
    assert can.is_multilingual
    assert can.mel_bins == 80
    assert can.weights_bytes == (demo_model_path / "model.bin").stat().st_size


def test_files_that_are_no_model_are_a_load_error(tmp_path: Path, demo_model_path: Path) -> None:
    for file in demo_model_path.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:1000] if file.name == "model.bin" else content)
    with pytest.raises(ModelLoadError) as caught:
        faster_whisper.load(tmp_path, COMPUTE)
    assert str(tmp_path) not in caught.value.message
