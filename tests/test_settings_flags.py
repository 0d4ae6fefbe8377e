"""The flags of the settings, and the command that prints the settings in effect."""

import argparse
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from whisper_server.cli.main import main
from whisper_server.cli.settings_flags import add_settings_arguments, overrides_from
from whisper_server.config import Leaf, Settings, Shape, leaves_of, load_settings

LEAVES = leaves_of(Settings)


@pytest.fixture(autouse=True)
def _no_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    aliases = {name for leaf in LEAVES for name in leaf.environment_names}
    for name in list(os.environ):
        if name in aliases or name.startswith(("WHISPER_", "STT_")):
            monkeypatch.delenv(name)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser)
    return parser.parse_args(arguments)


def run(*arguments: str) -> int:
    return main(["config", *arguments])


_RANGED = {
    "vad.rms_floor_dbfs": -40.5,
    "vad.model_pool_growth_factor": 2.5,
    "streaming.max_partial_window_s": 5.5,
    "streaming.max_utterance_s": 9.5,
    "streaming.max_unread_events": 64,
    "grpc.max_receive_message_bytes": 1 << 20,
    "grpc.max_send_message_bytes": 1 << 20,
}
"""Values for settings that take none of the usual ones."""


def sample(leaf: Leaf) -> tuple[str, Any]:
    """A text for a leaf's flag, and the value it stands for, which is not the default."""
    if leaf.path == ("decode_profiles",):
        return '{"realtime": {}}', leaf.default
    if leaf.name == "security.clients":
        return '{"a": {"weight": 2}}', {"a": {"weight": 2.0}}
    if leaf.shape is Shape.MAPPING:
        return '{"a": "b"}', {"a": "b"}
    if leaf.choices:
        value = next(choice for choice in leaf.choices if choice != leaf.default)
        return value, value
    if leaf.name in _RANGED:
        return str(_RANGED[leaf.name]), _RANGED[leaf.name]
    if leaf.value_type is bool:
        return str(not leaf.default).lower(), not leaf.default
    samples: dict[Any, tuple[str, Any]] = {int: ("7", 7), float: ("0.75", 0.75), Path: ("p", Path("p"))}
    if leaf.shape is Shape.LIST:
        return (
            ("ko,en", (Path("ko"), Path("en")))
            if leaf.name == "model.allowed_paths"
            else ("ko,en", ("ko", "en"))
        )
    if "decode_profile" in leaf.name:
        return "accurate", "accurate"
    return samples.get(leaf.value_type, ("ko", "ko"))


@pytest.mark.parametrize("leaf", LEAVES[:-1], ids=lambda leaf: leaf.name)
def test_each_flag_of_a_setting_sets_it(leaf: Leaf) -> None:
    text, value = sample(leaf)
    assert value != leaf.default
    for flag in leaf.flags:
        overrides = overrides_from(parse(flag, text))
        assert overrides == {leaf.name: (text, flag)}
        loaded = load_settings(environ={}, overrides=overrides)
        assert getattr(getattr(loaded.settings, leaf.path[0]), leaf.path[1]) == value
        assert loaded.sources[leaf.name] == f"command line {flag}"


def test_decode_profiles_are_given_as_json() -> None:
    arguments = parse("--decode-profiles", '{"realtime": {"beam_size": 2}}')
    loaded = load_settings(environ={}, overrides=overrides_from(arguments))
    assert loaded.settings.decode_profiles["realtime"].beam_size == 2
    assert loaded.settings.decode_profiles["realtime"].best_of == 1


def test_flags_that_are_not_given_override_nothing() -> None:
    assert overrides_from(parse()) == {}
    assert overrides_from(parse("--config", "a.toml", "--model-config", "b.yaml")) == {}


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--host", "server.host"),
        ("--port", "server.port"),
        ("--log-level", "logging.level"),
        ("--log-file", "logging.file"),
        ("--faster-whisper-log-level", "logging.faster_whisper_level"),
        ("--model", "model.name"),
        ("--device", "model.device"),
        ("--compute-type", "model.compute_type"),
        ("--language", "model.language"),
        ("--model-pool-size", "model.workers"),
        ("--vad-threshold", "vad.threshold"),
        ("--max-sessions", "streaming.max_sessions"),
        ("--server-port", "server.port"),
        ("--transcription-vad-filter", "transcription.vad_filter"),
    ],
)
def test_a_flag_stands_for_a_setting(flag: str, name: str) -> None:
    assert overrides_from(parse(flag, "1")) == {name: ("1", flag)}


