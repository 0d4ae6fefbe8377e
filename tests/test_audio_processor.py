"""Decoding of uploads: every format, every kind of damage, and what hostile files try."""

import asyncio
import functools
import gc
import io
import select
import socket
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from librosa.effects import trim
from librosa.util import normalize

from tests.media import Signal, encode, noise, pictures, silence, tone, wav, wav_from_bytes
from whisper_server.core.admission import AdmissionLimits
from whisper_server.core.errors import (
    AudioTooLongError,
    EmptyAudioError,
    InvalidAudioError,
    NoAudioStreamError,
    ServerBusyError,
    UnsupportedAudioFormatError,
)
from whisper_server.core.recording import Recording
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.services.admission import Admission
from whisper_server.services.audio_decoding import DECODING_PIECE_S, decode_pcm
from whisper_server.services.audio_processor import SILENCE_TOP_DB, AudioProcessor

pytestmark = pytest.mark.anyio

WAIT_S = 20
"""How long a test waits for what must happen before it fails."""

FRAGMENTED = {"movflags": "empty_moov+frag_keyframe", "frag_duration": "200000"}


async def decode(data: bytes, *, max_audio_s: float = 60, **options: Any) -> Recording:
    processor = AudioProcessor(max_audio_s=max_audio_s, max_parallel=1)
    return await processor.decode(io.BytesIO(data), **options)


def samples_of(recording: Recording) -> Signal:
    return recording.read(0, len(recording))


