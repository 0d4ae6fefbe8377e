"""Transcripts as files with times: SubRip, WebVTT and whisper's tab separated values.

Sources: the WebVTT recommendation of the W3C; openai-whisper's `whisper.utils` for TSV and for the names of
the limits.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import accumulate

from whisper_server.core.line_breaking import Atom, Limits, atoms_of, join, lay_out, one_line, solid
from whisper_server.core.types import Segment

MIN_CUE_S = 0.1
"""The shortest cue, seconds: models write segments and words without length, which players skip."""

MAX_PAUSE_S = 1.0
"""The longest silence between two words of a cue, seconds."""


@dataclass(frozen=True, slots=True)
class SubtitleOptions:
    """How subtitles are broken into lines. None sets no limit; without any, a segment is a cue of one line.

    Attributes:
        max_line_width: columns of a line; East Asian wide characters take two.
        max_line_count: lines of a cue.
        max_words_per_line: words of a line; in scripts without spaces a character counts as a word.

    Raises:
        ValueError: a limit is less than 1.
    """

    max_line_width: int | None = None
    max_line_count: int | None = None
    max_words_per_line: int | None = None

    def __post_init__(self) -> None:
        for limit in (self.max_line_width, self.max_line_count, self.max_words_per_line):
            if limit is not None and limit < 1:
                raise ValueError(f"A subtitle limit must be at least 1, not {limit}.")


_NO_LIMITS = SubtitleOptions()


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines of text, shown from one time to another."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


class SubtitleFormat(StrEnum):
    """A subtitle file's layout."""

    SRT = "srt"
    VTT = "vtt"


class SubtitleWriter:
    """Writes a subtitle file while its segments come in. Not thread-safe.

    It holds back the last cue, whose end depends on the next one; `finish` gives it out. However the
    segments are dealt out to `write`, the pieces make up the same file.
    """

    def __init__(self, layout: SubtitleFormat, options: SubtitleOptions = _NO_LIMITS) -> None:
        self._layout = layout
        self._options = options
        self._timeline = _Timeline()
        self._number = 0
        self._header = "WEBVTT\n\n" if layout is SubtitleFormat.VTT else ""

    def write(self, segments: Iterable[Segment]) -> str:
        """The next piece of the file; it may be empty."""
        return self._rendered(_settled(segments, self._options, self._timeline))

    def finish(self) -> str:
        """The last piece of the file; it may be empty."""
        return self._rendered(self._timeline.finish())

    def _rendered(self, cues: Iterable[Cue]) -> str:
        pieces = [self._header]
        self._header = ""
        for cue in cues:
            self._number += 1
            is_vtt = self._layout is SubtitleFormat.VTT
            pieces.append(_vtt_cue(cue) if is_vtt else _srt_cue(self._number, cue))
        return "".join(pieces)


def cues(segments: Iterable[Segment], options: SubtitleOptions = _NO_LIMITS) -> list[Cue]:
    """The cues of a transcript, in order and without overlap.

    Without options each segment with text is a cue. With options a segment may become several, broken as
    `line_breaking` says; each lasts from its first word to its last, and a pause in the speech starts a new
    one. Where words are not timed, all characters of the segment take the same time.
    """
    timeline = _Timeline()
    return [*_settled(segments, options, timeline), *timeline.finish()]


def srt(segments: Iterable[Segment], options: SubtitleOptions = _NO_LIMITS) -> str:
    """A SubRip file; empty where there is no text."""
    return "".join(srt_cues(segments, options))


def vtt(segments: Iterable[Segment], options: SubtitleOptions = _NO_LIMITS) -> str:
    """A WebVTT file; only its header where there is no text."""
    return "".join(vtt_cues(segments, options))


def srt_cues(segments: Iterable[Segment], options: SubtitleOptions = _NO_LIMITS) -> Iterator[str]:
    """A SubRip file in pieces, while its segments come in."""
    return _pieces(segments, SubtitleWriter(SubtitleFormat.SRT, options))


def vtt_cues(segments: Iterable[Segment], options: SubtitleOptions = _NO_LIMITS) -> Iterator[str]:
    """A WebVTT file in pieces, while its segments come in; the first piece is the header."""
    return _pieces(segments, SubtitleWriter(SubtitleFormat.VTT, options))


def tsv(segments: Iterable[Segment]) -> str:
    """A header, then a row for each segment with text: start and end in milliseconds, and the text."""
    rows = [
        f"{_milliseconds(segment.start_s)}\t{_milliseconds(segment.end_s)}\t{text}\n"
        for segment in segments
        if (text := one_line(segment.text))
    ]
    return "".join(["start\tend\ttext\n", *rows])


