"""`POST /debug/audio-info`: what is told of a recording without a model."""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.live_server import make_settings, running_server
from tests.media import encode, noise, pictures, silence, tone, wav, wav_from_bytes
from tests.wire import error_of, health, request
from whisper_server.core.levels import levels
from whisper_server.core.recording import Recording, SampleSpan

TONE = tone(2, 48_000)
STEREO = np.stack([tone(2, 44_100), tone(2, 44_100)], axis=1)


def describe(url: str, recording: bytes, **fields: str) -> httpx.Response:
    return request("POST", f"{url}/debug/audio-info", files={"file": recording}, data=fields)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of its own, for 5 s and 1 MB."""
    with running_server(make_settings(limits={"max_audio_s": 5, "max_audio_file_size_mb": 1})) as server_url:
        yield server_url


FILES: dict[str, tuple[Callable[[], bytes], dict[str, Any]]] = {
    "wav": (
        lambda: wav(STEREO, 44_100, "PCM_24"),
        {"format": "wav", "container": "wav", "codec": "pcm_s24le", "sample_rate_hz": 44_100, "channels": 2},
    ),
    "mp3": (
        lambda: encode(STEREO, 44_100, "mp3", "libmp3lame", bit_rate=64_000),
        {"format": "mp3", "container": "mp3", "codec": "mp3", "sample_rate_hz": 44_100, "channels": 2}
        | {"bit_rate_bps": 64_000},
    ),
    "m4a": (
        lambda: encode(TONE, 48_000, "ipod", "aac"),
        {"format": "m4a", "container": "mov,mp4,m4a,3gp,3g2,mj2", "codec": "aac", "channels": 1},
    ),
    "film": (
        lambda: encode(TONE, 48_000, "mp4", "aac", has_picture=True),
        {"format": "mp4", "container": "mov,mp4,m4a,3gp,3g2,mj2", "codec": "aac", "channels": 1},
    ),
    "webm": (
        lambda: encode(TONE, 48_000, "webm", "libopus"),
        {"format": "webm", "container": "matroska,webm", "codec": "opus", "sample_rate_hz": 48_000},
    ),
    "ogg": (
        lambda: wav(TONE, 48_000, "VORBIS", "OGG"),
        {"format": "ogg", "container": "ogg", "codec": "vorbis", "sample_rate_hz": 48_000},
    ),
    "flac": (
        lambda: encode(TONE, 48_000, "flac", "flac"),
        {"format": "flac", "container": "flac", "codec": "flac", "sample_rate_hz": 48_000},
    ),
    "aac": (
        lambda: encode(TONE, 48_000, "adts", "aac"),
        {"format": "aac", "container": "aac", "codec": "aac", "sample_rate_hz": 48_000},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_described(url: str, name: str) -> None:
    make, expected = FILES[name]
    recording = make()
    answer = describe(url, recording).json()
    assert {key: answer[key] for key in expected} == expected
    assert answer["size_bytes"] == len(recording)
    assert answer["duration_s"] == pytest.approx(2, abs=0.1)
    # A sine of half the full scale: its peak is 6.02 dB below, its RMS 3.01 more. Lossy codecs change both.
    assert answer["peak_dbfs"] == pytest.approx(-6.02, abs=0.1 if name in ("wav", "flac") else 6)
    assert answer["rms_dbfs"] == pytest.approx(-9.03, abs=0.1 if name in ("wav", "flac") else 1)


def test_silence_has_no_level(url: str) -> None:
    answer = describe(url, wav(silence(1))).json()
    assert answer == {
        "format": "wav",
        "container": "wav",
        "codec": "pcm_s16le",
        "sample_rate_hz": 16_000,
        "channels": 1,
        "bit_rate_bps": 256_000,
        "duration_s": 1.0,
        "size_bytes": 32_044,
        "peak_dbfs": None,
        "rms_dbfs": None,
    }


def test_json_gets_the_answer_of_the_form(url: str) -> None:
    recording = wav(noise(1))
    text = base64.b64encode(recording).decode()
    for body in ({"audio": text}, {"input_audio": {"data": text, "format": "wav"}}):
        assert request("POST", f"{url}/debug/audio-info", json=body).json() == describe(url, recording).json()


def test_no_model_is_needed(url: str) -> None:
    assert describe(url, wav(tone(1)), model="nobody").status_code == 200
    assert health(url)["loaded_models"] == []
    assert health(url)["requests_inside"] == 0


@pytest.mark.parametrize(
    ("recording", "status", "code"),
    [
        (b"", 400, "empty_audio"),
        (b"no audio at all, only words", 400, "unsupported_format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), 400, "unsupported_format"),
        (b"fLaC" + bytes(100), 400, "invalid_audio"),
        (wav_from_bytes(b""), 400, "empty_audio"),
        (pictures(1), 400, "no_audio_stream"),
        (wav(tone(5.1)), 400, "audio_too_long"),
        (wav(tone(33)), 413, "file_too_large"),
    ],
    ids=["empty", "text", "picture", "damaged", "header only", "film without sound", "too long", "too large"],
)
def test_bad_audio_is_refused_as_for_transcriptions(
    url: str, recording: bytes, status: int, code: str
) -> None:
    response = describe(url, recording)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, "file")


def test_a_request_without_a_file_is_refused(url: str) -> None:
    response = request("POST", f"{url}/debug/audio-info", files={"other": b"x"})
    assert (response.status_code, error_of(response)["param"]) == (400, "file")
    response = request("GET", f"{url}/debug/audio-info")
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")


def pcm_recording(*values: int, repeat: int = 1) -> Recording:
    return Recording(np.tile(np.array(values, np.int16), repeat))


def test_levels_are_against_full_scale() -> None:
    square = levels(pcm_recording(-32768, 16384, repeat=100_000))  # several blocks
    assert square.peak_dbfs == 0
    assert square.rms_dbfs == pytest.approx(10 * np.log10((1 + 0.25) / 2))
    faintest = levels(pcm_recording(0, 1))
    assert faintest.peak_dbfs == pytest.approx(-90.31, abs=0.01)


def test_a_recording_without_sound_has_no_levels() -> None:
    for recording in (
        pcm_recording(0, repeat=9),
        pcm_recording(),
        pcm_recording(5, 0).select((SampleSpan(1, 2),)),
    ):
        assert levels(recording).peak_dbfs is levels(recording).rms_dbfs is None
