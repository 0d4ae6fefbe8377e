"""What the command lines of the benchmarks have in common."""

import argparse
from collections.abc import Sequence


def at_least_one(text: str) -> int:
    """A whole number, as `type` of an argument.

    Raises:
        argparse.ArgumentTypeError: it is less than 1.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def split_server_flags(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """A benchmark's own words, and what comes after `--` for the server."""
    own = list(words)
    if "--" not in own:
        return own, ()
    cut = own.index("--")
    return own[:cut], tuple(own[cut + 1 :])
