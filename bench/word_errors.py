"""Word error rate: the share of words that were left out, put in or mistaken."""

import re


class WordErrors:
    """Adds up errors over utterances. Case and punctuation do not count."""

    def __init__(self) -> None:
        self._errors = 0
        self._words = 0

    @property
    def rate(self) -> float:
        """Errors per word of the references."""
        return self._errors / self._words

    def add(self, reference: str, text: str) -> None:
        """Compare one transcript with what was said."""
        expected, actual = _words(reference), _words(text)
        self._errors += _distance(expected, actual)
        self._words += len(expected)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _distance(expected: list[str], actual: list[str]) -> int:
    """Levenshtein's distance in words."""
    row = list(range(len(actual) + 1))
    for i, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(actual, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]
