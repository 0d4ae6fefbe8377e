"""A recording and its selections read as one piece, and times map back to the original."""

import numpy as np
import pytest
from faster_whisper.vad import SpeechTimestampsMap
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_server.core.recording import Recording, SampleSpan
from whisper_server.core.types import SAMPLE_RATE, Pcm16, Samples


def ramp(count: int) -> Pcm16:
    """Samples that are all different, positive and negative."""
    return (np.arange(count, dtype=np.int64) * 7919 % 65536 - 32768).astype(np.int16)


def as_floats(pcm: Pcm16) -> Samples:
    return pcm.astype(np.float32) / np.float32(32768)


@st.composite
def selections(draw: st.DrawFn) -> tuple[int, tuple[SampleSpan, ...]]:
    """A length, and ordered disjoint spans within it that may touch."""
    count = draw(st.integers(0, 300))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=12)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    return count, tuple(SampleSpan(start, stop) for start, stop in pairs)


def chunks(spans: tuple[SampleSpan, ...]) -> list[dict[str, int]]:
    """The spans as faster-whisper writes them."""
    return [{"start": span.start, "end": span.stop} for span in spans]


def test_a_span_is_as_long_as_the_samples_in_it() -> None:
    assert len(SampleSpan(3, 10)) == 7


def test_a_whole_recording_reads_as_its_samples() -> None:
    pcm = ramp(1000)
    recording = Recording(pcm)

    assert len(recording) == 1000
    assert recording.duration_s == recording.original_duration_s == 1000 / SAMPLE_RATE
    assert recording.read(0, 1000).dtype == np.float32
    assert np.array_equal(recording.read(0, 1000), as_floats(pcm))


def test_a_recording_tells_whether_and_which_spans_were_selected() -> None:
    recording = Recording(ramp(100))
    spans = (SampleSpan(10, 20), SampleSpan(30, 40))

    assert (recording.is_selection, recording.spans) == (False, (SampleSpan(0, 100),))
    assert (recording.select(spans).is_selection, recording.select(spans).spans) == (True, spans)


def test_full_scale_reads_as_one() -> None:
    recording = Recording(np.array([-32768, 0, 32767], np.int16))

    assert recording.read(0, 3).tolist() == [-1.0, 0.0, 32767 / 32768]


def test_what_is_read_is_a_copy() -> None:
    pcm = ramp(10)
    recording = Recording(pcm)

    recording.read(0, 10)[:] = 0

    assert np.array_equal(recording.read(0, 10), as_floats(ramp(10)))
    assert np.array_equal(pcm, ramp(10))


@settings(derandomize=True)
@given(case=selections(), start=st.integers(-50, 400), stop=st.integers(-50, 400))
def test_a_selection_reads_like_its_spans_joined(
    case: tuple[int, tuple[SampleSpan, ...]], start: int, stop: int
) -> None:
    count, spans = case
    pcm = ramp(count)
    joined = np.concatenate([pcm[:0], *(pcm[span.start : span.stop] for span in spans)])

    selection = Recording(pcm).select(spans)

    assert len(selection) == len(joined)
    assert selection.duration_s == len(joined) / SAMPLE_RATE
    assert selection.original_duration_s == count / SAMPLE_RATE
    assert np.array_equal(selection.read(start, stop), as_floats(joined[max(0, start) : max(0, stop)]))


@settings(derandomize=True)
@given(case=selections(), size=st.integers(1, 40))
def test_pieces_read_one_after_the_other_are_the_whole(
    case: tuple[int, tuple[SampleSpan, ...]], size: int
) -> None:
    count, spans = case
    selection = Recording(ramp(count)).select(spans)

    pieces = [selection.read(start, start + size) for start in range(0, len(selection), size)]

    assert np.array_equal(np.concatenate([ramp(0), *pieces]), selection.read(0, len(selection)))


