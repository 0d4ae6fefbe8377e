"""Where gRPC is served: ports, Unix sockets, TLS; health and reflection; `serve` with either alone."""

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub as _HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub as _ServerReflectionStub

from tests.grpc_service import WAIT_S, Request, chunks, eventually, grpc_service, held_open, read
from tests.live_server import make_settings
from tests.live_speech import HearingEngine, speech
from whisper_server.api.grpc import listening
from whisper_server.api.grpc.calls import address_of
from whisper_server.api.grpc.server import SERVICE
from whisper_server.core.errors import ConfigurationError
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_event_loop")]

# Their stubs for type checkers are not complete.
HealthStub: Any = _HealthStub
ServerReflectionStub: Any = _ServerReflectionStub
Ask: Any = reflection_pb2.ServerReflectionRequest

ROOT = Path(__file__).parent.parent
SENTENCE = speech(0.3, "alpha bravo charlie", 1.0)


async def transcribe(channel: grpc.aio.Channel) -> list[str]:
    stub = stt_pb2_grpc.SpeechToTextStub(channel)
    await stub.CreateSession(stt_pb2.CreateSessionRequest(session_id="one"), timeout=WAIT_S)
    call = stub.StreamingRecognize(iter(chunks(SENTENCE)), timeout=WAIT_S)
    return [each.result.text async for each in call if each.result.is_final]


# Unix sockets


async def test_the_unix_socket_is_for_the_servers_user_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "stt.sock"
    async with grpc_service(HearingEngine(), grpc={"port": 0, "unix_socket": path}) as service:
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert service.addresses[1] == f"unix:{path}"
        async with grpc.aio.insecure_channel(service.addresses[1]) as channel:
            assert await transcribe(channel) == ["alpha bravo charlie"]
    assert not path.exists()


async def test_a_stale_unix_socket_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "stt.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    section = {"port": None, "unix_socket": path}
    async with grpc_service(HearingEngine(), grpc=section) as service:
        async with grpc.aio.insecure_channel(service.addresses[0]) as channel:
            assert await transcribe(channel) == ["alpha bravo charlie"]
        with pytest.raises(ConfigurationError, match="A server listens on"):
            async with grpc_service(HearingEngine(), grpc=section):
                pass
        async with grpc.aio.insecure_channel(service.addresses[0]) as channel:
            assert await transcribe(channel) == ["alpha bravo charlie"], "the first one goes on"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "is a file, not a socket"), ("missing/stt.sock", "does not exist"), ("x" * 120, "longer than")],
)
def test_a_path_that_cannot_be_a_socket_stops_the_start(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=reason):
        listening.check(make_settings(grpc={"port": None, "unix_socket": tmp_path / name}))
    assert (tmp_path / "file").exists()


# Ports


async def test_two_servers_never_share_a_port() -> None:
    async with grpc_service(HearingEngine()) as service:
        port = int(service.addresses[0].rpartition(":")[2])
        with pytest.raises(ConfigurationError, match="WHISPER_GRPC_PORT"):
            async with grpc_service(HearingEngine(), grpc={"port": port}):
                pass


def test_gRPC_needs_somewhere_to_listen() -> None:  # noqa: N802
    with pytest.raises(ConfigurationError, match="nowhere to listen"):
        listening.check(make_settings(grpc={"port": None}))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:4711", "127.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[fe80::1]:4711", "fe80::1"),
        ("unix:", ""),
        ("unix:/run/stt.sock", ""),
    ],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificates(authority: trustme.CA, tmp_path: Path) -> dict[str, Any]:
    own = authority.issue_cert("localhost")
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "ca")}
    own.cert_chain_pems[0].write_to_path(files["certificate"])
    own.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["ca"])
    return {"port": 0, "host": "localhost", "tls_certificate": files["certificate"], "tls_key": files["key"]}


async def test_with_tls_the_port_takes_nothing_else(
    authority: trustme.CA, certificates: dict[str, Any]
) -> None:
    async with grpc_service(HearingEngine(), grpc=certificates) as service:
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        async with grpc.aio.secure_channel(service.addresses[0], trusted) as channel:
            assert await transcribe(channel) == ["alpha bravo charlie"]
        stranger = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
        async with grpc.aio.secure_channel(service.addresses[0], stranger) as channel:
            assert await refusal(channel) is grpc.StatusCode.UNAVAILABLE
        assert await refusal(service.channel) is grpc.StatusCode.UNAVAILABLE


async def test_with_mutual_tls_clients_bring_a_certificate(
    authority: trustme.CA, certificates: dict[str, Any], tmp_path: Path
) -> None:
    section = certificates | {"tls_client_ca": tmp_path / "ca.pem"}
    async with grpc_service(HearingEngine(), grpc=section) as service:
        own = authority.issue_cert("client@example.org")
        root = authority.cert_pem.bytes()
        known = grpc.ssl_channel_credentials(
            root, own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
        )
        async with grpc.aio.secure_channel(service.addresses[0], known) as channel:
            assert await transcribe(channel) == ["alpha bravo charlie"]
        foreign = trustme.CA().issue_cert("client@example.org")
        for key, chain in (
            (None, None),
            (foreign.private_key_pem.bytes(), foreign.cert_chain_pems[0].bytes()),
        ):
            unknown = grpc.ssl_channel_credentials(root, key, chain)
            async with grpc.aio.secure_channel(service.addresses[0], unknown) as channel:
                assert await refusal(channel) is grpc.StatusCode.UNAVAILABLE