def pitch_hz(samples: Signal) -> float:
    """The strongest frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


def stereo(left: Signal, right: Signal) -> Signal:
    return np.stack([left, right], axis=1)


def joined_mp3s() -> bytes:
    """Stereo at 48 kHz, then mono at 16 kHz: what comes of joining recordings byte by byte."""
    both = stereo(tone(1, 48_000), tone(1, 48_000))
    return encode(both, 48_000, "mp3", "libmp3lame") + encode(tone(1), 16_000, "mp3", "libmp3lame")


# --- Every format ---

TONE_48K = tone(1, 48_000)

FORMATS: dict[str, Callable[[], bytes]] = {
    "mp3": lambda: encode(TONE_48K, 48_000, "mp3", "libmp3lame"),
    "mp3 at 16 kHz": lambda: encode(tone(1), 16_000, "mp3", "libmp3lame"),
    "mp2": lambda: encode(TONE_48K, 48_000, "mp2", "mp2"),
    "aac (adts)": lambda: encode(TONE_48K, 48_000, "adts", "aac"),
    "m4a": lambda: encode(TONE_48K, 48_000, "ipod", "aac"),
    "m4a with alac": lambda: encode(TONE_48K, 48_000, "ipod", "alac"),
    "m4a in fragments": lambda: encode(TONE_48K, 48_000, "mp4", "aac", container_options=FRAGMENTED),
    "mp4 with pictures": lambda: encode(TONE_48K, 48_000, "mp4", "aac", has_picture=True),
    "mp4 with ac3": lambda: encode(TONE_48K, 48_000, "mp4", "ac3"),
    "mov": lambda: encode(TONE_48K, 48_000, "mov", "pcm_s24le"),
    "3gp": lambda: encode(tone(1), 16_000, "3gp", "aac"),
    "mkv with pictures": lambda: encode(TONE_48K, 48_000, "matroska", "aac", has_picture=True),
    "webm": lambda: encode(TONE_48K, 48_000, "webm", "libopus"),
    "ogg with opus": lambda: encode(TONE_48K, 48_000, "ogg", "libopus"),
    "ogg with vorbis": lambda: wav(TONE_48K, 48_000, "VORBIS", "OGG"),
    "ogg with flac": lambda: encode(TONE_48K, 48_000, "ogg", "flac"),
    "flac": lambda: encode(TONE_48K, 48_000, "flac", "flac"),
    "flac of 24 bits": lambda: encode(TONE_48K, 48_000, "flac", "flac", sample_format="s32"),
    "mpeg film": lambda: encode(TONE_48K, 48_000, "mpeg", "mp2", has_picture=True),
    "amr": lambda: encode(tone(1, 8_000), 8_000, "amr", "libopencore_amrnb"),
    "aiff": lambda: wav(TONE_48K, 48_000, "PCM_24", "AIFF"),
    "caf": lambda: wav(TONE_48K, 48_000, "FLOAT", "CAF"),
    "wav of 96 kHz": lambda: wav(tone(1, 96_000), 96_000, "PCM_24"),
    "wav of 8 kHz": lambda: wav(tone(1, 8_000), 8_000),
    "wav with gsm": lambda: wav(tone(1, 8_000), 8_000, "GSM610"),
    "wav with adpcm": lambda: wav(tone(1, 8_000), 8_000, "IMA_ADPCM"),
    "wav in 5.1": lambda: wav(np.stack([TONE_48K] * 6, axis=1), 48_000, "PCM_16", "WAVEX"),
    "rf64": lambda: wav(TONE_48K, 48_000, "PCM_16", "RF64"),
}


@pytest.mark.parametrize("name", FORMATS)
async def test_each_format_gives_the_sound_that_went_in(name: str) -> None:
    recording = await decode(FORMATS[name]())

    assert recording.duration_s == pytest.approx(1, abs=0.06)  # lossy codecs pad
    assert pitch_hz(samples_of(recording)) == pytest.approx(440, abs=5)
    middle = samples_of(recording)[4000:12000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.15)


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [
        *(("PCM_U8", 0.01), ("PCM_16", 1e-4), ("PCM_24", 1e-4), ("PCM_32", 1e-4)),
        *(("FLOAT", 1e-4), ("DOUBLE", 1e-4), ("ULAW", 0.02), ("ALAW", 0.02)),
    ],
)
async def test_each_sample_format_of_wav_gives_the_same_samples(subtype: str, tolerance: float) -> None:
    recording = await decode(wav(tone(0.5), subtype=subtype))

    np.testing.assert_allclose(samples_of(recording), tone(0.5), atol=tolerance)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 96_000])
async def test_other_sample_rates_come_out_in_time_and_at_the_same_level(rate: int) -> None:
    recording = await decode(wav(tone(1, rate), rate))

    inner = slice(400, 15_600)  # the filter has nothing to look at beyond the ends
    np.testing.assert_allclose(samples_of(recording)[inner], tone(1)[inner], atol=0.01)


async def test_16_bit_samples_at_16_khz_stay_bit_for_bit_what_they_are() -> None:
    pcm = np.random.default_rng(0).integers(-32768, 32768, 40_000, dtype=np.int16)

    recording = await decode(wav_from_bytes(pcm.tobytes()))

    assert np.array_equal(samples_of(recording) * 32768, pcm)


async def test_the_samples_are_those_faster_whisper_decodes(sample_recordings: list[dict[str, Any]]) -> None:
    from faster_whisper import decode_audio

    for sample in sample_recordings:
        data = sample["path"].read_bytes()
        recording = await decode(data, max_audio_s=600)
        assert np.array_equal(samples_of(recording), decode_audio(io.BytesIO(data))), sample["file"]


async def test_stereo_is_mixed_to_the_mean_of_its_channels() -> None:
    left, right = tone(0.5, hz=300), tone(0.5, hz=700, amplitude=0.3)

    mixed = samples_of(await decode(wav(stereo(left, right))))
    cancelled = samples_of(await decode(wav(stereo(left, -left))))

    np.testing.assert_allclose(mixed, (left + right) / 2, atol=1e-3)
    np.testing.assert_allclose(cancelled, 0, atol=1e-3)


async def test_the_first_of_several_audio_streams_is_taken() -> None:
    film = encode(tone(1, hz=440), 16_000, "mp4", "aac", more_tracks=[tone(1, hz=880)])

    assert pitch_hz(samples_of(await decode(film))) == pytest.approx(440, abs=5)


async def test_a_wrong_name_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    path.write_bytes(wav(tone(0.5)))

    with path.open("rb") as file:
        recording = await AudioProcessor(max_audio_s=60, max_parallel=1).decode(file)

    assert recording.duration_s == 0.5


async def test_the_file_is_read_from_its_start_wherever_it_was_left() -> None:
    file = io.BytesIO(wav(tone(0.5)))
    file.seek(0, io.SEEK_END)

    recording = await AudioProcessor(max_audio_s=60, max_parallel=1).decode(file)

    assert recording.duration_s == 0.5


async def test_silence_is_a_recording_like_any_other() -> None:
    recording = await decode(wav(silence(1)))

    assert recording.duration_s == 1
    assert not samples_of(recording).any()


async def test_sample_rate_and_channels_may_change_within_a_file() -> None:
    recording = await decode(joined_mp3s())

    assert recording.duration_s == pytest.approx(2, abs=0.15)
    assert pitch_hz(samples_of(recording)[17_000:30_000]) == pytest.approx(440, abs=5)


async def test_floats_that_are_no_sound_become_samples_in_range() -> None:
    wild = np.array([0, np.nan, np.inf, -np.inf, 1e30, -5] * 1000, np.float32)

    for rate in (16_000, 48_000):
        for subtype in ("FLOAT", "DOUBLE"):
            samples = samples_of(await decode(wav(wild, rate, subtype)))
            assert np.abs(samples).max() <= 1
    loud = samples_of(await decode(wav(np.full(160, 5, np.float32), subtype="FLOAT")))
    assert loud == pytest.approx(32767 / 32768)


# --- Damage ---


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("wav", wav(noise(2))),
        ("mp3", encode(tone(2, 48_000), 48_000, "mp3", "libmp3lame")),
        ("aac", encode(tone(2, 48_000), 48_000, "adts", "aac")),
        ("flac", wav(noise(2), 16_000, "PCM_16", "FLAC")),
        ("webm", encode(tone(2, 48_000), 48_000, "webm", "libopus")),
        ("fragmented mp4", encode(tone(2, 48_000), 48_000, "mp4", "aac", container_options=FRAGMENTED)),
    ],
)
async def test_a_truncated_file_gives_what_is_there(name: str, data: bytes) -> None:
    recording = await decode(data[: len(data) // 2])

    assert 0.7 < recording.duration_s < 1.3, name


@pytest.mark.parametrize("container", ["mp3", "flac"])
async def test_what_follows_a_damaged_part_is_decoded(container: str) -> None:
    codec = {"mp3": "libmp3lame", "flac": "flac"}[container]
    data = bytearray(encode(tone(4, 48_000), 48_000, container, codec))
    data[len(data) // 4 : len(data) // 4 + 2000] = noise(0.125).astype(np.float16).tobytes()[:2000]

    recording = await decode(bytes(data))

    assert recording.duration_s > 3
    assert pitch_hz(samples_of(recording)[-16_000:]) == pytest.approx(440, abs=5)


async def test_what_precedes_a_packet_of_absurd_size_is_decoded() -> None:
    data = bytearray(encode(tone(2, 48_000), 48_000, "mp4", "aac", container_options=FRAGMENTED))
    last_run = data.rindex(b"trun")
    data[last_run + 20 : last_run + 24] = b"\x7f\xff\xff\xff"  # the size of its first packet

    recording = await decode(bytes(data))

    assert recording.duration_s == pytest.approx(1.92, abs=0.05)


M4A = encode(tone(1, 48_000), 48_000, "ipod", "aac")


async def test_a_file_that_points_beyond_what_can_be_sought_is_damaged() -> None:
    class Disk(io.BytesIO):
        """Fails like a file system does beyond its largest file."""

        def seek(self, offset: int, whence: int = 0) -> int:
            if offset > 2**30:
                raise OSError("Invalid argument")
            return super().seek(offset, whence)

    data = bytearray(M4A)
    index = data.index(b"stco")
    data[index + 12 : index + 16] = b"\x7f\xff\xff\xff"  # where the first chunk is

    with pytest.raises(InvalidAudioError) as caught:
        await AudioProcessor(max_audio_s=60, max_parallel=1).decode(Disk(data))

    assert caught.value.code == "invalid_audio"


REFUSED: dict[str, tuple[bytes, type[InvalidAudioError], str]] = {
    "no bytes": (b"", EmptyAudioError, "empty_audio"),
    "wav without samples": (wav(silence(0)), EmptyAudioError, "empty_audio"),
    "flac without samples": (encode(silence(0), 16_000, "flac", "flac"), EmptyAudioError, "empty_audio"),
    "one zero byte": (b"\0", UnsupportedAudioFormatError, "unsupported_format"),
    "text": (b"It was a bright cold day. " * 99, UnsupportedAudioFormatError, "unsupported_format"),
    "zeros": (bytes(9999), UnsupportedAudioFormatError, "unsupported_format"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(999), UnsupportedAudioFormatError, "unsupported_format"),
    "avi": (encode(TONE_48K, 48_000, "avi", "mp2"), UnsupportedAudioFormatError, "unsupported_format"),
    "codec not read": (wav(tone(1), 16_000, "G721_32"), UnsupportedAudioFormatError, "unsupported_format"),
    "1 Hz": (wav_from_bytes(bytes(100), rate=1), UnsupportedAudioFormatError, "unsupported_format"),
    "2 GHz": (wav_from_bytes(bytes(100), rate=2**31 - 1), UnsupportedAudioFormatError, "unsupported_format"),
    "film without sound": (pictures(1), NoAudioStreamError, "no_audio_stream"),
    "mkv without sound": (pictures(1, "matroska"), NoAudioStreamError, "no_audio_stream"),
    "m4a cut before its index": (M4A[: len(M4A) // 2], InvalidAudioError, "invalid_audio"),
    "wav cut in its header": (wav(tone(1))[:30], InvalidAudioError, "invalid_audio"),
    "mp3 of nothing but a tag": (b"ID3\4\0\0\0\0\0\0" + bytes(99), InvalidAudioError, "invalid_audio"),
    "frames that cannot be decoded": (
        encode(TONE_48K, 48_000, "flac", "flac")[:300],
        InvalidAudioError,
        "invalid_audio",
    ),
    "9 channels in no known order": (
        wav_from_bytes(bytes(9000), channels=9),
        InvalidAudioError,
        "invalid_audio",
    ),
    "65535 channels": (wav_from_bytes(bytes(2**18), channels=65535), InvalidAudioError, "invalid_audio"),
    "a packet of millions of samples": (
        encode(silence(200), 16_000, "matroska", "pcm_s16le", frame_samples=3_200_000),
        InvalidAudioError,
        "invalid_audio",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_used_is_refused_with_a_reason(name: str) -> None:
    data, error_type, code = REFUSED[name]

    with pytest.raises(InvalidAudioError) as caught:
        await decode(data, max_audio_s=600)

    assert type(caught.value) is error_type
    assert (caught.value.code, caught.value.param) == (code, "file")


async def test_an_unsupported_format_is_answered_with_the_supported_ones() -> None:
    with pytest.raises(UnsupportedAudioFormatError) as caught:
        await decode(b"hello there")

    assert caught.value.message == (
        "Invalid file format. Supported formats: "
        "['flac', 'm4a', 'mp3', 'mp4', 'mpeg', 'mpga', 'oga', 'ogg', 'wav', 'webm']"
    )


async def test_a_source_that_fails_is_not_the_clients_fault_nor_the_next_requests() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 40_000:
                raise OSError("disk on fire")
            return super().read(size)

    processor = AudioProcessor(max_audio_s=60, max_parallel=1)
    for data in (wav(noise(9)), M4A * 20):
        with pytest.raises(OSError, match="disk on fire"):
            await processor.decode(Failing(data))
        assert (await processor.decode(io.BytesIO(wav(tone(0.5))))).duration_s == 0.5


CODES = {"empty_audio", "unsupported_format", "no_audio_stream", "invalid_audio", "audio_too_long"}

FUZZED = {
    "mp3": encode(tone(0.3, 48_000), 48_000, "mp3", "libmp3lame"),
    "aac": encode(tone(0.3, 48_000), 48_000, "adts", "aac"),
    "m4a": encode(tone(0.3, 48_000), 48_000, "ipod", "aac"),
    "alac": encode(tone(0.3, 48_000), 48_000, "ipod", "alac"),
    "mp4": encode(tone(0.3, 48_000), 48_000, "mp4", "aac", has_picture=True, container_options=FRAGMENTED),
    "webm": encode(tone(0.3, 48_000), 48_000, "webm", "libopus"),
    "mkv": encode(tone(0.3, 48_000), 48_000, "matroska", "aac", has_picture=True),
    "opus": encode(tone(0.3, 48_000), 48_000, "ogg", "libopus"),
    "vorbis": wav(tone(0.3, 48_000), 48_000, "VORBIS", "OGG"),
    "flac": encode(tone(0.3, 48_000), 48_000, "flac", "flac", sample_format="s32"),
    "wav": wav(tone(0.3)),
    "wavex": wav(stereo(tone(0.3), tone(0.3)), 48_000, "FLOAT", "WAVEX"),
    "aiff": wav(tone(0.3), 16_000, "PCM_24", "AIFF"),
    "caf": wav(tone(0.3), 16_000, "PCM_24", "CAF"),
    "amr": encode(tone(0.3, 8_000), 8_000, "amr", "libopencore_amrnb"),
    "mpeg": encode(tone(0.3, 48_000), 48_000, "mpeg", "mp2", has_picture=True),
    "joined": joined_mp3s(),
}


def assert_only_sound_or_refusal(data: bytes) -> None:
    """Whatever else comes out fails the test by itself."""
    try:
        pcm = decode_pcm(io.BytesIO(data), max_audio_s=30, stop=threading.Event())
    except InvalidAudioError as error:
        refusal = (error.code in CODES, error.param)
    else:
        assert 0 < len(pcm) <= 30.1 * SAMPLE_RATE  # the resampler may add its tail
        refusal = (True, "file")
    assert refusal == (True, "file")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.binary(max_size=3000))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    assert_only_sound_or_refusal(data)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(FUZZED)),
    cut=st.floats(0.02, 1),
    header_changes=st.lists(st.tuples(st.integers(0, 299), st.integers(0, 255)), max_size=4),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    insert=st.tuples(st.floats(0, 1), st.binary(max_size=50)),
)
def test_damaged_files_of_every_format_never_raise_anything_else(
    name: str,
    cut: float,
    header_changes: list[tuple[int, int]],
    changes: list[tuple[float, int]],
    insert: tuple[float, bytes],
) -> None:
    data = bytearray(FUZZED[name][: int(len(FUZZED[name]) * cut)])
    for position, value in header_changes:
        data[min(position, len(data) - 1)] = value
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    at = int(insert[0] * len(data))
    data[at:at] = insert[1]

    assert_only_sound_or_refusal(bytes(data))


# --- Limits ---


class CountingSource(io.BytesIO):
    """Counts what was read of it, and in which thread."""

    read_bytes = 0
    threads: frozenset[int] = frozenset()

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        self.threads |= {threading.get_ident()}
        return data


async def test_exactly_the_longest_recording_passes_and_one_sample_more_does_not() -> None:
    longest = tone(0.7)

    recording = await decode(wav(longest), max_audio_s=0.7)
    with pytest.raises(AudioTooLongError) as caught:
        await decode(wav(np.append(longest, longest[:1])), max_audio_s=0.7)

    assert recording.duration_s == 0.7
    assert (caught.value.code, caught.value.param) == ("audio_too_long", "file")
    assert "0.7 seconds" in caught.value.message


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("an hour of flac", lambda: encode(silence(3600, 8_000), 8_000, "flac", "flac")),
        ("two hours of aac", lambda: encode(silence(10, 8_000), 8_000, "adts", "aac") * 720),
    ],
)
async def test_a_compressed_bomb_is_left_after_the_limit(name: str, make: Callable[[], bytes]) -> None:
    bomb = CountingSource(make())

    with pytest.raises(AudioTooLongError):
        await AudioProcessor(max_audio_s=10, max_parallel=1).decode(bomb)

    size = len(bomb.getvalue())
    assert size > 500_000, name
    assert bomb.read_bytes < size / 4, name


async def test_the_limit_counts_across_a_change_of_sample_rate() -> None:
    joined = joined_mp3s()

    with pytest.raises(AudioTooLongError):
        await decode(joined, max_audio_s=1.5)


async def test_the_limit_is_for_what_is_decoded_before_trimming() -> None:
    with pytest.raises(AudioTooLongError):
        await decode(wav(np.append(silence(2), tone(0.5))), max_audio_s=1, trim_silence=True)


async def test_the_length_a_header_declares_is_not_trusted() -> None:
    data = bytearray(wav(tone(1)))
    data[40:44] = (2**31 - 16).to_bytes(4, "little")  # 18 hours

    assert (await decode(bytes(data), max_audio_s=5)).duration_s == 1


def test_decoding_holds_the_samples_once() -> None:
    data = wav(noise(300, 8_000), 8_000)
    decode_pcm(io.BytesIO(wav(tone(1, 8_000), 8_000)), max_audio_s=600, stop=threading.Event())

    tracemalloc.start()
    try:
        pcm = decode_pcm(io.BytesIO(data), max_audio_s=600, stop=threading.Event())
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert pcm.nbytes == 300 * SAMPLE_RATE * 2
    # The buffer grows by an eighth; beside it there are one piece and what is read of the file.
    assert peak_bytes < pcm.nbytes * 1.2 + 500_000


# --- Playlists ---

SEGMENT = encode(tone(1), 16_000, "mpegts", "aac")


class Named(io.BytesIO):
    """An upload that keeps the client's name for it."""

    name = "list.m3u8"


