"""The sequential long form gives what `faster_whisper.WhisperModel.transcribe()` gives, token for token.

The models compute in float32: a window's spectrogram may differ from the whole recording's in the last bit,
because the matrix product of another width adds in another order, and int8 rounds such bits up to 1e-2 in the
log-probabilities, which decides between tokens where the model repeats itself at random.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from faster_whisper import BatchedInferencePipeline, WhisperModel, decode_audio
from faster_whisper.vad import VadOptions as LibraryVadOptions
from faster_whisper.vad import get_speech_timestamps

from whisper_server.core import mel
from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.longform import LongFormOptions, Steps, batched, sequential
from whisper_server.core.recording import Recording
from whisper_server.core.types import DecodeOptions, Samples, Segment, Task, Timestamps
from whisper_server.core.voice_activity import (
    VadOptions,
    find_speech,
    for_batches,
    speech_probabilities,
)
from whisper_server.engines import faster_whisper
from whisper_server.engines.silero_vad import SileroVad

SAMPLES = Path(__file__).parent.parent / "whisper_server" / "demo" / "samples"
COMPUTE = ComputeChoice("faster-whisper", "cpu", "float32", cpu_threads=1, workers=1)


@pytest.fixture(scope="module")
def library(demo_model_path: Path) -> WhisperModel:
    return WhisperModel(str(demo_model_path), device="cpu", compute_type="float32", cpu_threads=1)


@pytest.fixture(scope="module")
def engine(demo_model_path: Path) -> Engine:
    return faster_whisper.load(demo_model_path, COMPUTE)


@pytest.fixture(scope="module")
def audio() -> dict[str, Samples]:
    """Each sample, and two joined long recordings with silence and noise between the parts."""
    recordings = {path.stem: decode_audio(str(path)) for path in SAMPLES.iterdir() if path.suffix != ".json"}
    silence = np.zeros(5 * 16_000, dtype=np.float32)
    hiss = np.round(np.random.default_rng(7).normal(0, 300, 4 * 16_000)).astype(np.float32) / 32768
    names = ("household_en", "kitchen_en", "browser_en")
    recordings["joined_en"] = np.concatenate([part for n in names for part in (recordings[n], silence)])
    names = ("meeting_pt", "train_de", "kitchen_en")
    recordings["joined_languages"] = np.concatenate([part for n in names for part in (hiss, recordings[n])])
    recordings["silence"] = silence
    recordings["hiss"] = hiss
    return recordings


def pcm(samples: Samples) -> Recording:
    return Recording(np.round(samples * 32768).astype(np.int16))


def drive(steps: Steps, engine: Engine) -> tuple[list[Segment], list[str]]:
    """All segments, and the language of each window."""
    segments: list[Segment] = []
    languages: list[str] = []
    step = next(steps)
    while True:
        segments += step.segments
        if not step.windows:
            return segments, languages
        decoded = engine.decode(step.windows)
        languages += [result.language for result in decoded]
        step = steps.send(decoded)


def ours(
    engine: Engine, samples: Samples, options: LongFormOptions, *, vad: VadOptions | None = None
) -> tuple[list[Segment], list[str]]:
    recording = pcm(samples)
    if vad is not None:
        spans = find_speech(speech_probabilities(recording, SileroVad()), vad, len(recording))
        recording = recording.select(spans)
    return drive(sequential(recording, options, mel_peak=mel.peak(recording, 80)), engine)


def assert_same(theirs: list[Any], segments: list[Segment]) -> None:
    assert [list(s.tokens) for s in theirs] == [list(s.tokens) for s in segments]
    for expected, actual in zip(theirs, segments, strict=True):
        assert actual.text == expected.text
        assert actual.start_s == pytest.approx(expected.start, abs=1e-6)
        assert actual.end_s == pytest.approx(expected.end, abs=1e-6)
        assert round(actual.window_start_s * 100) == expected.seek
        assert actual.temperature == expected.temperature
        assert actual.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-3)
        assert actual.no_speech_prob == pytest.approx(expected.no_speech_prob, abs=1e-3)
        assert actual.compression_ratio == pytest.approx(expected.compression_ratio)
        assert [w.text for w in actual.words] == [w.word for w in expected.words or ()]
        for word, expected_word in zip(actual.words, expected.words or (), strict=True):
            assert word.start_s == pytest.approx(expected_word.start, abs=1e-6)
            assert word.end_s == pytest.approx(expected_word.end, abs=1e-6)
            assert word.probability == pytest.approx(expected_word.probability, abs=1e-3)


@dataclass(frozen=True)
class Case:
    """The same request in the library's words and in ours."""

    name: str
    library: dict[str, Any] = field(default_factory=dict)
    decode: dict[str, Any] = field(default_factory=dict)
    long_form: dict[str, Any] = field(default_factory=dict)


