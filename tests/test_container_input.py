"""Containers decoded while they arrive: the samples are those of the whole file, and they come early."""

import io
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.media import encode, pictures, silence, tone, wav, wav_from_bytes
from whisper_server.core.errors import (
    EmptyAudioError,
    InvalidAudioError,
    InvalidRequestError,
    NoAudioStreamError,
    UnsupportedAudioFormatError,
)
from whisper_server.core.types import SAMPLE_RATE, Pcm16
from whisper_server.services.audio_decoding import decode_pcm
from whisper_server.services.container_input import ContainerInput
from whisper_server.services.pcm_input import PcmFormat, PcmInput
from whisper_server.services.raw_audio import RawAudio

pytestmark = pytest.mark.anyio

_S = 3.0
_FRAGMENTED = {"movflags": "empty_moov+default_base_moof", "frag_duration": "200000"}
_WAIT_S = 20.0


def streaming_wav(whole: bytes, size: int = 0xFFFF_FFFF) -> bytes:
    """As a program writes it that cannot know the length."""
    data = whole.index(b"data")
    field = size.to_bytes(4, "little")
    return whole[:4] + field + whole[8 : data + 4] + field + whole[data + 8 :]


def stereo(rate: int) -> Any:
    return np.stack([tone(_S, rate), tone(_S, rate, hz=880.0, amplitude=0.25)], axis=1)


MAKERS: dict[str, Callable[[], bytes]] = {
    "wav": lambda: wav(tone(_S)),
    "wav of a recorder": lambda: streaming_wav(wav(stereo(44_100), 44_100)),
    "wav of 24 bits": lambda: streaming_wav(wav(tone(_S), subtype="PCM_24")),
    "wav of mu-law": lambda: wav(tone(_S, 8000), 8000, "ULAW"),
    "webm of a browser": lambda: encode(
        tone(_S, 48_000), 48_000, "webm", "libopus", container_options={"live": "1"}
    ),
    "webm with pictures": lambda: encode(tone(_S, 48_000), 48_000, "matroska", "libopus", has_picture=True),
    "ogg": lambda: encode(tone(_S, 48_000), 48_000, "ogg", "libopus"),
    "vorbis": lambda: wav(tone(_S, 44_100), 44_100, "VORBIS", "OGG"),
    "mp3": lambda: encode(tone(_S, 44_100), 44_100, "mp3", "libmp3lame"),
    "mp3 with a picture": lambda: id3(300_000) + encode(tone(_S, 44_100), 44_100, "mp3", "libmp3lame"),
    "flac": lambda: encode(tone(_S, 44_100), 44_100, "flac", "flac"),
    "aac": lambda: encode(tone(_S, 44_100), 44_100, "adts", "aac"),
    "fragmented mp4": lambda: encode(tone(_S, 44_100), 44_100, "mp4", "aac", container_options=_FRAGMENTED),
}


def id3(size: int) -> bytes:
    """A tag that holds a picture of so many bytes."""
    syncsafe = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\x00\x00" + syncsafe + b"\x00" * size


def whole(data: bytes) -> Pcm16:
    return decode_pcm(io.BytesIO(data), max_audio_s=600, stop=threading.Event())


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


async def decode(parts: Iterator[bytes]) -> Pcm16:
    taken: list[Pcm16] = [np.zeros(0, np.int16)]
    with anyio.fail_after(_WAIT_S):
        async with ContainerInput() as container, anyio.create_task_group() as group:

            async def feed() -> None:
                for part in parts:
                    await container.feed(part)
                await container.finish()

            group.start_soon(feed)
            taken += [samples async for samples in container]
    return np.concatenate(taken)


async def failure(data: bytes, size: int = 5000) -> InvalidAudioError:
    try:
        await decode(pieces(data, size))
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        assert isinstance(error, InvalidAudioError)
        return error
    raise AssertionError("it was decoded")


def assert_alike(one: Pcm16, other: Pcm16) -> None:
    """Equal but for the edges of resampling, for rounding, and for what an MP3 is padded with at its end."""
    assert abs(len(one) - len(other)) <= 200
    length = min(len(one), len(other))
    difference = np.abs(one[:length].astype(int) - other[:length].astype(int))
    assert np.quantile(difference, 0.99) <= 200
    assert np.abs(one).max() > 5000


@pytest.mark.parametrize("name", MAKERS)
async def test_the_samples_are_those_of_the_whole_file(name: str) -> None:
    data = MAKERS[name]()
    assert_alike(await decode(pieces(data, 1000)), whole(data))


@pytest.mark.parametrize("name", ["wav of a recorder", "webm of a browser", "aac"])
async def test_it_does_not_matter_how_the_bytes_are_cut(name: str) -> None:
    data = MAKERS[name]()[:20_000]
    in_one = await decode(iter([data]))
    assert np.array_equal(await decode(pieces(data, 1)), in_one)
    assert np.array_equal(await decode(pieces(data, 777)), in_one)


@pytest.mark.parametrize(
    ("name", "latest_s"),
    [
        ("wav of a recorder", 0.1),
        ("webm of a browser", 0.5),
        ("ogg", 1.5),
        ("mp3", 2.5),
        ("aac", 2.0),
        ("fragmented mp4", 0.5),
        ("webm with pictures", 2.5),
    ],
)
async def test_samples_come_while_the_rest_is_still_to_be_recorded(name: str, latest_s: float) -> None:
    data = MAKERS[name]()
    with anyio.fail_after(_WAIT_S):
        async with ContainerInput() as container:
            await container.feed(data[: round(len(data) * latest_s / _S)])
            first = await anext(aiter(container))
            assert len(first)


