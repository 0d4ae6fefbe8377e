"""Form fields as OpenAI's SDKs encode them."""

import math
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_server.api.openai.fields import Fields, shown
from whisper_server.core.errors import InvalidRequestError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


def fields(*pairs: tuple[str, str]) -> Fields:
    return Fields(pairs)


def refused(field: str, code: str = "invalid_value") -> "pytest.RaisesExc[InvalidRequestError]":
    return pytest.RaisesExc(
        InvalidRequestError, check=lambda error: error.param == field and error.code == code
    )


def test_what_is_absent_is_none() -> None:
    empty = fields()
    assert empty.text("a") is None
    assert empty.flag("a") is None
    assert empty.number("a") is None
    assert empty.integer("a", 0, 9) is None
    assert empty.choice("a", Colour) is None
    assert empty.group("a") is None
    assert empty.texts("a") == ()
    assert empty.numbers("a", max_count=3) == ()
    assert empty.choices("a", Colour) == ()
    assert not empty.is_given("a")
    assert not empty.is_none("a")


@pytest.mark.parametrize("blank", ["", " ", "\r\n"])
def test_an_empty_value_counts_as_absent(blank: str) -> None:
    given = fields(("a", blank), ("b[]", blank), ("c[d]", blank))
    assert given.text("a") is None
    assert given.texts("b") == ()
    assert given.group("c") is None
    assert not given.is_given("c")


def test_of_several_values_the_last_counts() -> None:
    assert fields(("a", "1"), ("a", "2"), ("a", "")).text("a") == "2"


def test_white_space_around_names_and_values_does_not_count() -> None:
    assert fields((" a ", " x y\n")).text("a") == "x y"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "True", "1", "yes", "on")),
        *((text, False) for text in ("false", "FALSE", "0", "no", "off")),
        *((text, None) for text in ("null", "None")),
    ],
)
def test_flags(text: str, value: bool | None) -> None:
    assert fields(("a", text)).flag("a") is value


@pytest.mark.parametrize("text", ["2", "maybe", "truee", "[]"])
def test_other_words_are_no_flags(text: str) -> None:
    with refused("a"):
        fields(("a", text)).flag("a")


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("-1.5", -1.5), ("1e-3", 0.001), ("+2", 2.0)])
def test_numbers(text: str, value: float) -> None:
    assert fields(("a", text)).number("a") == value


@pytest.mark.parametrize("text", ["abc", "nan", "-inf", "Infinity", "1e999", "1,5", "0x10", "1" * 5000])
def test_other_words_are_no_numbers(text: str) -> None:
    with refused("a"):
        fields(("a", text)).number("a")


@pytest.mark.parametrize("text", ["1.0", "1e3", "abc", "nan", "9" * 5000, "0x10", "--1", ""])
def test_whole_numbers_have_no_point(text: str) -> None:
    if not text:
        assert fields(("a", text)).integer("a", 0, 9) is None
        return
    with refused("a"):
        fields(("a", text)).integer("a", 0, 9)


@given(st.floats(allow_nan=False), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_number_is_within_its_bounds_or_refused(number: float, one: float, other: float) -> None:
    least, most = sorted((one, other))
    given_number = fields(("a", repr(number)))
    if least <= number <= most:
        assert given_number.number("a", least, most) == number
    else:
        with refused("a"):
            given_number.number("a", least, most)


@pytest.mark.parametrize(
    ("least", "most", "words"),
    [(0, math.inf, "at least 0"), (-math.inf, 5, "at most 5"), (0, 0.5, "between 0 and 0.5")],
)
def test_the_message_says_which_bounds(least: float, most: float, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        fields(("a", "-7" if most == math.inf else "7")).number("a", least, most)


@pytest.mark.parametrize("name", ["a", "a[]"])
def test_arrays_are_repeated_with_brackets_or_without(name: str) -> None:
    given = fields((name, "red"), ("other", "x"), (name, "blue"))
    assert given.texts("a") == ("red", "blue")
    assert given.choices("a", Colour) == (Colour.RED, Colour.BLUE)
    assert given.is_given("a")


def test_both_encodings_of_an_array_add_up_in_order() -> None:
    assert fields(("a[]", "1"), ("a", "2"), ("a[]", "3")).texts("a") == ("1", "2", "3")


def test_one_value_may_hold_several_numbers() -> None:
    assert fields(("a", "0, 1.5,"), ("a[]", "2")).numbers("a", max_count=3) == (0.0, 1.5, 2.0)
    assert fields(("a", "-1,220")).integers("a", -1, 500, max_count=2) == (-1, 220)


def test_arrays_are_bounded() -> None:
    with refused("a"):
        fields(("a", "1,2,3,4")).numbers("a", max_count=3)
    with refused("a"):
        fields(("a", "1,x")).numbers("a", max_count=3)
    with refused("a"):
        fields(("a", "1.5")).integers("a", 0, 5, max_count=3)


def test_a_choice_ignores_case_and_lists_what_there_is() -> None:
    assert fields(("a", "RED")).choice("a", Colour) is Colour.RED
    with pytest.raises(InvalidRequestError, match=r"does not support 'green'. Supported values: red, blue"):
        fields(("a", "green")).choice("a", Colour)


@pytest.mark.parametrize(
    "pairs",
    [
        [("vad[type]", "server_vad"), ("vad[threshold]", "0.5"), ("vad[on]", "true")],
        [("vad", '{"type": "server_vad", "threshold": 0.5, "on": true}')],
        [("vad", '{"type": "server_vad", "on": true, "none": null}'), ("vad[threshold]", "0.5")],
    ],
)
def test_objects_are_parts_of_their_own_or_json(pairs: list[tuple[str, str]]) -> None:
    group = Fields(pairs).group("vad")
    assert group is not None
    assert group.text("type") == "server_vad"
    assert group.number("threshold") == 0.5
    assert group.flag("on") is True
    assert group.keys() == {"type", "threshold", "on"}


def test_an_error_in_an_object_names_the_whole_path() -> None:
    group = fields(("vad[threshold]", "high")).group("vad")
    assert group is not None
    with refused("vad.threshold"):
        group.number("threshold")


@pytest.mark.parametrize("text", ["[1]", "1", '"x"', "null", "{", "{'a': 1}", "[" * 100_000, '{"a": ' * 9999])
def test_what_is_no_object_is_refused(text: str) -> None:
    with refused("vad"):
        fields(("vad", text)).group("vad")


def test_names_that_only_look_like_an_object_are_other_fields() -> None:
    assert fields(("vad[]", "x"), ("vad[", "x"), ("vad[a", "x"), ("vadder[a]", "x")).group("vad") is None


def test_none_words() -> None:
    assert fields(("a", "None")).is_none("a")
    assert fields(("a", "null")).is_none("a")
    assert not fields(("a", "0")).is_none("a")


def test_a_value_is_shown_short_and_on_one_line() -> None:
    assert shown("pt-BR") == "pt-BR"
    assert shown("a\nERROR forged\x1b[0m\ud800") == "a\N{REPLACEMENT CHARACTER}ERROR forged" + (
        "\N{REPLACEMENT CHARACTER}[0m\N{REPLACEMENT CHARACTER}"
    )
    assert len(shown("x" * 1000)) == 100
