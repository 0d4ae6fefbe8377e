"""The threads that decode are told how to wait before OpenMP reads its environment."""

import re
import sys
import threading

import pytest

from bench.server_process import server_process

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="GNU's OpenMP comes with Linux's wheels alone"
)

SETTINGS = re.compile(r"(OMP_WAIT_POLICY|GOMP_SPINCOUNT) = '(\w+)'")


def openmp_of_server(
    monkeypatch: pytest.MonkeyPatch, isolation: str, **environment: str
) -> list[tuple[str, str]]:
    """What OpenMP says of itself in a server that loads a model, once for each process that has it."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said: list[tuple[str, str]] = []
    is_loaded = threading.Event()

    def read(line: str) -> None:
        said.extend(SETTINGS.findall(line))
        if "Model demo: loaded" in line:
            is_loaded.set()

    flags = ["--model", "demo", "--model-preload", "demo", "--model-calibrate", "false"]
    with server_process(*flags, "--model-engine-isolation", isolation, on_log=read):
        assert is_loaded.wait(30)
    return said


@pytest.mark.parametrize(("isolation", "processes"), [("process", 2), ("thread", 1)])
def test_threads_look_for_a_moment_before_they_sleep(
    monkeypatch: pytest.MonkeyPatch, isolation: str, processes: int
) -> None:
    said = openmp_of_server(monkeypatch, isolation)
    assert said == [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "10000")] * processes


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_operator_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "77"}[name]
    said = dict(openmp_of_server(monkeypatch, "process", **{name: value}))
    assert said[name] == value.upper()
    assert said != {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "10000"}