def _pieces(segments: Iterable[Segment], writer: SubtitleWriter) -> Iterator[str]:
    if header := writer.write(()):
        yield header
    for segment in segments:
        if piece := writer.write((segment,)):
            yield piece
    if piece := writer.finish():
        yield piece


def _srt_cue(number: int, cue: Cue) -> str:
    # SubRip has no escapes, and players take a line with "-->" for a time line: a space makes it none.
    text = "\n".join(cue.lines).replace("-->", "-- >")
    return f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{text}\n\n"


def _vtt_cue(cue: Cue) -> str:
    text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{text}\n\n"


def _clock(time_s: float, separator: str) -> str:
    seconds, milliseconds = divmod(_milliseconds(time_s), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{separator}{milliseconds:03}"


def _milliseconds(time_s: float) -> int:
    return round(time_s * 1000)


def _settled(segments: Iterable[Segment], options: SubtitleOptions, timeline: "_Timeline") -> Iterator[Cue]:
    for segment in segments:
        for cue in _segment_cues(segment, options):
            yield from timeline.add(cue)


def _segment_cues(segment: Segment, options: SubtitleOptions) -> Iterator[Cue]:
    """The cues of one segment, with the times the model gave."""
    text = one_line(segment.text)
    if not text:
        return
    if options == _NO_LIMITS:
        yield Cue(segment.start_s, segment.end_s, (text,))
        return
    times = _CharacterTimes(segment)
    limits = Limits(options.max_line_width, options.max_words_per_line, options.max_line_count)
    atoms = atoms_of(segment.text, limits.columns, times.is_start)
    for phrase in _phrases(atoms, times):
        for lines in lay_out(phrase, limits):
            start_s = times.start_s(lines[0][0].start)
            end_s = times.end_s(lines[-1][-1].stop)
            yield Cue(start_s, end_s, tuple(join(line) for line in lines))


def _phrases(atoms: Sequence[Atom], times: "_CharacterTimes") -> Iterator[Sequence[Atom]]:
    """The atoms between pauses."""
    first = 0
    for index in range(1, len(atoms)):
        place = atoms[index].start
        if times.start_s(place) - times.end_s(place) > MAX_PAUSE_S:
            yield atoms[first:index]
            first = index
    yield atoms[first:]


class _CharacterTimes:
    """When each solid character of a segment is spoken: those of a word share its time evenly.

    Where the words are missing or do not make up the text, the whole segment counts as one word.
    """

    def __init__(self, segment: Segment) -> None:
        text = solid(segment.text)
        spans = [(len(solid(word.text)), word.start_s, word.end_s) for word in segment.words]
        if solid("".join(word.text for word in segment.words)) != text:
            spans = [(len(text), segment.start_s, segment.end_s)]
        self._spans = [span for span in spans if span[0]]
        self._starts = list(accumulate((length for length, _, _ in self._spans), initial=0))

    def is_start(self, place: int) -> bool:
        """Whether a word starts after this many characters."""
        return self._starts[bisect_right(self._starts, place) - 1] == place

    def start_s(self, place: int) -> float:
        """When the character after the place starts."""
        return self._time_s(bisect_right(self._starts, place) - 1, place)

    def end_s(self, place: int) -> float:
        """When the character before the place ends."""
        return self._time_s(bisect_right(self._starts, place - 1) - 1, place)

    def _time_s(self, index: int, place: int) -> float:
        length, start_s, end_s = self._spans[index]
        share = (place - self._starts[index]) / length
        return end_s if share == 1 else start_s + share * (end_s - start_s)


class _Timeline:
    """Makes cues follow one another, whatever times the model gave."""

    def __init__(self) -> None:
        self._held: Cue | None = None

    def add(self, cue: Cue) -> Iterator[Cue]:
        """Take a cue; give out the one before it."""
        start_s = max(0.0, cue.start_s)
        if (held := self._held) is not None:
            if start_s >= held.start_s + MIN_CUE_S:
                # Text appears when it is spoken; the text before it makes room.
                held = replace(held, end_s=min(held.end_s, start_s))
            else:
                start_s = held.end_s
            yield held
        self._held = replace(cue, start_s=start_s, end_s=max(cue.end_s, start_s + MIN_CUE_S))

    def finish(self) -> Iterator[Cue]:
        """Give out the last cue."""
        if self._held is not None:
            yield self._held
        self._held = None