@settings(max_examples=300, derandomize=True)
@given(
    gaps=st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 90_000)), min_size=1, max_size=8),
    seam=st.integers(0, 8),
    time_s=st.one_of(st.none(), st.floats(0, 60)),
    is_end=st.booleans(),
)
def test_times_map_to_the_original_like_in_faster_whisper(
    gaps: list[tuple[int, int]], seam: int, time_s: float | None, is_end: bool
) -> None:
    spans: list[SampleSpan] = []
    for silence, speech in gaps:
        start = (spans[-1].stop if spans else 0) + silence
        spans.append(SampleSpan(start, start + speech))
    recording = Recording(np.zeros(spans[-1].stop, np.int16)).select(tuple(spans))
    expected = SpeechTimestampsMap(chunks(tuple(spans)), SAMPLE_RATE)
    # Seams are where the rules differ; random times hardly ever meet one.
    moment_s = sum(len(span) for span in spans[:seam]) / SAMPLE_RATE if time_s is None else time_s

    index = recording.span_index_at(moment_s, is_end=is_end)

    assert index == expected.get_chunk_index(moment_s, is_end=is_end)
    assert recording.original_time_s(moment_s, is_end=is_end) == expected.get_original_time(
        moment_s, is_end=is_end
    )
    for at in range(len(spans)):
        assert recording.original_time_s(moment_s, span_index=at) == expected.get_original_time(moment_s, at)


def test_at_a_seam_an_end_belongs_to_the_span_before_and_a_start_to_the_one_after() -> None:
    second = SAMPLE_RATE
    pcm = np.zeros(10 * second, np.int16)
    recording = Recording(pcm).select((SampleSpan(second, 2 * second), SampleSpan(5 * second, 7 * second)))

    assert recording.original_time_s(1.0, is_end=True) == 2.0
    assert recording.original_time_s(1.0) == 5.0
    assert recording.original_time_s(0.5) == 1.5
    assert recording.original_time_s(3.0, is_end=True) == 7.0
    assert recording.original_time_s(99.0) == 103.0  # beyond the end the last span goes on


def test_times_of_a_whole_recording_are_their_own() -> None:
    recording = Recording(ramp(SAMPLE_RATE))

    assert recording.original_time_s(0.123456) == 0.123456
    assert recording.original_time_s(99.5, is_end=True) == 99.5


def test_trimmed_silence_shifts_times_and_counts_in_the_original_duration() -> None:
    second = SAMPLE_RATE
    trimmed = Recording(ramp(4 * second), offset_samples=3 * second, original_samples=9 * second)

    assert trimmed.duration_s == 4
    assert trimmed.original_duration_s == 9
    assert trimmed.original_time_s(0.25) == 3.25


def test_a_selection_of_a_trimmed_recording_maps_through_both() -> None:
    second = SAMPLE_RATE
    pcm = ramp(4 * second)
    trimmed = Recording(pcm, offset_samples=3 * second, original_samples=9 * second)

    selection = trimmed.select((SampleSpan(0, second), SampleSpan(2 * second, 3 * second)))

    assert selection.original_time_s(0.5) == 3.5
    assert selection.original_time_s(1.5) == 5.5
    assert selection.original_duration_s == 9
    assert np.array_equal(selection.read(second, 2 * second), as_floats(pcm[2 * second : 3 * second]))


def test_spans_always_count_in_the_whole_recording() -> None:
    """Selecting from a selection starts anew, it does not nest."""
    recording = Recording(ramp(100))
    first = recording.select((SampleSpan(50, 60),))

    assert np.array_equal(
        first.select((SampleSpan(0, 5),)).read(0, 5), recording.select((SampleSpan(0, 5),)).read(0, 5)
    )


@pytest.mark.parametrize("recording", [Recording(ramp(0)), Recording(ramp(100)).select(())])
def test_a_recording_of_nothing_is_empty_and_harmless(recording: Recording) -> None:
    assert len(recording) == 0
    assert recording.duration_s == 0
    assert recording.read(0, 10).shape == (0,)
    assert recording.original_time_s(0.0) == 0.0
    assert recording.original_time_s(1.5, is_end=True) == 1.5


def test_a_selection_shares_the_samples() -> None:
    pcm = ramp(100)
    selection = Recording(pcm).select((SampleSpan(10, 20),))

    pcm[10] = 123

    assert selection.read(0, 1)[0] == pytest.approx(123 / 32768)
