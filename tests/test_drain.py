"""How the server stops: what runs is finished, new work is refused, and a second signal ends it all."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.live_server import make_settings
from tests.media import tone, wav
from tests.wire import (
    FORM_TYPE,
    ROUTE,
    Background,
    connection,
    error_of,
    form,
    head,
    health,
    part,
    read_until,
    request,
    wait_until,
)
from whisper_server.bootstrap import create_app
from whisper_server.cli.draining_server import DrainingServer
from whisper_server.engines.scripted import ScriptedEngine, Step

ROOT = Path(__file__).parent.parent
AUDIO = wav(tone(2.0))
LONG = wav(tone(95.0))
BODY = form(part("file", AUDIO))
_LISTENING = re.compile(r"Listening on (http://\S+)")
_STOP_S = 30


def transcribe(url: str, audio: bytes = AUDIO, **fields: str) -> httpx.Response:
    return request("POST", f"{url}{ROUTE}", files={"file": audio}, data=fields)


def wait_until_draining(url: str) -> None:
    wait_until(url, lambda state: state["status"] == "draining")


# In this process, with an engine that waits


@contextmanager
def draining_server(
    engine: ScriptedEngine, grace_s: float, **sections: Any
) -> Iterator[tuple[str, DrainingServer]]:
    """A server that is told to stop by `handle_exit`, and has stopped when the block has ended."""
    settings = make_settings(transcription={"vad_filter": False}, **sections)
    app = create_app(settings, engines={"faster-whisper": engine.load})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = DrainingServer(
            uvicorn.Config(app, log_config=None, lifespan="on", ws="none"), grace_s=grace_s
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            if not server.should_exit:
                server.handle_exit(signal.SIGTERM, None)
            thread.join(_STOP_S)
    assert not thread.is_alive(), "the server did not stop"


def test_what_runs_and_waits_is_finished_and_new_work_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "whisper_server")
    gate = threading.Event()
    engine = ScriptedEngine([Step("first", gate=gate)], then=Step("later"))
    with draining_server(engine, grace_s=_STOP_S) as (url, server), connection(url) as kept:
        running = Background(lambda: transcribe(url, LONG))
        engine.wait_for_windows(1)
        waiting = Background(lambda: transcribe(url))
        wait_until(url, lambda state: state["requests_inside"] == 2)
        kept.sendall(head({}, method="GET", path="/health"))
        read_until(kept, b'"requests_inside":2}')
        server.handle_exit(signal.SIGTERM, None)
        wait_until_draining(url)

        refused = transcribe(url)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "server_draining")
        assert 1 <= int(refused.headers["retry-after"]) <= _STOP_S
        assert refused.headers["connection"] == "close"
        assert refused.headers["x-should-retry"] == "true"
        assert len(request("GET", f"{url}/v1/requests").json()["data"]) == 2, "the rest is answered"
        kept.sendall(head({"Content-Type": FORM_TYPE, "Content-Length": str(len(BODY))}) + BODY)
        answer = read_until(kept, b"the end of the connection")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in answer
        assert b"server_draining" in answer

        gate.set()
        assert running.result().json()["text"] == "first later later later"
        assert waiting.result().json()["text"] == "later"
    assert engine.is_closed
    assert any("2 requests inside and 0 live streams have 30 s" in line for line in caplog.messages)
    assert any(line.startswith("Drained: everything is finished") for line in caplog.messages)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_no_model_is_loaded_by_hand_any_more() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step("first", gate=gate)])
    admin = {"enabled": True, "token": "the-operators-token-0123456789"}
    with draining_server(engine, _STOP_S, admin=admin) as (url, server):
        running = Background(lambda: transcribe(url))
        engine.wait_for_windows(1)
        server.handle_exit(signal.SIGTERM, None)
        wait_until_draining(url)
        headers = {"Authorization": f"Bearer {admin['token']}"}
        refused = request("POST", f"{url}/admin/load_model", json={"model": "tiny"}, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (503, "ERR1012")
        assert 1 <= int(refused.headers["retry-after"]) <= _STOP_S
        gate.set()
        assert running.result().json()["text"] == "first"


def test_what_is_not_finished_in_time_is_cut_off_and_told(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step("first", gate=gate)])
    with draining_server(engine, grace_s=0.0) as (url, server):
        stream = Background(lambda: transcribe(url, LONG, stream="true"))
        engine.wait_for_windows(1)
        waiting = Background(lambda: transcribe(url))
        wait_until(url, lambda state: state["requests_inside"] == 2)
        server.handle_exit(signal.SIGTERM, None)
        cut = waiting.result()
        assert (cut.status_code, error_of(cut)["code"]) == (503, "server_draining")
        assert cut.headers["retry-after"]
        gate.set()
        (event,) = [line for line in stream.result().text.splitlines() if line]
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "server_draining"
    assert len(engine.windows) == 1
    (warning,) = [line for line in caplog.messages if line.startswith("Cut off")]
    assert re.fullmatch(
        r"Cut off 2 unfinished requests and streams, [0-9]+\.[0-9] s after the server was told to stop",
        warning,
    )


def test_a_server_without_work_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "whisper_server")
    with draining_server(ScriptedEngine(), grace_s=3600.0) as (url, _):
        assert health(url)["status"] == "ok"
    assert any(line.startswith("Drained") for line in caplog.messages)


# As a process, with signals


class Serving:
    """A server as a process of its own, with a request inside whose upload has not ended."""

    def __init__(self, process: "subprocess.Popen[str]", upload: socket.socket, url: str) -> None:
        self.process = process
        self.upload = upload
        self.url = url

    def end(self) -> tuple[int, str]:
        """Wait for its end: exit code and log."""
        assert self.process.stderr is not None
        log = self.process.stderr.read()
        return self.process.wait(_STOP_S), log


@contextmanager
def serving(grace_s: float, *, ignores_ctrl_c: bool = False) -> Iterator[Serving]:
    flags = ("--port", "0", "--model", "demo", "--server-shutdown-grace-s", str(grace_s))
    with subprocess.Popen(
        [sys.executable, "-m", "whisper_server", "serve", *flags],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_ignore_ctrl_c if ignores_ctrl_c else None,
    ) as process:
        try:
            assert process.stderr is not None
            url = next(match[1] for line in process.stderr if (match := _LISTENING.search(line)))
            with connection(url) as upload:
                headers = {"Content-Type": FORM_TYPE, "Content-Length": str(len(BODY))}
                upload.sendall(head(headers) + BODY[:1000])
                wait_until(url, lambda state: state["requests_inside"] == 1)
                yield Serving(process, upload, url)
        finally:
            process.kill()


def _ignore_ctrl_c() -> None:
    """What a shell does for a program that it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_sigterm_lets_requests_finish() -> None:
    with serving(grace_s=3600) as server:
        server.process.send_signal(signal.SIGTERM)
        wait_until_draining(server.url)
        assert transcribe(server.url).status_code == 503
        server.upload.sendall(BODY[1000:])
        assert read_until(server.upload, b'"usage"').startswith(b"HTTP/1.1 200 ")
        code, log = server.end()
    assert code == 0
    assert "Drained: everything is finished" in log
    assert "Cut off" not in log


@pytest.mark.parametrize("is_ignored", [False, True], ids=["foreground", "background"])
def test_ctrl_c_cuts_off_what_takes_longer_than_the_grace_period(is_ignored: bool) -> None:
    with serving(grace_s=0.1, ignores_ctrl_c=is_ignored) as server:
        server.process.send_signal(signal.SIGINT)
        assert read_until(server.upload, b"server_draining").startswith(b"HTTP/1.1 503 ")
        server.upload.close()
        code, log = server.end()
    assert code == 130
    assert "Cut off 1 unfinished requests" in log
    assert "Drained" not in log


@pytest.mark.parametrize(("sig", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(sig: signal.Signals, exit_code: int) -> None:
    with serving(grace_s=3600) as server:
        server.process.send_signal(sig)
        wait_until_draining(server.url)
        server.process.send_signal(sig)
        code, log = server.end()
    assert code == exit_code
    assert "Cut off 1 unfinished requests" in log
    assert "Stopped at once by a second signal" in log