async def test_leaving_in_the_middle_ends_the_thread() -> None:
    data = MAKERS["webm of a browser"]()
    with anyio.fail_after(_WAIT_S):
        async with ContainerInput() as container:
            await container.feed(data[: len(data) // 2])
        async with ContainerInput() as container:
            await container.feed(b"OggS" + bytes(100))  # FFmpeg waits for more when it is told to stop


async def test_bytes_wait_while_nobody_takes_the_samples() -> None:
    data = encode(silence(600, 8000), 8000, "ogg", "libopus")
    big = encode(tone(60, 48_000), 48_000, "flac", "flac")
    for many in (data * 20, big, wav(tone(60))):
        fed = 0
        async with ContainerInput() as container:
            with anyio.move_on_after(0.3):
                for part in pieces(many, 10_000):
                    await container.feed(part)
                    fed += len(part)
        assert fed < len(many)


async def test_what_follows_the_end_of_the_container_is_dropped() -> None:
    data = wav(tone(1.0)) + b"LIST" + bytes(100_000)
    assert len(await decode(pieces(data, 1000))) == SAMPLE_RATE


async def test_chunks_between_the_parts_of_a_wav_header_are_skipped() -> None:
    plain = wav(tone(0.5))
    data = plain.index(b"data")
    listed = plain[:data] + b"LIST" + (5).to_bytes(4, "little") + bytes(6) + plain[data:]
    assert np.array_equal(await decode(pieces(listed, 3)), whole(plain))


async def test_a_recording_cut_short_gives_what_there_is() -> None:
    data = MAKERS["webm of a browser"]()
    assert len(await decode(iter([data[: len(data) * 2 // 3]]))) > SAMPLE_RATE
    assert len(await decode(iter([MAKERS["wav"]()[:20_001]]))) == (20_001 - 44) // 2


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", EmptyAudioError, "no sound"),
        (wav(silence(0)), EmptyAudioError, "no sound"),
        (b"RIFF\0\0\0\0WAVE", InvalidAudioError, ""),
        (b"this is no recording, but text" * 100, UnsupportedAudioFormatError, "format=s16le"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", UnsupportedAudioFormatError, "Supported"),
        (b"OggS" + bytes(3000), InvalidAudioError, "damaged"),
        (pictures(1.0, "matroska"), NoAudioStreamError, "no audio"),
        (encode(tone(1.0, 44_100), 44_100, "mp4", "aac"), InvalidAudioError, "fragmented"),
        (wav_from_bytes(bytes(100), rate=0), InvalidAudioError, ""),
        (wav_from_bytes(bytes(100), channels=0), InvalidAudioError, ""),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
async def test_what_cannot_be_decoded_is_refused(data: bytes, kind: type, words: str) -> None:
    error = await failure(data)
    assert isinstance(error, kind)
    assert words in error.message


async def test_damage_in_the_middle_is_told_after_what_came_before_it() -> None:
    data = MAKERS["ogg"]()
    broken = data[: len(data) // 2] + b"\xff" * 400_000
    taken: list[int] = []
    with anyio.fail_after(_WAIT_S):
        async with ContainerInput() as container, anyio.create_task_group() as group:

            async def feed() -> None:
                for part in pieces(broken, 4000):
                    await container.feed(part)
                await container.finish()

            async def take() -> None:
                async for samples in container:
                    taken.append(len(samples))

            group.start_soon(feed)
            with pytest.raises(InvalidAudioError, match="damaged"):
                await take()
    assert sum(taken) > SAMPLE_RATE // 2


# Samples without a container


@given(cuts=st.lists(st.integers(0, 4000), max_size=8), channels=st.sampled_from([1, 2, 3]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_raw_samples_do_not_depend_on_how_they_are_cut(cuts: list[int], channels: int) -> None:
    data = np.random.default_rng(1).integers(-9000, 9000, 2000 * channels, dtype=np.int16).tobytes()[:-1]
    audio, expected = RawAudio(channels=channels), RawAudio(channels=channels)
    bounds = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    parts = [audio.feed(data[a:b]) for a, b in itertools.pairwise(bounds)]
    assert np.array_equal(np.concatenate(parts), expected.feed(data))


def test_channels_are_mixed_and_bytes_swapped() -> None:
    samples = np.array([[100, 300], [-200, -400], [7, 9]], dtype=np.int16)
    assert RawAudio(channels=2).feed(samples.astype("<i2").tobytes()).tolist() == [200, -300, 8]
    big = RawAudio(channels=2, is_big_endian=True)
    assert big.feed(samples.astype(">i2").tobytes()).tolist() == [200, -300, 8]
    coded = bytes([0x12, 0x92])
    one, other = PcmInput(PcmFormat.PCMU).feed(coded).tolist()
    assert RawAudio(PcmFormat.PCMU, channels=2).feed(coded).tolist() == [round((one + other) / 2)]


def test_flushing_keeps_the_samples_in_step() -> None:
    data = (tone(0.5, 8000) * 20_000).astype("<i2").tobytes()
    audio = RawAudio(rate_hz=8000)
    parts = [audio.feed(data[:4001]), audio.flush(), audio.feed(data[4001:]), audio.flush()]
    joined = np.concatenate(parts).astype(int)
    assert len(joined) == pytest.approx(8000, abs=4)
    assert np.abs(np.diff(joined)).max() < 8000  # bytes out of step would be noise


@pytest.mark.parametrize("channels", [0, 9, -1])
def test_impossible_channels_are_refused(channels: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        RawAudio(channels=channels)
    assert caught.value.param == "channels"
