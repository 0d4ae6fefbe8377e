"""Endpoints found as audio comes are those of the whole recording."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_server.core.endpointing import Endpointer, VoiceMark, VoiceSign, ends_sentence
from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.stream_events import Eagerness, StreamOptions, VoiceOptions
from whisper_server.core.voice_activity import BLOCK_SAMPLES, VadOptions, find_speech

QUICK = VoiceOptions(min_speech_ms=64, min_silence_ms=320)


def marks(probabilities: Iterable[float], voice: VoiceOptions = QUICK) -> list[VoiceMark]:
    endpointer = Endpointer(voice)
    return [mark for probability in probabilities for mark in endpointer.feed(probability)]


@given(
    probabilities=st.lists(st.sampled_from([0.0, 0.1, 0.4, 0.45, 0.6, 0.9]), max_size=120),
    min_speech_ms=st.sampled_from([0, 64, 250]),
    min_silence_ms=st.sampled_from([32, 100, 320]),
)
def test_the_spans_are_those_of_the_whole_recording(
    probabilities: list[float], min_speech_ms: int, min_silence_ms: int
) -> None:
    voice = VoiceOptions(min_speech_ms=min_speech_ms, min_silence_ms=min_silence_ms)
    heard = probabilities + [0.0] * 20
    begun = [mark.at for mark in marks(heard, voice) if mark.sign is VoiceSign.BEGUN]
    ended = [mark.at for mark in marks(heard, voice) if mark.sign is VoiceSign.ENDED]
    options = VadOptions(
        min_speech_duration_ms=min_speech_ms, min_silence_duration_ms=min_silence_ms, speech_pad_ms=0
    )
    spans = find_speech(heard, options, len(heard) * BLOCK_SAMPLES)
    assert list(zip(begun, ended, strict=True)) == [(span.start, span.stop) for span in spans]


def test_a_pause_is_told_after_200_ms_and_taken_back_when_speech_resumes() -> None:
    told = marks([0.9] * 5 + [0.0] * 8 + [0.9] * 2 + [0.0] * 20)
    block = BLOCK_SAMPLES
    assert [(mark.sign, mark.at // block) for mark in told] == [
        (VoiceSign.BEGUN, 0),
        (VoiceSign.PAUSED, 5),
        (VoiceSign.RESUMED, 13),
        (VoiceSign.PAUSED, 15),
        (VoiceSign.ENDED, 15),
    ]
    pause = told[1]
    assert 3200 <= pause.heard - pause.at < 3200 + block


def test_doubtful_audio_keeps_what_was_there() -> None:
    assert marks([0.4] * 50) == []
    speaks_on = marks([0.9] * 5 + [0.4] * 50)
    assert [mark.sign for mark in speaks_on] == [VoiceSign.BEGUN]


@pytest.mark.parametrize(("text", "blocks"), [("Yes.", 17), ("", 17), ("and then", 64), (None, 64)])
def test_eagerness_waits_unless_the_text_ends_a_sentence(text: str | None, blocks: int) -> None:
    endpointer = Endpointer(VoiceOptions(min_speech_ms=64), Eagerness.HIGH)
    for _ in range(5):
        list(endpointer.feed(0.9))
    if text is not None:
        endpointer.judge_text(text)
    silence = 0
    while endpointer.is_begun:
        list(endpointer.feed(0.0))
        silence += 1
    assert silence == blocks


def test_the_longest_waits_are_openais() -> None:
    assert [one.max_wait_ms for one in Eagerness] == [8000, 4000, 2000, 4000]


@pytest.mark.parametrize(
    ("text", "is_end"),
    [
        *((text, True) for text in ("Stop.", 'He said "stop."', "Really?", "好。")),
        *((text, False) for text in ("well...", "well…", "one, two,", "and", "")),
    ],
)
def test_what_ends_a_sentence(text: str, is_end: bool) -> None:
    assert ends_sentence(text) is is_end


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: StreamOptions(voice=VoiceOptions(threshold=1.5)), "threshold"),
        (lambda: StreamOptions(voice=VoiceOptions(min_silence_ms=-1)), "min_silence_ms"),
        (lambda: StreamOptions(max_partial_window_s=31.0), "max_partial_window_s"),
        (lambda: StreamOptions(max_utterance_s=float("nan")), "max_utterance_s"),
        (lambda: StreamOptions(overlap_ms=9999), "overlap_ms"),
    ],
)
def test_options_out_of_range_are_refused_by_name(make: object, name: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidRequestError, match=name) as caught:
        make()
    assert caught.value.param == name


@given(
    probabilities=st.lists(st.sampled_from([0.0, 0.4, 0.9]), max_size=120),
    min_speech_ms=st.sampled_from([64, 250]),
    min_silence_ms=st.sampled_from([100, 320, 500]),
)
def test_patience_gathers_blocks_and_tells_beginnings_and_ends_as_soon_as_without(
    probabilities: list[float], min_speech_ms: int, min_silence_ms: int
) -> None:
    voice = VoiceOptions(min_speech_ms=min_speech_ms, min_silence_ms=min_silence_ms)
    heard = probabilities + [0.0] * 30
    at_once = marks(heard, voice)
    endpointer, position, late = Endpointer(voice), 0, []
    while position < len(heard):
        gathered = heard[position : position + endpointer.patience]
        position += len(gathered)
        told = [mark for probability in gathered for mark in endpointer.feed(probability)]
        late += [(mark.sign, position - mark.heard // BLOCK_SAMPLES) for mark in told]
    assert [sign for sign, _ in late] == [mark.sign for mark in at_once]
    most = {VoiceSign.BEGUN: 2, VoiceSign.RESUMED: 1, VoiceSign.PAUSED: 1, VoiceSign.ENDED: 1}
    assert all(blocks <= most[sign] for sign, blocks in late)


def test_a_quiet_stream_is_listened_to_four_times_a_second() -> None:
    endpointer = Endpointer(VoiceOptions())
    assert endpointer.patience == 7
    list(endpointer.feed(0.9))
    assert endpointer.patience == 2