GREEDY_LIBRARY: dict[str, Any] = {"beam_size": 1, "best_of": 1, "temperature": 0.0}
GREEDY: dict[str, Any] = {"beam_size": 1, "best_of": 1, "temperatures": (0.0,)}
PROMPT = "Turn on the lamp in the kitchen. The meeting with Anna begins today."

CASES = [
    Case("beam", {"temperature": 0.0}, {"temperatures": (0.0,)}),
    Case("greedy", GREEDY_LIBRARY, GREEDY),
    Case(
        "greedy without timestamps",
        {**GREEDY_LIBRARY, "without_timestamps": True},
        GREEDY,
        {"timestamps": Timestamps.NONE},
    ),
    Case(
        "unconditioned",
        {**GREEDY_LIBRARY, "condition_on_previous_text": False},
        GREEDY,
        {"condition_on_previous_text": False},
    ),
    Case(
        "words",
        {**GREEDY_LIBRARY, "word_timestamps": True, "condition_on_previous_text": False},
        GREEDY,
        {"timestamps": Timestamps.WORD, "condition_on_previous_text": False},
    ),
    Case(
        "words, beam, conditioned",
        {"temperature": 0.0, "word_timestamps": True},
        {"temperatures": (0.0,)},
        {"timestamps": Timestamps.WORD},
    ),
    Case(
        "words without timestamp tokens",
        {**GREEDY_LIBRARY, "word_timestamps": True, "without_timestamps": True},
        GREEDY,
        {"timestamps": Timestamps.WORD_ONLY},
    ),
    Case(
        "hallucination silence threshold",
        {**GREEDY_LIBRARY, "word_timestamps": True, "hallucination_silence_threshold": 1.0},
        GREEDY,
        {"timestamps": Timestamps.WORD, "hallucination_silence_threshold_s": 1.0},
    ),
    Case("prompt", {**GREEDY_LIBRARY, "initial_prompt": PROMPT}, GREEDY, {"prompt": PROMPT}),
    Case(
        "prompt, unconditioned",
        {**GREEDY_LIBRARY, "initial_prompt": PROMPT, "condition_on_previous_text": False},
        GREEDY,
        {"prompt": PROMPT, "condition_on_previous_text": False},
    ),
    Case(
        "prefix and hotwords",
        {**GREEDY_LIBRARY, "prefix": "The train", "hotwords": "Vienna Lisbon"},
        {**GREEDY, "hotwords": "Vienna Lisbon"},
        {"prefix": "The train"},
    ),
    Case(
        "hotwords",
        {**GREEDY_LIBRARY, "hotwords": "Vienna Lisbon"},
        {**GREEDY, "hotwords": "Vienna Lisbon"},
    ),
    Case("given language", {**GREEDY_LIBRARY, "language": "de"}, GREEDY, {"language": "de"}),
    Case(
        "translation",
        {**GREEDY_LIBRARY, "task": "translate", "condition_on_previous_text": False},
        GREEDY,
        {"task": Task.TRANSLATE, "condition_on_previous_text": False},
    ),
    Case(
        "language of every window",
        {**GREEDY_LIBRARY, "multilingual": True, "condition_on_previous_text": False},
        GREEDY,
        {"multilingual": True, "condition_on_previous_text": False},
    ),
    Case(
        "short windows",
        {**GREEDY_LIBRARY, "chunk_length": 12, "condition_on_previous_text": False},
        GREEDY,
        {"window_s": 12, "condition_on_previous_text": False},
    ),
    Case(
        "clips",
        {**GREEDY_LIBRARY, "language": "en", "clip_timestamps": [1.0, 3.5, 4.0]},
        GREEDY,
        # The library detects the language in the 30 s after a clip's start, whatever the clip's end.
        {"language": "en", "clips_s": ((1.0, 3.5), (4.0, None))},
    ),
    Case(
        "penalties",
        {
            **GREEDY_LIBRARY,
            "beam_size": 3,
            "patience": 1.5,
            "length_penalty": 0.8,
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 4,
            "suppress_blank": False,
            "suppress_tokens": [-1, 13],
            "max_initial_timestamp": 0.5,
            "max_new_tokens": 60,
        },
        {
            **GREEDY,
            "beam_size": 3,
            "patience": 1.5,
            "length_penalty": 0.8,
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 4,
            "suppress_blank": False,
            "suppress_tokens": (-1, 13),
            "max_initial_timestamp_s": 0.5,
            "max_new_tokens": 60,
        },
    ),
    Case(
        "no thresholds",
        {
            **GREEDY_LIBRARY,
            "no_speech_threshold": None,
            "log_prob_threshold": None,
            "compression_ratio_threshold": None,
        },
        {
            **GREEDY,
            "no_speech_threshold": None,
            "log_prob_threshold": None,
            "compression_ratio_threshold": None,
        },
    ),
]

