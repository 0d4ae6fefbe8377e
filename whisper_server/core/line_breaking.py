"""Where lines and subtitles break: text to atoms, atoms to lines, lines to blocks.

An atom is the smallest piece of text a line may end after: a word with its marks, or a character in scripts
without spaces between words. Lines and blocks are chosen so that the sum of what each break and each line
costs is least, by dynamic programming over the atoms as Knuth and Plass do for paragraphs ("Breaking
Paragraphs into Lines", 1981). A break costs less at the end of a sentence than after a clause, less there
than between other words. Long lines cost more than their share, which makes lines even.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

_BREAKING_SPACE = re.compile(r"[^\S\u00a0\u2007\u202f]+")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U00020000-\U0003ffff]"
)
"""Thai, Lao, Burmese, Khmer, Chinese and Japanese, with the marks of the latter two."""

_SENTENCE_MARKS = ".!?…。！？｡؟۔।॥։።"
_CLAUSE_MARKS = ",;:–—…，、；：､،؛"
_OPENING_MARKS = "«“‘([{¿¡"
_CLOSING_MARKS = "?!:;.,%…»”’)]}"
_CLOSING_QUOTES = "\"'”’»)]}」』）】》〉"
_MARKS = _SENTENCE_MARKS + _CLAUSE_MARKS + _OPENING_MARKS + _CLOSING_QUOTES

_NOT_FIRST_CATEGORIES = frozenset({"Pe", "Pf", "Po", "Pd", "Lm", "Mn", "Mc", "Me", "Cf", "Sk", "Zs"})
_NOT_LAST_CATEGORIES = frozenset({"Ps", "Pi", "Sc", "Zs"})
_NOT_FIRST = frozenset("ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶｧｨｩｪｫｯｬｭｮะาำๅฯະາຳຽ")
_NOT_LAST = frozenset("\"'#@เแโใไເແໂໃໄ")

_JOINED_CATEGORIES = frozenset({"Mn", "Mc", "Me"})
_ZERO_WIDTH_CATEGORIES = frozenset({"Mn", "Me", "Cf"})
_ZERO_WIDTH_JOINER = "\u200d"
_EMOJI_STYLE = "\ufe0f"
_VIRAMA_CLASS = 9
_BURMESE_FINAL = "\u103a"
_FINAL_VIRAMAS = frozenset({"\u0e3a", "\u0eba", _BURMESE_FINAL})
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_HANGUL_VOWELS_AND_FINALS = range(0x1160, 0x1200)
_REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)

_ABBREVIATIONS = frozenset(
    ["dr", "dra", "frau", "hr", "jr", "mme", "mr", "mrs", "ms", "nr", "prof", "sr", "sra", "st", "vs"]
)

# A line may well start with an article, a preposition or a conjunction, and should not end with one.
_FUNCTION_WORDS_BY_LANGUAGE = {
    "en": "a an and as at because but by for from if in into of on or so than that the to when where which "
    "while who with",
    "de": "aber als auf aus bei bis dass das dem den der des die ein eine einem einen einer für im mit ob "
    "oder sondern um und von vom weil wenn wie zu zum zur",
    "es": "al como con cuando de del donde el en entre la las los o para pero por porque que si sin un una y",
    "fr": "au aux avec car ce ces comme dans de des du en et la le les mais ou où par pour quand que qui "
    "sans si sur un une à",
    "pt": "a ao aos as com da das de do dos e em mas na nas no nos num numa o os ou para pela pelo por "
    "porque quando que se sem um uma",
    "it": "che come con da del della di e il in la lo ma nel nella o per perché però se tra un una",
    "nl": "als dat de die een en het in maar met of om omdat op te van voor",
}
_FUNCTION_WORDS = frozenset(" ".join(_FUNCTION_WORDS_BY_LANGUAGE.values()).split())
"""Of all these languages at once: a segment does not tell its language."""

# What a break between blocks costs. The unit is what a line costs however short; a full one costs twice that.
_AT_SENTENCE = 0.0
_AT_CLAUSE = 2.0
_BEFORE_FUNCTION_WORD = 4.0
_AT_SPACE = 5.0
_AFTER_FUNCTION_WORD = 7.0
_AMONG_CHARACTERS = 7.0
_FORCED = 12.0

_LINE_BREAK_SHARE = 0.4
"""What a break between lines of a block costs of that."""

_NEW_BLOCK = 2.0

_STRANDED = 3.0
"""For a line of one short word that is no sentence."""


class _Before(Enum):
    """What is before an atom."""

    SPACE = auto()
    CHARACTER = auto()
    FORCED = auto()


@dataclass(frozen=True, slots=True)
class Atom:
    """A piece of text that stays on one line.

    Attributes:
        text: without white space around it.
        width: in columns.
        start: solid characters of the text before the atom; solid means not white space.
        stop: the same with the atom's own.
        has_space_before: where it follows another on a line, a space is between them.
        break_cost: of a break between blocks before it.
    """

    text: str
    width: int
    start: int
    stop: int
    has_space_before: bool
    break_cost: float


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a line and a block hold. None sets no limit.

    Attributes:
        columns: of a line; an atom wider than that, such as a wide character in one column, still has one.
        words: of a line; an atom is a word.
        lines: of a block.
    """

    columns: int | None
    words: int | None
    lines: int | None


