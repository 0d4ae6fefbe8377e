"""`whisper-server doctor` on this machine, and on stand-ins for machines this is not."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from whisper_server.cli import doctor
from whisper_server.cli.main import main
from whisper_server.core.hardware import HardwareRequest, choose_compute
from whisper_server.engines.hardware_probe import gather_facts


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor a config.toml of the working directory counts."""
    for name in os.environ:
        if name.startswith(("WHISPER_", "STT_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run_doctor(*flags: str) -> int:
    return main(["doctor", *flags])


def rows_of(text: str) -> dict[str, str]:
    """The values of the aligned rows, by label."""
    lines = [line for line in text.splitlines() if line.startswith("  ") and not line.startswith("  - ")]
    return {line[:22].strip(): line[22:] for line in lines}


def test_doctor_prints_the_choice_for_this_machine_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor() == 0
    text = capsys.readouterr().out
    decision = choose_compute(gather_facts(), HardwareRequest())
    rows = rows_of(text)
    assert rows["engine"] == "faster-whisper"
    assert rows["device"].split()[0] == decision.choice.device
    assert rows["compute type"] == decision.choice.compute_type
    assert rows["CPU threads"] == f"{decision.choice.cpu_threads} per worker"
    for reason in decision.reasons:
        assert " ".join(reason.split()) in " ".join(text.split())


def test_doctor_prints_the_versions_of_packages_it_does_not_import() -> None:
    program = (
        "import sys; from whisper_server.cli.main import main\n"
        "main(['doctor'])\n"
        "imported = {'torch', 'transformers', 'librosa', 'soundfile', 'faster_whisper'} & set(sys.modules)\n"
        "print('imported:', *sorted(imported))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rows = rows_of(run.stdout)
    assert rows["ctranslate2"] == version("ctranslate2")
    assert rows["faster-whisper"] == version("faster-whisper")
    assert rows["librosa"] == version("librosa")
    assert run.stdout.splitlines()[-1].strip() == "imported:"


def test_doctor_says_which_packages_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("ctranslate2", "nobody-has-this"))
    assert run_doctor() == 0
    assert rows_of(capsys.readouterr().out)["nobody-has-this"] == "not installed"


def test_doctor_prints_json_with_the_same_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor("--json", "--model-workers", "1", "--model-cpu-threads", "1") == 0
    document = json.loads(capsys.readouterr().out)
    facts = gather_facts()
    request = HardwareRequest(workers=1, cpu_threads=1)
    assert (
        document["decision"]["choice"]["compute_type"] == choose_compute(facts, request).choice.compute_type
    )
    assert document["decision"]["choice"]["cpu_threads"] == 1
    assert document["facts"]["usable_cores"] == facts.usable_cores
    assert document["facts"]["cpu_compute_types"] == sorted(facts.cpu_compute_types)
    assert document["packages"]["ctranslate2"] == version("ctranslate2")
    assert document["error"] is None


def test_what_cannot_work_is_refused_after_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor("--model-device-index", "99") == 2
    captured = capsys.readouterr()
    assert "WHISPER_MODEL_DEVICE_INDEX" in captured.err
    assert "cores" in rows_of(captured.out)
    assert "Choice" not in captured.out


def test_json_of_what_cannot_work_has_the_sentence_and_no_decision(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_doctor("--json", "--model-engine", "kaldi") == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["decision"] is None
    assert document["error"].startswith("There is no engine 'kaldi'.")
    assert document["error"] == captured.err.strip()


def test_a_wrong_setting_is_named_instead_of_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor("--device", "toaster") == 2
    captured = capsys.readouterr()
    assert "model.device" in captured.err
    assert captured.out == ""


def test_settings_come_from_the_file_and_the_environment_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text('[model]\ndevice = "cpu"\ncpu_threads = 7\n')
    monkeypatch.setenv("WHISPER_MODEL_WORKERS", "5")
    assert run_doctor("--config", "mine.toml") == 0
    text = capsys.readouterr().out
    assert rows_of(text)["CPU threads"] == "7 per worker"
    assert rows_of(text)["workers"] == "5"


def test_warnings_about_the_choice_stand_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor("--device", "cpu", "--model-cpu-threads", "4096") == 0
    text = capsys.readouterr().out
    assert "4096 threads over all workers" in text.partition("\nWarnings\n")[2]


def test_warnings_about_the_settings_go_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_MODEL_NO_SUCH_KEY", "1")
    assert run_doctor() == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: ")
    assert "WHISPER_MODEL_NO_SUCH_KEY" in captured.err


def test_the_cache_folder_is_the_one_that_is_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made" / "yet"
    assert run_doctor("--json", "--model-cache-dir", str(folder)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["cache_folder"] == str(folder)
    assert document["cache_free_bytes"] > 0
    assert not folder.exists()


def test_the_cache_folder_is_hugging_faces_where_none_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import constants

    assert run_doctor() == 0
    assert rows_of(capsys.readouterr().out)["folder"] == constants.HF_HUB_CACHE


def test_a_disk_that_does_not_answer_has_unknown_free_space(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert run_doctor() == 0
    assert rows_of(capsys.readouterr().out)["free disk"] == "unknown"


def test_each_cuda_device_has_its_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> SimpleNamespace:
        if name != "libcuda.so.1":
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace()

    module = ModuleType("ctranslate2")
    module.__spec__ = ModuleSpec("ctranslate2", None)
    vars(module).update(
        get_cuda_device_count=lambda: 2,
        get_supported_compute_types=lambda device, index=0: {"float32", "float16"},
    )
    monkeypatch.setitem(sys.modules, "ctranslate2", module)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert run_doctor("--model-device-index", "1") == 0
    text = capsys.readouterr().out
    rows = rows_of(text)
    assert rows["CUDA device 1"] == "name unknown, memory unknown"
    assert rows["missing libraries"] == "libcublas.so.12"
    assert "libcublas.so.12" in text.partition("\nWarnings\n")[2]
    assert {"CUDA device 0", "CUDA device 1"} <= set(rows)
    assert rows["compute types"] == "float16 float32"
    assert rows["device"] == "cuda 1"


def test_a_limit_on_the_cores_is_printed_beside_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = replace(gather_facts(), physical_cores=8, logical_cores=16, cpu_limit=2.5)
    monkeypatch.setattr(doctor, "gather_facts", lambda: facts)
    assert run_doctor() == 0
    assert rows_of(capsys.readouterr().out)["cores"] == "8 physical, 16 logical, limited to 2.5, 2 usable"
