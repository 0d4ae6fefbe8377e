"""`whisper-server bench grpc` against a scripted service: what it asks for, and all ways to end."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
import trustme

from whisper_server.cli.bench.drivers.driver import Wishes
from whisper_server.cli.bench.drivers.grpc import creation, decode_times
from whisper_server.cli.bench.session import DecodeTimes
from whisper_server.cli.main import main
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

ROOT = Path(__file__).parent.parent
WAIT_S = 30.0
AUDIO_BYTES = 2 * 58_860
"""Of the sample that is said."""

Request = stt_pb2.StreamingRecognizeRequest
Response = stt_pb2.StreamingRecognizeResponse
Script = Callable[["Service", str, Iterator[Request], Any], Iterator[Response]]

TIMES = (
    ("stt-decode-buffer-wait-sec", "0.3"),
    ("stt-decode-queue-wait-sec", "0.02"),
    ("stt-decode-inference-sec", "0.1004"),
    ("stt-decode-response-emit-sec", "0.001"),
    ("stt-decode-total-sec", "0.4214"),
    ("stt-decode-count", "2"),
)


def result(text: str, *, is_final: bool = True) -> Response:
    return Response(result=stt_pb2.StreamingResult(text=text, is_final=is_final))


def ended(
    reason: stt_pb2.SessionEnded.Reason.ValueType = stt_pb2.SessionEnded.REASON_COMPLETED,
) -> Response:
    return Response(session_ended=stt_pb2.SessionEnded(reason=reason, audio_s=2.0, utterances=1))


def hears_all(service: "Service", name: str, requests: Iterator[Request], context: Any) -> Iterator[Response]:
    """Takes everything, then tells what was said."""
    service.taken[name] = list(requests)
    context.set_trailing_metadata(TIMES)
    yield result("Send a", is_final=False)
    yield result("Send a message to David on Monday.")
    yield ended()


@dataclass
class Service(stt_pb2_grpc.SpeechToTextServicer):
    """A service whose sessions follow a script."""

    script: Script = hears_all
    refuse: Callable[[stt_pb2.CreateSessionRequest, Any], None] = lambda _, __: None
    created: list[stt_pb2.CreateSessionRequest] = field(default_factory=list)
    taken: dict[str, list[Request]] = field(default_factory=dict)
    keys: set[Any] = field(default_factory=set)
    peers: dict[str, str] = field(default_factory=dict)
    address: str = ""

    def CreateSession(  # noqa: N802
        self, request: stt_pb2.CreateSessionRequest, context: Any
    ) -> stt_pb2.CreateSessionResponse:
        self.created.append(request)
        self.keys.add(dict(context.invocation_metadata()).get("authorization"))
        self.refuse(request, context)
        token = "secret" if request.require_token else ""
        return stt_pb2.CreateSessionResponse(session_id=request.session_id, session_token=token)

    def StreamingRecognize(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> Iterator[Response]:
        first = next(request_iterator)
        self.peers[first.session_id] = context.peer()
        return self.script(self, first.session_id, request_iterator, context)

    def Recognize(self, request: Any, context: Any) -> NoReturn:  # noqa: N802
        raise NotImplementedError


Serve = Callable[..., Service]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts services, until the test ends."""
    servers: list[grpc.Server] = []

    def start(service: Service, address: str = "127.0.0.1:0", credentials: Any = None) -> Service:
        server = grpc.server(ThreadPoolExecutor(16))
        stt_pb2_grpc.add_SpeechToTextServicer_to_server(service, server)
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        service.address = address if address.startswith("unix:") else f"localhost:{port}"
        server.start()
        servers.append(server)
        return service

    yield start
    for server in servers:
        server.stop(None).wait(WAIT_S)