def solid(text: str) -> str:
    """The text without its white space."""
    return "".join(text.split())


def one_line(text: str) -> str:
    """The text with one plain space for each run of white space; spaces that forbid a break stay."""
    return " ".join(_tokens(text))


def join(atoms: Sequence[Atom]) -> str:
    """The atoms on one line."""
    return "".join(
        f" {atom.text}" if index and atom.has_space_before else atom.text for index, atom in enumerate(atoms)
    )


def atoms_of(text: str, columns: int | None, is_word_start: Callable[[int], bool]) -> list[Atom]:
    """Cut a text into atoms.

    Args:
        text: any text.
        columns: of a line; words wider than that are cut.
        is_word_start: whether a word starts after that many solid characters, for scripts without spaces.
    """
    atoms: list[Atom] = []
    for piece, before in _pieces(text, columns):
        previous = atoms[-1] if atoms else None
        start = previous.stop if previous else 0
        cost = _break_cost(previous.text, piece, before, is_word_start(start)) if previous else _AT_SENTENCE
        width, stop = _width(piece), start + len(solid(piece))
        atoms.append(Atom(piece, width, start, stop, before is _Before.SPACE, cost))
    return atoms


@dataclass(frozen=True, slots=True)
class _Node:
    """The cheapest way found to lay out the atoms up to a place, with its last line."""

    cost: float
    start: int
    lines: int
    previous: "_Node | None"


def lay_out(atoms: Sequence[Atom], limits: Limits) -> list[list[Sequence[Atom]]]:
    """Blocks of lines of atoms, all atoms in order.

    Time grows with the atoms times the atoms of a line times the lines of a block.
    """
    if limits.columns is None and limits.words is None:
        return [[atoms]]
    # nodes[stop] has the best layout of atoms[:stop] for each number of lines in its last block.
    nodes: list[dict[int, _Node]] = [{0: _Node(0.0, 0, 0, None)}]
    for stop in range(1, len(atoms) + 1):
        best: dict[int, _Node] = {}
        for start, line_cost in _lines_before(atoms, stop, limits):
            for before in nodes[start].values():
                for lines, cost in _continuations(before, atoms[start].break_cost, limits):
                    total = before.cost + cost + line_cost
                    if lines not in best or total < best[lines].cost:
                        best[lines] = _Node(total, start, lines, before)
        nodes.append(_without_dominated(best))
    return _blocks(atoms, min(nodes[-1].values(), key=lambda node: node.cost))


