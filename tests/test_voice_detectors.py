"""Streaming voice detection equals the offline result, and detectors are lent and used again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faster_whisper.audio import decode_audio
from faster_whisper.vad import get_vad_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.live_speech import PerfectDetector
from whisper_server.core.errors import VoiceDetectorsExhaustedError
from whisper_server.core.types import Samples
from whisper_server.engines.silero_vad import SileroVad
from whisper_server.services.voice_detectors import ReusableVoiceDetector, VoiceDetectorPool

pytestmark = pytest.mark.anyio

SAMPLES = Path(__file__).parent.parent / "whisper_server" / "demo" / "samples"
_BLOCK = 512


@pytest.fixture(scope="module")
def recording() -> Samples:
    name = json.loads((SAMPLES / "samples.json").read_text())[0]["file"]
    audio: Samples = decode_audio(str(SAMPLES / name))
    return audio[: len(audio) // _BLOCK * _BLOCK]


@pytest.fixture(scope="module")
def offline(recording: Samples) -> Samples:
    """What faster-whisper's own detector says of the whole recording."""
    result: Samples = get_vad_model()(recording.copy()).reshape(-1)
    return result


def test_a_stream_hears_what_the_whole_recording_says(recording: Samples, offline: Samples) -> None:
    assert offline.max() > 0.9
    assert offline.min() < 0.1
    detector = SileroVad()
    blocks = [detector.probabilities(block) for block in recording.reshape(-1, _BLOCK)]
    np.testing.assert_allclose(np.concatenate(blocks), offline, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_calls_of_any_size_give_the_same(recording: Samples, offline: Samples, sizes: list[int]) -> None:
    detector, parts, start, turn = SileroVad(), [], 0, 0
    while start < len(recording):
        size = sizes[turn % len(sizes)] * _BLOCK
        parts.append(detector.probabilities(recording[start : start + size]))
        start, turn = start + size, turn + 1
    np.testing.assert_allclose(np.concatenate(parts), offline, atol=1e-5)


def test_a_detector_that_was_reset_has_heard_nothing(recording: Samples) -> None:
    detector = SileroVad()
    first = detector.probabilities(recording)
    detector.reset()
    np.testing.assert_array_equal(detector.probabilities(recording), first)


class Factory:
    """Makes detectors and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> ReusableVoiceDetector:
        self.made += 1
        return PerfectDetector()


async def test_detectors_are_made_ahead_and_used_again() -> None:
    factory = Factory()
    pool = VoiceDetectorPool(factory, size=4, prewarm=2, cap=8)
    await pool.prewarm()
    assert (factory.made, pool.idle) == (2, 2)
    lent = [await pool.acquire() for _ in range(3)]
    assert (factory.made, pool.lent, pool.idle) == (3, 3, 0)
    lent[0].probabilities(np.ones(_BLOCK, dtype=np.float32))
    pool.release(lent[0])
    again = await pool.acquire()
    assert again is lent[0]
    assert isinstance(again, PerfectDetector)
    assert again.calls == []
    assert factory.made == 3


async def test_the_pool_grows_by_its_factor_up_to_its_cap_and_then_refuses_by_name() -> None:
    pool = VoiceDetectorPool(Factory(), size=2, growth_factor=1.5, cap=5)
    places = []
    for _ in range(5):
        await pool.acquire()
        places.append(pool.places)
    assert places == [2, 2, 3, 4, 5]
    with pytest.raises(VoiceDetectorsExhaustedError, match="All 5"):
        await pool.acquire()
    assert pool.lent == 5


async def test_no_size_takes_the_cap_and_a_detector_that_cannot_be_made_takes_no_place() -> None:
    def broken() -> ReusableVoiceDetector:
        raise OSError("no such file")

    pool = VoiceDetectorPool(broken, cap=3)
    assert pool.places == 3
    with pytest.raises(OSError, match="no such file"):
        await pool.acquire()
    assert pool.lent == 0


def test_voices_are_detected_without_what_decodes_speech() -> None:
    """CTranslate2 and the tokenizers are for the processes of models: they cost the server 10 MB."""
    code = """
import sys
import numpy as np
from whisper_server.engines.silero_vad import SileroVad
SileroVad().probabilities(np.zeros(512, np.float32))
print([name for name in ("ctranslate2", "tokenizers", "faster_whisper") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
