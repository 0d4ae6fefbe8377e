"""Names of models: what each leads to, and what is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from whisper_server.core.errors import ConfigurationError, ModelNotFoundError
from whisper_server.services.model_catalog import OPENAI_NAMES, REPOSITORIES, ModelCatalog, ModelEntry


def catalog(
    default: str = "small",
    aliases: Mapping[str, str] | None = None,
    allowed_paths: Sequence[Path] = (),
    demo_path: Path = Path("/nowhere/demo"),
) -> ModelCatalog:
    return ModelCatalog(default, aliases or {}, allowed_paths, demo_path)


def refusal(names: ModelCatalog, name: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        names.resolve(name)
    assert caught.value.param == "model"
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "repo_id"),
    [
        ("whisper-1", "Systran/faster-whisper-tiny"),
        ("whisper-tiny", "Systran/faster-whisper-tiny"),
        ("whisper-base", "Systran/faster-whisper-base"),
        ("whisper-small", "Systran/faster-whisper-small"),
        ("whisper-medium", "Systran/faster-whisper-medium"),
        ("whisper-large", "Systran/faster-whisper-large-v3"),
        ("whisper-large-v3-turbo", "mobiuslabsgmbh/faster-whisper-large-v3-turbo"),
        ("tiny", "Systran/faster-whisper-tiny"),
        ("medium.en", "Systran/faster-whisper-medium.en"),
        ("large-v2", "Systran/faster-whisper-large-v2"),
        ("large", "Systran/faster-whisper-large-v3"),
        ("turbo", "mobiuslabsgmbh/faster-whisper-large-v3-turbo"),
        ("distil-small.en", "Systran/faster-distil-whisper-small.en"),
        ("distil-large-v3", "Systran/faster-distil-whisper-large-v3"),
        ("distil-large-v3.5", "distil-whisper/distil-large-v3.5-ct2"),
        ("acme/my_whisper-v1.0", "acme/my_whisper-v1.0"),
        ("  tiny\n", "Systran/faster-whisper-tiny"),
    ],
)
def test_a_name_leads_to_its_repository(name: str, repo_id: str) -> None:
    reference = catalog().resolve(name)
    assert (reference.id, reference.repo_id, reference.path) == (repo_id, repo_id, None)
    assert reference.requested == name.strip()


def test_every_size_of_faster_whisper_leads_where_faster_whisper_looks() -> None:
    from faster_whisper.utils import _MODELS

    assert dict(REPOSITORIES) == _MODELS


def test_all_names_of_one_model_are_equal_references() -> None:
    names = catalog()
    spellings = ["whisper-1", "tiny", "whisper-tiny", "Systran/faster-whisper-tiny"]
    assert len({names.resolve(name) for name in spellings}) == 1


@pytest.mark.parametrize("name", ["", "   ", *OPENAI_NAMES])
def test_no_name_and_openai_names_lead_to_the_default(name: str) -> None:
    names = catalog(default="medium")
    assert names.resolve(name) == names.resolve("medium")
    assert names.resolve(name).requested == (name.strip() or "medium")


def test_the_diarizing_model_is_refused_with_the_reason() -> None:
    message = refusal(catalog(), "gpt-4o-transcribe-diarize")
    assert "speakers" in message
    assert "gpt-4o-transcribe'" in message


def test_demo_is_the_bundled_model_by_name_and_by_path(demo_model_path: Path) -> None:
    names = catalog(demo_path=demo_model_path, allowed_paths=[demo_model_path.parent])
    reference = names.resolve("demo")
    assert (reference.id, reference.path, reference.repo_id) == ("demo", demo_model_path.resolve(), None)
    assert names.resolve(str(demo_model_path)) == reference


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smal", "small"),
        ("Whisper-1", "whisper-1"),
        ("large-v4", "large-v3"),
        ("gpt-4o-transcibe", "gpt-4o-tr"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name: str, near: str) -> None:
    message = refusal(catalog(), name)
    assert message.startswith(f"The model '{name}' does not exist. Did you mean '{near}")


def test_an_alias_is_suggested_like_any_other_name() -> None:
    assert "'court-room'" in refusal(catalog(aliases={"court-room": "large-v3"}), "courtroom")


def test_a_name_like_no_other_is_refused_without_a_suggestion() -> None:
    assert refusal(catalog(), "xyzzy-9000") == "The model 'xyzzy-9000' does not exist."


@pytest.mark.parametrize(
    "name",
    [
        *("org/", "/", "a/b/c", "org/../name", "org--x/name", "-org/name", "org-/name", "org/name-"),
        *("org/name.git", "org/na me", "örg/name", f"org/{'n' * 100}", ".", "..", "~/model", "large-v3:main"),
    ],
)
def test_what_the_hub_would_not_take_for_a_repository_is_refused(name: str) -> None:
    assert "does not exist" in refusal(catalog(), name)


def test_a_message_repeats_neither_endless_names_nor_control_characters() -> None:
    message = refusal(catalog(), "x" * 1_000_000)
    assert len(message) < 200
    assert "\n" not in refusal(catalog(), "evil\nERROR all is lost")


def test_a_path_inside_an_allowed_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "models" / "legal"
    model.mkdir(parents=True)
    names = catalog(allowed_paths=[tmp_path / "models"])
    reference = names.resolve(str(model))
    assert (reference.id, reference.path, reference.repo_id) == (str(model), model, None)
    monkeypatch.chdir(tmp_path / "models")
    assert names.resolve("./legal") == reference


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models", tmp_path / "secret"
    for folder in (inside / "real", outside):
        folder.mkdir(parents=True)
    (inside / "way-out").symlink_to(outside)
    (tmp_path / "way-in").symlink_to(inside / "real")
    (inside / "circle").symlink_to(inside / "circle")
    names = catalog(allowed_paths=[inside])
    assert names.resolve(str(tmp_path / "way-in")).path == inside / "real"
    assert "does not exist" in refusal(names, str(inside / "way-out"))
    assert "does not exist" in refusal(names, str(inside / ".." / "secret"))
    assert "does not exist" in refusal(names, str(inside / "circle"))


def test_a_refused_path_does_not_show_whether_it_exists(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "private").mkdir()
    names = catalog(allowed_paths=[tmp_path / "models"])
    places = [tmp_path / "private", tmp_path / "missing", tmp_path / "models" / "missing"]
    assert len({refusal(names, str(place)).replace(str(place), "") for place in places}) == 1


@pytest.mark.parametrize("name", ["/tmp/zero\0byte", "/" + "n" * 5000])
def test_a_path_no_disk_can_hold_is_refused(name: str) -> None:
    assert "does not exist" in refusal(catalog(allowed_paths=[Path("/")]), name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    assert "does not exist" in refusal(catalog(allowed_paths=[tmp_path]), str(tmp_path / "model.bin"))


def test_an_alias_may_point_at_any_kind_of_name_and_redefine_a_built_in_one(tmp_path: Path) -> None:
    names = catalog(
        default="base",
        aliases={
            "whisper-1": "turbo",
            "fast": "whisper-1",
            "ours": "acme/whisper",
            "openai": "gpt-4o-transcribe",
            "legal": str(tmp_path),
        },
        demo_path=tmp_path / "demo",
    )
    assert names.resolve("fast").repo_id == REPOSITORIES["turbo"]
    assert names.resolve("fast").requested == "fast"
    assert names.resolve("ours").repo_id == "acme/whisper"
    assert names.resolve("openai") == names.resolve("base")
    assert names.resolve("legal").path == tmp_path


def test_a_default_that_is_an_alias_is_followed() -> None:
    names = catalog(default="best", aliases={"best": "large-v3"})
    assert names.resolve("").repo_id == names.resolve("gpt-transcribe").repo_id == REPOSITORIES["large-v3"]


@pytest.mark.parametrize(
    ("default", "aliases", "words"),
    [
        ("small", {"a": "b", "b": "a"}, "circle: a -> b -> a"),
        ("small", {"tiny": "tiny"}, "circle: tiny -> tiny"),
        ("mine", {"mine": "gpt-transcribe"}, "circle: mine -> gpt-transcribe -> mine"),
        ("gpt-transcribe", {}, "circle"),
        ("small", {"mine": "lrge"}, "The model alias 'mine' leads to an unknown model. The model 'lrge'"),
        ("smoll", {}, "The default model leads to an unknown model.*Did you mean 'small'"),
        ("gpt-4o-transcribe-diarize", {}, "unknown model"),
        ("  ", {}, "default model has no name"),
        ("small", {"": "tiny"}, "empty"),
        ("small", {"mine": " "}, "empty"),
    ],
)
def test_a_default_or_alias_that_leads_nowhere_stops_the_start(
    default: str, aliases: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        catalog(default=default, aliases=aliases)


def test_the_list_has_each_name_once_with_its_publisher_and_no_paths() -> None:
    names = catalog(default="acme/best", aliases={"legal": "/models/legal", "whisper-1": "turbo"})
    entries = {entry.id: entry.owned_by for entry in names.entries()}
    assert len(entries) == len(names.entries()) == len(names.names())
    assert entries["legal"] == "local"
    assert entries["whisper-1"] == "mobiuslabsgmbh"
    assert entries["whisper-tiny"] == "Systran"
    assert entries["gpt-4o-transcribe"] == entries["acme/best"] == "acme"
    assert ModelEntry("demo", "whisper-server") in names.entries()
    assert not any("models/legal" in name for name in entries)


def test_everything_listed_can_be_resolved(demo_model_path: Path) -> None:
    names = catalog(demo_path=demo_model_path, aliases={"mine": "large"})
    assert all(names.resolve(name).id for name in names.names())


def test_a_default_path_is_not_listed(tmp_path: Path) -> None:
    names = catalog(default=str(tmp_path))
    assert names.resolve("gpt-4o-transcribe").path == tmp_path
    assert str(tmp_path) not in names.names()


def test_a_place_is_a_repository_or_any_folder_and_never_a_name(tmp_path: Path) -> None:
    names = catalog(aliases={"acme/model": "tiny"}, demo_path=tmp_path / "demo")
    for name in ("demo", "model"):
        (tmp_path / name).mkdir()
    assert names.at_place(" acme/model ").repo_id == "acme/model"
    assert names.at_place(f"{tmp_path}/demo/../model").path == (tmp_path / "model").resolve()
    assert names.at_place(str(tmp_path / "demo")).id == "demo"
    for place in ("tiny", "demo", "whisper-1", "", "acme/../model", str(tmp_path / "missing"), "/\0", "~/x"):
        with pytest.raises(ModelNotFoundError):
            names.at_place(place)
