"""Windows that are decoded together: what each gives, and how many calls of the model that takes.

The model computes in int8, as it does on CPUs. Every row is quantised by itself and encoded by itself, so
its results do not depend on its company.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_whisper import decode_audio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.recorded_whisper import RecordedWhisper, recorded_engine
from whisper_server.core.batching import batch_key
from whisper_server.core.engine import Engine
from whisper_server.core.types import (
    SAMPLE_RATE,
    AudioContext,
    Decoded,
    DecodeOptions,
    Samples,
    Task,
    Timestamps,
    Window,
)

# No threshold sends a window up the ladder of temperatures, where samples are drawn at random.
GREEDY = DecodeOptions(
    beam_size=1, temperatures=(0.0,), compression_ratio_threshold=None, log_prob_threshold=None
)
BEAM = replace(GREEDY, beam_size=3, max_new_tokens=40, no_speech_threshold=None)
PROMPTS = ("", "Turn on the lamp.", "Call Anna at two o'clock. Open the door.")


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> tuple[Engine, RecordedWhisper]:
    return recorded_engine(demo_model_path)


@pytest.fixture(scope="module")
def clips(demo_test_set: list[dict[str, Any]]) -> list[Samples]:
    return [decode_audio(str(clip["path"])) for clip in demo_test_set[:24]]


@dataclass(frozen=True)
class Spec:
    """A window in a form that can be drawn, printed and looked up."""

    sound: str
    seed: int
    tenths: int
    language: str | None
    task: Task
    prompt: str
    previous_tokens: tuple[int, ...]
    prefix: str
    timestamps: Timestamps
    token_logprobs: bool
    audio_context: AudioContext
    options: DecodeOptions

    def window(self, clips: list[Samples]) -> Window:
        return Window(
            self._samples(clips),
            language=self.language,
            task=self.task,
            prompt=self.prompt,
            previous_tokens=self.previous_tokens,
            prefix=self.prefix,
            timestamps=self.timestamps,
            token_logprobs=self.token_logprobs,
            audio_context=self.audio_context,
            options=self.options,
        )

    def _samples(self, clips: list[Samples]) -> Samples:
        count = self.tenths * SAMPLE_RATE // 10
        rng = np.random.default_rng(self.seed)
        noise = rng.normal(0, 0.01, count).astype(np.float32)
        speech = np.resize(np.concatenate([clips[i] for i in rng.permutation(len(clips))]), count)
        silence = np.zeros(count, dtype=np.float32)
        return {"speech": speech, "silence": silence, "noise": noise, "noisy": speech + noise}[self.sound]


SPECS = st.builds(
    Spec,
    sound=st.sampled_from(["speech", "noisy", "noise", "silence"]),
    seed=st.integers(0, 9),
    tenths=st.integers(1, 300),
    language=st.sampled_from(["en", "pt", "de", None]),
    task=st.sampled_from(Task),
    prompt=st.sampled_from(PROMPTS),
    previous_tokens=st.sampled_from([(), (440, 2217), (13, 440)]),
    prefix=st.sampled_from(["", "", "Open"]),
    timestamps=st.sampled_from(Timestamps),
    token_logprobs=st.booleans(),
    audio_context=st.sampled_from(AudioContext),
    options=st.sampled_from([GREEDY, BEAM]),
)

bounded = settings(
    max_examples=16,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.generate],  # shrinking a failure would take minutes
)


@pytest.fixture(scope="module")
def decode_alone(model: tuple[Engine, RecordedWhisper], clips: list[Samples]) -> Callable[[Spec], Decoded]:
    return cache(lambda spec: model[0].decode([spec.window(clips)])[0])


def assert_equal(ours: Decoded, alone: Decoded) -> None:
    assert exact_parts(ours) == exact_parts(alone)
    assert scores(ours) == pytest.approx(scores(alone), abs=1e-4)


def exact_parts(decoded: Decoded) -> tuple[Any, ...]:
    segments = [(s.text, s.tokens, s.start_s, s.end_s, s.text_token_count) for s in decoded.segments]
    logprobs = [[t.utf8 for t in s.token_logprobs] for s in decoded.segments]
    words = [(word.text, word.tokens, word.start_s, word.end_s) for word in decoded.alignment]
    return segments, logprobs, words, decoded.language, decoded.consumed_s, decoded.is_complete


def scores(decoded: Decoded) -> list[float]:
    numbers = [decoded.language_probability, *(word.probability for word in decoded.alignment)]
    for segment in decoded.segments:
        numbers += [segment.avg_logprob, segment.no_speech_prob, segment.compression_ratio]
        numbers += [np.exp(token.logprob) for token in segment.token_logprobs]
    return numbers


@given(st.lists(SPECS, min_size=1, max_size=8))
@bounded
def test_a_batched_row_gives_what_the_window_gives_alone(
    model: tuple[Engine, RecordedWhisper],
    clips: list[Samples],
    decode_alone: Callable[[Spec], Decoded],
    specs: list[Spec],
) -> None:
    engine, _ = model
    together = engine.decode([spec.window(clips) for spec in specs])
    for spec, decoded in zip(specs, together, strict=True):
        assert_equal(decoded, decode_alone(spec))


@given(SPECS, st.data())
@settings(bounded, max_examples=8)
def test_windows_of_one_key_are_decoded_in_one_call(
    model: tuple[Engine, RecordedWhisper],
    clips: list[Samples],
    decode_alone: Callable[[Spec], Decoded],
    spec: Spec,
    data: st.DataObject,
) -> None:
    """Whatever else the windows differ in; and the rows are still right."""
    engine, recorded = model
    has_tokens = spec.timestamps.has_tokens
    same_kind = st.sampled_from([one for one in Timestamps if one.has_tokens == has_tokens])
    alike = [
        replace(
            other,
            prompt=spec.prompt,
            previous_tokens=tuple(reversed(spec.previous_tokens)),
            prefix=spec.prefix,
            timestamps=data.draw(same_kind),
            audio_context=AudioContext.FULL,
            options=spec.options,
        )
        for other in data.draw(st.lists(SPECS, min_size=1, max_size=4))
    ]
    specs = [replace(spec, audio_context=AudioContext.FULL), *alike]
    windows = [one.window(clips) for one in specs]
    assert len({batch_key(window) for window in windows}) == 1
    recorded.calls.clear()
    together = engine.decode(windows)
    assert [(call.rows, call.frames) for call in recorded.of("generate")] == [(len(windows), 3000)]
    for one, decoded in zip(specs, together, strict=True):
        assert_equal(decoded, decode_alone(one))


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        ({"language": "de"}, True),
        ({"language": None}, True),
        ({"task": Task.TRANSLATE}, True),
        ({"token_logprobs": True}, True),
        ({"timestamps": Timestamps.WORD}, True),
        ({"previous_tokens": (5, 6)}, True),
        ({"timestamps": Timestamps.NONE}, False),
        ({"timestamps": Timestamps.WORD_ONLY}, False),
        ({"previous_tokens": (5, 6, 7)}, False),
        ({"prompt": "Close the door."}, False),
        ({"prefix": "Open"}, False),
        ({"audio_context": AudioContext.AUTO}, False),
        ({"options": BEAM}, False),
    ],
)
def test_the_key_is_what_a_call_shares(change: dict[str, Any], shares: bool) -> None:
    window = Window(
        np.zeros(SAMPLE_RATE, dtype=np.float32),
        language="en",
        prompt="Open the door.",
        previous_tokens=(1, 2),
        options=GREEDY,
    )
    assert (batch_key(window) == batch_key(replace(window, **change))) is shares
    assert hash(batch_key(window)) == hash(batch_key(replace(window)))


@pytest.fixture(scope="module")
def spoken(demo_test_set: list[dict[str, Any]], clips: list[Samples]) -> list[Window]:
    """Windows of speech, of many kinds."""
    rng = random.Random(5)
    return [
        Window(
            samples,
            language=rng.choice([None, clip["language"]]),
            task=rng.choice(list(Task)),
            prompt=rng.choice(PROMPTS),
            timestamps=rng.choice(list(Timestamps)),
            audio_context=rng.choice(list(AudioContext)),
            options=rng.choice([GREEDY, replace(GREEDY, beam_size=3)]),
        )
        for clip, samples in zip(demo_test_set, clips, strict=False)
    ]


def test_a_gpu_encodes_a_batch_in_one_call_with_the_same_results(
    demo_model_path: Path, spoken: list[Window]
) -> None:
    # Float weights: in int8 another order of adding would grow from the last bit to other tokens.
    engine, recorded = recorded_engine(demo_model_path, compute_type="float32", as_if_on="cuda")
    alone = [engine.decode([window])[0] for window in spoken]
    shuffled = random.Random(3).sample(range(len(spoken)), len(spoken))
    for first in range(0, len(shuffled), 6):
        batch = shuffled[first : first + 6]
        recorded.calls.clear()
        together = engine.decode([spoken[index] for index in batch])
        encoded = recorded.of("encode")
        assert sum(call.rows for call in encoded) == len(batch)
        assert len(encoded) == len({call.frames for call in encoded})
        for index, decoded in zip(batch, together, strict=True):
            assert_equal(decoded, alone[index])


def test_a_gpu_detects_and_aligns_a_batch_in_one_call(demo_model_path: Path, spoken: list[Window]) -> None:
    engine, recorded = recorded_engine(demo_model_path, as_if_on="cuda")
    english = [replace(w, language=None, task=Task.TRANSCRIBE, prompt="", options=GREEDY) for w in spoken[:6]]
    alike = [replace(w, timestamps=Timestamps.WORD, audio_context=AudioContext.FULL) for w in english]
    languages = {decoded.language for decoded in engine.decode(alike)}
    assert [(call.method, call.rows) for call in recorded.calls[:3]] == [
        ("encode", 6),
        ("detect_language", 6),
        ("generate", 6),
    ]
    assert len(recorded.of("align")) == len(languages)
    assert sum(call.rows for call in recorded.of("align")) == 6


def test_a_cpu_encodes_each_window_by_itself_and_decodes_them_together(
    model: tuple[Engine, RecordedWhisper], spoken: list[Window]
) -> None:
    engine, recorded = model
    alike = [
        replace(w, prompt="", timestamps=Timestamps.SEGMENT, audio_context=AudioContext.FULL, options=GREEDY)
        for w in spoken[:8]
    ]
    with_words = [replace(w, timestamps=Timestamps.WORD) for w in alike[:3]] + alike[3:]
    unknown = sum(window.language is None for window in with_words)
    recorded.calls.clear()
    engine.decode(with_words)
    assert [call.rows for call in recorded.of("encode")] == [1] * 8
    assert [call.rows for call in recorded.of("detect_language")] == [1] * unknown
    assert [call.rows for call in recorded.of("generate")] == [8]
    assert [call.rows for call in recorded.of("align")] == [1] * 3


def test_rows_that_fail_go_on_together_and_are_encoded_once(
    model: tuple[Engine, RecordedWhisper], spoken: list[Window]
) -> None:
    engine, recorded = model
    plain = [
        replace(
            w,
            language="en",
            prompt="",
            timestamps=Timestamps.SEGMENT,
            audio_context=AudioContext.FULL,
            options=GREEDY,
        )
        for w in spoken[:8]
    ]
    ratios = [engine.decode([w])[0].segments[0].compression_ratio for w in plain]
    threshold = sorted(ratios)[4] - 1e-9
    ladder = replace(GREEDY, temperatures=(0.0, 0.4, 0.8), best_of=2, compression_ratio_threshold=threshold)
    recorded.calls.clear()
    decoded = engine.decode([replace(w, options=ladder) for w in plain])
    for ratio, result in zip(ratios, decoded, strict=True):
        assert (result.temperature > 0) is (ratio > threshold)
    sizes = [call.rows for call in recorded.of("generate")]
    assert sizes[:2] == [8, 4]
    assert sizes == sorted(sizes, reverse=True)
    assert len(recorded.of("encode")) == 8