def hls(url: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\n{url}\n#EXT-X-ENDLIST\n".encode()


def dash(url: str) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT10S"><Period><AdaptationSet mimeType="audio/mp4">'
        f'<Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    ).encode()


def concat(url: str) -> bytes:
    return f"ffconcat version 1.0\nfile {url}\n".encode()


def sdp(url: str) -> bytes:
    host = url.removeprefix("http://").partition(":")[0]
    return f"v=0\no=- 0 0 IN IP4 {host}\ns=x\nc=IN IP4 {host}\nt=0 0\nm=audio 5004 RTP/AVP 0\n".encode()


async def test_playlists_of_local_files_are_refused_and_would_be_followed_without_the_whitelist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.ts").write_bytes(SEGMENT)
    monkeypatch.chdir(tmp_path)
    absolute = (tmp_path / "secret.ts").as_uri()

    for playlist in (hls("secret.ts"), hls(absolute), concat("secret.ts")):
        with av.open(Named(playlist), "r") as container:
            assert next(container.decode(audio=0)).samples  # FFmpeg as it comes opens the file
        for source in (Named(playlist), io.BytesIO(playlist)):
            with pytest.raises(UnsupportedAudioFormatError):
                await AudioProcessor(max_audio_s=60, max_parallel=1).decode(source)


async def test_playlists_of_urls_are_refused_and_nothing_is_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/secret.ts"

        def has_caller() -> bool:
            return bool(select.select([server], [], [], 0)[0])

        with pytest.raises(av.FFmpegError):
            await anyio.to_thread.run_sync(functools.partial(av.open, Named(hls(url)), timeout=0.1))
        assert has_caller()  # FFmpeg as it comes calls
        server.accept()[0].close()
        for playlist in (hls(url), dash(url), concat(url), sdp(url)):
            for source in (Named(playlist), io.BytesIO(playlist)):
                with pytest.raises(UnsupportedAudioFormatError):
                    await AudioProcessor(max_audio_s=60, max_parallel=1).decode(source)
        assert not has_caller()


# --- Normalisation and trimming ---


async def test_normalizing_gives_what_librosa_gives() -> None:
    quiet = tone(50, amplitude=0.1) + noise(50, amplitude=0.02)  # more than one block

    plain = samples_of(await decode(wav(quiet)))
    normalized = samples_of(await decode(wav(quiet), normalize=True))

    expected = normalize(plain) * np.float32(32767 / 32768)
    np.testing.assert_allclose(normalized, expected, atol=1 / 32768)
    assert np.abs(normalized).max() == pytest.approx(32767 / 32768)


async def test_normalizing_leaves_silence_and_full_scale_as_they_are() -> None:
    full_scale = np.array([0, 32767, -32767, 5], np.int16)

    assert not samples_of(await decode(wav(silence(1)), normalize=True)).any()
    loud = await decode(wav_from_bytes(full_scale.tobytes()), normalize=True)
    assert np.array_equal(samples_of(loud) * 32768, full_scale)
    lowest = await decode(wav_from_bytes(np.array([0, -32768], np.int16).tobytes()), normalize=True)
    assert np.array_equal(samples_of(lowest) * 32768, [0, -32767])


@pytest.mark.parametrize("lead_s", [0.0, 0.3, 40.0])
@pytest.mark.parametrize("tail_s", [0.0, 0.5, 35.0])
async def test_trimming_leaves_out_what_librosa_leaves_out(lead_s: float, tail_s: float) -> None:
    faint = noise(lead_s + 2 + tail_s, amplitude=2e-4)
    begin = round(lead_s * SAMPLE_RATE)
    faint[begin : begin + 2 * SAMPLE_RATE] += tone(2)
    data = wav(faint)

    plain = samples_of(await decode(data, max_audio_s=99))
    trimmed = await decode(data, max_audio_s=99, trim_silence=True)

    expected, (start, _) = trim(plain, top_db=SILENCE_TOP_DB)
    assert np.array_equal(samples_of(trimmed), expected)
    assert trimmed.original_time_s(0) == start / SAMPLE_RATE
    assert trimmed.original_duration_s == len(plain) / SAMPLE_RATE


async def test_trimming_keeps_a_silent_recording_whole() -> None:
    recording = await decode(wav(silence(1)), trim_silence=True)

    assert recording.duration_s == recording.original_duration_s == 1


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1024 * 512, 1024 * 512 + 1])
async def test_recordings_of_any_length_can_be_trimmed(count: int) -> None:
    samples = noise(count / SAMPLE_RATE)

    recording = await decode(wav(samples), normalize=True, trim_silence=True)

    expected, _ = trim(samples, top_db=SILENCE_TOP_DB)
    assert len(recording) == len(expected)


