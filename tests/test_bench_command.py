"""`whisper-server bench`: its flags and exit codes, and sessions on a live server with the demo model."""

import contextlib
import csv
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from tests.live_server import make_settings, running_server
from whisper_server.cli.bench.flags import DOORS
from whisper_server.cli.bench.session_log import COLUMNS
from whisper_server.cli.main import main, make_parser

WEB_DOORS = ["ws", "realtime"]
WAIT_S = 60.0

TOLD_BY = {
    "decode_buffer_wait_seconds": {"grpc"},
    "decode_queue_wait_seconds": {"grpc", "ws"},
    "decode_inference_seconds": {"grpc", "ws"},
    "decode_response_emit_seconds": {"grpc"},
    "decode_total_seconds": {"grpc", "ws"},
    "decode_count": {"grpc", "ws"},
}
"""What a server tells of its own times at which door."""

KITCHEN_TEXT = "Send a message to David on Monday."


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.out)
        return content


Bench = Callable[..., Done]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Bench:
    def run(*words: str) -> Done:
        capsys.readouterr()
        code = main(["bench", *words])
        return Done(code, *capsys.readouterr())

    return run


# On a live server


@dataclass(frozen=True)
class Live:
    """A server that refuses nobody, however slow the machine is; and where gRPC is."""

    url: str
    socket: Path

    def address(self, door: str) -> str:
        return f"unix:{self.socket}" if door == "grpc" else self.url


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = tmp_path_factory.mktemp("grpc") / "stt.sock"
    settings = make_settings(
        grpc={"port": None, "unix_socket": path},
        streaming={"max_queue_depth": 1000, "max_estimated_server_total_ms": 1_000_000},
    )
    with running_server(settings) as url:
        yield Live(url, path)


@pytest.fixture
def server_url(live: Live) -> str:
    return live.url


@pytest.mark.parametrize("door", ["grpc", *WEB_DOORS])
def test_every_session_of_every_channel_is_right(door: str, live: Live, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    # In a process of its own, as users have it: the server of this process is one of grpc.aio too.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "whisper_server", "bench", door, "--server", live.address(door)),
            *("--channels", "3", "--iterations", "2", "--ramp-steps", "3", "--ramp-interval-sec", "0"),
            *("--check-text", "--language", "en", "--json"),
            *("--session-log-path", str(path), "--session-log-format", "csv"),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    summary = json.loads(done.stdout)
    assert (done.returncode, done.stderr, summary["errors"]) == (0, "", {})
    assert summary["sessions"] == {"ok": 6, "wrong_text": 0, "failed": 0, "interrupted": 0}
    assert summary["audio_seconds"] == pytest.approx(6 * 3.679, abs=0.01)
    assert summary["times"]["first_final_seconds"]["count"] == 6
    assert 0 < summary["times"]["wall_seconds"]["p50"] <= summary["times"]["wall_seconds"]["max"]
    with path.open(encoding="utf-8", newline="") as file:
        rows = [dict(zip((column.name for column in COLUMNS), row, strict=True)) for row in csv.reader(file)]
    assert {row["text"] for row in rows} == {KITCHEN_TEXT}
    assert {row["finals"] for row in rows} == {"1"}
    assert len({row["session_id"] for row in rows}) == 6
    for name, doors in TOLD_BY.items():
        assert {bool(row[name]) for row in rows} == {door in doors}, name
    if door != "realtime":
        assert all(float(row["decode_inference_seconds"]) > 0 for row in rows)
        assert all(int(row["decode_count"]) >= 1 for row in rows)


@pytest.mark.parametrize("door", WEB_DOORS)
def test_manual_sessions_are_one_utterance(door: str, server_url: str, bench: Bench) -> None:
    done = bench(door, "--server", server_url, "--vad-mode", "manual", "--check-text", "--log-sessions")
    (row,) = [json.loads(line) for line in done.out.splitlines()]
    assert (done.code, row["finals"], row["text"]) == (0, 1, KITCHEN_TEXT)


def test_sessions_that_end_themselves_leave_the_connection_to_the_next(server_url: str, bench: Bench) -> None:
    done = bench(
        *("ws", "--server", server_url, "--audio", "household_en.flac", "--vad-mode", "auto"),
        *("--vad-silence", "0.3", "--iterations", "4", "--log-sessions"),
        *("--expect", "The train to Madrid leaves in two minutes."),
    )
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["status"], row["finals"]) for row in rows] == [("ok", 1)] * 4
    assert {row["audio_seconds"] < 10 for row in rows} == {True}


