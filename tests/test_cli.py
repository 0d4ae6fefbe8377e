"""The command line, as processes of their own."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from whisper_server.cli import main as cli

ROOT = Path(__file__).parent.parent
_LISTENING = re.compile(r"Listening on (http://\S+)")


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "whisper_server", *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        ((), {"WHISPER_SERVER_PORT": "0", "WHISPER_MODEL_SIZE": "demo"}),
        (("serve", "--port", "0", "--model", "demo"), {}),
        (("--port", "0", "--model", "demo"), {}),
    ],
    ids=["environment", "serve", "default command"],
)
def test_serve_answers_and_stops_on_sigterm(words: tuple[str, ...], environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "whisper_server", *words],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            url = next(match[1] for line in process.stderr if (match := _LISTENING.search(line)))
            health = httpx.get(f"{url}/health", timeout=30).json()
            process.terminate()
            rest = process.stderr.read()
            assert process.wait(30) == 0, rest
        finally:
            process.kill()
    assert health["status"] == "ok"
    assert health["default_model"] == "demo"
    assert health["loaded_models"] == []


def test_a_taken_port_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = run("serve", "--port", str(port), "--model", "demo")
    assert done.returncode == 2
    assert f"Cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "WHISPER_SERVER_PORT" in done.stderr


def test_a_choice_that_cannot_work_stops_the_start() -> None:
    done = run("serve", WHISPER_MODEL_DEVICE="mps")
    assert done.returncode == 2
    assert "WHISPER_MODEL_DEVICE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"WHISPER_MODEL_SIZE": "smal"}, "small"),
        ({"WHISPER_SERVER_PORT": "http"}, "WHISPER_SERVER_PORT"),
        ({"WHISPER_MODEL_ENGINE": "transfromers"}, "transfromers"),
    ],
)
def test_a_wrong_setting_stops_the_start(environment: dict[str, str], word: str) -> None:
    done = run("serve", **environment)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_heavy_is_imported_to_serve() -> None:
    """Torch, transformers and librosa cost seconds; the engine is imported when a model loads."""
    code = """
import sys
from whisper_server.bootstrap import create_app
from whisper_server.config import Settings
create_app(Settings(model={"name": "demo"}))
heavy = "torch transformers librosa faster_whisper av onnxruntime huggingface_hub soundfile numba openai"
print([name for name in heavy.split() if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_program_itself_is_never_looked_through_for_garbage() -> None:
    """That would hold the event loop up for tens of milliseconds whenever it happens."""
    code = """
import gc
from whisper_server.cli.main import main
from whisper_server.cli.draining_server import DrainingServer
DrainingServer.run = lambda *_, **__: print(gc.get_freeze_count() > 4 * len(gc.get_objects()))
main(["serve", "--port", "0", "--model", "demo"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_demo_transcribes_every_sample() -> None:
    done = run("demo", WHISPER_SERVER_PORT="1", LOG_LEVEL="ERROR")
    assert done.returncode == 0, done.stderr
    assert "Send a message to David on Monday." in done.stdout
    for response_format in ("json", "text", "srt", "vtt", "verbose_json"):
        assert f"kitchen_en.wav as {response_format}:" in done.stdout
    assert done.stdout.count('{"delta":') > 3
    samples = json.loads((ROOT / "whisper_server/demo/samples/samples.json").read_text())
    for sample in samples:
        assert f"{sample['file']}: " in done.stdout


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--version"], ["--help"], ["serve", "--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "whisper-server" in output
    for command in ("serve", "transcribe", "config", "doctor", "demo"):
        assert command in output


def test_config_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--port", "1234", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["server.port"] == {
        "value": 1234,
        "source": "command line --port",
    }


def test_a_call_that_is_still_in_native_code_does_not_meet_the_end_of_python() -> None:
    """Such a call would abort the process when it came back."""
    program = """
import asyncio, atexit, threading
from whisper_server import __main__
from whisper_server.cli import main as cli
from whisper_server.services.daemon_calls import in_daemon_thread

async def leave_a_call_behind():
    in_daemon_thread(threading.Event().wait)

def run():
    asyncio.run(leave_a_call_behind())
    print("done")
    return 7

cli.main = run
atexit.register(print, "python ends")
raise SystemExit(__main__.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "done\n", "")