# --- Room while decoding ---


async def test_decoding_tells_the_event_loop_how_far_it_has_come() -> None:
    told: list[float] = []
    threads: set[int] = set()

    def note(audio_s: float) -> None:
        told.append(audio_s)
        threads.add(threading.get_ident())

    recording = await AudioProcessor(max_audio_s=200, max_parallel=1).decode(
        io.BytesIO(wav(tone(100.0))), on_decoded=note
    )
    assert recording.duration_s == 100
    assert threads == {threading.get_ident()}
    assert len(told) == 100 // DECODING_PIECE_S
    steps = np.diff([0.0, *told])
    assert (steps >= DECODING_PIECE_S).all()
    assert (steps < DECODING_PIECE_S + 1).all()


async def test_what_has_no_room_is_decoded_no_further_and_not_kept() -> None:
    error = ServerBusyError("Full.", retry_after_s=1.0)

    def refuse(_: float) -> None:
        raise error

    source = CountingSource(wav(noise(600.0)))
    processor = AudioProcessor(max_audio_s=1000, max_parallel=1)
    with pytest.raises(ServerBusyError) as caught:
        await processor.decode(source, on_decoded=refuse)
    assert caught.value is error
    assert source.read_bytes < len(source.getvalue()) / 10


async def test_cancelling_a_decode_that_asks_for_room_ends_it() -> None:
    async def decode_and_cancel() -> None:
        task = asyncio.current_task()
        assert task is not None

        def cancel(_: float) -> None:
            task.cancel()

        await decode(wav(noise(90)), max_audio_s=600, on_decoded=cancel)

    task = asyncio.create_task(decode_and_cancel())
    await asyncio.wait([task])
    assert task.cancelled()