@pytest.mark.parametrize(("door", "code"), [("ws", "INVALID_MESSAGE"), ("realtime", "model_not_found")])
def test_a_refused_session_fails_with_the_code_of_its_door(
    door: str, code: str, server_url: str, bench: Bench
) -> None:
    done = bench(door, "--server", server_url, "--model", "nope", "--iterations", "2")
    assert done.code == 1
    assert re.search(rf"failed +│ +2 │.*\n│   {code} +│ +2 │ The model 'nope' does not exist", done.out)


def test_a_full_server_refuses_the_surplus_and_the_rest_is_right(bench: Bench) -> None:
    with running_server(make_settings(streaming={"max_sessions": 1})) as url:
        done = bench("ws", "--server", url, "--channels", "3", "--json", "--check-text", "--realtime")
    assert done.code == 1
    assert done.summary["sessions"] == {"ok": 1, "wrong_text": 0, "failed": 2, "interrupted": 0}
    assert done.summary["errors"] == {"MAX_SESSIONS_REACHED": 2}


def test_partials_of_realtime_come_where_a_delay_is_asked_for(server_url: str, bench: Bench) -> None:
    done = bench(
        *("realtime", "--server", f"{server_url}/v1/", "--delay", "minimal", "--realtime"),
        *("--chunk-ms", "200", "--log-sessions"),
    )
    (row,) = [json.loads(line) for line in done.out.splitlines()]
    assert row["status"] == "ok"
    assert row["finals"] == 1
    assert row["partials"] > 0
    assert 0 < row["first_partial_seconds"] < row["first_final_seconds"] < row["wall_seconds"]


def test_a_wrong_key_is_no_load_test(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHISPER_API_KEY", raising=False)
    with running_server(make_settings(security={"api_keys": ["a:right-key-0123456789"]})) as url:
        for door in WEB_DOORS:
            done = bench(door, "--server", url)
            assert done.code == 2
            assert "Give its key with --api-key or WHISPER_API_KEY." in done.err
            assert bench(door, "--server", url, "--api-key", "right-key-0123456789").code == 0


# On servers that fail


@contextlib.contextmanager
def websocket_server(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    with serve_websocket(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_connection_that_breaks_is_made_anew(bench: Bench) -> None:
    sessions: list[str] = []

    def handle(connection: ServerConnection) -> None:
        for raw in connection:
            if isinstance(raw, bytes):
                continue
            message = json.loads(raw)
            if message["type"] == "start_session":
                name = message["session_id"]
                sessions.append(name)
                if len(sessions) == 1:
                    connection.close(1011, "The server failed.")
                    return
                connection.send(json.dumps({"type": "session_started", "session_id": name}))
            else:
                end = {"type": "session_ended", "session_id": name, "reason": "completed"}
                connection.send(json.dumps(end | {"total_audio_ms": 1000, "total_segments": 0}))

    with websocket_server(handle) as url:
        done = bench("ws", "--server", url, "--iterations", "3", "--json")
    assert done.code == 1
    assert done.summary["errors"] == {"CLOSED_1011": 1}
    assert done.summary["sessions"]["ok"] == 2


@pytest.mark.parametrize("door", WEB_DOORS)
def test_a_server_of_another_kind_fails_the_session(door: str, bench: Bench) -> None:
    def handle(connection: ServerConnection) -> None:
        for _ in connection:
            connection.send("hello")

    with websocket_server(handle) as url:
        done = bench(door, "--server", url, "--json")
    assert (done.code, done.summary["errors"]) == (1, {"NOT_UNDERSTOOD": 1})


@pytest.mark.parametrize("door", WEB_DOORS)
def test_a_timeout_closes_the_connection(door: str, bench: Bench) -> None:
    closed = threading.Semaphore(0)

    def handle(connection: ServerConnection) -> None:
        for _ in connection:
            pass
        closed.release()

    with websocket_server(handle) as url:
        done = bench(door, "--server", url, "--json", "--timeout-s", "1")
        for _ in range(2):  # the check and the session
            assert closed.acquire(timeout=30)
    assert (done.code, done.summary["errors"]) == (1, {"TIMEOUT": 1})


def test_a_turn_that_does_not_end_is_a_failure(bench: Bench) -> None:
    def handle(connection: ServerConnection) -> None:
        for raw in connection:
            match json.loads(raw)["type"]:
                case "session.update":
                    connection.send('{"type": "session.updated"}')
                case "input_audio_buffer.clear":
                    started = {"type": "input_audio_buffer.speech_started", "item_id": "a"}
                    connection.send(json.dumps(started))
                    connection.send('{"type": "input_audio_buffer.cleared"}')

    with websocket_server(handle) as url:
        done = bench("realtime", "--server", url, "--json")
    assert (done.code, done.summary["errors"]) == (1, {"TURN_NOT_ENDED": 1})


@pytest.mark.parametrize("door", ["grpc", *WEB_DOORS])
def test_nobody_is_there(door: str, bench: Bench) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        done = bench(door, "--server", address if door == "grpc" else f"http://{address}")
    assert done.code == 2
    assert done.err.startswith("Cannot reach ")
    assert address in done.err
    assert len(done.err.splitlines()) == 1


# Flags


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["ws", "--channels", "2", "--ramp-steps", "3"],
            "more than there are channels (2)",
        ),
        (["ws", "--json", "--log-sessions"], "use --session-log-path"),
        (["ws", "--audio", "nowhere.wav"], "--audio 'nowhere.wav' cannot be read"),
        (["ws", "--server", "localhost:8089"], "is no address"),
        (["ws", "--server", "http://localhost:port"], "is no address"),
        (["grpc", "--tls-key", "a.pem"], "add --tls-cert"),
        (["grpc", "--tls-cert", "nowhere.pem"], "--tls-cert 'nowhere.pem' cannot be read"),
        (["realtime", "--tls-ca", "a.pem"], "are for a --server with https"),
        (["realtime", "--tls-ca", "nowhere.pem", "--server", "https://localhost"], "cannot be used"),
        (["ws", "--api-key", "kéy"], "printable ASCII"),
        (["ws", "--session-log-path", "/nowhere/log"], "cannot be written: No such file"),
    ],
)
def test_wrong_usage_says_what_to_do(words: list[str], message: str, bench: Bench) -> None:
    done = bench(*words)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