async def refusal(channel: grpc.aio.Channel) -> grpc.StatusCode:
    stub = stt_pb2_grpc.SpeechToTextStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CreateSession(stt_pb2.CreateSessionRequest(session_id="one"), timeout=WAIT_S)
    return caught.value.code()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tls_key": None}, "both grpc.tls_certificate and grpc.tls_key"),
        ({"tls_certificate": None}, "both grpc.tls_certificate and grpc.tls_key"),
        ({"tls_key": Path("missing.pem")}, "grpc.tls_key, missing.pem, cannot be read: No such file"),
        ({"tls_client_ca": Path(__file__)}, "is not in PEM format"),
    ],
)
def test_certificates_that_cannot_work_stop_the_start(
    certificates: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(reason)):
        listening.check(make_settings(grpc=certificates | change))


# Health and reflection


async def test_health_tells_that_the_server_drains_while_its_calls_go_on() -> None:
    security = {"api_keys": ("a-key-that-nobody-needs-here",)}
    async with grpc_service(HearingEngine(), security=security) as service:
        stub = HealthStub(service.channel)
        states = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == states.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await anext(aiter(watch))).status == states.SERVING
        service.services.admission.drain(5.0)
        assert (await anext(aiter(watch))).status == states.NOT_SERVING
        watch.cancel()


async def test_reflection_describes_the_service() -> None:
    async with grpc_service(HearingEngine()) as service:
        stub = ServerReflectionStub(service.channel)
        (answer,) = [each async for each in stub.ServerReflectionInfo(iter([Ask(list_services="")]))]
        names = {each.name for each in answer.list_services_response.service}
        assert names >= {"stt.v1.SpeechToText", "grpc.health.v1.Health"}
        request = Ask(file_containing_symbol="stt.v1.SpeechToText")
        (answer,) = [each async for each in stub.ServerReflectionInfo(iter([request]))]
        assert b"StreamingRecognize" in answer.file_descriptor_response.file_descriptor_proto[0]


async def test_without_reflection_the_service_describes_nothing() -> None:
    async with grpc_service(HearingEngine(), grpc={"port": 0, "reflection": False}) as service:
        stub = ServerReflectionStub(service.channel)
        ask = Ask(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(iter([ask])):
                pass
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_there_are_no_more_calls_than_allowed() -> None:
    engine = HearingEngine()
    async with grpc_service(engine, grpc={"port": 0, "max_concurrent_calls": 1}) as service:
        stub = HealthStub(service.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await anext(aiter(watch))
        assert await refusal(service.channel) is grpc.StatusCode.RESOURCE_EXHAUSTED
        watch.cancel()
        await eventually(lambda: watch.done())


# The command


@contextmanager
def serving(*flags: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`whisper-server serve` with the demo model; yields the process and its log until it listens."""
    command = [sys.executable, "-m", "whisper_server", "serve", "--model", "demo", "--port", "0", *flags]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            log = ""
            for line in process.stderr:
                log += line
                if "Application startup complete" in line:
                    break
            yield process, log
        finally:
            process.kill()


def _health_over_grpc(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        answer = HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        return int(answer.status)


@pytest.mark.parametrize("alone", ["", "http", "grpc"])
def test_serve_starts_both_services_or_either_alone(alone: str) -> None:
    flags = {"": (), "http": ("--grpc-enabled", "false"), "grpc": ("--server-enabled", "false")}[alone]
    with serving(*flags) as (process, log):
        http = re.search(r"Listening on (http://\S+)", log)
        rpc = re.search(r"gRPC listens on (\S+)", log)
        assert (http is None) == (alone == "grpc")
        assert (rpc is None) == (alone == "http")
        if http is not None:
            assert httpx.get(f"{http[1]}/health", timeout=WAIT_S).json()["status"] == "ok"
        if rpc is not None:
            assert _health_over_grpc(rpc[1]) == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(WAIT_S) == 0
        assert "Drained: everything is finished" in rest
        assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--server-enabled", "false", "--grpc-enabled", "false"), "There is nothing to serve"),
        (("--grpc-port", "none"), "gRPC has nowhere to listen"),
        (("--grpc-tls-key", "key.pem"), "TLS needs both"),
    ],
)
def test_what_cannot_be_served_stops_the_start_with_a_sentence(flags: tuple[str, ...], reason: str) -> None:
    command = [sys.executable, "-m", "whisper_server", "serve", "--model", "demo", "--port", "0", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_stop_lets_a_live_session_have_its_last_final() -> None:
    with serving() as (process, log):
        rpc = re.search(r"gRPC listens on (\S+)", log)
        assert rpc is not None
        async with grpc.aio.insecure_channel(rpc[1]) as channel:
            stub = stt_pb2_grpc.SpeechToTextStub(channel)
            await stub.CreateSession(stt_pb2.CreateSessionRequest(session_id="one"), timeout=WAIT_S)
            pcm = (ROOT / "whisper_server/demo/samples/kitchen_en.wav").read_bytes()[44:]
            said = Request(session_id="one", audio=pcm[: 16_000 * 5])
            async with held_open([said]) as requests:
                call = stub.StreamingRecognize(requests, timeout=WAIT_S)
                assert (await anext(aiter(call))).HasField("speech_activity")
                process.send_signal(signal.SIGTERM)
                heard = await read(call)
        assert heard.failure is not None
        assert (heard.failure.code, heard.failure.status) == ("ERR1012", grpc.StatusCode.UNAVAILABLE)
        (text,) = heard.texts
        assert text.startswith("Send a message")
        assert await asyncio.to_thread(process.wait, WAIT_S) == 0