async def test_parallel_decodes_never_hold_more_than_the_limit_and_a_piece_each() -> None:
    admission = Admission(AdmissionLimits(max_requests=9, max_buffered_audio_s=100.0))
    processor = AudioProcessor(max_audio_s=100, max_parallel=2)
    gate = threading.Event()
    first_source = GatedSource(wav(noise(90.0)), gate, stop_at_read=2 * DECODING_PIECE_S + 9)
    with admission.enter() as one, admission.enter() as other:
        first = asyncio.create_task(processor.decode(first_source, on_decoded=one.reserve))
        await first_source.reached_gate()
        assert 2 * DECODING_PIECE_S <= admission.buffered_audio_s < 2 * DECODING_PIECE_S + 2
        with pytest.raises(ServerBusyError):
            await processor.decode(io.BytesIO(wav(noise(90.0))), on_decoded=other.reserve)
        gate.set()
        one.hold((await first).duration_s)
        assert admission.buffered_audio_s == 90


# --- Threads, cancellation, memory ---


async def test_the_event_loop_neither_reads_nor_decodes() -> None:
    source = CountingSource(wav(noise(2)))

    await AudioProcessor(max_audio_s=60, max_parallel=1).decode(source)

    assert source.threads
    assert threading.get_ident() not in source.threads


