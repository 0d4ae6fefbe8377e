"""Subtitle files: what they hold, how they are broken, and that parsers read back what was said."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from faster_whisper import decode_audio
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_server.core.engine import ComputeChoice
from whisper_server.core.formats import (
    MIN_CUE_S,
    Cue,
    SubtitleFormat,
    SubtitleOptions,
    SubtitleWriter,
    cues,
    srt,
    srt_cues,
    tsv,
    vtt,
    vtt_cues,
)
from whisper_server.core.longform import LongFormOptions, sequential
from whisper_server.core.recording import Recording
from whisper_server.core.types import Segment, Timestamps, Word
from whisper_server.engines import faster_whisper

DOCS = Path(__file__).parent.parent / "docs"

NONE = SubtitleOptions()
TWO_LINES = SubtitleOptions(max_line_width=42, max_line_count=2)

Parsed = list[tuple[int, int, str]]
"""(start, end, text) of each cue; times in milliseconds."""


def segment(text: str, start_s: float = 0.0, end_s: float = 10.0, words: Sequence[Word] = ()) -> Segment:
    return Segment(start_s, end_s, text, (), -0.1, 1.0, 0.0, 0.0, words=tuple(words))


def spoken(*words: tuple[str, float, float]) -> Segment:
    """A segment with timed words."""
    timed = [Word(text, start_s, end_s, 0.9) for text, start_s, end_s in words]
    return segment("".join(word.text for word in timed), timed[0].start_s, timed[-1].end_s, timed)


def solid(text: str) -> str:
    return "".join(text.split())


def blocks(text: str, options: SubtitleOptions) -> list[tuple[str, ...]]:
    return [cue.lines for cue in cues([segment(text)], options)]


def times(segments: Sequence[Segment], options: SubtitleOptions = NONE) -> list[tuple[float, float]]:
    return [(round(cue.start_s, 6), round(cue.end_s, 6)) for cue in cues(segments, options)]


_TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)%s(\d{3})"


def parse_times(line: str, separator: str) -> tuple[int, int]:
    match = re.fullmatch(f"{_TIME} --> {_TIME}" % (separator, separator), line)
    assert match is not None, line
    h1, m1, s1, ms1, h2, m2, s2, ms2 = map(int, match.groups())
    return ((h1 * 60 + m1) * 60 + s1) * 1000 + ms1, ((h2 * 60 + m2) * 60 + s2) * 1000 + ms2


def parse_srt(file: str) -> Parsed:
    """As strict as the layout: a number, times, lines, an empty line."""
    assert file == "" or file.endswith("\n\n")
    result = []
    for number, block in enumerate(file.split("\n\n")[:-1], start=1):
        head, time_line, *lines = block.split("\n")
        assert head == str(number)
        assert lines
        assert all(line.strip() and "-->" not in line for line in lines)
        result.append((*parse_times(time_line, ","), "\n".join(lines)))
    return result


def parse_vtt(file: str) -> Parsed:
    """As strict as the layout: the header, and cues without names; the text is unescaped."""
    assert file.startswith("WEBVTT\n\n")
    assert file.endswith("\n\n")
    result = []
    for block in file.removeprefix("WEBVTT\n\n").split("\n\n")[:-1]:
        time_line, *lines = block.split("\n")
        assert lines
        for line in lines:
            assert line.strip()
            assert not re.search("[<>]|&(?!amp;|lt;|gt;)", line)
        result.append((*parse_times(time_line, "\\."), unescape_vtt("\n".join(lines))))
    return result


def unescape_vtt(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


# --- The files ---------------------------------------------------------------------------------------------


def test_srt_has_numbers_commas_and_an_empty_line_after_each_cue() -> None:
    segments = [segment(" Hello there.", 0, 2.5), segment(" Good bye.", 3.25, 5)]
    assert srt(segments) == (
        "1\n00:00:00,000 --> 00:00:02,500\nHello there.\n\n2\n00:00:03,250 --> 00:00:05,000\nGood bye.\n\n"
    )


def test_vtt_has_a_header_points_and_no_numbers() -> None:
    segments = [segment(" Hello there.", 0, 2.5), segment(" Good bye.", 3.25, 5)]
    assert vtt(segments) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nHello there.\n\n"
        "00:00:03.250 --> 00:00:05.000\nGood bye.\n\n"
    )


def test_tsv_has_milliseconds_and_the_text_without_tabs() -> None:
    segments = [segment(" Hello\tthere.\n", 0, 2.4996), segment("  ", 2.5, 3), segment(" Bye.", 3600, 3601)]
    assert tsv(segments) == "start\tend\ttext\n0\t2500\tHello there.\n3600000\t3601000\tBye.\n"


@pytest.mark.parametrize("options", [NONE, TWO_LINES])
def test_without_text_srt_is_empty_and_vtt_is_its_header(options: SubtitleOptions) -> None:
    for segments in ([], [segment(" "), segment("\n\t")]):
        assert srt(segments, options) == ""
        assert vtt(segments, options) == "WEBVTT\n\n"
        assert tsv(segments) == "start\tend\ttext\n"


def test_lines_of_a_cue_are_lines_of_the_file() -> None:
    options = SubtitleOptions(max_line_width=20, max_line_count=2)
    assert srt([segment(" Send a message to David on Monday.", 1, 3)], options) == (
        "1\n00:00:01,000 --> 00:00:03,000\nSend a message\nto David on Monday.\n\n"
    )


@pytest.mark.parametrize(
    ("time_s", "written"),
    [
        (0.0004, "00:00:00,000"),
        (59.9994, "00:00:59,999"),
        (59.9996, "00:01:00,000"),
        (3599.9999, "01:00:00,000"),
        (360_000.0, "100:00:00,000"),
        (3_600_000.5, "1000:00:00,500"),
    ],
)
def test_times_are_rounded_without_a_sixtieth_second(time_s: float, written: str) -> None:
    file = srt([segment("x", time_s, time_s + 1)])
    assert file.splitlines()[1].startswith(f"{written} --> ")
    assert vtt([segment("x", time_s, time_s + 1)]).splitlines()[2].startswith(written.replace(",", "."))


def test_vtt_escapes_what_it_would_read_as_markup() -> None:
    file = vtt([segment(" a <b> & c --> d &lt;", 0, 1)])
    assert file == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na &lt;b&gt; &amp; c --&gt; d &amp;lt;\n\n"


def test_srt_text_cannot_look_like_a_time_line() -> None:
    text = " 2\n\n00:00:09,000 --> 00:00:10,000\r\n\u2028Boo ---->"
    file = srt([segment(text, 0, 1)])
    assert file == "1\n00:00:00,000 --> 00:00:01,000\n2 00:00:09,000 -- > 00:00:10,000 Boo ---- >\n\n"


def test_right_to_left_text_keeps_its_order() -> None:
    text = "مرحبا بكم في هذا البرنامج الجديد، نحن سعداء جدا بوجودكم معنا اليوم."
    assert parse_vtt(vtt([segment(text, 0, 4)])) == [(0, 4000, text)]
    options = SubtitleOptions(max_line_width=30, max_line_count=2)
    assert blocks(text, options) == [
        ("مرحبا بكم في هذا", "البرنامج الجديد،"),
        ("نحن سعداء جدا", "بوجودكم معنا اليوم."),
    ]


# --- Streams -----------------------------------------------------------------------------------------------


def test_pieces_come_before_the_segments_have_ended_and_are_numbered_on() -> None:
    seen: list[str] = []

    def talk() -> Any:
        for index in range(3):
            yield segment(f" {index}", index, index + 1)
            seen.append(f"asked after {index}")

    for piece in srt_cues(talk()):
        seen.append(piece.splitlines()[0])
    # A cue's end depends on the next one, so each comes one segment later.
    assert seen == ["asked after 0", "1", "asked after 1", "2", "asked after 2", "3"]


def test_the_header_of_vtt_comes_before_any_segment_is_there() -> None:
    segments = iter([segment("later", 0, 1)])
    pieces = vtt_cues(segments)
    assert next(pieces) == "WEBVTT\n\n"
    assert next(segments).text == "later"


# --- Breaking ----------------------------------------------------------------------------------------------


def test_without_options_a_segment_is_a_cue_of_one_line() -> None:
    text = " One sentence.  Another one,\nand " + "so on " * 30
    assert blocks(text, NONE) == [(" ".join(text.split()),)]


@pytest.mark.parametrize("limit", ["max_line_width", "max_line_count", "max_words_per_line"])
def test_limits_leave_room_for_something(limit: str) -> None:
    assert SubtitleOptions(**{limit: 1}) != NONE
    with pytest.raises(ValueError, match="at least 1, not 0"):
        SubtitleOptions(**{limit: 0})


GOLDEN: list[tuple[str, tuple[int | None, int | None, int | None], str, list[tuple[str, ...]]]] = [
    ("what fits stays whole", (42, 2, None), " Yes. I think so.", [("Yes. I think so.",)]),
    (
        "cues end with sentences before lines are full",
        (42, 2, None),
        " The train leaves in two minutes. What is the weather in Berlin today? "
        "Please buy six tickets and eight apples for David.",
        [
            ("The train leaves in two minutes.", "What is the weather in Berlin today?"),
            ("Please buy six tickets", "and eight apples for David."),
        ],
    ),
    (
        "else after clauses",
        (30, 1, None),
        " If it should rain tomorrow, we will all stay at home.",
        [("If it should rain tomorrow,",), ("we will all stay at home.",)],
    ),
    (
        "else before function words",
        (30, 2, None),
        " David found two old bottles in the kitchen drawer.",
        [("David found two old bottles", "in the kitchen drawer.")],
    ),
    (
        "without a limit of lines a segment stays one cue",
        (24, None, None),
        " The train leaves in two minutes. What is the weather in Berlin today?",
        [("The train leaves", "in two minutes.", "What is the weather", "in Berlin today?")],
    ),
    (
        "words are counted",
        (None, 1, 4),
        " Maria sold seven apples and four books yesterday.",
        [("Maria sold seven apples",), ("and four books yesterday.",)],
    ),
    ("a word at a time", (None, 1, 1), " Open the door.", [("Open",), ("the",), ("door.",)]),
    ("only a count of lines never breaks", (None, 1, None), " a b c" * 40, [(("a b c " * 40).strip(),)]),
    (
        "no word is left alone",
        (30, 2, None),
        " Maria sold seven old apples yesterday.",
        [("Maria sold seven old", "apples yesterday.")],
    ),
    (
        "nor alone after a clause",
        (30, 2, None),
        " Maria sold seven old apples, yesterday.",
        [("Maria sold seven old", "apples, yesterday.")],
    ),
    (
        "abbreviations, initials and ordinals end no sentence",
        (24, 2, None),
        " Am 3. Mai kam Dr. Meier mit J. Schmidt. Wir gingen.",
        [("Am 3. Mai kam Dr. Meier", "mit J. Schmidt."), ("Wir gingen.",)],
    ),
    (
        "nor does a point within a sentence",
        (16, 2, None),
        " She bought fish etc. for the family dinner.",
        [("She bought fish",), ("etc. for the", "family dinner.")],
    ),
    (
        "an initial stays with the name",
        (16, 1, None),
        " They asked J. Smith about Peter K. Jones yesterday.",
        [("They asked",), ("J. Smith about",), ("Peter K. Jones",), ("yesterday.",)],
    ),
    (
        "an ordinal stays with what it counts",
        (14, 1, None),
        " Der 3. Mai war schön.",
        [("Der 3. Mai",), ("war schön.",)],
    ),
    (
        "a sentence may end in a quote",
        (12, 1, None),
        " He said “Stop.” Then we left the house quickly.",
        [("He said",), ("“Stop.”",), ("Then we left",), ("the house",), ("quickly.",)],
    ),
    (
        "so may a clause",
        (18, 2, None),
        " He said “maybe, perhaps,” then we left the house quickly.",
        [("He said", "“maybe, perhaps,”"), ("then we left", "the house quickly.")],
    ),
    (
        "sentences count more than clauses",
        (14, 1, None),
        " First, we eat. Then, we sleep well.",
        [("First, we eat.",), ("Then,",), ("we sleep well.",)],
    ),
    (
        "no line ends with a function word if there is a better way",
        (12, 1, None),
        " We spoke about the price of a ticket to the museum in Vienna.",
        [("We spoke",), ("about",), ("the price of",), ("a ticket to",), ("the museum",), ("in Vienna.",)],
    ),
    (
        "a cue has as many lines as allowed",
        (10, 3, None),
        " one two three four five six",
        [("one two", "three four", "five six")],
    ),
    (
        "marks that stand apart stay with their word",
        (16, 1, None),
        " Comment ça va ? « Très bien »",
        [("Comment ça va ?",), ("« Très bien »",)],
    ),
    (
        "an opening mark too",
        (12, 1, None),
        " Il dit « très bien »",
        [("Il dit",), ("« très",), ("bien »",)],
    ),
    (
        "spaces that forbid a break are kept",
        (8, 1, None),
        " Il a 20\u00a0000 euros.",
        [("Il a",), ("20\u00a0000",), ("euros.",)],
    ),
    (
        "a word longer than a line is cut evenly",
        (20, 2, None),
        "Donaudampfschifffahrtsgesellschaftskapitän!",
        [("Donaudampfschif", "ffahrtsgesellsc"), ("haftskapitän!",)],
    ),
    (
        "and the parts stay in one cue",
        (6, 2, None),
        "aaa bbbbbbbbbbbb",
        [("aaa",), ("bbbbbb", "bbbbbb")],
    ),
    (
        "a space that forbids a break gives way in a line too short",
        (4, 1, None),
        "1\u00a000\u00a0000",
        [("1 00",), ("000",)],
    ),
    ("marks that stand apart part before words are cut", (5, 1, None), "« aaaaa", [("«",), ("aaaaa",)]),
    ("what a reader takes for one character is not cut", (1, 1, None), "e\u0301e\u0301", [("e\u0301",)] * 2),
    (
        "nor Korean letters in parts",
        (2, 1, None),
        normalize("NFD", "한국"),
        [(normalize("NFD", c),) for c in "한국"],
    ),
    ("nor Indian conjuncts", (2, 1, None), "क्षेत्रीय", [("क्षेत्री",), ("य",)]),
    (
        "nor are joined emoji and flags",
        (2, 1, None),
        "👩\u200d🚀👍🏽🇩🇪🇫🇷",
        [("👩\u200d🚀",), ("👍🏽",), ("🇩🇪",), ("🇫🇷",)],
    ),
    (
        "Japanese breaks after its marks, and never before them",
        (26, 2, None),
        "昨日、友達と一緒に新しい映画を見に行きました。とても面白かったので、もう一度見たいと思っています。",
        [
            ("昨日、友達と一緒に新しい", "映画を見に行きました。"),
            ("とても面白かったので、もう", "一度見たいと思っています。"),
        ],
    ),
    ("Chinese too", (16, 1, None), "我们今天去公园。你呢？", [("我们今天去公园。",), ("你呢？",)]),
    ("wide characters that fit in no line have one each", (1, 1, None), "東京", [("東",), ("京",)]),
    (
        "Thai vowels stay with their consonant",
        (4, 1, None),
        "ที่ทำเลย",
        [("ที่ทำ",), ("เลย",)],
    ),
    ("Burmese ends no line within a syllable", (2, 1, None), "မာမြန်မာ", [("မာ",), ("မြန်",), ("မာ",)]),
    ("small kana stay with the one before", (4, 1, None), "あかって", [("あ",), ("かっ",), ("て",)]),
    ("a straight quote parts from neither side", (5, 1, None), "漢字'漢字", [("漢",), ("字'漢",), ("字",)]),
    (
        "Korean breaks at its spaces",
        (24, 2, None),
        "안녕하세요 오늘은 날씨가 정말 좋습니다.",
        [("안녕하세요 오늘은", "날씨가 정말 좋습니다.")],
    ),
]


@pytest.mark.parametrize(
    ("limits", "text", "expected"), [case[1:] for case in GOLDEN], ids=[case[0] for case in GOLDEN]
)
def test_text_is_broken_where_a_reader_would(
    limits: tuple[int | None, int | None, int | None], text: str, expected: list[tuple[str, ...]]
) -> None:
    assert blocks(text, SubtitleOptions(*limits)) == expected


def test_timed_words_show_where_words_of_scripts_without_spaces_end() -> None:
    options = SubtitleOptions(max_line_width=12, max_line_count=1)
    text = "我们今天去公园散步"
    words = [("我们", 0, 1), ("今天", 1, 2), ("去", 2, 3), ("公园", 3, 4), ("散步", 4, 5)]
    assert blocks(text, options) == [("我们今天去",), ("公园散步",)]
    assert [cue.lines for cue in cues([spoken(*words)], options)] == [("我们今天去",), ("公园散步",)]
    words = [("我们", 0, 1), ("今天", 1, 2), ("去公园", 2, 3), ("散步", 3, 4)]
    assert [cue.lines for cue in cues([spoken(*words)], options)] == [("我们今天",), ("去公园散步",)]


# --- Times -------------------------------------------------------------------------------------------------


def test_cues_last_from_their_first_word_to_their_last() -> None:
    said = spoken(
        (" Open", 1.0, 1.2), (" the", 1.2, 1.3), (" door.", 1.4, 1.9), (" Close", 2.5, 2.8), (" it.", 2.8, 3)
    )
    options = SubtitleOptions(max_line_width=14, max_line_count=1)
    assert cues([said], options) == [Cue(1.0, 1.9, ("Open the door.",)), Cue(2.5, 3, ("Close it.",))]


def test_without_words_time_is_shared_by_characters() -> None:
    options = SubtitleOptions(max_words_per_line=1, max_line_count=1)
    assert times([segment(" aaaa bb cc", 10, 18)], options) == [(10, 14), (14, 16), (16, 18)]


@pytest.mark.parametrize(
    "words",
    [
        [(" Open", 1.0, 1.2)],
        [(" Shut", 1.0, 1.2), (" the", 1.2, 1.4), (" door.", 1.4, 2)],
    ],
)
def test_words_that_do_not_make_up_the_text_are_not_believed(words: list[tuple[str, float, float]]) -> None:
    said = replace(spoken(*words), text=" Open the door.", start_s=0.0, end_s=12.0)
    options = SubtitleOptions(max_words_per_line=1, max_line_count=1)
    assert times([said], options) == [(0, 4), (4, 7), (7, 12)]


def test_a_pause_starts_a_new_cue_only_where_limits_and_words_are_given() -> None:
    said = spoken((" Well", 0, 1), (" then,", 2.0, 2.5), (" go", 3.6, 4))
    assert cues([said], TWO_LINES) == [Cue(0, 2.5, ("Well then,",)), Cue(3.6, 4, ("go",))]
    assert cues([said]) == [Cue(0, 4, ("Well then, go",))]
    assert cues([replace(said, words=())], TWO_LINES) == [Cue(0, 4, ("Well then, go",))]


def test_overlapping_text_makes_room_for_what_is_said_next() -> None:
    segments = [segment("a", 0, 30), segment("b", 2, 4), segment("c", 3.5, 6)]
    assert times(segments) == [(0, 2), (2, 3.5), (3.5, 6)]


def test_text_out_of_order_waits_for_the_text_before_it() -> None:
    segments = [segment("a", 10, 12), segment("b", 3, 5), segment("c", 12.05, 14), segment("d", 20, 21)]
    assert times(segments) == [(10, 12), (12, 12.1), (12.1, 14), (20, 21)]


def test_text_without_length_is_shown_for_a_moment() -> None:
    segments = [segment("a", 3, 3), segment("b", 3, 3), segment("c", 3, 5), segment("d", 8, 7)]
    assert times(segments) == [(3, 3.1), (3.1, 3.2), (3.2, 5), (8, 8.1)]


def test_time_does_not_begin_before_the_recording() -> None:
    assert times([segment("a", -1, 2)]) == [(0, 2)]


# --- Whatever a model may write ----------------------------------------------------------------------------

_ALPHABET = st.one_of(
    st.sampled_from("abcdeE .,;:?!–…-<>&\"'()«»\n\r\t\u00a0\u2028\u200d"),
    st.sampled_from("東京をっー。、「」ที่ทำเ안녕مرح،ш\u0301\u094d👩🏽🇩🇪\ufe0f１"),
    st.characters(exclude_categories=["Cs"]),
)
_WORD_LIKE = st.text(_ALPHABET, max_size=12)
_TEXT = st.lists(
    _WORD_LIKE | st.sampled_from(["-->", "&amp;", "1\n2", "Dr.", "the", "und", "Ja."]), max_size=20
)
_TIME_S = (
    st.floats(-1, 4e5)
    | st.floats(0, 30).map(lambda time_s: round(time_s, 2))
    | st.sampled_from([0.0, 59.9996])
)
LIMIT = st.none() | st.integers(1, 45)
OPTIONS = st.builds(SubtitleOptions, LIMIT, st.none() | st.integers(1, 4), st.none() | st.integers(1, 9))


@st.composite
def drawn_segments(draw: st.DrawFn) -> Segment:
    """A segment with any text and times; with words of any times, or some of them, or none."""
    parts = draw(_TEXT)
    drawn = segment(draw(st.sampled_from([" ", ""])).join(parts), draw(_TIME_S), draw(_TIME_S))
    if draw(st.booleans()):
        words = tuple(Word(part, draw(_TIME_S), draw(_TIME_S), 0.5) for part in parts)
        drawn = replace(drawn, words=words[draw(st.sampled_from([0, 0, 0, 1])) :])
    return drawn


TRANSCRIPTS = st.lists(drawn_segments(), max_size=5)


@given(TRANSCRIPTS, OPTIONS)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_no_text_is_lost_or_invented(segments: list[Segment], options: SubtitleOptions) -> None:
    said = solid("".join(s.text for s in segments))
    shown = cues(segments, options)
    assert solid("".join(line for cue in shown for line in cue.lines)) == said
    for cue in shown:
        assert cue.lines
        for line in cue.lines:
            assert line == line.strip() != ""
            assert line.splitlines() == [line]
    assert solid("".join(text for *_, text in parse_srt(srt(segments, options)))) == said
    assert solid("".join(text for *_, text in parse_vtt(vtt(segments, options)))) == said


@given(TRANSCRIPTS, OPTIONS)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_cues_have_length_and_never_overlap(segments: list[Segment], options: SubtitleOptions) -> None:
    shown = cues(segments, options)
    assert all(cue.start_s >= 0 for cue in shown)
    assert all(cue.end_s - cue.start_s >= MIN_CUE_S - 1e-6 for cue in shown)
    assert all(cue.end_s <= following.start_s for cue, following in pairwise(shown))
    for parsed in (parse_srt(srt(segments, options)), parse_vtt(vtt(segments, options))):
        assert [(start, end) for start, end, _ in parsed] == [
            (round(cue.start_s * 1000), round(cue.end_s * 1000)) for cue in shown
        ]
        assert all(start < end for start, end, _ in parsed)
        assert all(end <= start for (_, end, _), (start, _, _) in pairwise(parsed))


@given(st.lists(st.text("abcdefg.,!?", min_size=1, max_size=9), min_size=1, max_size=40), OPTIONS)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_limits_hold_and_words_stay_whole(words: list[str], options: SubtitleOptions) -> None:
    width = options.max_line_width
    lines = [cue.lines for cue in cues([segment(" ".join(words))], options)]
    for line in (line for cue in lines for line in cue):
        assert width is None or len(line) <= width
        # A mark that stands apart counts with its word.
        spoken_words = [word for word in line.split() if word.strip(".,!?")]
        assert options.max_words_per_line is None or len(spoken_words) <= options.max_words_per_line
    assert options.max_line_count is None or all(len(cue) <= options.max_line_count for cue in lines)
    if width is None or all(len(word) <= width for word in words):
        assert " ".join(line for cue in lines for line in cue).split() == words


@given(st.text("東京都。、っー「」", min_size=1, max_size=60), st.integers(8, 40))
@settings(derandomize=True, deadline=None)
def test_wide_characters_take_two_columns(text: str, width: int) -> None:
    options = SubtitleOptions(max_line_width=width, max_line_count=2)
    lines = [line for cue in cues([segment(text)], options) for line in cue.lines]
    assert all(2 * len(line) <= width for line in lines)
    assert "".join(lines) == text


@given(st.data())
@settings(derandomize=True, deadline=None)
def test_a_file_written_in_pieces_is_the_same_file(data: st.DataObject) -> None:
    segments = data.draw(TRANSCRIPTS)
    options = data.draw(OPTIONS)
    cut = data.draw(st.integers(0, len(segments)))
    for layout, whole, generator in (
        (SubtitleFormat.SRT, srt(segments, options), srt_cues(segments, options)),
        (SubtitleFormat.VTT, vtt(segments, options), vtt_cues(segments, options)),
    ):
        writer = SubtitleWriter(layout, options)
        assert writer.write(segments[:cut]) + writer.write(segments[cut:]) + writer.finish() == whole
        assert writer.finish() == ""
        assert "".join(generator) == whole


# --- Real transcripts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transcripts(demo_model_path: Path, sample_recordings: list[dict[str, Any]]) -> list[list[Segment]]:
    """What the demo model makes of some samples, with timed words."""
    engine = faster_whisper.load(
        demo_model_path, ComputeChoice("faster-whisper", "cpu", "float32", cpu_threads=1, workers=1)
    )
    result = []
    for sample in sample_recordings[:4]:
        audio = decode_audio(str(sample["path"]))
        recording = Recording(np.round(audio * 32767).astype(np.int16))
        options = LongFormOptions(language=sample["language"], timestamps=Timestamps.WORD)
        steps = sequential(recording, options)
        step = next(steps)
        segments = [*step.segments]
        while step.windows:
            step = steps.send(engine.decode(step.windows))
            segments += step.segments
        result.append(segments)
    engine.close()
    return result


@pytest.mark.parametrize("options", [NONE, TWO_LINES, SubtitleOptions(20, 1), SubtitleOptions(None, 1, 3)])
def test_transcripts_of_the_demo_model_read_back(
    transcripts: list[list[Segment]], options: SubtitleOptions
) -> None:
    for segments in transcripts:
        assert any(s.words for s in segments)
        text = "".join(s.text for s in segments)
        parsed = parse_srt(srt(segments, options))
        assert " ".join(line for *_, text in parsed for line in text.split("\n")).split() == text.split()
        assert parse_vtt(vtt(segments, options)) == parsed
        assert all(end <= start for (_, end, _), (start, _, _) in pairwise(parsed))


def test_cues_of_the_demo_model_start_with_a_word_and_end_with_one(transcripts: list[list[Segment]]) -> None:
    exact = 0
    for segments in transcripts:
        words = iter([word for s in segments for word in s.words])
        previous_end_s = 0.0
        for cue in cues(segments, SubtitleOptions(max_line_width=20, max_line_count=1)):
            own = [next(words)]
            while len("".join(word.text for word in own).strip()) < len(cue.lines[0]):
                own.append(next(words))
            assert "".join(word.text for word in own).strip() == cue.lines[0]
            # Words without length, which this model writes too, get some.
            start_s = max(own[0].start_s, previous_end_s)
            previous_end_s = max(own[-1].end_s, start_s + MIN_CUE_S)
            assert (cue.start_s, cue.end_s) == (start_s, previous_end_s)
            exact += (cue.start_s, cue.end_s) == (own[0].start_s, own[-1].end_s)
        assert next(words, None) is None
    assert exact > 20


# --- The docs ----------------------------------------------------------------------------------------------


def test_the_example_of_the_docs_is_true() -> None:
    page = (DOCS / "subtitles.md").read_text(encoding="utf-8")
    transcript, files = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("tsv", "text"))
    rows = [line.split("\t") for line in transcript[0].splitlines()[1:]]
    segments = [segment(text, int(start) / 1000, int(end) / 1000) for start, end, text in rows]
    assert len(segments) == 2
    assert tsv(segments) == transcript[0]
    options = SubtitleOptions(max_line_width=32, max_line_count=2)
    assert [srt(segments, options).rstrip("\n"), vtt(segments).rstrip("\n")] == [
        f.rstrip("\n") for f in files
    ]
