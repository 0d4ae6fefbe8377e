"""Which words of a growing transcript will not change: those that two decodes in a row agree on.

Source of the policy, LocalAgreement-2: Liu, Spanakis and Niehues, "Low-latency sequence-to-sequence speech
recognition and translation by partial hypothesis selection", 2020; Macháček, Dabre and Bojar, "Turning
Whisper into real-time transcription system", 2023. A stretch of audio is decoded again and again while it
grows; audio whose words are stable is left out of later decodes, and its text becomes their prompt.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import dropwhile, takewhile

from whisper_server.core.endpointing import ends_sentence
from whisper_server.core.stream_events import Replacement
from whisper_server.core.types import AlignedWord, Decoded

MAX_PROMPT_TOKENS = 64
"""Tokens of stable text that the next decode is given."""

HOLD_BACK_S = 0.5
"""Words that end this close to the end of the audio may be cut off there, and are never stable."""

LEAST_PROBABILITY = 0.5
"""A word the model is less sure of is not stable: what it makes up for audio that breaks off repeats itself.

Measured with the demo model: of the stable words, finals replaced 26 % without this rule and 6 % with it.
"""

PROMPT_STEP_TOKENS = 16
"""Prompts have a multiple of so many tokens, since only windows with as many share a call of the model."""

_REHEARD_WORDS = 40
"""So many of the last stable words are looked for in what is heard; a window of 8 s has about 25."""

_UNIT = re.compile(r"\s*\S+")
_NOT_LETTERS = re.compile(r"[\W_]+")


class Agreement:
    """One utterance's words, stable and not. Times are seconds on the session's clock.

    Args:
        since_s: words before this belong to the utterance before.
    """

    def __init__(self, since_s: float) -> None:
        self._since_s = since_s
        self._stable: list[AlignedWord] = []
        self._tail: list[AlignedWord] = []
        self._left_out = 0  # so many stable words are not in the audio any more

    @property
    def stable_text(self) -> str:
        """What never changes again."""
        return _text(self._stable).lstrip()

    @property
    def unstable_text(self) -> str:
        """What follows it for now; it begins with a space where the language has them."""
        text = _text(self._tail)
        return text if self._stable else text.lstrip()

    @property
    def stable_end_s(self) -> float:
        """Where the last stable word ends."""
        return self._stable[-1].end_s if self._stable else self._since_s

    @property
    def confidence(self) -> float:
        """Mean probability of all words; 0 where there are none."""
        words = [*self._stable, *self._tail]
        return sum(word.probability for word in words) / len(words) if words else 0.0

    def hear(self, words: Sequence[AlignedWord], audio_end_s: float) -> None:
        """Take the words of the next decode.

        Args:
            words: in order; they may begin with words that are stable already.
            audio_end_s: where the decoded audio ends.
        """
        own = list(dropwhile(lambda word: _middle_s(word) < self._since_s, words))
        fresh = _spaced(own[self._first_fresh(own) :], self._stable)
        agreed = 0
        for old, new in zip(self._tail, fresh, strict=False):
            is_sure = new.probability >= LEAST_PROBABILITY and new.end_s <= audio_end_s - HOLD_BACK_S
            if not is_sure or old.text.strip() != new.text.strip():
                break
            agreed += 1
        if agreed == len(fresh) and agreed and not _letters(fresh[-1].text):
            agreed -= 1  # a model ends a sentence wherever the audio breaks off
        self._stable += fresh[:agreed]
        self._tail = fresh[agreed:]

    def leave_out_sentences(self) -> float:
        """Expect the stable sentences no more; where the last one ends, or 0."""
        ends = (number for number, word in enumerate(self._stable, 1) if ends_sentence(word.text))
        return self._leave_out(max(ends, default=0))

    def leave_out_stable(self) -> float:
        """Expect the stable words no more; where the last one ends, or 0."""
        return self._leave_out(len(self._stable))

    def leave_out_before(self, time_s: float) -> None:
        """Expect no more what ends before a time, and make it stable, agreed or not."""
        count = sum(1 for _ in takewhile(lambda word: word.end_s <= time_s, self._tail))
        self._stable += self._tail[:count]
        self._tail = self._tail[count:]
        self._leave_out(sum(1 for _ in takewhile(lambda word: word.end_s <= time_s, self._stable)))

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """The last tokens of the words left out: at most `MAX_PROMPT_TOKENS`.

        They are as many as a multiple of `PROMPT_STEP_TOKENS` allows.
        """
        tokens = [token for word in self._stable[: self._left_out] for token in word.tokens]
        count = min(len(tokens), MAX_PROMPT_TOKENS) // PROMPT_STEP_TOKENS * PROMPT_STEP_TOKENS
        return tuple(tokens[len(tokens) - count :])

    @property
    def left_out_text(self) -> str:
        """The text of the words left out."""
        return _text(self._stable[: self._left_out])

    def _leave_out(self, count: int) -> float:
        self._left_out = max(self._left_out, count)
        return self._stable[self._left_out - 1].end_s if self._left_out else 0.0

    def _first_fresh(self, words: Sequence[AlignedWord]) -> int:
        """The index of the first word after the stable ones.

        What is heard begins with what is nearest, by edit distance, to the stable words in that audio:
        their times, from a decode of audio that broke off, may be wrong by a second. Of places as near, the
        one counts that ends with the last stable word, then the one that takes a word for another rather
        than for none, then the one at the right time.
        """
        by_time = sum(1 for _ in takewhile(lambda word: _middle_s(word) < self.stable_end_s, words))
        stable = [_letters(word.text) for word in self._stable[-_REHEARD_WORDS:]]
        heard = [_letters(word.text) for word in words]
        expected = min(len(self._stable) - self._left_out, len(stable))
        distances = _prefix_distances(stable, len(stable) - expected, heard)

        def rank(index: int) -> tuple[int, bool, int, int]:
            ends_otherwise = expected > 0 and (index == 0 or heard[index - 1] != stable[-1])
            return distances[index], ends_otherwise, -min(index, expected), abs(index - by_time)

        return min(range(len(words) + 1), key=rank)


def words_of(decoded: Decoded, offset_s: float, duration_s: float) -> list[AlignedWord]:
    """The words of a decoded window on the session's clock.

    Where the engine placed none, the text's length places them.
    """
    if decoded.alignment:
        return [
            replace(word, start_s=word.start_s + offset_s, end_s=word.end_s + offset_s)
            for word in decoded.alignment
        ]
    text = "".join(segment.text for segment in decoded.segments)
    units = _units(text)
    words, position = [], 0
    for unit in units:
        start_s = offset_s + duration_s * position / len(text)
        position += len(unit)
        words.append(AlignedWord(unit, (), start_s, offset_s + duration_s * position / len(text), 1.0))
    return words


def reconcile(stable: str, final: str) -> tuple[str, tuple[Replacement, ...]]:
    """What a final text adds to the stable text, and where it contradicts it.

    Returns:
        What to append to the stable text, and the contradictions in order.
    """
    if final.startswith(stable):
        return final[len(stable) :], ()
    before, after = _units(stable), _units(final)
    matcher = SequenceMatcher(None, [_key(unit) for unit in before], [_key(unit) for unit in after], False)
    replaced: list[Replacement] = []
    covered = 0
    for _, first, last, new_first, new_last in matcher.get_opcodes():
        if first == len(before):
            break  # only what was added at the end is left
        if last == len(before):
            new_last = min(new_last, new_first + last - first)
        replaced += _differences(before[first:last], after[new_first:new_last])
        covered = new_last
    rest = "".join(after[covered:])
    if covered and replaced and _is_begun(replaced[-1], before[-1], after[covered - 1]):
        rest = replaced.pop().after[len(before[-1].strip()) :] + rest
    elif not covered and rest and _UNIT.match(stable):
        rest = f" {rest}" if " " in final else rest
    return rest, tuple(replaced)


def _differences(before: Sequence[str], after: Sequence[str]) -> list[Replacement]:
    if len(before) == len(after):
        pairs = ((old.strip(), new.strip()) for old, new in zip(before, after, strict=True))
        return [Replacement(old, new) for old, new in pairs if old != new]
    return [Replacement("".join(before).strip(), "".join(after).strip())]


def _is_begun(last: Replacement, before: str, after: str) -> bool:
    """Whether the last stable word was only a beginning, such as a word without its full stop."""
    return (
        last.before == before.strip() and last.after == after.strip() and last.after.startswith(last.before)
    )


def _prefix_distances(stable: Sequence[str], left_out: int, heard: Sequence[str]) -> list[int]:
    """The edit distance of stable words to each beginning of what is heard, the empty one first.

    The first `left_out` of them are not expected and may be missing, but a window may begin within the last.
    """
    row = list(range(len(heard) + 1))
    for number, word in enumerate(stable, 1):
        above, row = row, [max(0, number - left_out)]
        for index, other in enumerate(heard, 1):
            row.append(min(above[index] + 1, row[-1] + 1, above[index - 1] + (word != other)))
    return row


def _spaced(words: Sequence[AlignedWord], stable: Sequence[AlignedWord]) -> list[AlignedWord]:
    """The words, the first with a space before it where it follows others in a language with spaces.

    A decode that goes on from a prompt may begin without one, and its word would grow onto the last.
    """
    first = words[0].text if words else ""
    has_spaces = any(word.text.startswith(" ") for word in (*stable, *words))
    if not stable or not has_spaces or not first[:1].isalnum():
        return list(words)
    return [replace(words[0], text=f" {first}"), *words[1:]]


def _units(text: str) -> list[str]:
    """Words with the space before them; single characters where the language has no spaces."""
    return _UNIT.findall(text) if " " in text.strip() or text.isascii() else list(text)


def _key(text: str) -> str:
    return _letters(text) or text.strip()


def _letters(text: str) -> str:
    """What tells a word from another; nothing for marks, which change from decode to decode."""
    return _NOT_LETTERS.sub("", text).casefold()


def _middle_s(word: AlignedWord) -> float:
    return (word.start_s + word.end_s) / 2


def _text(words: Sequence[AlignedWord]) -> str:
    return "".join(word.text for word in words)
