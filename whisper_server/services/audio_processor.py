"""From an upload to a recording: decoding, peak normalisation, trimming of silence."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, Final

import anyio
import numpy as np

from whisper_server.core.recording import Recording, SampleSpan
from whisper_server.core.types import Pcm16, Samples
from whisper_server.services.audio_decoding import decode_pcm

SILENCE_TOP_DB: Final = 60
"""What is this far below the loudest moment counts as silence when trimming, dB; librosa's default."""

_FRAME_SAMPLES: Final = 2048
_HOP_SAMPLES: Final = 512
_FRAMES_PER_BLOCK: Final = 1024
_SAMPLES_PER_BLOCK: Final = _FRAMES_PER_BLOCK * _HOP_SAMPLES


class AudioProcessor:
    """Decodes uploads off the event loop, a bounded number at once.

    For one event loop; any number of tasks may call `decode`.

    Args:
        max_audio_s: longest recording, seconds.
        max_parallel: uploads decoded at once, at least 1; more wait in order.
    """

    def __init__(self, *, max_audio_s: float, max_parallel: int) -> None:
        self._max_audio_s = max_audio_s
        self._slots = asyncio.Semaphore(max_parallel)

    async def decode(
        self,
        source: BinaryIO,
        *,
        normalize: bool = False,
        trim_silence: bool = False,
        on_decoded: Callable[[float], None] | None = None,
    ) -> Recording:
        """Decode an upload of any supported kind to mono at `SAMPLE_RATE`.

        Memory is 2 bytes per sample, 115 MB an hour; the options add floats for half a minute at a time,
        and the first trimming imports librosa: seconds, and some 230 MB for good. `source` is no longer in
        use when this returns or raises, also when it is cancelled: the decoder then stops at its next packet.

        Args:
            source: the file; seekable, read from its start. Its name and declared type do not matter.
            normalize: scale the samples so that the largest is full scale.
            trim_silence: leave out what is `SILENCE_TOP_DB` below the loudest moment at both ends. The
                recording's times stay those of the original. A silent file is kept whole.
            on_decoded: as of `decode_pcm`, but called on the event loop.

        Raises:
            InvalidAudioError: or one of its subclasses; see `decode_pcm`.
            WhisperServerError: from `on_decoded`.
        """
        async with self._slots:
            stop = threading.Event()
            loop = asyncio.get_running_loop()
            decode = partial(
                decode_pcm,
                source,
                max_audio_s=self._max_audio_s,
                stop=stop,
                on_decoded=None if on_decoded is None else partial(_call_on, loop, on_decoded),
            )
            work = loop.run_in_executor(None, _make_recording, decode, normalize, trim_silence, stop)
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                stop.set()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([work])
                work.exception()  # seen, so that asyncio does not report it: whoever asked has gone
                raise
            try:
                return work.result()
            finally:
                # An error leads to this frame; without the way back there is no cycle to keep it all alive.
                del work


def _call_on(loop: asyncio.AbstractEventLoop, call: Callable[[float], None], value: float) -> None:
    """Call something on the event loop, from another thread, and wait until it is done."""

    async def do() -> None:
        call(value)

    asyncio.run_coroutine_threadsafe(do(), loop).result()


def _make_recording(
    decode: Callable[[], Pcm16], normalize: bool, trim_silence: bool, stop: threading.Event
) -> Recording:
    pcm = decode()
    if normalize:
        _normalize(pcm)
    if not trim_silence or stop.is_set():
        return Recording(pcm)
    sound = _sound_span(pcm)
    return Recording(pcm[sound.start : sound.stop], offset_samples=sound.start, original_samples=len(pcm))


def _normalize(pcm: Pcm16) -> None:
    """Scale to a peak of full scale, in place; silence stays.

    Source of the rule: `librosa.util.normalize`, which would take 14 bytes per sample here.
    """
    peak = max(int(pcm.max()), -int(pcm.min()))
    if not peak:
        return
    gain = np.float32(32767 / peak)
    for start in range(0, len(pcm), _SAMPLES_PER_BLOCK):
        block = pcm[start : start + _SAMPLES_PER_BLOCK]
        block[:] = np.rint(block * gain)


def _sound_span(pcm: Pcm16) -> SampleSpan:
    """Where the sound is, without the silence at both ends.

    Source of the rule: `librosa.effects.trim`, which would take 30 bytes per sample; here it is a block.
    """
    import librosa

    loudness = np.concatenate(
        [
            librosa.feature.rms(y=block, frame_length=_FRAME_SAMPLES, hop_length=_HOP_SAMPLES, center=False)
            for block in _framed_blocks(pcm)
        ],
        axis=1,
    )[0]
    loudness_db = librosa.amplitude_to_db(loudness, ref=np.max, top_db=None)
    frames = np.flatnonzero(loudness_db > -SILENCE_TOP_DB)
    return SampleSpan(int(frames[0]) * _HOP_SAMPLES, min(len(pcm), (int(frames[-1]) + 1) * _HOP_SAMPLES))


def _framed_blocks(pcm: Pcm16) -> Iterator[Samples]:
    """Float blocks whose frames, each around a multiple of the hop, are together those of the whole."""
    margin = _FRAME_SAMPLES // 2
    for start in range(0, len(pcm) + 1, _SAMPLES_PER_BLOCK):
        stop = min(start + _SAMPLES_PER_BLOCK - _HOP_SAMPLES, len(pcm)) + margin
        block = pcm[max(0, start - margin) : stop].astype(np.float32) * np.float32(1 / 32768)
        yield np.pad(block, (max(0, margin - start), stop - min(stop, len(pcm))))
