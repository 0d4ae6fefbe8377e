"""The faster-whisper engine by itself: what it refuses, what it survives, and how it names its faults."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ctranslate2 import DataType, StorageView
from faster_whisper import WhisperModel, decode_audio

from tests.recorded_whisper import RecordedWhisper, recorded_engine
from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.errors import (
    EngineCrashedError,
    EngineError,
    EngineOutOfMemoryError,
    InvalidRequestError,
    ModelLoadError,
    UnsupportedByEngineError,
)
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import DecodeOptions, Timestamps, Window
from whisper_server.engines import faster_whisper
from whisper_server.engines.whisper_encoder import Chunk, Encodings
from whisper_server.engines.worker_turns import WorkerTurns

COMPUTE = ComputeChoice("faster-whisper", "cpu", "float32", cpu_threads=1, workers=1)
GREEDY = DecodeOptions(beam_size=1, best_of=1, temperatures=(0.0,))


@pytest.fixture(scope="module")
def engine(demo_model_path: Path) -> Iterator[Engine]:
    loaded = faster_whisper.load(demo_model_path, COMPUTE)
    yield loaded
    loaded.close()
    loaded.close()  # closing twice is harmless


@pytest.fixture(scope="module")
def recorded(demo_model_path: Path) -> tuple[Engine, RecordedWhisper]:
    return recorded_engine(demo_model_path)


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


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_computed(
    recorded: tuple[Engine, RecordedWhisper],
) -> None:
    engine, calls = recorded
    calls.calls.clear()
    window = Window(
        np.zeros(16_000, dtype=np.float32),
        prompt="Open the door. " * 100,
        options=replace(GREEDY, max_new_tokens=440),
    )
    with pytest.raises(InvalidRequestError, match="max_new_tokens") as caught:
        engine.decode([window])
    assert caught.value.code == "context_length_exceeded"
    assert calls.calls == []


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


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (RuntimeError("CUDA failed with error out of memory"), EngineOutOfMemoryError),
        (RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"), EngineOutOfMemoryError),
        (MemoryError("std::bad_alloc"), EngineOutOfMemoryError),
        (RuntimeError("CUDA failed with error an illegal memory access was encountered"), EngineCrashedError),
        (RuntimeError("something else"), EngineError),
    ],
)
def test_faults_of_the_device_are_named_and_keep_their_cause(
    recorded: tuple[Engine, RecordedWhisper], fault: Exception, kind: type[EngineError]
) -> None:
    engine, whisper = recorded
    window = Window(np.zeros(16_000, dtype=np.float32), language="en", options=GREEDY)
    whisper.fault = fault
    with pytest.raises(EngineError) as caught:
        engine.decode([window])
    assert type(caught.value) is kind
    assert caught.value.__cause__ is fault
    assert "CUDA" not in caught.value.message
    assert len(engine.decode([window])) == 1  # the next call is none the worse for it


def test_a_call_to_an_engine_without_weights_is_an_engine_error(demo_model_path: Path) -> None:
    engine = faster_whisper.load(demo_model_path, COMPUTE)
    engine.close()
    with pytest.raises(EngineError) as caught:
        engine.decode([Window(np.zeros(16_000, dtype=np.float32), language="en", options=GREEDY)])
    assert type(caught.value) is EngineError


def test_encodings_in_bfloat16_are_put_together_on_the_host() -> None:
    """Numpy has no such numbers, and some GPUs compute in them."""
    views = [StorageView.from_array(np.full((1, 4, 2), n, np.float32)) for n in range(3)]
    chunks = [Chunk(v.to(DataType.bfloat16), [row]) for row, v in enumerate(views)]
    encodings = Encodings(None, WorkerTurns(1, spare=0), Priority.LONG_FILE, chunks)
    taken = np.asarray(encodings.take([0, 2]))
    assert taken.shape == (2, 4, 2)
    assert taken[:, 0, 0].tolist() == [0.0, 2.0]


def test_an_urgent_call_overtakes_a_patient_one(
    recorded: tuple[Engine, RecordedWhisper], demo_test_set: list[dict[str, Any]]
) -> None:
    engine, whisper = recorded
    whisper.calls.clear()
    clip, other = (
        Window(decode_audio(str(each["path"])), language=each["language"], options=GREEDY)
        for each in demo_test_set[:2]
    )
    (alone,) = engine.decode([clip])
    hold = threading.Event()
    whisper.holds.append(hold)
    with ThreadPoolExecutor(1) as threads:
        file = threads.submit(engine.decode, [other], Priority.LONG_FILE)
        whisper.wait_until_held()
        assert engine.decode([clip], Priority.SHORT_FILE) == [alone]
        assert not file.done()
        hold.set()
        assert file.result(60)[0].segments


def test_the_weights_are_loaded_for_the_workers_and_spare_ones(
    demo_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[WhisperModel] = []

    def load(*arguments: Any, **options: Any) -> WhisperModel:
        loaded.append(WhisperModel(*arguments, **options))
        return loaded[-1]

    monkeypatch.setattr("faster_whisper.WhisperModel", load)
    engine = faster_whisper.load(demo_model_path, replace(COMPUTE, workers=2))
    assert loaded[0].model.num_workers == 4
    assert (engine.capabilities.parallel_calls, engine.capabilities.overtaking_calls) == (3, 2)
    engine.close()


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
