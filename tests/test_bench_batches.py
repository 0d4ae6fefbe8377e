"""The benchmark of batches decodes the same windows in each size of batch, by turns."""

import os
from collections.abc import Sequence
from typing import Any, cast

import pytest

from bench.batches import main, measure
from bench.load.report import render
from whisper_server.core.engine import Engine
from whisper_server.core.types import Window


class Counting:
    """An engine that notes the batches it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.seen: set[int] = set()

    def decode(self, windows: Sequence[Window]) -> list[Any]:
        """Beams and windows of the call."""
        self.calls.append((windows[0].options.beam_size, len(windows)))
        self.seen |= {id(window) for window in windows}
        return [None] * len(windows)


def test_the_same_windows_are_decoded_in_each_size_by_turns() -> None:
    engine = Counting()
    result = measure(cast(Engine, engine), beams=[5], sizes=[1, 2, 3], rounds=2)
    once = [(5, 1)] * 3 + [(5, 2), (5, 1)] + [(5, 3)]
    assert engine.calls == [(5, 1), *once, *once]
    assert len(engine.seen) == 3
    assert result.columns == ["beams", "by 1: s", "by 2: s", "by 3: s", "2 ÷ 1", "3 ÷ 1"]


def test_each_number_of_beams_has_its_row() -> None:
    engine = Counting()
    result = measure(cast(Engine, engine), beams=[5, 1], sizes=[1, 2], rounds=1)
    assert [row[0] for row in result.rows] == [5, 1]
    assert {beams for beams, _ in engine.calls} == {5, 1}
    (_, single_s, pair_s, gain) = result.rows[0]
    assert gain == pytest.approx(cast(float, single_s) / cast(float, pair_s))
    assert "2 windows of about 30 s" in render(result, is_quick=False)


@pytest.mark.parametrize(
    "words",
    [["--beams", "0"], ["--sizes", "1", "0"], ["--rounds", "0"], ["--threads", "-1"], ["--cost", "x"]],
)
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    with pytest.raises(SystemExit):
        main(words)
    assert words[0] in capsys.readouterr().err
    assert dict(os.environ) == before