def _lines_before(atoms: Sequence[Atom], stop: int, limits: Limits) -> Iterator[tuple[int, float]]:
    """Where a line that ends at `stop` may start, and what it costs."""
    width = 0
    for start in range(stop - 1, -1, -1):
        width += atoms[start].width
        fill = max(width / (limits.columns or math.inf), (stop - start) / (limits.words or math.inf))
        is_alone = start == stop - 1
        if fill > 1 and not is_alone:
            return
        cost = 1 + min(fill, 1) ** 2
        if is_alone and not (_is_sentence_edge(atoms, start) and _is_sentence_edge(atoms, stop)):
            cost += _STRANDED * max(0, 1 - fill)
        yield start, cost
        width += atoms[start].has_space_before


def _is_sentence_edge(atoms: Sequence[Atom], place: int) -> bool:
    return place in (0, len(atoms)) or atoms[place].break_cost == _AT_SENTENCE


def _continuations(before: _Node, break_cost: float, limits: Limits) -> Iterator[tuple[int, float]]:
    """How one more line goes on: (lines of its block so far, what the break costs).

    Without a limit lines are not counted further than 2.
    """
    if before.previous is None:
        yield 1, _NEW_BLOCK
    elif limits.lines is None:
        yield 2, _LINE_BREAK_SHARE * break_cost
    else:
        yield 1, _NEW_BLOCK + break_cost
        if before.lines < limits.lines:
            yield before.lines + 1, _LINE_BREAK_SHARE * break_cost


def _without_dominated(nodes: dict[int, _Node]) -> dict[int, _Node]:
    """Only those that are cheaper than all with fewer lines: the others can do no more and cost more."""
    kept: dict[int, _Node] = {}
    lowest = math.inf
    for lines, node in sorted(nodes.items()):
        if node.cost < lowest:
            kept[lines] = node
            lowest = node.cost
    return kept


def _blocks(atoms: Sequence[Atom], last: _Node) -> list[list[Sequence[Atom]]]:
    """Follow the nodes back to the first line."""
    blocks: list[list[Sequence[Atom]]] = []
    lines: list[Sequence[Atom]] = []
    stop, node = len(atoms), last
    while node.previous is not None:
        lines.append(atoms[node.start : stop])
        if node.lines == 1:
            blocks.append(lines[::-1])
            lines = []
        stop, node = node.start, node.previous
    return blocks[::-1]


def _tokens(text: str) -> list[str]:
    stripped = (part.strip() for part in _BREAKING_SPACE.split(text))
    return [part for part in stripped if part]


def _pieces(text: str, columns: int | None) -> Iterator[tuple[str, _Before]]:
    for token in _with_marks(_tokens(text)):
        before = _Before.SPACE
        for part in _parts(token):
            for chunk, cut in _cut(part, columns):
                yield chunk, cut or before
            before = _Before.CHARACTER


def _with_marks(tokens: Sequence[str]) -> list[str]:
    """Marks that stand apart, as French has them, kept with the word they belong to."""
    joined: list[str] = []
    for token in tokens:
        if joined and (not token.strip(_CLOSING_MARKS) or not joined[-1].strip(_OPENING_MARKS + " ")):
            joined[-1] += f" {token}"
        else:
            joined.append(token)
    return joined


def _parts(token: str) -> list[str]:
    """The parts between which scripts without spaces may be broken. Source of the rules: JIS X 4051."""
    if not _UNSPACED.search(token):
        return [token]
    parts: list[str] = []
    for cluster in _clusters(token):
        if parts and (_BURMESE_FINAL in cluster or not _may_part(parts[-1][-1], cluster[0])):
            parts[-1] += cluster
        else:
            parts.append(cluster)
    return parts


def _may_part(left: str, right: str) -> bool:
    if not (_UNSPACED.match(left) or _UNSPACED.match(right)):
        return False
    if right in _NOT_FIRST or unicodedata.category(right) in _NOT_FIRST_CATEGORIES:
        return False
    return left not in _NOT_LAST and unicodedata.category(left) not in _NOT_LAST_CATEGORIES


