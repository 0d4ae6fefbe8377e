"""The parts of the streaming benchmark that turn what was said and told into numbers and verdicts."""

import json
import os
from itertools import pairwise, repeat

import numpy as np
import pytest

from bench.streaming.__main__ import main, result_of
from bench.streaming.conversation import Heard
from bench.streaming.cpu import tree_cpu_s
from bench.streaming.doors import FRAME_MS, STT, Door, Kind, RealtimeDoor, SttDoor, Told
from bench.streaming.hearing import View, aligned, settling_times, transcripts, unstable_words
from bench.streaming.rounds import COLUMNS, Round
from bench.streaming.speech import Utterance, Word, clips, joined, speakers
from whisper_server.core.types import SAMPLE_RATE

SAID = Utterance("Call Maria now.", 1.0, 2.0, (Word("Call", 1.3), Word("Maria", 1.7), Word("now.", 2.0)))
LATER = SAID.later(5.0)


def heard(*told: tuple[float, Told]) -> Heard:
    return Heard([(100 + at_s, each) for at_s, each in told], begin_s=100.0)


def test_words_end_where_the_next_one_starts_and_the_last_with_the_speech() -> None:
    recording = clips()[0]
    (utterance,) = recording.utterances
    assert " ".join(word.text for word in utterance.words) == utterance.text
    ends_s = [word.end_s for word in utterance.words]
    assert ends_s == sorted(ends_s)
    assert ends_s[-1] == utterance.end_s < recording.seconds


def test_joined_clips_keep_the_times_of_their_speech() -> None:
    recording = joined(clips()[:3], repeat(1.0))
    assert len(recording.utterances) == 3
    for utterance in recording.utterances:
        first, last = (round(moment_s * SAMPLE_RATE) for moment_s in (utterance.start_s, utterance.end_s))
        before, within, after = (
            float(np.abs(recording.samples[start:stop]).max())
            for start, stop in ((first - 8000, first - 400), (first, last), (last + 400, last + 8000))
        )
        assert max(before, after) < 0.01 < 0.1 < within


def test_speakers_share_no_clip_and_are_repeatable() -> None:
    everybody = speakers(16, 30)
    assert all(20 <= each.seconds <= 30 for each in everybody)
    assert all(len(each.utterances) >= 4 for each in everybody)
    for one, other in pairwise(everybody):
        lengths = [
            {round(each.end_s - each.start_s, 6) for each in speaker.utterances} for speaker in (one, other)
        ]
        assert lengths[0].isdisjoint(lengths[1])
    assert np.array_equal(speakers(16, 30)[3].samples, everybody[3].samples)


@pytest.mark.parametrize("door", [RealtimeDoor("m"), SttDoor("m")])
def test_frames_last_as_long_as_is_said(door: Door) -> None:
    frames = door.frames(np.zeros(SAMPLE_RATE * 3, np.float32))
    assert len(frames) == 3000 // FRAME_MS


def test_the_realtime_door_reads_deltas_and_asks_for_what_it_is_told() -> None:
    door = RealtimeDoor("m", language=None, delay="low")
    update = json.loads(door.opening("x")[0])
    assert update["session"]["audio"]["input"]["transcription"] == {"model": "m", "delay": "low"}
    kind = "conversation.item.input_audio_transcription.delta"
    assert door.read({"type": kind, "item_id": "i", "delta": " a"}) == Told(Kind.MORE, "i", " a")
    assert door.read({"type": "rate_limits.updated"}) is None


def test_latencies_count_from_what_was_really_said() -> None:
    found = transcripts(
        [SAID, LATER],
        heard(
            (1.1, Told(Kind.STARTED, "a", audio_start_s=0.7)),
            (1.5, Told(Kind.MORE, "a", "Call")),
            (2.1, Told(Kind.MORE, "a", " Maria")),
            (2.6, Told(Kind.FINAL, "a", "Call Maria now.")),
        ),
    )
    (measures,) = found.measures
    assert measures.first_text_s == pytest.approx(0.5)
    assert measures.word_s == pytest.approx((0.2, 0.4, 0.6))
    assert measures.final_s == pytest.approx(0.6)
    assert measures.unstable_words == 0
    assert found.lost == (LATER,)


