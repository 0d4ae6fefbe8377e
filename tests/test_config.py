"""The settings tree: defaults, sources and their order, names, errors and warnings."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from whisper_server.config import (
    DecodeProfile,
    LoadedSettings,
    ModelSettings,
    ServerSettings,
    Settings,
    leaves_of,
    load_settings,
)
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.types import DecodeOptions, Task

# The model file of the streaming server this project takes over from, word for word.
MODEL_YAML = """\
model:
  name: "small" # Whisper model size
  device: "cpu" # cpu / cuda
  compute_type: "int8" # faster-whisper compute type
  pool_size: 1 # Number of preloaded model instances
  language_fix: false
  language: "ko" # e.g., de, en, fr, ja, ko, zh ...
  task: "transcribe" # "transcribe" | "translate"
  default_decode_profile: "realtime"

decode_profiles:
  realtime:
    beam_size: 1
    best_of: 1
    patience: 1.0
    temperature: 0.0
    length_penalty: 1.0
    without_timestamps: true
    compression_ratio_threshold: 2.4
    no_speech_threshold: 0.6
    log_prob_threshold: -1.0 # Low-probability rejection threshold (-1.0 disables)
  accurate:
    beam_size: 5
    best_of: 5
    patience: 1.0
    temperature: 0.0
    length_penalty: 1.0
    without_timestamps: true
    compression_ratio_threshold: 2.4
    no_speech_threshold: 0.6
    log_prob_threshold: -1.0
