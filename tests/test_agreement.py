"""What two decodes agree on never changes, and a final that says otherwise says so."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.live_speech import hear, speech
from whisper_server.core.agreement import MAX_PROMPT_TOKENS, Agreement, reconcile, words_of
from whisper_server.core.stream_events import Replacement
from whisper_server.core.types import AlignedWord, Timestamps, Window


def words(text: str, start_s: float = 0.0, word_s: float = 0.5) -> list[AlignedWord]:
    """The words of a text, evenly timed."""
    return [
        AlignedWord(f" {word}", (len(word),), start_s + i * word_s, start_s + (i + 1) * word_s, 0.8)
        for i, word in enumerate(text.split())
    ]


def test_a_word_is_stable_when_two_decodes_agree_on_it() -> None:
    agreement = Agreement(0.0)
    agreement.hear(words("the cat sad"), 5.0)
    assert (agreement.stable_text, agreement.unstable_text) == ("", "the cat sad")
    agreement.hear(words("the cat sat on"), 5.0)
    assert (agreement.stable_text, agreement.unstable_text) == ("the cat", " sat on")
    assert agreement.confidence == pytest.approx(0.8)


def test_a_word_at_the_end_of_the_audio_is_held_back() -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.hear(words("the cat sat"), 1.8)
    assert (agreement.stable_text, agreement.unstable_text) == ("the cat", " sat")


def test_a_word_the_model_is_not_sure_of_is_never_stable_and_nothing_after_it() -> None:
    agreement = Agreement(0.0)
    unsure = [replace(word, probability=0.4) for word in words("maybe so", 1.0)]
    for _ in range(3):
        agreement.hear([*words("the cat"), *unsure], 9.0)
    assert (agreement.stable_text, agreement.unstable_text) == ("the cat", " maybe so")


def test_a_disagreement_before_it_keeps_a_word_unstable() -> None:
    agreement = Agreement(0.0)
    agreement.hear(words("a cat sat"), 9.0)
    agreement.hear(words("the cat sat"), 9.0)
    assert agreement.stable_text == ""


@pytest.mark.parametrize("shift_s", [-0.3, 0.0, 0.3])
def test_words_that_are_stable_are_not_told_again_though_their_times_move(shift_s: float) -> None:
    for text in ("the cat sat on the mat", "sat on the mat", "the mat"):
        start_s = 2.5 - 0.5 * (len(text.split()) - 1)
        again = Agreement(0.0)
        for _ in range(2):
            again.hear(words("the cat sat on the"), 9.0)
        again.leave_out_before(start_s)
        again.hear(words(text, start_s + shift_s), 9.0)
        assert again.unstable_text == " mat", text


def test_the_same_word_said_again_is_told_again() -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.hear(words("no no"), 9.0)
    agreement.hear(words("no no no"), 9.0)
    assert agreement.unstable_text == " no"


def test_words_of_the_utterance_before_are_left_out() -> None:
    agreement = Agreement(10.0)
    agreement.hear(words("before after", 9.3), 12.0)
    assert agreement.unstable_text == "after"


def test_the_prompt_is_the_last_tokens_of_what_is_left_out_as_many_as_other_streams_have() -> None:
    for left_out_s, count in ((0.0, 0), (7.5, 0), (8.0, 16), (11.0, 16), (40.0, MAX_PROMPT_TOKENS)):
        agreement = Agreement(0.0)
        numbered = [replace(word, tokens=(i,)) for i, word in enumerate(words(" ".join(["word"] * 80)))]
        for _ in range(2):
            agreement.hear(numbered, 99.0)
        agreement.leave_out_before(left_out_s)
        left_out = int(2 * left_out_s)
        assert agreement.prompt_tokens == tuple(range(left_out - count, left_out))
        assert len(agreement.left_out_text.split()) == left_out


def test_stable_sentences_are_left_out_whole() -> None:
    agreement = Agreement(1.0)
    assert agreement.leave_out_sentences() == 0.0
    for _ in range(2):
        agreement.hear(words("One two. Three four", 1.0), 9.0)
    assert agreement.leave_out_sentences() == 2.0
    assert agreement.left_out_text == " One two."
    assert agreement.leave_out_stable() == agreement.stable_end_s == 3.0


@pytest.mark.parametrize(
    ("heard", "fresh"),
    [
        ("we go from Rome to Oslo today", " today"),
        ("we travel from Rome to Oslo today", " today"),  # one stable word was another
        ("we go from Rome to Paris today", " today"),
        ("we all go from Rome to Oslo today", " today"),
        ("go from Rome to Oslo today", " today"),
    ],
)
@pytest.mark.parametrize("late_s", [0.0, 1.2, 2.5])
def test_stable_words_are_told_once_though_audio_that_broke_off_had_them_far_too_early(
    heard: str, fresh: str, late_s: float
) -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.hear(words("we go from Rome to Oslo", word_s=0.2), 9.0)
    for _ in range(2):
        agreement.hear(words(heard, late_s), 9.0)
    assert agreement.stable_text + agreement.unstable_text == "we go from Rome to Oslo" + fresh


def test_a_decode_that_goes_on_without_a_space_makes_no_word_of_two() -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.hear(words("the train to Madrid"), 9.0)
    agreement.leave_out_stable()
    on = [replace(words("Lisbon")[0], text="Lisbon", start_s=2.1, end_s=2.6)]
    agreement.hear(on, 9.0)
    assert agreement.unstable_text == " Lisbon"
    agreement.hear([replace(on[0], text=",")], 9.0)
    assert agreement.unstable_text == ","


def test_a_full_stop_is_stable_only_where_something_follows() -> None:
    agreement = Agreement(0.0)
    stop = AlignedWord(".", (9,), 1.0, 1.0, 0.9)
    for _ in range(2):
        agreement.hear([*words("the city"), stop], 9.0)
    assert (agreement.stable_text, agreement.unstable_text) == ("the city", ".")
    for _ in range(2):
        agreement.hear([*words("the city"), stop, *words("we go", 1.0)], 9.0)
    assert agreement.stable_text == "the city. we go"


@given(
    hypotheses=st.lists(st.text("ab ", max_size=30), max_size=12),
    ends_s=st.lists(st.floats(0.0, 20.0), min_size=12, max_size=12),
    settle_s=st.lists(st.none() | st.floats(0.0, 20.0), min_size=12, max_size=12),
)
def test_stable_text_only_ever_grows(
    hypotheses: list[str], ends_s: list[float], settle_s: list[float | None]
) -> None:
    agreement = Agreement(0.0)
    seen = [""]
    for text, end_s, settled_s in zip(hypotheses, ends_s, settle_s, strict=False):
        agreement.hear(words(text), end_s)
        seen.append(agreement.stable_text)
        if settled_s is not None:
            agreement.leave_out_before(settled_s)
            seen.append(agreement.stable_text)
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))


def test_an_engine_without_words_has_them_placed_by_the_length_of_the_text() -> None:
    decoded = hear(
        Window(speech("alpha bravo").pcm.astype(np.float32) / np.float32(32768), timestamps=Timestamps.NONE)
    )
    placed = words_of(decoded, 10.0, 0.8)
    assert [word.text for word in placed] == [" alpha", " bravo"]
    assert placed[0].start_s == 10.0
    assert placed[1].start_s == pytest.approx(10.4)
    assert placed[1].end_s == pytest.approx(10.8)


@pytest.mark.parametrize(
    ("stable", "final", "rest", "replaced"),
    [
        ("", "the cat", "the cat", ()),
        ("the cat", "the cat sat.", " sat.", ()),
        ("the cat", "the cat.", ".", ()),
        ("the cat", "The cat sat", " sat", (Replacement("the", "The"),)),
        ("the cat sad", "the cat sat down", " down", (Replacement("sad", "sat"),)),
        ("the cat", "a cat, sat", ", sat", (Replacement("the", "a"),)),
        ("the big cat", "the cat sat", " sat", (Replacement("big", ""),)),
        ("the cat sat", "the big cat sat down", " down", (Replacement("", "big"),)),
        ("the cat", "", "", (Replacement("the cat", ""),)),
        ("今日は天", "今日は天気", "気", ()),
        ("今日は雨", "今日は天気", "気", (Replacement("雨", "天"),)),
    ],
)
def test_a_final_continues_the_stable_text_and_names_what_it_replaced(
    stable: str, final: str, rest: str, replaced: tuple[Replacement, ...]
) -> None:
    assert reconcile(stable, final) == (rest, replaced)


@given(st.text("abc ."), st.text("abc ."))
def test_reconciling_loses_no_word_of_the_final(stable: str, final: str) -> None:
    stable, final = " ".join(stable.split()), " ".join(final.split())
    rest, replaced = reconcile(stable, final)
    assert final.endswith(rest.strip())
    if not replaced:
        assert stable + rest == final
