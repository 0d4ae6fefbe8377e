"""Subtitle files: what they hold, how they are broken, and that parsers read back what was said."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

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
    def silence() -> Any:
        pytest.fail("asked for a segment first")
        yield segment("never")

    assert next(vtt_cues(silence())) == "WEBVTT\n\n"


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
        (None, 1, 3),
        " Maria sold seven apples and four books yesterday.",
        [("Maria sold",), ("seven apples",), ("and four books",), ("yesterday.",)],
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
        "abbreviations, initials and ordinals end no sentence",
        (24, 2, None),
        " Am 3. Mai kam Dr. Meier mit J. Schmidt. Wir gingen.",
        [("Am 3. Mai kam Dr. Meier", "mit J. Schmidt."), ("Wir gingen.",)],
    ),
    (
        "marks that stand apart stay with their word",
        (16, 1, None),
        " Comment ça va ? « Très bien »",
        [("Comment ça va ?",), ("« Très bien »",)],
    ),
    (
        "spaces that forbid a break are kept",
        (13, 1, None),
        " Il a 20\u00a0000 euros.",
        [("Il a",), ("20\u00a0000 euros.",)],
    ),
    (
        "a word longer than a line is cut evenly",
        (20, 2, None),
        "Donaudampfschifffahrtsgesellschaftskapitän!",
        [("Donaudampfschif", "ffahrtsgesellsc"), ("haftskapitän!",)],
    ),
    (
        "a space that forbids a break gives way in a line too short",
        (4, 1, None),
        "20\u00a0000",
        [("20",), ("000",)],
    ),
    ("what a reader takes for one character is not cut", (1, 1, None), "e\u0301e\u0301", [("e\u0301",)] * 2),
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
