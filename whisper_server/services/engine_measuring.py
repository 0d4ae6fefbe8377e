"""How fast a loaded engine is: one window alone, and as many as it takes at once."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from whisper_server.core.calibration import (
    ALONE_S,
    TOGETHER_S,
    Measurement,
    Parallelism,
    batch_for,
    calls_of,
    is_too_slow,
)
from whisper_server.core.engine import Engine
from whisper_server.core.errors import EngineTimeoutError
from whisper_server.core.types import (
    MAX_WINDOW_S,
    SAMPLE_RATE,
    AudioContext,
    DecodeOptions,
    Samples,
    Timestamps,
    Window,
)

Clock = Callable[[], float]
"""Seconds, monotonic."""

Measure = Callable[[Engine, Parallelism, int | None], Measurement]
"""Measure an engine that was loaded so, with a batch or None for one that suits the model. Blocking."""

_HANG_LIMIT_S: Final = 120.0
_MOST_REPEATS: Final = 5
_PROBE_S: Final = 1
_NEW_TOKENS: Final = 24


def measure_engine(
    engine: Engine,
    parallelism: Parallelism,
    batch: int | None,
    *,
    clock: Clock = time.perf_counter,
    hang_limit_s: float = _HANG_LIMIT_S,
) -> Measurement:
    """Decode made-up audio and time it; the best of a few repetitions counts. Blocking.

    Takes about 1.5 s, and for slow models up to about five times what one window takes. Windows are 30 s,
    decoded greedily without timestamps or fallback.

    Args:
        engine: to measure; nobody else uses it meanwhile.
        parallelism: with which it was loaded.
        batch: windows of each parallel call; None chooses, and stops after one call if the model is slow.
        clock: seconds, monotonic.
        hang_limit_s: longer than this no set of calls takes.

    Raises:
        EngineTimeoutError: calls did not return in time; they may still run.
        WhisperServerError: what the engine raises.
    """
    calls = _Calls(engine, clock, hang_limit_s)
    # Short, so that a model too slow to measure is found out early. It also warms the engine up.
    probe_s = calls.time([_window(engine, _PROBE_S)])
    if batch is None and is_too_slow(probe_s):
        return Measurement(parallelism, probe_s, None, 0)
    window = _window(engine, MAX_WINDOW_S)
    call_s = calls.time([window])
    if batch is None:
        batch = batch_for(call_s, parallelism.workers, engine.capabilities.max_batch)
    if batch == 0:
        return Measurement(parallelism, call_s, None, 0)
    latency_s = _least(clock, ALONE_S, lambda: calls.time([window]))
    count, at_once = calls_of(parallelism.workers), engine.capabilities.parallel_calls
    set_s = _least(clock, TOGETHER_S, lambda: calls.time([window] * batch, count=count, at_once=at_once))
    return Measurement(parallelism, min(latency_s, call_s), count * batch / set_s, batch)


class _Calls:
    """Calls to `decode`, timed. The calls are made on threads that a hanging engine may keep."""

    def __init__(self, engine: Engine, clock: Clock, hang_limit_s: float) -> None:
        self._engine = engine
        self._clock = clock
        self._hang_limit_s = hang_limit_s

    def time(self, windows: Sequence[Window], *, count: int = 1, at_once: int = 1) -> float:
        """Seconds that `count` calls with these windows take, `at_once` of them at a time."""
        errors: list[Exception] = []
        waiting = iter(range(count))
        lock = threading.Lock()
        threads = [
            threading.Thread(
                target=self._work, args=(waiting, lock, windows, errors), name="calibration", daemon=True
            )
            for _ in range(min(count, at_once))
        ]
        start_s = self._clock()
        for thread in threads:
            thread.start()
        give_up_s = time.monotonic() + self._hang_limit_s
        for thread in threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))
            if thread.is_alive():
                raise EngineTimeoutError("The model did not answer in time.")
        taken_s = self._clock() - start_s
        if errors:
            raise errors[0]
        return taken_s

    def _work(
        self,
        waiting: Iterator[int],
        lock: threading.Lock,
        windows: Sequence[Window],
        errors: list[Exception],
    ) -> None:
        while not errors:
            with lock:
                if next(waiting, None) is None:
                    return
            try:
                self._engine.decode(windows)
            except Exception as error:  # raised again by the thread that waits for this one
                errors.append(error)


def _least(clock: Clock, limit_s: float, measure: Callable[[], float]) -> float:
    """The shortest of a few measurements: what disturbs one only makes it longer."""
    start_s = clock()
    least_s = measure()
    for _ in range(_MOST_REPEATS - 1):
        if clock() - start_s >= limit_s:
            break
        least_s = min(least_s, measure())
    return max(least_s, 1e-9)  # a coarse clock may stand still


def _window(engine: Engine, duration_s: int) -> Window:
    languages = engine.capabilities.languages
    return Window(
        samples=_hum(duration_s),
        language="en" if "en" in languages or not languages else min(languages),
        timestamps=Timestamps.NONE,
        audio_context=AudioContext.FULL if duration_s == MAX_WINDOW_S else AudioContext.AUTO,
        options=DecodeOptions(
            beam_size=1,
            best_of=1,
            temperatures=(0.0,),
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
            max_new_tokens=_NEW_TOKENS,
        ),
    )


def _hum(duration_s: int) -> Samples:
    """Like speech as far as cost goes: a voice's harmonics in syllables, over noise. Always the same."""
    time_s = np.arange(duration_s * SAMPLE_RATE, dtype=np.float32) / SAMPLE_RATE
    pitch = 2 * np.pi * (120 * time_s + 6 * np.sin(2 * np.pi * 0.5 * time_s))
    voice = np.zeros_like(time_s)
    for harmonic in range(1, 12):
        voice += np.sin(harmonic * pitch) / harmonic
    syllables = np.clip(np.sin(2 * np.pi * 4 * time_s), 0, None)
    noise = np.random.default_rng(seed=0).standard_normal(len(time_s), np.float32)
    samples: Samples = (0.1 * voice * syllables + 0.005 * noise).astype(np.float32)
    return samples