class GatedSource(CountingSource):
    """Stops at a certain read until the test opens the gate."""

    def __init__(self, data: bytes, gate: threading.Event, *, stop_at_read: int = 1) -> None:
        super().__init__(data)
        self.is_at_gate = threading.Event()
        self.reads = 0
        self._gate = gate
        self._stop_at_read = stop_at_read

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads == self._stop_at_read:
            self.is_at_gate.set()
            assert self._gate.wait(WAIT_S)
        return super().read(size)

    async def reached_gate(self) -> None:
        assert await anyio.to_thread.run_sync(self.is_at_gate.wait, WAIT_S)


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_cancelling_stops_the_decoder_before_it_returns(way: str) -> None:
    gate = threading.Event()
    source = GatedSource(wav(noise(120)), gate, stop_at_read=9)  # of about 120
    processor = AudioProcessor(max_audio_s=600, max_parallel=1)
    scope = anyio.CancelScope()

    async def work() -> None:
        with scope:
            await processor.decode(source)

    task = asyncio.create_task(work())
    await source.reached_gate()
    if way == "task":
        task.cancel()
    else:
        scope.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()  # the source is still in use
    gate.set()
    await asyncio.wait([task])

    assert task.cancelled() if way == "task" else scope.cancelled_caught
    assert source.reads <= 11
    source.close()
    # The slot is free again.
    assert (await processor.decode(io.BytesIO(wav(tone(1))))).duration_s == 1


