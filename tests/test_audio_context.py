"""A short encoder context: how short, that it costs less, and that it mostly says the same."""

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from faster_whisper import decode_audio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorded_whisper import RecordedWhisper, recorded_engine
from whisper_server.core.audio_context import CONTEXT_FRAMES, MARGIN_S, encoder_frames
from whisper_server.core.engine import Engine
from whisper_server.core.types import (
    FRAMES_PER_SECOND,
    MAX_WINDOW_S,
    SAMPLE_RATE,
    AudioContext,
    Decoded,
    DecodeOptions,
    Timestamps,
    Window,
)

GREEDY = DecodeOptions(beam_size=1, temperatures=(0.0,))
CLIPS = 56


def silent(samples: int, context: AudioContext, *, margin: int = 0) -> Window:
    audio = np.zeros(samples + 2 * margin, dtype=np.float32)
    return Window(audio, margin_before=margin, margin_after=margin, audio_context=context)


@given(st.integers(0, MAX_WINDOW_S * SAMPLE_RATE), st.integers(0, 200))
@settings(derandomize=True, database=None, deadline=None)
def test_auto_holds_the_audio_and_a_margin_in_few_lengths(samples: int, margin: int) -> None:
    frames = encoder_frames(silent(samples, AudioContext.AUTO, margin=margin))
    needed_s = samples / SAMPLE_RATE + MARGIN_S
    assert frames in CONTEXT_FRAMES
    assert frames / FRAMES_PER_SECOND >= min(needed_s, MAX_WINDOW_S)
    assert all(shorter / FRAMES_PER_SECOND < needed_s for shorter in CONTEXT_FRAMES if shorter < frames)
    assert encoder_frames(silent(samples, AudioContext.FULL, margin=margin)) == 3000


def test_no_length_is_one_that_is_taken_for_a_spectrogram() -> None:
    for mel_bins in (80, 128):
        assert mel_bins not in {frames // 2 for frames in CONTEXT_FRAMES}
    assert min(CONTEXT_FRAMES) >= 5 * FRAMES_PER_SECOND
    assert all(frames % 2 == 0 for frames in CONTEXT_FRAMES)


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> tuple[Engine, RecordedWhisper]:
    return recorded_engine(demo_model_path)


@pytest.fixture(scope="module")
def windows(demo_test_set: list[dict[str, Any]]) -> list[Window]:
    return [
        Window(decode_audio(str(clip["path"])), timestamps=Timestamps.WORD, options=GREEDY)
        for clip in demo_test_set[:CLIPS]
    ]


def decoded_in_batches(engine: Engine, windows: list[Window]) -> list[Decoded]:
    return [
        decoded
        for first in range(0, len(windows), 8)
        for decoded in engine.decode(windows[first : first + 8])
    ]


def text(decoded: Decoded) -> str:
    return "".join(segment.text for segment in decoded.segments)


def test_auto_costs_a_fraction_and_mostly_says_the_same(
    model: tuple[Engine, RecordedWhisper], windows: list[Window]
) -> None:
    engine, recorded = model
    encoded_frames = {}
    results = {}
    for context in AudioContext:
        recorded.calls.clear()
        results[context] = decoded_in_batches(engine, [replace(w, audio_context=context) for w in windows])
        encoded_frames[context] = sum(call.rows * call.frames for call in recorded.of("encode"))
    assert encoded_frames[AudioContext.FULL] == CLIPS * 3000
    assert encoded_frames[AudioContext.AUTO] <= CLIPS * 3000 / 4
    pairs = list(zip(results[AudioContext.FULL], results[AudioContext.AUTO], strict=True))
    assert sum(full.language == auto.language for full, auto in pairs) == CLIPS
    same = [(full, auto) for full, auto in pairs if text(full) == text(auto)]
    assert len(same) >= 0.95 * CLIPS
    shifts_s = [
        abs(one.start_s - other.start_s)
        for full, auto in same
        for one, other in zip(full.alignment, auto.alignment, strict=True)
    ]
    assert median(shifts_s) <= 0.04
    for window, (_, auto) in zip(windows, pairs, strict=True):
        assert all(word.end_s <= window.duration_s for word in auto.alignment)


@pytest.mark.parametrize("audio_s", [0.1, 2.0, 8.0])
def test_silence_stays_silence_in_a_short_context(
    model: tuple[Engine, RecordedWhisper], audio_s: float
) -> None:
    engine, _ = model
    window = silent(round(audio_s * SAMPLE_RATE), AudioContext.AUTO)
    (decoded,) = engine.decode([replace(window, options=replace(GREEDY, log_prob_threshold=None))])
    assert decoded.segments == ()
    assert decoded.consumed_s == audio_s


def test_windows_of_all_lengths_are_decoded_in_one_call(
    model: tuple[Engine, RecordedWhisper], windows: list[Window]
) -> None:
    engine, recorded = model
    spoken = [
        replace(windows[1], samples=np.pad(windows[1].samples, (0, pad_s * SAMPLE_RATE)))
        for pad_s in (0, 2, 5, 9, 13, 18, 24)
    ]
    autos = [replace(window, audio_context=AudioContext.AUTO) for window in spoken]
    mixed = [window for pair in zip(autos, spoken, strict=True) for window in pair]
    recorded.calls.clear()
    results = engine.decode(mixed)
    assert sorted({call.frames for call in recorded.of("encode")}) == sorted(
        {encoder_frames(window) for window in mixed}
    )
    assert {call.frames for call in recorded.of("generate")} == {
        call.frames for call in recorded.of("encode")
    }
    alone = [engine.decode([window])[0] for window in mixed]
    assert [text(decoded) for decoded in results] == [text(decoded) for decoded in alone]