def _cut(part: str, columns: int | None) -> Iterator[tuple[str, _Before | None]]:
    """The part; where it is wider than a line, its words, and those in chunks of even width if need be."""
    if columns is None or _width(part) <= columns:
        yield part, None
        return
    before: _Before | None = None
    for word in part.split():
        for chunk in _chunks(word, columns):
            yield chunk, before
            before = _Before.FORCED
        before = _Before.SPACE


def _chunks(word: str, columns: int) -> list[str]:
    width = _width(word)
    even = math.ceil(width / math.ceil(width / columns)) if width else columns
    chunks = [""]
    used = 0
    for cluster in _clusters(word):
        cluster_width = _cluster_width(cluster)
        if chunks[-1] and used + cluster_width > even:
            chunks.append("")
            used = 0
        chunks[-1] += cluster
        used += cluster_width
    return chunks


def _clusters(text: str) -> list[str]:
    """What a reader takes for one character: never cut. A short form of Unicode's UAX #29."""
    clusters: list[str] = []
    for character in text:
        if clusters and _joins(clusters[-1], character):
            clusters[-1] += character
        else:
            clusters.append(character)
    return clusters


def _joins(cluster: str, character: str) -> bool:
    last, code = cluster[-1], ord(character)
    return (
        unicodedata.category(character) in _JOINED_CATEGORIES
        or _ZERO_WIDTH_JOINER in (character, last)
        or (unicodedata.combining(last) == _VIRAMA_CLASS and last not in _FINAL_VIRAMAS)
        or code in _SKIN_TONES
        or code in _HANGUL_VOWELS_AND_FINALS
        or (code in _REGIONAL_INDICATORS and len(cluster) == 1 and ord(cluster) in _REGIONAL_INDICATORS)
    )


def _width(text: str) -> int:
    """Columns on a screen, by Unicode's UAX #11."""
    return len(text) if text.isascii() else sum(_cluster_width(cluster) for cluster in _clusters(text))


def _cluster_width(cluster: str) -> int:
    first = cluster[0]
    if unicodedata.category(first) in _ZERO_WIDTH_CATEGORIES:
        return 0
    is_emoji = _EMOJI_STYLE in cluster or ord(first) in _REGIONAL_INDICATORS
    return 2 if is_emoji or unicodedata.east_asian_width(first) in "WF" else 1


def _break_cost(left: str, right: str, before: _Before, is_word_start: bool) -> float:
    if before is _Before.FORCED:
        return _FORCED
    if _ends_sentence(left, right):
        return _AT_SENTENCE
    if left.rstrip(_CLOSING_QUOTES).endswith(tuple(_CLAUSE_MARKS)):
        return _AT_CLAUSE
    if before is _Before.CHARACTER:
        return _AT_SPACE if is_word_start else _AMONG_CHARACTERS
    if _bare(left) in _FUNCTION_WORDS or _is_abbreviated(left):
        return _AFTER_FUNCTION_WORD
    return _BEFORE_FUNCTION_WORD if _bare(right) in _FUNCTION_WORDS else _AT_SPACE


def _ends_sentence(left: str, right: str) -> bool:
    core = left.rstrip(_CLOSING_QUOTES)
    if not core.endswith(tuple(_SENTENCE_MARKS)):
        return False
    if core[-1] not in ".…":
        return True
    return not (right.lstrip(_MARKS + "\"'")[:1].islower() or _is_abbreviated(core))


def _is_abbreviated(word: str) -> bool:
    """Whether a point belongs to the word, as in `Dr.`, `J.` and the German ordinal `3.`."""
    bare = _bare(word)
    is_initial = len(bare) == 1 and bare.isalpha()
    is_ordinal = len(bare) <= 2 and bare.isdigit()
    return word.endswith(".") and (is_initial or is_ordinal or bare in _ABBREVIATIONS)


def _bare(word: str) -> str:
    return word.strip(_MARKS).lower()