WHOLE = ("kitchen_en", "household_en", "joined_languages")
FILTERED = ("meeting_pt", "joined_en")
LONG = [("unconditioned", "morning_en"), ("words", "morning_en"), ("greedy", "hiss")]
REQUESTS = [
    *((case, name, False) for case in CASES for name in WHOLE),
    # The library ignores its filter beside clips.
    *((case, name, True) for case in CASES for name in FILTERED if case.name != "clips"),
    *((case, name, False) for case in CASES for wanted, name in LONG if case.name == wanted),
]


@pytest.mark.parametrize(
    ("case", "name", "vad_filter"),
    [pytest.param(c, n, v, id=f"{c.name}-{n}-{'vad' if v else 'whole'}") for c, n, v in REQUESTS],
)
def test_sequential_equals_transcribe(
    case: Case,
    name: str,
    vad_filter: bool,
    library: WhisperModel,
    engine: Engine,
    audio: dict[str, Samples],
) -> None:
    # The library changes its options in place, and keeps the last chunk_length.
    request = {key: list(v) if isinstance(v, list) else v for key, v in case.library.items()}
    request.setdefault("chunk_length", 30)
    expected, info = library.transcribe(audio[name].copy(), vad_filter=vad_filter, **request)
    options = LongFormOptions(decode=DecodeOptions(**case.decode), **case.long_form)
    segments, languages = ours(engine, audio[name], options, vad=VadOptions() if vad_filter else None)
    assert_same(list(expected), segments)
    assert languages[0] == info.language


def test_temperature_fallback_draws_the_same_samples(
    demo_model_path: Path, audio: dict[str, Samples]
) -> None:
    """Thresholds that greedy decoding misses send every window up the ladder of temperatures."""
    strict: dict[str, Any] = {"log_prob_threshold": -0.02, "compression_ratio_threshold": 1.2, "best_of": 3}
    ladder = (0.0, 0.4, 0.8)
    # A model's threads take their seed when they first sample, so each side gets a new model.
    ctranslate2.set_random_seed(11)
    library = WhisperModel(str(demo_model_path), device="cpu", compute_type="float32", cpu_threads=1)
    theirs, _ = library.transcribe(
        audio["household_en"].copy(), temperature=list(ladder), beam_size=1, **strict
    )
    expected = list(theirs)
    ctranslate2.set_random_seed(11)
    engine = faster_whisper.load(demo_model_path, COMPUTE)
    options = LongFormOptions(decode=DecodeOptions(temperatures=ladder, beam_size=1, **strict))
    segments, _ = ours(engine, audio["household_en"], options)
    assert {segment.temperature for segment in segments} - {0.0}, "no window fell back"
    assert_same(expected, segments)


def spoken(audio: Samples, vad: VadOptions) -> Recording:
    recording = pcm(audio)
    return recording.select(find_speech(speech_probabilities(recording, SileroVad()), vad, len(recording)))


@pytest.mark.parametrize("name", ["household_en", "train_de", "morning_en", "joined_en"])
@pytest.mark.parametrize("timestamps", [Timestamps.NONE, Timestamps.SEGMENT, Timestamps.WORD])
def test_batched_equals_the_batched_pipeline(
    name: str, timestamps: Timestamps, library: WhisperModel, engine: Engine, audio: dict[str, Samples]
) -> None:
    expected, _ = BatchedInferencePipeline(library).transcribe(
        audio[name].copy(),
        **GREEDY_LIBRARY,
        without_timestamps=not timestamps.has_tokens,
        word_timestamps=timestamps.has_words,
    )
    recording = spoken(audio[name], for_batches(VadOptions(), 30))
    options = LongFormOptions(timestamps=timestamps, decode=DecodeOptions(**GREEDY))
    segments, _ = drive(batched(recording, options, batch_size=4), engine)
    # The pipeline keeps segments without text.
    assert [s.text for s in segments] == [s.text for s in expected if s.text.strip()]


def test_batched_temperatures_really_sample(engine: Engine, audio: dict[str, Samples]) -> None:
    """The library's pipeline stays greedy at any temperature; here each run draws anew."""
    recording = spoken(audio["household_en"], for_batches(VadOptions(), 30))
    hot = DecodeOptions(beam_size=1, best_of=1, temperatures=(3.0,), max_new_tokens=40)
    texts = set()
    for _ in range(4):
        segments, _ = drive(batched(recording, LongFormOptions(decode=hot), batch_size=8), engine)
        texts.add("".join(segment.text for segment in segments))
    assert len(texts) > 1


def test_vad_equals_the_library(audio: dict[str, Samples]) -> None:
    for name, samples in audio.items():
        for ours_vad in (
            VadOptions(),
            VadOptions(min_silence_duration_ms=100, speech_pad_ms=30),
            VadOptions(max_speech_duration_s=4, min_speech_duration_ms=250),
            for_batches(VadOptions(threshold=0.8), 10),
        ):
            theirs = get_speech_timestamps(samples.copy(), LibraryVadOptions(**asdict(ours_vad)))
            spans = spoken(samples, ours_vad).spans
            assert [{"start": s.start, "end": s.stop} for s in spans] == theirs, name