def test_a_text_can_only_be_checked_where_it_is_known(bench: Bench, tmp_path: Path) -> None:
    from whisper_server.demo import SAMPLES_PATH

    copy = tmp_path / "other.wav"
    copy.write_bytes((SAMPLES_PATH / "kitchen_en.wav").read_bytes())
    done = bench("ws", "--audio", str(copy), "--check-text")
    assert (done.code, done.err) == (2, "What is said in other.wav is not known: add --expect TEXT.\n")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["soap"],
        ["ws", "--channels", "0"],
        ["ws", "--iterations", "0"],
        ["ws", "--vad-threshold", "nan"],
        ["ws", "--timeout-s", "0"],
        ["ws", "--require-token"],
        ["realtime", "--vad-mode", "auto"],
        ["realtime", "--task", "translate"],
        ["grpc", "--attr", "novalue"],
        ["grpc", "--session-log-format", "xml"],
    ],
)
def test_argparse_refuses_what_a_door_does_not_have(words: list[str], bench: Bench) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench(*words)


def test_rows_are_limited_and_the_summary_goes_elsewhere(server_url: str, bench: Bench) -> None:
    done = bench(
        *("ws", "--server", server_url, "--iterations", "3", "--log-sessions", "--max-session-logs", "2"),
        *("--session-log-format", "tsv"),
    )
    rows = list(csv.reader(done.out.splitlines(), delimiter="\t"))
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "2"]]
    assert "whole session" in done.err


def test_a_reader_of_rows_that_leaves_is_no_traceback(server_url: str) -> None:
    command = [sys.executable, "-m", "whisper_server", "bench", "ws", "--server", server_url]
    process = subprocess.Popen(
        [*command, "--log-sessions", "--iterations", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Rows of sessions are missing: Broken pipe." in err
    assert "Traceback" not in err


def test_other_commands_start_without_the_protocols() -> None:
    program = (
        "import sys, whisper_server.cli.main; "
        "heavy = ('grpc', 'websockets', 'google.protobuf', 'soxr', 'av', 'rich'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# docs/load-testing.md

DOCS = (Path(__file__).parent.parent / "docs" / "load-testing.md").read_text(encoding="utf-8")
EXAMPLES = [line for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]


def test_the_docs_have_every_flag_and_every_column() -> None:
    own: set[str] = set()
    for door in DOORS:
        with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as told:
            main(["bench", door, "--help"])
        own |= set(re.findall(r"--[a-z][a-z-]+", told.getvalue()))
    assert len(own) > 25
    assert [flag for flag in sorted(own - {"--help"}) if flag not in DOCS] == []
    assert [column.name for column in COLUMNS if f"`{column.name}`" not in DOCS] == []


@pytest.mark.parametrize("command", EXAMPLES)
def test_an_example_of_the_docs_is_a_command(command: str) -> None:
    name, *words = shlex.split(command)
    assert name == "whisper-server"
    parsed = make_parser().parse_args(words)
    assert parsed.door in DOORS


def test_the_docs_have_examples() -> None:
    assert len(EXAMPLES) >= 3