@dataclass(frozen=True)
class Done:
    code: int
    summary: dict[str, Any]
    err: str


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the command; the summary is the one for programs."""

    def run(service: Service, *flags: str) -> Done:
        capsys.readouterr()
        code = main(["bench", "grpc", "--server", service.address, "--json", *flags])
        out, err = capsys.readouterr()
        return Done(code, json.loads(out) if out else {}, err)

    return run


Bench = Callable[..., Done]


def abort(code: grpc.StatusCode, details: str) -> Script:
    def script(_: Service, __: str, requests: Iterator[Request], context: Any) -> Iterator[Response]:
        list(requests)
        context.set_trailing_metadata(TIMES)
        context.abort(code, details)
        yield ended()

    return script


def test_each_channel_is_a_connection_and_each_iteration_a_session(
    serve: Serve, bench: Bench, tmp_path: Path
) -> None:
    service = serve(Service())
    path = tmp_path / "log.jsonl"
    done = bench(
        service,
        *("--channels", "3", "--iterations", "2", "--warmup-iterations", "1", "--check-text"),
        *("--session-log-path", str(path)),
    )
    assert done.code == 0
    assert done.summary["sessions"] == {"ok": 6, "wrong_text": 0, "failed": 0, "interrupted": 0}
    assert len(service.created) == len({request.session_id for request in service.created}) == 9
    peers: dict[str, set[str]] = {}
    for name, peer in service.peers.items():
        peers.setdefault(name.split("-")[2], set()).add(peer)
    assert sorted(map(len, peers.values())) == [1, 1, 1]
    assert len(set.union(*peers.values())) == 3
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted((row["channel"], row["iteration"]) for row in rows) == [
        (channel, iteration) for channel in (1, 2, 3) for iteration in (1, 2)
    ]
    assert {name: rows[0][name] for name in rows[0] if name.startswith("decode_")} == {
        "decode_buffer_wait_seconds": 0.3,
        "decode_queue_wait_seconds": 0.02,
        "decode_inference_seconds": 0.1,
        "decode_response_emit_seconds": 0.001,
        "decode_total_seconds": 0.421,
        "decode_count": 2,
    }
    assert (rows[0]["partials"], rows[0]["finals"], rows[0]["audio_seconds"]) == (1, 1, 2.0)
    assert rows[0]["text"] == "Send a message to David on Monday."


def test_the_audio_arrives_whole_in_chunks_and_names_the_session_once(serve: Serve, bench: Bench) -> None:
    service = serve(Service())
    assert bench(service, "--chunk-ms", "250").code == 0
    (requests,) = service.taken.values()
    assert {len(request.audio) for request in requests[:-1]} == {8000}
    assert sum(len(request.audio) for request in requests) == AUDIO_BYTES
    assert {(request.session_id, request.session_token, request.commit) for request in requests} == {
        ("", "", False)
    }


def test_a_token_is_in_every_message_and_manual_sessions_commit_at_the_end(
    serve: Serve, bench: Bench
) -> None:
    service = serve(Service())
    assert bench(service, "--require-token", "--vad-mode", "manual").code == 0
    (requests,) = service.taken.values()
    assert {request.session_token for request in requests} == {"secret"}
    assert [request.commit for request in requests[-2:]] == [False, True]
    assert sum(len(request.audio) for request in requests) == AUDIO_BYTES


def test_every_flag_of_a_session_is_asked_for(serve: Serve, bench: Bench) -> None:
    service = serve(Service())
    done = bench(
        service,
        *("--vad-mode", "auto", "--vad-silence", "0.4", "--vad-threshold", "0.25", "--language", "pt"),
        *("--task", "translate", "--model", "demo", "--decode-profile", "accurate", "--require-token"),
        *("--attr", "site=a", "--attr", "note=b=c", "--api-key", "key"),
    )
    assert done.code == 0
    (request,) = service.created
    request.session_id = ""
    assert request == stt_pb2.CreateSessionRequest(
        attributes={"site": "a", "note": "b=c"},
        config=stt_pb2.RecognitionConfig(
            model="demo", language="pt", task=stt_pb2.TASK_TRANSLATE, decode_profile="accurate"
        ),
        vad=stt_pb2.VadConfig(mode=stt_pb2.VAD_MODE_AUTO_END, vad_silence_ms=400, vad_threshold=0.25),
        require_token=True,
    )
    assert service.keys == {"Bearer key"}


def test_what_is_not_wished_for_is_not_set() -> None:
    request = creation("one", Wishes())
    assert request == stt_pb2.CreateSessionRequest(
        session_id="one",
        config=stt_pb2.RecognitionConfig(),
        vad=stt_pb2.VadConfig(mode=stt_pb2.VAD_MODE_CONTINUE),
    )
    assert not request.vad.HasField("vad_threshold")


def test_the_key_comes_from_the_environment(
    serve: Serve, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_API_KEY", "hidden")
    service = serve(Service())
    assert bench(service).code == 0
    assert service.keys == {"Bearer hidden"}


def test_a_refused_session_fails_with_its_code_and_the_others_go_on(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(request: stt_pb2.CreateSessionRequest, context: Any) -> None:
        if request.session_id.endswith("2"):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "ERR1008: There are 50 live sessions.")

    service = serve(Service(refuse=refuse))
    code = main(["bench", "grpc", "--server", service.address, "--channels", "2", "--iterations", "3"])
    out, _ = capsys.readouterr()
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in out.splitlines() if "│" in line}
    assert code == 1
    assert [cell.strip() for cell in rows["ok"]] == ["4", ""]
    assert [cell.strip() for cell in rows["failed"]] == ["2", ""]
    assert [cell.strip() for cell in rows["ERR1008"]] == ["2", "There are 50 live sessions."]
    assert rows["whole session"][0].strip() == "4"
    assert rows["inference"][0].strip() == "4"


@pytest.mark.parametrize(
    ("code", "details", "shown"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "ERR1006: No audio came.", "ERR1006"),
        (grpc.StatusCode.INTERNAL, "no code here", "INTERNAL"),
        (grpc.StatusCode.UNAVAILABLE, "", "UNAVAILABLE"),
    ],
)
def test_a_call_that_ends_with_an_error_fails_its_session(
    serve: Serve, bench: Bench, code: grpc.StatusCode, details: str, shown: str
) -> None:
    done = bench(serve(Service(script=abort(code, details))))
    assert done.code == 1
    assert done.summary["errors"] == {shown: 1}


def test_a_lost_utterance_fails_the_session_though_the_call_ends_well(serve: Serve, bench: Bench) -> None:
    def script(_: Service, __: str, requests: Iterator[Request], ___: Any) -> Iterator[Response]:
        list(requests)
        yield Response(failure=stt_pb2.UtteranceFailure(code="ERR2002", message="A decode failed."))
        yield result("Send.")
        yield ended()

    done = bench(serve(Service(script=script)))
    assert (done.code, done.summary["errors"]) == (1, {"ERR2002": 1})


def test_a_session_that_the_server_gives_up_has_failed(serve: Serve, bench: Bench) -> None:
    def script(_: Service, __: str, requests: Iterator[Request], ___: Any) -> Iterator[Response]:
        list(requests)
        yield ended(stt_pb2.SessionEnded.REASON_CANCELLED)

    done = bench(serve(Service(script=script)))
    assert (done.code, done.summary["errors"]) == (1, {"CANCELLED": 1})


def test_a_session_may_end_before_its_audio_does(serve: Serve, bench: Bench) -> None:
    def script(_: Service, __: str, requests: Iterator[Request], context: Any) -> Iterator[Response]:
        next(requests)
        context.set_trailing_metadata(TIMES)
        yield result("Send a message.")
        yield ended()

    done = bench(serve(Service(script=script)), "--vad-mode", "auto", "--iterations", "50", "--chunk-ms", "1")
    assert (done.code, done.summary["errors"]) == (0, {})
    assert done.summary["times"]["decode_inference_seconds"]["count"] == 50


def test_a_session_that_breaks_off_while_audio_is_sent_keeps_its_code(serve: Serve, bench: Bench) -> None:
    def script(_: Service, __: str, requests: Iterator[Request], context: Any) -> Iterator[Response]:
        next(requests)
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "ERR1007: A message with too much audio.")
        yield ended()

    done = bench(serve(Service(script=script)), "--iterations", "50", "--chunk-ms", "1")
    assert (done.code, done.summary["errors"]) == (1, {"ERR1007": 50})


def test_a_wrong_text_is_counted_and_its_time_too(serve: Serve, bench: Bench) -> None:
    done = bench(serve(Service()), "--expect", "Something else.")
    assert done.code == 1
    assert done.summary["sessions"] == {"ok": 0, "wrong_text": 1, "failed": 0, "interrupted": 0}
    assert done.summary["times"]["wall_seconds"]["count"] == 1


def test_a_session_that_never_ends_times_out_and_is_called_off(serve: Serve, bench: Bench) -> None:
    called_off = threading.Event()

    def script(_: Service, __: str, requests: Iterator[Request], context: Any) -> Iterator[Response]:
        context.add_callback(called_off.set)
        list(requests)
        called_off.wait(WAIT_S)
        yield ended()

    done = bench(serve(Service(script=script)), "--timeout-s", "1")
    assert (done.code, done.summary["errors"]) == (1, {"TIMEOUT": 1})
    assert called_off.wait(WAIT_S)


def test_a_failed_warm_up_is_told_but_does_not_count(serve: Serve, bench: Bench) -> None:
    def refuse(request: stt_pb2.CreateSessionRequest, context: Any) -> None:
        if request.session_id.endswith("w1"):
            context.abort(grpc.StatusCode.UNAVAILABLE, "ERR2003: The model cannot be had now.")

    done = bench(serve(Service(refuse=refuse)), "--warmup-iterations", "1")
    assert done.code == 0
    assert done.err == "In the warm-up 1 of 1 sessions did not go well: 1 × ERR2003.\n"


def test_a_unix_socket(serve: Serve, bench: Bench, tmp_path: Path) -> None:
    service = serve(Service(), f"unix:{tmp_path / 'stt.sock'}")
    assert bench(service, "--channels", "2").code == 0


def test_mutual_tls(serve: Serve, bench: Bench, tmp_path: Path) -> None:
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost"), authority.issue_cert("client")
    for name, blob in (
        ("ca.pem", authority.cert_pem),
        ("client.pem", client.cert_chain_pems[0]),
        ("client.key", client.private_key_pem),
    ):
        blob.write_to_path(tmp_path / name)
    credentials = grpc.ssl_server_credentials(
        [(server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())],
        root_certificates=authority.cert_pem.bytes(),
        require_client_auth=True,
    )
    service = serve(Service(), "localhost:0", credentials)
    ours = ("--tls-cert", str(tmp_path / "client.pem"), "--tls-key", str(tmp_path / "client.key"))
    assert bench(service, "--tls-ca", str(tmp_path / "ca.pem"), *ours).code == 0
    stranger = bench(service, *ours)
    assert stranger.code == 2
    assert f"Cannot reach a gRPC server at {service.address}" in stranger.err
    assert bench(service, "--tls-ca", str(tmp_path / "none.pem")).code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_calls_the_sessions_off_and_shows_what_is_done(serve: Serve, number: signal.Signals) -> None:
    running: queue.Queue[str] = queue.Queue()
    called_off: queue.Queue[str] = queue.Queue()

    def script(service: Service, name: str, requests: Iterator[Request], context: Any) -> Iterator[Response]:
        if name.endswith("1"):
            yield from hears_all(service, name, requests, context)
            return
        over = threading.Event()
        context.add_callback(over.set)
        running.put(name)
        over.wait(WAIT_S)
        called_off.put(name)

    service = serve(Service(script=script))
    command = [sys.executable, "-m", "whisper_server", "bench", "grpc", "--server", service.address]
    flags = ["--channels", "2", "--iterations", "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        names = {running.get(timeout=WAIT_S) for _ in range(2)}
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert err == "Stopping. Once more stops at once.\n"
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in out.splitlines() if "│" in line]
    assert ["ok", "2"] in cells
    assert ["interrupted", "2"] in cells
    assert {called_off.get(timeout=WAIT_S) for _ in range(2)} == names


def test_trailing_metadata_may_lack_anything() -> None:
    assert decode_times({}) == DecodeTimes()
    assert decode_times({"stt-decode-count": "3", "stt-decode-total-sec": "?"}) == DecodeTimes(count=3)
