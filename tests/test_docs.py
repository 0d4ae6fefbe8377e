"""The generated docs: fresh in the repository, and a stale file does not pass."""

import tomllib
from pathlib import Path

import pytest

from tools.docs import GENERATED_DOCS, main, settings_page
from whisper_server.config import DecodeProfile, Settings, leaves_of, load_settings

REPOSITORY = Path(__file__).parent.parent


def test_the_generated_docs_of_the_repository_are_fresh() -> None:
    assert main(["--check"]) == 0


def test_written_docs_pass_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], root=tmp_path) == 1
    assert main([], root=tmp_path) == 0
    assert [path for path, _ in GENERATED_DOCS if not (tmp_path / path).is_file()] == []
    capsys.readouterr()
    assert main(["--check"], root=tmp_path) == 0
    assert capsys.readouterr().err == ""


def test_the_check_names_each_stale_file_and_how_to_fix_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = [(Path("a.md"), lambda: "a\n"), (Path("b/b.md"), lambda: "b\n"), (Path("c.md"), lambda: "c\n")]
    main([], root=tmp_path, docs=docs)
    (tmp_path / "a.md").write_text("changed by hand\n", encoding="utf-8")
    (tmp_path / "c.md").unlink()
    assert main(["--check"], root=tmp_path, docs=docs) == 1
    assert capsys.readouterr().err.splitlines() == [
        "a.md is stale: run `make docs` and commit the result.",
        "c.md is stale: run `make docs` and commit the result.",
    ]
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "changed by hand\n"


def test_the_settings_page_has_every_setting_with_all_its_names() -> None:
    rows = {line.split("`")[1]: line for line in settings_page().splitlines() if line.startswith("| `")}
    for leaf in leaves_of(Settings):
        row = rows[leaf.name]
        names = (*leaf.environment_names, *leaf.flags)
        assert [name for name in names if f"`{name}`" not in row] == []
        assert leaf.description in row
    assert [key for key in DecodeProfile.model_fields if key not in rows] == []


def test_every_row_of_a_table_has_as_many_cells_as_its_header() -> None:
    columns = 0
    for line in settings_page().splitlines():
        if line.startswith("|---"):
            columns = line.count("|")
        elif line.startswith("| `"):
            assert line.count("|") == columns


def test_the_example_file_of_the_settings_page_loads(tmp_path: Path) -> None:
    example = settings_page().split("```toml\n")[1].split("```")[0]
    path = tmp_path / "example.toml"
    path.write_text(example, encoding="utf-8")
    settings = load_settings(config=path, environ={}).settings
    assert settings.model.aliases == tomllib.loads(example)["model"]["aliases"]
    assert settings.decode_profiles["careful"].temperature == (0.0, 0.2)