"""

REALTIME = {
    "beam_size": 1,
    "best_of": 1,
    "patience": 1.0,
    "temperature": (0.0,),
    "length_penalty": 1.0,
    "without_timestamps": True,
    "compression_ratio_threshold": 2.4,
    "no_speech_threshold": 0.6,
    "log_prob_threshold": -1.0,
}
ACCURATE = REALTIME | {"beam_size": 5, "best_of": 5}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(environ: Mapping[str, str] | None = None, **arguments: Any) -> LoadedSettings:
    return load_settings(environ=environ or {}, **arguments)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def value_at(settings: Settings, name: str) -> Any:
    value: Any = settings
    for key in name.split("."):
        value = getattr(value, key)
    return value


def failure(environ: Mapping[str, str] | None = None, **arguments: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(environ, **arguments)
    return caught.value.message


# Defaults and the tree


def test_without_any_source_everything_is_at_its_default() -> None:
    loaded = load()
    assert loaded.settings == Settings()
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.warnings == ()


def test_the_defaults_are_those_the_documentation_promises() -> None:
    settings = Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8089)
    assert settings.server.allowed_origins == ("http://localhost:3000",)
    assert settings.server.allowed_hosts == ("*",)
    assert settings.limits.max_audio_file_size_mb == 25.0
    assert settings.logging.level == "INFO"
    assert settings.model.name == "whisper-1"
    assert settings.model.language is None
    assert settings.transcription.vad_filter is True
    assert settings.streaming.max_sessions == 100


def test_settings_built_in_code_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_SERVER_PORT", "1")
    monkeypatch.setenv("SERVER", '{"port": 2}')
    write("config.toml", "[server]\nport = 3\n")
    assert Settings().server.port == 8089
    assert Settings.model_validate({"server": {"host": "::"}}).server.port == 8089
    assert Settings(server=ServerSettings(port=0), model=ModelSettings(name="tiny")).server.port == 0


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_PORT", "8123")
    assert load_settings().settings.server.port == 8123
    assert load_settings(environ={}).settings.server.port == 8089


def test_no_part_of_the_tree_can_be_changed() -> None:
    settings = Settings.model_validate({"model": {"aliases": {"a": "tiny"}}})
    profile = settings.decode_profiles["realtime"]
    for target, key in [(settings, "server"), (settings.server, "port"), (profile, "beam_size")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(target, key, 1)
    for mapping in (settings.model.aliases, settings.decode_profiles):
        with pytest.raises(TypeError):
            mapping["a"] = "b"  # type: ignore[index]  # the type forbids it too


def test_the_tree_can_be_dumped_as_json_and_read_back() -> None:
    settings = Settings.model_validate(
        {"model": {"aliases": {"a": "tiny"}}, "decode_profiles": {"p": {"beam_size": 2}}}
    )
    assert Settings.model_validate_json(settings.model_dump_json(exclude_unset=True)) == settings


def test_every_leaf_has_a_description_and_names_of_its_own() -> None:
    leaves = leaves_of(Settings)
    assert all(leaf.description.endswith(".") for leaf in leaves)
    names = Counter(name for leaf in leaves for name in (*leaf.environment_names, *leaf.flags))
    assert [name for name, count in names.items() if count > 1] == []
    assert {leaf.name: leaf.environment_names[0] for leaf in leaves}["model.device"] == "WHISPER_MODEL_DEVICE"


def test_the_tasks_are_those_of_the_core() -> None:
    assert set(get_args(ModelSettings.model_fields["task"].annotation)) == set(Task)


# The order of the sources

CONFIG = "[server]\nport = 1001\n"
MODEL_CONFIG = "server: {port: 1002}\n"
ENVIRON = {"WHISPER_SERVER_PORT": "1003"}
OVERRIDES = {"server.port": ("1004", "--port")}


@pytest.mark.parametrize(
    ("sources", "port", "source"),
    [
        ("", 8089, "default"),
        ("c", 1001, "base.toml"),
        ("m", 1002, "model.yaml"),
        ("e", 1003, "environment variable WHISPER_SERVER_PORT"),
        ("f", 1004, "command line --port"),
        ("cm", 1002, "model.yaml"),
        ("ce", 1003, "environment variable WHISPER_SERVER_PORT"),
        ("me", 1003, "environment variable WHISPER_SERVER_PORT"),
        ("cf", 1004, "command line --port"),
        ("mf", 1004, "command line --port"),
        ("ef", 1004, "command line --port"),
        ("cmef", 1004, "command line --port"),
    ],
)
def test_each_source_overrides_the_ones_below_it(sources: str, port: int, source: str) -> None:
    loaded = load(
        ENVIRON if "e" in sources else {},
        config=write("base.toml", CONFIG) if "c" in sources else None,
        model_config=write("model.yaml", MODEL_CONFIG) if "m" in sources else None,
        overrides=OVERRIDES if "f" in sources else {},
    )
    assert loaded.settings.server.port == port
    assert loaded.sources["server.port"] == source


def test_sources_of_different_settings_add_up() -> None:
    loaded = load(
        {"STT_DEVICE": "cuda"},
        config=write("a.toml", '[server]\nport = 1\nhost = "h"\n[model]\nname = "tiny"\n'),
        model_config=write("b.yml", "model: {task: translate}\nserver: {port: 2}\n"),
        overrides={"model.workers": ("3", "--model-pool-size")},
    )
    settings = loaded.settings
    assert (settings.server.host, settings.server.port) == ("h", 2)
    assert (settings.model.name, settings.model.task) == ("tiny", "translate")
    assert (settings.model.device, settings.model.workers) == ("cuda", 3)
    assert loaded.sources["server.host"] == "a.toml"
    assert loaded.sources["model.workers"] == "command line --model-pool-size"


def test_tables_merge_and_lists_are_replaced() -> None:
    loaded = load(
        {"WHISPER_MODEL_ALIASES": '{"b": "base", "c": "small"}', "ALLOWED_HOSTS": "y"},
        config=write(
            "a.toml", '[model.aliases]\na = "tiny"\nb = "tiny"\n[server]\nallowed_hosts = ["x", "z"]'
        ),
    )
    assert dict(loaded.settings.model.aliases) == {"a": "tiny", "b": "base", "c": "small"}
    assert loaded.sources["model.aliases"] == "a.toml, environment variable WHISPER_MODEL_ALIASES"
    assert loaded.settings.server.allowed_hosts == ("y",)


def test_config_toml_in_the_working_directory_is_read_when_no_file_is_named() -> None:
    write("config.toml", CONFIG)
    other = write("other.toml", "")
    assert load().settings.server.port == 1001
    assert load().sources["server.port"] == "config.toml"
    assert load(config=other).settings.server.port == 8089
    assert load({"WHISPER_CONFIG": "other.toml"}).settings.server.port == 8089


def test_environment_variables_name_the_files() -> None:
    write("base.toml", CONFIG)
    write("model.yaml", MODEL_CONFIG)
    assert load({"WHISPER_CONFIG": "base.toml"}).settings.server.port == 1001
    both = load({"WHISPER_CONFIG": "base.toml", "WHISPER_MODEL_CONFIG": "model.yaml"})
    assert both.settings.server.port == 1002
    assert both.warnings == ()
    named = load({"WHISPER_CONFIG": "missing.toml"}, config=Path("base.toml"))
    assert named.settings.server.port == 1001


# Names in the environment


@pytest.mark.parametrize(
    ("name", "text", "leaf", "value"),
    [
        ("WHISPER_SERVER_HOST", "0.0.0.0", "server.host", "0.0.0.0"),
        ("WHISPER_SERVER_PORT", "8090", "server.port", 8090),
        ("MAX_AUDIO_FILE_SIZE_MB", "100", "limits.max_audio_file_size_mb", 100.0),
        ("ALLOWED_ORIGINS", "https://a.example, https://b.example", "server.allowed_origins",
         ("https://a.example", "https://b.example")),
        ("ALLOWED_HOSTS", '["a", "b"]', "server.allowed_hosts", ("a", "b")),
        ("LOG_LEVEL", "debug", "logging.level", "DEBUG"),
        ("WHISPER_MODEL_DEVICE", "cuda", "model.device", "cuda"),
        ("WHISPER_MODEL_SIZE", "medium", "model.name", "medium"),
        ("STT_HOST", "::1", "server.host", "::1"),
        ("STT_PORT", "8000", "server.port", 8000),
        ("STT_MAX_SESSIONS", "7", "streaming.max_sessions", 7),
        ("STT_WHISPER_MODEL", "distil-large-v3", "model.name", "distil-large-v3"),
        ("STT_COMPUTE_TYPE", "int8_float16", "model.compute_type", "int8_float16"),
        ("STT_DEVICE", "cpu", "model.device", "cpu"),
        ("STT_LANGUAGE", "pt", "model.language", "pt"),
        ("STT_VAD_ENABLED", "false", "vad.enabled", False),
        ("STT_VAD_THRESHOLD", "0.7", "vad.threshold", 0.7),
        ("STT_VAD_MIN_SPEECH_MS", "100", "vad.min_speech_ms", 100),
        ("STT_VAD_MIN_SILENCE_MS", "800", "vad.min_silence_ms", 800),
        ("STT_PARTIAL_INTERVAL_MS", "200", "streaming.partial_interval_ms", 200),
        ("STT_MAX_PARTIAL_WINDOW_S", "10", "streaming.max_partial_window_s", 10.0),
        ("STT_MAX_UTTERANCE_S", "20", "streaming.max_utterance_s", 20.0),
        ("STT_MAX_BUFFER_MS", "4000", "streaming.max_buffer_ms", 4000),
        ("STT_MAX_QUEUE_DEPTH", "30", "streaming.max_queue_depth", 30),
        ("STT_MAX_ESTIMATED_SERVER_TOTAL_MS", "900", "streaming.max_estimated_server_total_ms", 900),
        ("STT_LOG_LEVEL", "WARNING", "logging.level", "WARNING"),
        ("WHISPER_MODEL_LANGUAGES", "en, ko,en", "model.languages", ("en", "ko", "en")),
        ("WHISPER_MODEL_PRELOAD", "tiny", "model.preload", ("tiny",)),
        ("ALLOWED_HOSTS", "[]", "server.allowed_hosts", ()),
        ("WHISPER_MODEL_ALIASES", '{"fast": "tiny"}', "model.aliases", {"fast": "tiny"}),
        ("WHISPER_MODEL_ALLOWED_PATHS", "/m,~/n", "model.allowed_paths", (Path("/m"), Path.home() / "n")),
        ("WHISPER_LOGGING_FILE", "log/server.log", "logging.file", Path("log/server.log")),
        ("WHISPER_TRANSCRIPTION_HALLUCINATION_SILENCE_THRESHOLD_S", "2",
         "transcription.hallucination_silence_threshold_s", 2.0),
    ],
)  # fmt: skip
def test_an_environment_variable_sets_its_setting(name: str, text: str, leaf: str, value: object) -> None:
    loaded = load({name: text})
    assert value_at(loaded.settings, leaf) == value
    assert value_at(Settings(), leaf) != value
    assert loaded.sources[leaf] == f"environment variable {name}"
    assert not any("is not a setting" in warning for warning in loaded.warnings)


@pytest.mark.parametrize("leaf", leaves_of(Settings), ids=lambda leaf: leaf.name)
def test_an_empty_environment_variable_counts_as_not_set(leaf: Any) -> None:
    loaded = load(dict.fromkeys(leaf.environment_names, " "))
    assert loaded.settings == Settings()
    assert loaded.warnings == ()


def test_the_primary_name_wins_over_another_and_a_warning_says_so() -> None:
    loaded = load({"STT_PORT": "8000", "WHISPER_SERVER_PORT": "8001"})
    assert loaded.settings.server.port == 8001
    (warning,) = loaded.warnings
    assert "WHISPER_SERVER_PORT and STT_PORT differ; WHISPER_SERVER_PORT counts" in warning


def test_two_names_with_the_same_value_give_no_warning() -> None:
    assert load({"STT_PORT": "8000", "WHISPER_SERVER_PORT": "8000"}).warnings == ()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("WHISPER_SERVER_PROT", "WHISPER_SERVER_PORT"), ("STT_MAX_SESION", "STT_MAX_SESSIONS")],
)
def test_an_unknown_variable_gives_a_warning_with_the_nearest_name(name: str, nearest: str) -> None:
    loaded = load({name: "1", "PATH": "/bin", "OTHER_STT_X": "1"})
    (warning,) = loaded.warnings
    assert f"{name} is not a setting" in warning
    assert warning.endswith(f"the nearest known name is {nearest}.")
    assert loaded.settings == Settings()


# Values


@pytest.mark.parametrize("text", ["auto", "AUTO", "none", ""])
def test_words_for_detection_leave_the_language_open(text: str) -> None:
    path = write("a.toml", '[model]\nlanguage = "ko"\n')
    loaded = load(config=path, overrides={"model.language": (text, "--language")})
    assert loaded.settings.model.language is None
    assert loaded.sources["model.language"] == "command line --language"
    assert load(config=write("b.toml", f'[model]\nlanguage = "{text}"\n')).settings.model.language is None


def test_language_codes_are_read_in_any_case() -> None:
    assert load({"STT_LANGUAGE": " PT "}).settings.model.language == "pt"


def test_null_in_yaml_means_not_set() -> None:
    base = write("a.toml", '[logging]\nfaster_whisper_level = "ERROR"\nfile = "x.log"\n')
    text = "logging: {faster_whisper_level: null, file: null}\nserver:\ndecode_profiles: {realtime: null}\n"
    settings = load(config=base, model_config=write("b.yaml", text)).settings
    assert settings.logging.faster_whisper_level == "ERROR"
    assert settings.logging.file is None
    assert settings.decode_profiles == Settings().decode_profiles


@pytest.mark.parametrize(("key", "leaf"), [("size", "model.name"), ("pool_size", "model.workers")])
def test_a_file_may_use_the_other_name_of_a_setting(key: str, leaf: str) -> None:
    loaded = load(config=write("a.yaml", f"model: {{{key}: 3}}" if key != "size" else "model: {size: '3'}"))
    assert str(value_at(loaded.settings, leaf)) == "3"
    assert loaded.sources[leaf] == "a.yaml"


def test_a_file_with_both_names_of_a_setting_gives_a_warning() -> None:
    loaded = load(config=write("a.yaml", "model: {size: tiny, name: base}"))
    assert loaded.settings.model.name == "base"
    assert loaded.warnings == ("a.yaml: `model.name` and its other name `size` differ; `model.name` counts.",)


@pytest.mark.parametrize("name", ["empty.toml", "empty.yaml"])
def test_an_empty_file_changes_nothing(name: str) -> None:
    assert load(config=write(name, "")).settings == Settings()


# Decode profiles


def test_the_model_file_of_the_streaming_server_loads_unchanged() -> None:
    loaded = load(model_config=write("model.yaml", MODEL_YAML))
    model = loaded.settings.model
    assert (model.name, model.device, model.compute_type, model.workers) == ("small", "cpu", "int8", 1)
    assert (model.language, model.language_fix, model.task) == ("ko", False, "transcribe")
    assert model.default_decode_profile == "realtime"
    assert loaded.settings.decode_profiles == Settings().decode_profiles
    assert loaded.sources["decode_profiles.accurate.beam_size"] == "model.yaml"
    assert loaded.warnings == ()


def test_the_built_in_profiles_are_those_of_the_streaming_server() -> None:
    profiles = Settings().decode_profiles
    assert {name: profile.overrides() for name, profile in profiles.items()} == {
        "realtime": REALTIME,
        "accurate": ACCURATE,
    }


def test_a_file_changes_one_key_of_a_built_in_profile_and_adds_another_profile() -> None:
    text = "[decode_profiles.accurate]\nbeam_size = 8\n[decode_profiles.mine]\ntemperature = [0.0, 0.4]\n"
    loaded = load(
        {"WHISPER_DECODE_PROFILES": '{"mine": {"best_of": 2}}'},
        config=write("a.toml", text),
    )
    profiles = loaded.settings.decode_profiles
    assert profiles["accurate"].overrides() == ACCURATE | {"beam_size": 8}
    assert profiles["realtime"].overrides() == REALTIME
    assert profiles["mine"].overrides() == {"temperature": (0.0, 0.4), "best_of": 2}
    assert loaded.sources["decode_profiles.accurate.beam_size"] == "a.toml"
    assert loaded.sources["decode_profiles.accurate.best_of"] == "default"
    assert loaded.sources["decode_profiles.mine.best_of"] == "environment variable WHISPER_DECODE_PROFILES"


def test_profiles_built_in_code_join_the_built_in_ones() -> None:
    given = {"realtime": DecodeProfile(beam_size=2), "mine": DecodeProfile(best_of=3)}
    profiles = Settings(decode_profiles=given).decode_profiles
    assert profiles["realtime"].overrides() == REALTIME | {"beam_size": 2}
    assert profiles["mine"] == DecodeProfile(best_of=3)
    assert profiles["accurate"].overrides() == ACCURATE


def test_a_profile_has_a_key_for_every_decode_option() -> None:
    options = {field.name for field in dataclasses.fields(DecodeOptions)}
    keys = set(DecodeProfile.model_fields) - {"without_timestamps", "temperature"}
    assert keys == options - {"temperatures"}


def test_a_profile_changes_the_options_it_names_and_no_others() -> None:
    options = DecodeOptions(beam_size=3, hotwords="tea")
    profile = DecodeProfile(temperature=0.2, best_of=2, without_timestamps=True, suppress_tokens=(1, 2))
    expected = dataclasses.replace(options, temperatures=(0.2,), best_of=2, suppress_tokens=(1, 2))
    assert profile.apply(options) == expected
    assert DecodeProfile().apply(options) == options


def test_every_option_of_a_profile_reaches_the_decoder() -> None:
    options = DecodeOptions()
    for field in dataclasses.fields(DecodeOptions):
        key = "temperature" if field.name == "temperatures" else field.name
        value: Any = {
            "temperature": (0.9,), "suppress_tokens": (5,), "suppress_blank": False, "hotwords": "x",
            "prepend_punctuations": "x", "append_punctuations": "x", "no_speech_threshold": 0.25,
        }.get(key, 7)  # fmt: skip
        changed = DecodeProfile.model_validate({key: value}).apply(options)
        assert changed == dataclasses.replace(options, **{field.name: value})
        assert changed != options


@pytest.mark.parametrize("off", [None, "none"])
def test_a_profile_switches_a_threshold_off(off: str | None) -> None:
    profile = DecodeProfile.model_validate({"log_prob_threshold": off, "beam_size": None})
    changed = profile.apply(DecodeOptions(beam_size=3))
    assert changed == DecodeOptions(beam_size=3, log_prob_threshold=None)


# Mistakes


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("server: {prot: 1}", "server.prot", "server.port"),
        ("modle: {name: tiny}", "modle", "model"),
        ("port: 1", "port", "server.port"),
        ("server: {max_sessions: 4}", "server.max_sessions", "streaming.max_sessions"),
        ("model: {sise: tiny}", "model.sise", "model.size"),
        ("decode_profiles: {realtime: {beamsize: 2}}", "decode_profiles.realtime.beamsize",
         "decode_profiles.realtime.beam_size"),
    ],
)  # fmt: skip
def test_an_unknown_key_fails_and_names_the_file_and_the_nearest_key(
    text: str, unknown: str, nearest: str
) -> None:
    message = failure(config=write("server.yaml", text))
    assert f"server.yaml: unknown key `{unknown}`; the nearest known key is `{nearest}`" in message


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"STT_PORT": "x"}, ["server.port", "'x'", "environment variable STT_PORT"]),
        ({"STT_PORT": "65536"}, ["server.port", "65535", "'65536'"]),
        ({"STT_DEVICE": "tpu"}, ["model.device", "`mps`", "environment variable STT_DEVICE"]),
        ({"LOG_LEVEL": "loud"}, ["logging.level", "`DEBUG`", "environment variable LOG_LEVEL"]),
        ({"STT_VAD_ENABLED": "maybe"}, ["vad.enabled", "boolean"]),
        ({"WHISPER_LOGGING_FILE": "~nobody-of-this-name/x"}, ["logging.file", "home folder"]),
        ({"STT_LANGUAGE": "english"}, ["model.language", "ISO 639-1", "'english'"]),
        ({"ALLOWED_HOSTS": "[x"}, ["server.allowed_hosts", "must be a list", "variable ALLOWED_HOSTS"]),
        ({"WHISPER_MODEL_ALIASES": "[]"}, ["model.aliases", "must be a JSON object", "'[]'"]),
        ({"WHISPER_MODEL_ALIASES": '{"a": 1}'}, ["model.aliases.a", "WHISPER_MODEL_ALIASES"]),
        ({"WHISPER_LIMITS_MAX_AUDIO_S": "nan"}, ["limits.max_audio_s", "finite"]),
        ({"WHISPER_MODEL_DEFAULT_DECODE_PROFILE": "slow"},
         ["model.default_decode_profile", "realtime, accurate", "'slow'"]),
        ({"WHISPER_TRANSCRIPTION_DECODE_PROFILE": "slow"},
         ["transcription.decode_profile", "realtime, accurate",
          "environment variable WHISPER_TRANSCRIPTION_DECODE_PROFILE"]),
        ({"STT_HOST": "h" * 500, "STT_PORT": "x" * 500}, ["server.port", "…"]),
    ],
)  # fmt: skip
def test_a_bad_value_in_the_environment_names_the_setting_and_the_variable(
    environ: Mapping[str, str], words: list[str]
) -> None:
    message = failure(environ)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server: {port: high}", ["server.port", "got 'high' from server.yaml"]),
        ("server: {port: true}", ["server.port", "must be a number", "'true'"]),
        ("server: 5", ["server: must be a table of settings", "server.yaml"]),
        ("server: {allowed_hosts: a}", ["server.allowed_hosts: must be a list"]),
        ("server: {allowed_hosts: [a, 1]}", ["server.allowed_hosts", "string", "server.yaml"]),
        ("model: {language: no}", ["model.language", "quotes"]),
        ("model: {aliases: 3}", ["model.aliases: must be a table"]),
        ("decode_profiles: 3", ["decode_profiles: must be a table"]),
        ("decode_profiles: {mine: 3}", ["decode_profiles.mine: must be a table"]),
        ("decode_profiles: {mine: {beam_size: 0}}", ["decode_profiles.mine.beam_size", "server.yaml"]),
        ("decode_profiles: {mine: {temperature: []}}", ["decode_profiles.mine.temperature"]),
    ],
)
def test_a_bad_value_in_a_file_names_the_setting_and_the_file(text: str, words: list[str]) -> None:
    message = failure(config=write("server.yaml", text))
    assert [word for word in words if word not in message] == []


def test_a_bad_value_on_the_command_line_names_the_flag() -> None:
    message = failure(overrides={"server.port": ("-1", "--port")})
    assert message.endswith(
        "server.port: must be greater than or equal to 0; got '-1' from command line --port"
    )


def test_a_bad_value_that_a_higher_source_replaces_does_no_harm() -> None:
    environ = {"STT_PORT": "x", "ALLOWED_HOSTS": "[x", "WHISPER_MODEL_ALIASES": "x"}
    overrides = {
        "server.port": ("1", "--port"),
        "server.allowed_hosts": ("y", "--server-allowed-hosts"),
        "model.aliases": ('{"a": "b"}', "--model-aliases"),
    }
    settings = load(environ, overrides=overrides).settings
    assert (settings.server.port, settings.server.allowed_hosts) == (1, ("y",))
    assert dict(settings.model.aliases) == {"a": "b"}


def test_all_mistakes_are_listed_at_once() -> None:
    message = failure(
        {"STT_PORT": "x"},
        config=write("a.toml", '[model]\nnmae = "tiny"\n'),
        model_config=Path("missing.yaml"),
        overrides={"vad.threshold": ("2", "--vad-threshold")},
    )
    first, *lines = message.splitlines()
    assert first == "4 settings are wrong:"
    for words in (
        "a.toml: unknown key",
        "missing.yaml: there is no such file",
        "STT_PORT",
        "--vad-threshold",
    ):
        assert sum(words in line for line in lines) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.toml", b"[server\n", "is not valid TOML"),
        ("a.yaml", b"server: [\n", "is not valid YAML"),
        ("a.yaml", b"- 1\n", "must hold a table of settings"),
        ("a.json", b"{}", "ends in .toml, .yaml or .yml"),
        ("a.toml", b"\xff", "cannot be read as UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(name: str, content: bytes, words: str) -> None:
    Path(name).write_bytes(content)
    message = failure(config=Path(name))
    assert f"{name}: " in message
    assert words in message
    assert "\n" not in message


def test_a_missing_file_is_named_with_what_asked_for_it() -> None:
    assert "x.toml: there is no such file; --config names it" in failure(config=Path("x.toml"))
    message = failure({"WHISPER_MODEL_CONFIG": "y.yaml"})
    assert "y.yaml: there is no such file; environment variable WHISPER_MODEL_CONFIG names it" in message


def test_an_override_of_what_is_no_setting_is_an_error_of_the_caller() -> None:
    with pytest.raises(KeyError, match=r"no\.setting"):
        load(overrides={"no.setting": ("1", "--no")})