def test_a_decoder_told_to_stop_reads_no_more() -> None:
    source = CountingSource(wav(noise(9)))
    stop = threading.Event()
    stop.set()

    with pytest.raises(EmptyAudioError):
        decode_pcm(source, max_audio_s=60, stop=stop)

    assert source.read_bytes == 0


async def test_no_more_uploads_are_decoded_at_once_than_allowed() -> None:
    gate = threading.Event()
    sources = [GatedSource(wav(tone(0.1)), gate) for _ in range(4)]
    processor = AudioProcessor(max_audio_s=60, max_parallel=2)

    tasks = [asyncio.create_task(processor.decode(source)) for source in sources]
    await sources[0].reached_gate()
    await sources[1].reached_gate()
    await anyio.wait_all_tasks_blocked()
    # The default executor starts jobs in order: one that comes after a third decode would wait for it.
    await asyncio.get_running_loop().run_in_executor(None, int)
    started = [source.reads for source in sources]
    gate.set()
    recordings = await asyncio.gather(*tasks)

    assert started == [1, 1, 0, 0]
    assert [recording.duration_s for recording in recordings] == [0.1] * 4


async def test_an_upload_cancelled_while_it_waits_is_never_read() -> None:
    gate = threading.Event()
    first, second = (GatedSource(wav(tone(0.1)), gate) for _ in range(2))
    processor = AudioProcessor(max_audio_s=60, max_parallel=1)

    running = asyncio.create_task(processor.decode(first))
    await first.reached_gate()
    waiting = asyncio.create_task(processor.decode(second))
    await anyio.wait_all_tasks_blocked()
    waiting.cancel()
    await asyncio.wait([waiting])
    gate.set()

    assert (await running).duration_s == 0.1
    assert waiting.cancelled()
    assert second.reads == 0


