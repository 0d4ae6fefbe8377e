"""From what a server told to how soon and how well it told it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.streaming.conversation import Heard
from bench.streaming.doors import Kind
from bench.streaming.speech import Utterance

_EARLY_S = 0.6
"""An utterance's audio may start so long before its speech: padding, and blocks of the detector."""


@dataclass(frozen=True, slots=True)
class View:
    """The text of an utterance as a reader sees it from a moment on, seconds on the speaker's clock."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Measures:
    """How an utterance was transcribed; times in seconds.

    Attributes:
        reference: what was said.
        text: the final text.
        first_text_s: from the start of the speech to the first text.
        word_s: for each word that was heard right: from the end of its sound to when it stood there for good.
        final_s: from the true end of the speech to the last final.
        unstable_words: words of partials that the next text has no more, or otherwise.
        words: of the final text.
    """

    reference: str
    text: str
    first_text_s: float
    word_s: tuple[float, ...]
    final_s: float
    unstable_words: int
    words: int


@dataclass(frozen=True, slots=True)
class Transcripts:
    """What one speaker got.

    Attributes:
        measures: of each utterance that got a final text.
        lost: utterances without any.
        strays: finals with text where nobody spoke.
    """

    measures: tuple[Measures, ...]
    lost: tuple[Utterance, ...]
    strays: tuple[str, ...]


def transcripts(utterances: Sequence[Utterance], heard: Heard) -> Transcripts:
    """Bring what was said and what was told together.

    A server's item belongs to the utterance within which its audio starts. An utterance may be told in
    several items; its text is theirs, one after the other.
    """
    items = _items(heard)
    owned: dict[int, list[_Item]] = {}
    strays: list[str] = []
    for item in items:
        number = _owner(utterances, item.audio_start_s)
        if number is None:
            strays += [item.views[-1].text] if item.is_final and item.views[-1].text else []
        else:
            owned.setdefault(number, []).append(item)
    found: list[Measures] = []
    lost: list[Utterance] = []
    for number, utterance in enumerate(utterances):
        own = owned.get(number, [])
        views = _merged(own)
        if own and all(item.is_final for item in own) and views[-1].text:
            found.append(_measures(utterance, views))
        else:
            lost.append(utterance)
    return Transcripts(tuple(found), tuple(lost), tuple(strays))


@dataclass(slots=True)
class _Item:
    views: list[View]
    audio_start_s: float | None = None
    is_final: bool = False


def _items(heard: Heard) -> Iterable[_Item]:
    items: dict[str, _Item] = {}
    for at_s, told in heard.told:
        if not told.item:
            continue
        item = items.setdefault(told.item, _Item([]))
        if told.audio_start_s is not None:
            item.audio_start_s = told.audio_start_s
        item.is_final = item.is_final or told.kind is Kind.FINAL
        if told.kind in (Kind.TEXT, Kind.MORE, Kind.FINAL):
            so_far = item.views[-1].text if told.kind is Kind.MORE and item.views else ""
            item.views.append(View(at_s - heard.begin_s, so_far + told.text))
    return [item for item in items.values() if item.views]


def _owner(utterances: Sequence[Utterance], audio_start_s: float | None) -> int | None:
    if audio_start_s is None:
        return None
    for number, utterance in enumerate(utterances):
        if utterance.start_s - _EARLY_S <= audio_start_s <= utterance.end_s:
            return number
    return None


def _merged(items: Sequence[_Item]) -> list[View]:
    """The views of several items as those of one text, in the order in which they came."""
    texts = [""] * len(items)
    moments = sorted(
        ((view.at_s, number, view.text) for number, item in enumerate(items) for view in item.views),
        key=lambda moment: moment[0],
    )
    views: list[View] = []
    for at_s, number, text in moments:
        texts[number] = text.strip()
        views.append(View(at_s, " ".join(filter(None, texts))))
    return views


def _measures(utterance: Utterance, views: Sequence[View]) -> Measures:
    final = views[-1]
    words = words_of(final.text)
    return Measures(
        reference=utterance.text,
        text=final.text,
        first_text_s=next(view.at_s for view in views if view.text) - utterance.start_s,
        word_s=tuple(_word_latencies(utterance, views)),
        final_s=final.at_s - utterance.end_s,
        unstable_words=unstable_words([view.text for view in views]),
        words=len(words),
    )


def _word_latencies(utterance: Utterance, views: Sequence[View]) -> Iterator[float]:
    ends_s = [word.end_s for word in utterance.words for _ in words_of(word.text)]
    said = [part for word in utterance.words for part in words_of(word.text)]
    final = words_of(views[-1].text)
    settled_s = settling_times(views)
    for own, told in aligned(said, final):
        yield settled_s[told] - ends_s[own]


def words_of(text: str) -> list[str]:
    """The words without case and punctuation: a comma that comes and goes is no word that does."""
    return re.findall(r"\w+", text.lower())


def unstable_words(texts: Sequence[str]) -> int:
    """How many words of a growing text were taken back.

    Of each text, those from the first word on that the next text has otherwise; over the words of the last
    text it is the unstable partial word ratio (Shangguan et al. 2020, arXiv:2006.01416).
    """
    spoken = [words_of(text) for text in texts]
    return sum(len(before) - _common(before, after) for before, after in pairwise(spoken))


def settling_times(views: Sequence[View]) -> list[float]:
    """For each word of the last view: from when on it and all before it stood there for good."""
    final = words_of(views[-1].text)
    moments = [views[-1].at_s] * len(final)
    standing = len(final)
    for view in reversed(views):
        standing = min(standing, _common(words_of(view.text), final))
        moments[:standing] = [view.at_s] * standing
    return moments


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words both begin with."""
    count = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        count += 1
    return count


def aligned(said: Sequence[str], told: Sequence[str]) -> list[tuple[int, int]]:
    """The words that both have, as pairs of places, in order: a longest common subsequence."""
    longest = [[0] * (len(told) + 1) for _ in range(len(said) + 1)]
    for i in reversed(range(len(said))):
        for j in reversed(range(len(told))):
            if said[i] == told[j]:
                longest[i][j] = longest[i + 1][j + 1] + 1
            else:
                longest[i][j] = max(longest[i + 1][j], longest[i][j + 1])
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(said) and j < len(told):
        if said[i] == told[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs
