"""Languages by code, with a region, and by name."""

import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES

from whisper_server.core.languages import LANGUAGES, language_code, language_name


def test_the_codes_are_those_of_whisper() -> None:
    assert set(LANGUAGES) == set(_LANGUAGE_CODES)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("pt", "pt"),
        ("PT", "pt"),
        (" pt ", "pt"),
        ("pt-BR", "pt"),
        ("pt_BR", "pt"),
        ("zh-Hant-TW", "zh"),
        ("Portuguese", "pt"),
        ("haitian creole", "ht"),
        ("Mandarin", "zh"),
        ("cmn-Hans", "zh"),
        ("fil", "tl"),
        ("haw", "haw"),
        ("yue", "yue"),
        ("he", "he"),
        ("iw", "he"),
        ("nb", "no"),
        ("nb-NO", "no"),
    ],
)
def test_a_language_goes_by_many_names(text: str, code: str) -> None:
    assert language_code(text) == code


@pytest.mark.parametrize("text", ["", "-", "xx", "klingon", "en glish", "english; drop", "e" * 1000])
def test_what_whisper_does_not_know_has_no_code(text: str) -> None:
    assert language_code(text) is None


def test_every_name_leads_back_to_its_code() -> None:
    for code in LANGUAGES:
        assert language_code(language_name(code)) == code
        assert language_name(code) == language_name(code).lower()


def test_an_unknown_code_is_its_own_name() -> None:
    assert language_name("xx") == "xx"