@pytest.mark.parametrize("outcome", ["decoded", "too long", "no room"])
async def test_nothing_is_left_for_the_garbage_collector(outcome: str) -> None:
    def refuse(_: float) -> None:
        raise ServerBusyError("Full.", retry_after_s=1.0)

    max_audio_s = 0.5 if outcome == "too long" else 60
    source = CountingSource(encode(tone(31, 48_000), 48_000, "mp3", "libmp3lame"))
    is_freed = threading.Event()
    weakref.finalize(source, is_freed.set)
    processor = AudioProcessor(max_audio_s=max_audio_s, max_parallel=1)
    await decode(wav(tone(0.1)))  # what the first import leaves behind is not the point
    gc.collect()

    gc.disable()
    try:
        try:
            await processor.decode(source, on_decoded=refuse if outcome == "no room" else None)
        except AudioTooLongError:
            assert outcome == "too long"
        except ServerBusyError:
            assert outcome == "no room"
        del source
        # The worker thread lets go of it a moment after it has given its answer.
        assert await anyio.to_thread.run_sync(is_freed.wait, WAIT_S)
        leftovers = [item for item in gc.get_objects() if type(item).__name__ in {"InputContainer", "Graph"}]
    finally:
        gc.enable()

    assert not leftovers


def test_importing_the_service_loads_neither_ffmpeg_nor_librosa() -> None:
    program = (
        "import sys, whisper_server.services.audio_processor as service\n"
        "service.AudioProcessor(max_audio_s=1, max_parallel=1)\n"
        "print({'av', 'librosa'} & set(sys.modules))"
    )

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout == "set()\n"
