"""The commands for files: flags, YAML, what they send, what they write, and their exit codes."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import soundfile
import yaml

import whisper_server
from tests.fake_stt_service import Break, FakeSttService, Refusal, serving_aside
from tests.live_speech import Speech, speech
from tests.media import encode, pictures, tone
from whisper_server.clients.batch import file as batch_file
from whisper_server.clients.command.audio_file import PacedFile, read_pcm
from whisper_server.clients.command.settings import (
    BatchSettings,
    CommandSettings,
    FileSettings,
    MicrophoneSettings,
    keys_of,
)
from whisper_server.clients.realtime import file as realtime_file
from whisper_server.stt_v1 import stt_pb2 as pb

_CONFIGS = Path(whisper_server.__file__).parent / "clients" / "config"
_TALK = speech(0.2, "alpha bravo", 0.8, "charlie", 0.6)
_FLAT_OUT = ["--no-realtime"]


@pytest.fixture
def service() -> FakeSttService:
    return FakeSttService()


@pytest.fixture
def server(service: FakeSttService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("WHISPER_API_KEY", raising=False)
    address = f"unix:{tmp_path}/stt"
    with serving_aside(service, address):
        yield address


def _record(path: Path, heard: Speech = _TALK) -> str:
    soundfile.write(path, heard.pcm, 16_000)
    return str(path)


@pytest.fixture
def recording(tmp_path: Path) -> str:
    return _record(tmp_path / "talk.wav")


# What is sent


def test_a_recording_is_streamed_in_chunks(service: FakeSttService, server: str, recording: str) -> None:
    assert realtime_file.main([recording, "--server", server, "--chunk-ms", "200", *_FLAT_OUT]) == 0
    (stream,) = service.streams
    assert np.array_equal(stream.pcm, _TALK.pcm)
    assert {len(message.audio) for message in stream.messages[:-1]} == {6400}


async def test_in_real_time_it_is_sent_as_fast_as_it_was_spoken(recording: str) -> None:
    now_s, pauses = 100.0, []

    async def sleep(pause_s: float) -> None:
        nonlocal now_s
        pauses.append(round(pause_s, 6))
        now_s += pause_s

    source = PacedFile(Path(recording), chunk_ms=400, realtime=True, clock=lambda: now_s, sleep=sleep)
    async for chunk in source.chunks(print):
        if len(pauses) == 3:
            now_s += 0.5  # the server was slow
        assert len(chunk) <= 12800
    assert pauses == [0.4, 0.4, 0.4, 0.0, 0.3, 0.4, 0.4]


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("ogg", "libopus"), ("mp3", "libmp3lame")])
def test_any_format_and_rate_is_read(
    service: FakeSttService, server: str, tmp_path: Path, container: str, codec: str
) -> None:
    path = tmp_path / "tone"
    stereo = np.stack([tone(1.0, 48_000)] * 2, axis=1)
    path.write_bytes(encode(stereo, 48_000, container, codec))
    service.refusals.append(Refusal(grpc.StatusCode.NOT_FOUND, "enough"))
    assert realtime_file.main([str(path), "--server", server, *_FLAT_OUT]) == 1
    pcm = np.frombuffer(asyncio.run(_decoded(path)), dtype=np.int16)
    assert len(pcm) == pytest.approx(16_000, rel=0.15)
    spectrum = np.abs(np.fft.rfft(pcm[4000:12_000]))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=2)


async def _decoded(path: Path) -> bytes:
    return b"".join([block async for block in read_pcm(path)])


def test_batch_sends_one_message_with_the_accurate_profile(
    service: FakeSttService, server: str, recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch_file.main([recording, "--server", server]) == 0
    (stream,) = service.streams
    assert [len(message.audio) for message in stream.messages] == [len(_TALK.pcm) * 2]
    assert service.created[0].config.decode_profile == "accurate"
    assert capsys.readouterr().out.splitlines() == ["alpha bravo", "charlie"]


def test_batch_sends_as_few_messages_as_the_server_takes(
    service: FakeSttService, server: str, recording: str
) -> None:
    service.max_chunk_ms = 1000
    assert batch_file.main([recording, "--server", server, "--decode-profile", "realtime"]) == 0
    sizes = [len(message.audio) for message in service.streams[0].messages]
    assert sizes == [32_000, 32_000, len(_TALK.pcm) * 2 - 64_000]
    assert service.created[0].config.decode_profile == "realtime"


def test_batch_survives_a_broken_connection(
    service: FakeSttService, server: str, recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.breaks.append(Break(0.1, Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed")))
    assert batch_file.main([recording, "--server", server]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["alpha bravo", "charlie"]
    assert "trying again" in err


# Flags and YAML


def test_every_flag_reaches_the_session(service: FakeSttService, server: str, recording: str) -> None:
    flags = """--session-id mine --attr room=7 --meta floor=a=b --require-token --model demo --language de
        --task translate --decode-profile fast --prompt Well --hotwords Bad,Tölz --vad-mode auto
        --vad-silence 0.25 --vad-threshold 0.5 --api-key secret"""
    assert realtime_file.main([recording, "--server", server, *_FLAT_OUT, *flags.split()]) == 0
    (request,) = service.created
    assert request.session_id == "mine"
    assert request.attributes == {"room": "7", "floor": "a=b"}
    assert request.require_token
    config = request.config
    assert (config.model, config.language, config.task) == ("demo", "de", pb.TASK_TRANSLATE)
    assert (config.decode_profile, config.prompt) == ("fast", "Well")
    assert config.hotwords == ["Bad", "Tölz"]
    vad = request.vad
    assert (vad.mode, vad.vad_silence_ms, vad.vad_threshold) == (pb.VAD_MODE_AUTO_END, 250, 0.5)
    assert service.metadata[0]["authorization"] == "Bearer secret"


def test_nothing_is_asked_for_unless_it_is_said(service: FakeSttService, server: str, recording: str) -> None:
    assert realtime_file.main([recording, "--server", server, *_FLAT_OUT]) == 0
    (request,) = service.created
    assert request.config == pb.RecognitionConfig()
    assert request.vad == pb.VadConfig(mode=pb.VAD_MODE_CONTINUE)
    assert request.session_id
    assert "authorization" not in service.metadata[0]


def test_flags_override_yaml(service: FakeSttService, server: str, recording: str, tmp_path: Path) -> None:
    config = tmp_path / "client.yaml"
    config.write_text(
        f"audio_path: {recording}\nserver: {server}\nrealtime: false\nlanguage: de\ntask: translate\n"
        "vad_silence: 2\nattributes: {room: 7, floor: b}\nhotwords: [Bad Tölz, Ulm]\nprompt:\nchunk_ms: 300\n"
    )
    assert (
        realtime_file.main(["-c", str(config), "--language", "en", "--attr", "floor=c", "--chunk-ms", "200"])
        == 0
    )
    (request,) = service.created
    assert (request.config.language, request.config.task) == ("en", pb.TASK_TRANSLATE)
    assert request.config.hotwords == ["Bad Tölz", "Ulm"]
    assert request.vad.vad_silence_ms == 2000
    assert request.attributes == {"room": "7", "floor": "c"}
    assert len(service.streams[0].messages[0].audio) == 6400


def test_the_key_comes_from_flag_then_yaml_then_environment(
    service: FakeSttService, server: str, recording: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "client.yaml"
    config.write_text("api_key: of-yaml\n")
    monkeypatch.setenv("WHISPER_API_KEY", "of-environment")
    common = [recording, "--server", server, *_FLAT_OUT]
    for flags in ([], ["-c", str(config)], ["-c", str(config), "--api-key", "of-flag"]):
        assert realtime_file.main([*common, *flags]) == 0
    keys = list(dict.fromkeys(metadata["authorization"] for metadata in service.metadata))
    assert keys == ["Bearer of-environment", "Bearer of-yaml", "Bearer of-flag"]


@pytest.mark.parametrize("main", [realtime_file.main, batch_file.main])
def test_the_shipped_configuration_works(
    main: Callable[[Sequence[str]], int], service: FakeSttService, server: str, recording: str
) -> None:
    assert main(["-c", str(_CONFIGS / "file.yaml"), recording, "--server", server]) == 0
    (request,) = service.created
    profile = "" if main is realtime_file.main else "accurate"
    assert request.config == pb.RecognitionConfig(decode_profile=profile)


@pytest.mark.parametrize(
    ("name", "kind"), [("file", FileSettings), ("file", BatchSettings), ("mic", MicrophoneSettings)]
)
def test_shipped_configurations_name_every_key(name: str, kind: type[CommandSettings]) -> None:
    values = yaml.safe_load((_CONFIGS / f"{name}.yaml").read_text())
    assert sorted(values) == sorted(keys_of(kind))


# Wrong usage


@pytest.mark.parametrize(
    ("yaml_text", "flags", "complaint"),
    [
        ("vad_silense: 1", [], "unknown key 'vad_silense'; the nearest is 'vad_silence'"),
        ("chunk_ms: soon", [], "client.yaml: chunk_ms: input should be a valid integer"),
        ("chunk_ms: 0", [], "chunk_ms: input should be greater than or equal to 1"),
        ("- a", [], "must hold keys and values"),
        ("a: [", [], "is not YAML"),
        ("", ["-c", "none.yaml"], "none.yaml: No such file"),
        ("", [], "audio_path is missing"),
        ("", ["talk.wav", "--vad-silence", "long"], "vad_silence: input should be a valid number"),
        ("", ["talk.wav", "--vad-mode", "never"], "invalid choice: 'never'"),
        ("", ["talk.wav", "--attr", "room"], "'room' is not KEY=VALUE"),
        ("", ["talk.wav", "--server", "nowhere"], "host:port or unix:/path"),
        ("", ["talk.wav", "--tls-cert", "none.pem"], "none.pem: No such file"),
        ("", ["talk.wav", "--tls-ca", "none.pem"], "none.pem: No such file"),
        ("", ["talk.wav", "--silence", "3"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_told(
    yaml_text: str,
    flags: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "client.yaml"
    config.write_text(yaml_text)
    with pytest.raises(SystemExit) as caught:
        realtime_file.main(["-c", str(config), *flags])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no such file"),
        (b"words", "cannot be read as audio"),
        (pictures(0.5), "holds no audio"),
    ],
)
@pytest.mark.parametrize("main", [realtime_file.main, batch_file.main])
def test_what_is_no_recording_is_told(
    main: Callable[[Sequence[str]], int],
    content: bytes | None,
    complaint: str,
    service: FakeSttService,
    server: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path), "--server", server]) == 2
    assert capsys.readouterr().err == f"{path}: {complaint}" + (
        ": Invalid data found when processing input\n" if content == b"words" else "\n"
    )
    assert not service.created, "no session waits for audio that never comes"


# What is written


def test_a_pipe_gets_finals_alone(server: str, recording: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert realtime_file.main([recording, "--server", server, *_FLAT_OUT]) == 0
    assert capsys.readouterr() == ("alpha bravo\ncharlie\n", "")


def test_json_has_an_object_per_event(
    server: str, recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert realtime_file.main([recording, "--server", server, "--json", *_FLAT_OUT]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert list(dict.fromkeys(kinds)) == ["speech_started", "partial", "speech_stopped", "final", "ended"]
    final = events[kinds.index("final")]
    assert (final["text"], final["start_s"], final["confidence"]) == ("alpha bravo", 0.0, 0.9)
    assert final["words"][0]["text"].strip() == "alpha"
    assert events[-1] == {"event": "ended", "reason": "completed", "audio_s": 2.8, "utterances": 2}


def test_metrics_come_at_the_end_on_standard_error(
    server: str, recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert realtime_file.main([recording, "--server", server, "--metrics", *_FLAT_OUT]) == 0
    out, err = capsys.readouterr()
    assert out == "alpha bravo\ncharlie\n"
    assert "audio          2.80 s in " in err
    assert "finals         2; median" in err
    assert "first partial" in err
    assert err.endswith(
        "server         3 decodes, 1.875 s: buffer wait 0.500 s, queue wait 0.250 s, inference 1.000 s, "
        "response emit 0.125 s\n"
    )


def test_a_session_that_fails_is_told_with_its_code(
    service: FakeSttService, server: str, recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.refusals.append(Refusal(grpc.StatusCode.ALREADY_EXISTS, "ERR1002: It is active.", "ERR1002"))
    assert realtime_file.main([recording, "--server", server]) == 1
    assert capsys.readouterr() == ("", "ERR1002: It is active.\n")


def test_an_utterance_that_fails_makes_the_command_fail(
    service: FakeSttService, server: str, recording: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service.failing = {"bravo"}
    service.ending = Refusal(grpc.StatusCode.INTERNAL, "ERR2002: A decode failed.", "ERR2002")
    assert realtime_file.main([recording, "--server", server, *_FLAT_OUT]) == 1
    out, err = capsys.readouterr()
    assert out == "charlie\n"
    assert err == "an utterance was lost: ERR2002: No luck.\nERR2002: A decode failed.\n"


# Processes


@contextmanager
def _process(*flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "whisper_server.clients.realtime.file", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def long_recording(tmp_path: Path) -> str:
    return _record(tmp_path / "long.wav", speech(0.1, "alpha", 0.7, " ".join(["bravo charlie"] * 100)))


def test_ctrl_c_ends_the_session_properly(service: FakeSttService, server: str, long_recording: str) -> None:
    with _process(long_recording, "--server", server, "--metrics") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alpha\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert service.half_closed.is_set()
    assert "Traceback" not in err
    assert "3 decodes" in err  # the call ended with its trailing metadata
    assert len(out.splitlines()) <= 1


def test_a_second_ctrl_c_ends_at_once(service: FakeSttService, server: str, long_recording: str) -> None:
    service.may_end.clear()
    with _process(long_recording, "--server", server) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alpha\n"
        process.send_signal(signal.SIGINT)
        assert service.half_closed.wait(30)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == ""


def test_ctrl_c_while_there_is_no_server_ends_at_once(recording: str, tmp_path: Path) -> None:
    with _process(recording, "--server", f"unix:{tmp_path}/none") as process:
        assert process.stderr is not None
        assert "trying again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_reader_that_leaves_ends_the_command_quietly(server: str, long_recording: str) -> None:
    with _process(long_recording, "--server", server, *_FLAT_OUT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 1
