"""Which `model_path` the operator's allowlist lets through."""

import os
from pathlib import Path

import pytest

from whisper_server.core.errors import ConfigurationError
from whisper_server.services.model_path_allowlist import check_prefixes, is_allowed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`models` with a model and links out of it, a folder whose name begins alike, and a link to `models`."""
    for name in ("models/base", "models-private/base", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "models" / "here").symlink_to("base")
    (tmp_path / "models" / "circle").symlink_to("circle")
    (tmp_path / "shelf").symlink_to("models")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "is_let_in"),
    [
        ("{}/models/base", True),
        ("{}/models/base/", True),
        ("{}/models", True),
        ("{}/models/./base/../base", True),
        ("{}/models/here", True),
        ("{}/models/missing", True),
        ("{}/shelf/base", True),
        ("{}/outside/../models/base", True),
        ("{}/models/../outside", False),
        ("{}/models/base/../../outside", False),
        ("{}/models/out", False),
        ("{}/models/out/../outside", False),
        ("{}/models/here/../../outside", False),
        ("{}/models-private/base", False),
        ("{}/models\0/base", False),
        ("{}/models/" + "m" * 5000, True),
        ("{}", False),
        ("/", False),
        ("../models", False),
        ("models/base", False),
        ("openai/whisper-small", False),
    ],
)
@pytest.mark.parametrize("prefix", ["{}/models", "{}/models/", "{}/shelf/", "{}/outside/../models"])
def test_folders_are_compared_where_they_really_are(
    root: Path, place: str, is_let_in: bool, prefix: str
) -> None:
    assert is_allowed(place.format(root), (prefix.format(root),)) is is_let_in


def test_a_circle_of_links_leads_to_no_folder_outside(root: Path) -> None:
    # Before Python 3.13 a circle cannot be resolved at all; since then it stays where it is.
    place, prefix = str(root / "models" / "circle"), str(root / "outside")
    assert not is_allowed(place, (prefix,))


def test_a_relative_path_begins_at_the_working_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "outside")
    prefixes = (str(root / "models"),)
    assert is_allowed("../models/base", prefixes)
    assert not is_allowed("./base", prefixes)
    assert is_allowed("./base", (f".{os.sep}",))


@pytest.mark.parametrize(
    ("place", "prefix", "is_let_in"),
    [
        ("openai/whisper-small", "openai/", True),
        ("openai/whisper-small", "openai", True),
        ("openai/whisper-small", "openai/whisper-small", True),
        (" openai/whisper-small ", "openai/", True),
        ("openai/whisper-small", "openai/whisper", False),
        ("openai-fake/whisper", "openai", False),
        ("OpenAI/whisper", "openai/", False),
        ("openai", "openai/", True),
        ("/openai/whisper", "openai/", False),
        ("openai/whisper", "/openai/", False),
    ],
)
def test_repositories_are_compared_by_owner_and_name(place: str, prefix: str, is_let_in: bool) -> None:
    assert is_allowed(place, (prefix,)) is is_let_in


def test_any_prefix_may_match_and_no_prefix_at_all_allows_everything() -> None:
    assert is_allowed("acme/base", ("/models/", "openai/", "acme/"))
    assert is_allowed("acme/base", ())
    assert is_allowed("/anywhere", ())


@pytest.mark.parametrize("prefix", ["*", "~/models", "openai/*", "a/b/c", "file:///models", "-openai/"])
def test_a_prefix_that_means_nothing_stops_the_start(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="model_path_allowlist"):
        check_prefixes(("/models/", prefix))


def test_folders_owners_and_repositories_are_prefixes() -> None:
    check_prefixes(("/models/", "./models", "../models", "openai/", "openai", "openai/whisper-small"))