def test_an_utterance_told_in_two_items_is_final_with_the_second() -> None:
    found = transcripts(
        [SAID],
        heard(
            (1.9, Told(Kind.FINAL, "a", "Call Maria.", 0.7)),
            (2.5, Told(Kind.FINAL, "b", "Now.", 1.75)),
            (9.0, Told(Kind.FINAL, "c", "Thank you.", 8.0)),
        ),
    )
    (measures,) = found.measures
    assert measures.text == "Call Maria. Now."
    assert measures.final_s == pytest.approx(0.5)
    assert found.strays == ("Thank you.",)


def test_an_utterance_without_final_is_lost() -> None:
    found = transcripts([SAID], heard((1.9, Told(Kind.TEXT, "a", "Call", 0.7))))
    assert (found.measures, found.lost) == ((), (SAID,))


def test_words_that_the_next_text_has_otherwise_were_unstable() -> None:
    assert unstable_words(["The", "The meeting.", "the meeting with", "The meeting with David"]) == 0
    assert unstable_words(["a b c", "a x c", "a x c d"]) == 2
    assert unstable_words(["a b", "", "a"]) == 2


def test_a_word_stands_when_it_and_all_before_it_change_no_more() -> None:
    views = [View(1, "a b"), View(2, "x b c"), View(3, "a b c"), View(4, "a b c d")]
    assert settling_times(views) == [3, 3, 3, 4]


def test_words_are_aligned_by_their_longest_common_sequence() -> None:
    assert aligned(list("abcd"), list("axbd")) == [(0, 0), (1, 2), (3, 3)]


def test_targets_are_held_against_the_rounds_they_are_for() -> None:
    (measures,) = transcripts([SAID], heard((2.6, Told(Kind.FINAL, "a", "Call Mary now.", 0.7)))).measures

    def done(streams: int, door: str = STT, cpu_s: float | None = 1.0) -> Round:
        return Round(door, streams, (measures,), (), (), ("oops",), 10.0, 4.0, cpu_s, 0.0)

    result = result_of([done(1), done(8), done(16)], done(50, cpu_s=2.0))
    words = {verdict.claim: verdict.word for verdict in result.verdicts}
    assert words == {
        f"1 stream at {STT}: final after end of speech, ms p95": "PASS",
        f"1 stream at {STT}: unstable ratio": "PASS",
        f"8 streams at {STT}: final after end of speech, ms p95": "PASS",
        f"8 streams at {STT}: first partial, ms p50": "FAIL",
        f"8 streams at {STT}: unstable ratio": "PASS",
        f"16 streams at {STT}: unstable ratio": "PASS",
        "50 mostly silent sessions, CPU % of a core": "FAIL",
        "utterances without text": "PASS",
    }
    row = dict(zip(COLUMNS[-3:], result.rows[0][-3:], strict=True))
    assert row == {
        "word errors %": pytest.approx(100 / 3),
        "CPU s per audio s": 0.1,
        "CPU % of a core": 25,
    }
    assert "1 at /ws/stt, faults: oops" in result.notes
    assert not result.is_passed


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="CPU time is read from /proc")
def test_cpu_time_grows_with_work() -> None:
    before_s = tree_cpu_s(os.getpid())
    assert before_s is not None
    while (tree_cpu_s(os.getpid()) or 0) < before_s + 0.05:
        sum(range(100_000))
    assert tree_cpu_s(1 << 30) is None


def test_a_server_that_is_not_there_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--peer", "http://127.0.0.1:1", "--quick"]) == 2
    assert "does not open" in capsys.readouterr().err
