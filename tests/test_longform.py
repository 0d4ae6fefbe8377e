"""The long form driven by a script instead of an engine."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from whisper_server.core.longform import LongFormOptions, Step, Steps, batched, sequential
from whisper_server.core.recording import Recording, SampleSpan
from whisper_server.core.types import SAMPLE_RATE, Decoded, Segment, Window

Decoder = Callable[[Window], Decoded]


def recording(seconds: float) -> Recording:
    ramp = np.arange(int(seconds * SAMPLE_RATE)) // SAMPLE_RATE
    return Recording(ramp.astype(np.int16))


def decoded(
    *times: tuple[float, float], consumed_s: float, is_complete: bool = False, temperature: float = 0.0
) -> Decoded:
    segments = tuple(
        Segment(a, b, f" {a:g}", (1, int(a * 10), 2), -0.1, 1.0, 0.0, temperature, text_token_count=1)
        for a, b in times
    )
    return Decoded(segments, "en", 0.9, consumed_s, is_complete, temperature)


def drive(steps: Steps, decode: Decoder) -> list[Step]:
    step = next(steps)
    seen = [step]
    while step.windows:
        assert len(seen) < 100, "the loop does not end"
        step = steps.send([decode(window) for window in step.windows])
        seen.append(step)
    with pytest.raises(StopIteration):
        next(steps)
    return seen


def first_second(window: Window) -> int:
    """The second of the recording a window starts at: the ramp counts them."""
    return round(float(window.audio[0]) * 32768)


def test_the_next_window_starts_where_the_text_ends() -> None:
    script = iter([decoded((0, 12), consumed_s=12), decoded((0, 30), consumed_s=30, is_complete=True)])
    steps = drive(sequential(recording(42), LongFormOptions()), lambda _: next(script))
    windows = [window for step in steps for window in step.windows]
    assert [(first_second(w), w.duration_s) for w in windows] == [(0, 30), (12, 30)]
    times = [(s.start_s, s.end_s, s.window_start_s) for step in steps for s in step.segments]
    assert times == [(0, 12, 0), (12, 42, 12)]
    assert [step.position_s for step in steps] == [0, 12, 42]


def test_a_window_that_does_not_move_on_is_left_behind() -> None:
    steps = drive(sequential(recording(70), LongFormOptions()), lambda _: decoded((0, 0.5), consumed_s=0))
    windows = [window for step in steps for window in step.windows]
    assert [first_second(w) for w in windows] == [0, 30, 60]


def test_silence_is_passed_over() -> None:
    nothing = Decoded((), "en", 0.9, 30, True, 0.0)
    steps = drive(sequential(recording(65), LongFormOptions()), lambda _: nothing)
    assert [len(step.segments) for step in steps] == [0, 0, 0, 0]


def test_the_first_language_counts_for_all() -> None:
    languages: list[str | None] = []

    def decode(window: Window) -> Decoded:
        languages.append(window.language)
        return decoded((0, 30), consumed_s=30, is_complete=True)

    drive(sequential(recording(90), LongFormOptions()), decode)
    assert languages == [None, "en", "en"]
    languages.clear()
    drive(sequential(recording(90), LongFormOptions(multilingual=True)), decode)
    assert languages == [None, None, None]


def test_text_is_handed_on_until_a_hot_window_or_for_ever_not_at_all() -> None:
    def prompts(options: LongFormOptions, temperatures: Sequence[float]) -> list[tuple[str, int]]:
        heat = iter(temperatures)
        seen: list[tuple[str, int]] = []

        def decode(window: Window) -> Decoded:
            seen.append((window.prompt, len(window.previous_tokens)))
            return decoded((0, 30), consumed_s=30, is_complete=True, temperature=next(heat))

        drive(sequential(recording(120), options), decode)
        return seen

    assert prompts(LongFormOptions(prompt="P"), [0, 0, 0, 0]) == [("P", 0), ("P", 3), ("P", 6), ("P", 9)]
    assert prompts(LongFormOptions(prompt="P"), [0, 0.8, 0, 0]) == [("P", 0), ("P", 3), ("", 0), ("", 3)]
    unconditioned = LongFormOptions(prompt="P", condition_on_previous_text=False)
    assert prompts(unconditioned, [0, 0, 0, 0]) == [("P", 0), ("", 0), ("", 0), ("", 0)]


def test_only_clips_are_read() -> None:
    options = LongFormOptions(clips_s=((5, 10), (20, None), (99, 100)))
    steps = drive(
        sequential(recording(30), options),
        lambda w: decoded((0, w.duration_s), consumed_s=w.duration_s, is_complete=True),
    )
    windows = [(first_second(w), w.duration_s) for step in steps for w in step.windows]
    assert windows == [(5, 5), (20, 10)]


def test_spans_are_packed_into_windows_and_times_lead_back() -> None:
    spans = tuple(SampleSpan(s * SAMPLE_RATE, (s + 8) * SAMPLE_RATE) for s in (2, 20, 40, 60, 90))
    whole = recording(100)
    steps = drive(
        batched(whole.select(spans), LongFormOptions(prompt="P"), batch_size=1),
        lambda w: decoded((0, 1), (w.duration_s - 1, w.duration_s), consumed_s=w.duration_s),
    )
    windows = [w for step in steps for w in step.windows]
    assert [(first_second(w), w.duration_s, w.prompt) for w in windows] == [(2, 24, "P"), (60, 16, "P")]
    times = [(s.start_s, s.end_s) for step in steps for s in step.segments]
    assert times == [(2, 3), (47, 48), (60, 61), (97, 98)]
    together = next(batched(whole.select(spans), LongFormOptions(), batch_size=8))
    assert len(together.windows) == 2


@pytest.mark.parametrize("long_form", [sequential, batched])
def test_a_recording_without_speech_needs_no_window(long_form: Callable[..., Steps]) -> None:
    silent = recording(10).select(())
    steps = long_form(silent, LongFormOptions(), **({"batch_size": 4} if long_form is batched else {}))
    assert drive(steps, lambda _: decoded(consumed_s=0)) == [Step((), (), 0.0)]