def test_an_abbreviated_flag_is_reported_in_full() -> None:
    assert overrides_from(parse("--max-ses", "1")) == {"streaming.max_sessions": ("1", "--max-sessions")}


def test_the_files_are_paths() -> None:
    arguments = parse("--config", "a.toml", "--model-config", "b.yaml")
    assert (arguments.config, arguments.model_config) == (Path("a.toml"), Path("b.yaml"))
    assert (parse().config, parse().model_config) == (None, None)


def test_the_help_groups_the_flags_and_gives_defaults_and_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # so that no name is broken across lines
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser)
    text = " ".join(parser.format_help().split())
    assert "server settings: Where the server listens and who may call it." in text
    assert "(default: 8089; environment: WHISPER_SERVER_PORT, STT_PORT)" in text
    assert "--device auto|cpu|cuda|mps" in text
    missing = [name for leaf in LEAVES for name in (*leaf.flags, *leaf.environment_names) if name not in text]
    assert missing == []


# The config command


def test_config_prints_every_value_with_its_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("config.toml").write_text('[model]\nname = "tiny"\naliases = {"a b" = "base"}\n', encoding="utf-8")
    monkeypatch.setenv("STT_DEVICE", "cpu")
    assert run("--port", "9000") == 0
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    assert "port = 9000  # command line --port" in lines
    assert 'name = "tiny"  # config.toml' in lines
    assert 'device = "cpu"  # environment variable STT_DEVICE' in lines
    assert 'aliases = { "a b" = "base" }  # config.toml' in lines
    assert 'host = "127.0.0.1"  # default' in lines
    assert 'file = "none"  # default' in lines
    assert errors == ""


def test_what_config_prints_is_a_file_with_the_same_settings(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.yaml").write_text(
        'model: {language: ko, allowed_paths: [/a, \'b "c"\'], aliases: {x.y: "tiny\\x7f"}}\n'
        "transcription: {vad_filter: false, hallucination_silence_threshold_s: 1.5, decode_profile: empty}\n"
        "decode_profiles:\n"
        "  empty: {}\n"
        "  mine: {log_prob_threshold: null, temperature: [0, 1], suppress_tokens: [-1], hotwords: 'é\\n'}\n",
        encoding="utf-8",
    )
    assert run("--model-config", "model.yaml") == 0
    printed = Path("printed.toml")
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    expected = load_settings(environ={}, model_config=Path("model.yaml")).settings
    assert load_settings(environ={}, config=printed).settings == expected
    assert tomllib.loads(printed.read_text(encoding="utf-8"))["model"]["language"] == "ko"


def test_config_prints_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", "--log-file", "a.log", "--model-aliases", '{"a": "b"}', "--language", "auto"]
    assert run(*arguments) == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries["server.port"] == {"value": 8089, "source": "default"}
    assert entries["logging.file"] == {"value": "a.log", "source": "command line --log-file"}
    assert entries["model.aliases"] == {"value": {"a": "b"}, "source": "command line --model-aliases"}
    assert entries["model.language"] == {"value": None, "source": "command line --language"}
    assert entries["decode_profiles.realtime.temperature"] == {"value": [0.0], "source": "default"}
    leaves = {leaf.name for leaf in LEAVES if leaf.name != "decode_profiles"}
    assert leaves == {name for name in entries if not name.startswith("decode_profiles.")}


def test_config_prints_warnings_beside_the_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_SERVER_PRT", "1")
    assert run("--json", "--max-sessions", "3") == 0
    output, errors = capsys.readouterr()
    assert json.loads(output)["streaming.max_sessions"]["value"] == 3
    assert errors.startswith("warning: The environment variable WHISPER_SERVER_PRT is not a setting")


def test_config_exits_with_2_and_the_reason_when_a_setting_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--port", "high") == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert "server.port" in errors
    assert "command line --port" in errors
