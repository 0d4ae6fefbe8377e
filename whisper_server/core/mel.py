"""The log-mel spectrogram Whisper was trained on, a window at a time.

It equals `faster_whisper.feature_extractor.FeatureExtractor`, which computes it for the whole recording at
once: 30 minutes take 1.4 GB there. Here a window's frames come from the window and its margins alone. What
cannot come from the window is the level below which the spectrogram is clamped, 8 decades under the loudest
bin: faster-whisper takes the loudest of the whole recording, so `peak` finds that in one pass that keeps
nothing, and `normalize` is given it. Without it a window is clamped by its own loudest bin, as in
openai-whisper's and the batched pipeline's handling of single windows.
"""

from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from whisper_server.core.recording import Recording
from whisper_server.core.types import (
    FRAME_SAMPLES,
    FRAMES_PER_SECOND,
    MAX_WINDOW_S,
    SAMPLE_RATE,
    Samples,
    Window,
)

LogMel: TypeAlias = NDArray[np.float32]
"""log10 mel power, shape (mel_bins, frames), dtype float32."""

LogMelBatch: TypeAlias = NDArray[np.float32]
"""Shape (windows, mel_bins, frames), dtype float32."""

FFT_SAMPLES = 400
EDGE_SAMPLES = FFT_SAMPLES // 2
"""How far a frame looks to either side of its centre."""

ENCODER_FRAMES = MAX_WINDOW_S * FRAMES_PER_SECOND
"""Frames of a full encoder context."""

_POWER_FLOOR = 1e-10
_DYNAMIC_RANGE = np.float32(8.0)
_PEAK_BLOCK_FRAMES = 1000


def window_log_mel(window: Window, mel_bins: int) -> LogMel:
    """The normalised spectrogram of a window, without padding.

    Returns:
        Shape (mel_bins, duration in frames), values about [-1, 2].
    """
    audio_samples = len(window.samples) - window.margin_before - window.margin_after
    frames = audio_samples // FRAME_SAMPLES
    if window.mel_peak is not None:
        log_mel = _log_mel(window.samples, window.margin_before, frames, mel_bins)
        return _normalize(log_mel, window.mel_peak)
    # One frame more than is used: the reference clamps by the peak over it too.
    log_mel = _log_mel(window.samples, window.margin_before, frames + 1, mel_bins)
    return _normalize(log_mel[:, :frames], float(log_mel.max()))


def peak(recording: Recording, mel_bins: int) -> float:
    """The largest log10 mel power of a recording: `Window.mel_peak` of each of its windows.

    Reads the recording in pieces and keeps none; about 0.5 ms of computing per second of audio.
    """
    frames = len(recording) // FRAME_SAMPLES + 1
    largest = _POWER_FLOOR
    for first in range(0, frames, _PEAK_BLOCK_FRAMES):
        count = min(_PEAK_BLOCK_FRAMES, frames - first)
        start = first * FRAME_SAMPLES
        samples = recording.read(start - EDGE_SAMPLES, start + count * FRAME_SAMPLES + EDGE_SAMPLES)
        power = _mel_power(samples, min(start, EDGE_SAMPLES), count, mel_bins)
        largest = max(largest, float(power.max()))
    return float(np.log10(np.float32(largest)))


def batch_log_mel(windows: Sequence[Window], mel_bins: int, frames: int = ENCODER_FRAMES) -> LogMelBatch:
    """The spectrograms of windows, each filled with zeros to the encoder's length as the reference does.

    Args:
        windows: none longer than `frames`.
        mel_bins: 80 or 128, as the model was trained.
        frames: length of the encoder's input.
    """
    batch = np.zeros((len(windows), mel_bins, frames), dtype=np.float32)
    for row, window in zip(batch, windows, strict=True):
        log_mel = window_log_mel(window, mel_bins)
        row[:, : log_mel.shape[1]] = log_mel[:, :frames]
    return batch


def _normalize(log_mel: LogMel, peak_value: float) -> LogMel:
    np.maximum(log_mel, np.float32(peak_value) - _DYNAMIC_RANGE, out=log_mel)
    log_mel += np.float32(4.0)
    log_mel /= np.float32(4.0)
    return log_mel


def _log_mel(samples: Samples, lead: int, frames: int, mel_bins: int) -> LogMel:
    power = _mel_power(samples, lead, frames, mel_bins)
    np.maximum(power, np.float32(_POWER_FLOOR), out=power)
    return np.log10(power, out=power)


def _mel_power(samples: Samples, lead: int, frames: int, mel_bins: int) -> NDArray[np.float32]:
    """Mel power of `frames` frames; the first is centred on sample `lead`.

    Before the first sample the audio is mirrored, after the last it is silent.
    """
    needed = (frames - 1) * FRAME_SAMPLES + FFT_SAMPLES
    missing_before = max(0, EDGE_SAMPLES - lead)
    body = samples[max(0, lead - EDGE_SAMPLES) :][: needed - missing_before]
    padded_samples = np.zeros(needed, dtype=np.float32)
    padded_samples[missing_before : missing_before + len(body)] = body
    if missing_before:
        mirror = samples[1 : missing_before + 1][::-1]
        padded_samples[missing_before - len(mirror) : missing_before] = mirror
    blocks = np.lib.stride_tricks.sliding_window_view(padded_samples, FFT_SAMPLES)[::FRAME_SAMPLES]
    spectrum = np.fft.rfft(blocks * _hann_window(), axis=-1)
    magnitudes = np.abs(spectrum.astype(np.complex64, copy=False)) ** 2
    power: NDArray[np.float32] = _mel_filters(mel_bins) @ magnitudes.T
    return power


@cache
def _hann_window() -> NDArray[np.float32]:
    return np.hanning(FFT_SAMPLES + 1)[:-1].astype(np.float32)


@cache
def _mel_filters(mel_bins: int) -> NDArray[np.float32]:
    """Triangular filters on Slaney's mel scale with unit area, shape (mel_bins, 201).

    Source: `librosa.filters.mel(sr=16000, n_fft=400, n_mels=mel_bins)`.
    """
    linear_hz_per_mel = 200.0 / 3
    break_hz, log_step = 1000.0, np.log(6.4) / 27.0
    break_mel = break_hz / linear_hz_per_mel
    top_mel = break_mel + np.log(SAMPLE_RATE / 2 / break_hz) / log_step
    mels = np.linspace(0.0, top_mel, mel_bins + 2)
    edges_hz = np.where(
        mels < break_mel,
        mels * linear_hz_per_mel,
        break_hz * np.exp(log_step * (np.maximum(mels, break_mel) - break_mel)),
    )
    bins_hz = np.fft.rfftfreq(FFT_SAMPLES, 1.0 / SAMPLE_RATE)
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]
    area = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    filters: NDArray[np.float32] = (np.maximum(0.0, np.minimum(rising, falling)) * area[:, None]).astype(
        np.float32
    )
    return filters
