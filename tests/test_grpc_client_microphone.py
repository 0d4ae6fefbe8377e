"""The microphone command, with a device made of made-up speech."""

import builtins
import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from tests.fake_stt_service import FakeSttService, serving_aside
from tests.live_speech import speech
from whisper_server.clients.command.microphone import Microphone
from whisper_server.clients.realtime import mic
from whisper_server.stt_v1 import stt_pb2 as pb

_TALK = speech(0.2, "alpha bravo", 0.8, "charlie", 0.2)


class _PortAudioError(Exception):
    pass


class _Device:
    """What `sounddevice.RawInputStream` is: plays blocks into the callback, in a thread of its own."""

    opened: ClassVar[list["_Device"]]
    pcm = _TALK.pcm
    status = SimpleNamespace(input_overflow=False)
    error: Exception | None = None

    def __init__(self, callback: Callable[..., None], blocksize: int, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.options = options | {"blocksize": blocksize}
        self.is_closed = threading.Event()
        self.has_played = threading.Event()
        self._callback = callback
        self._thread = threading.Thread(target=self._play)
        self.opened.append(self)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.is_closed.set()
        self._thread.join(30)

    def _play(self) -> None:
        size = self.options["blocksize"]
        for start in range(0, len(self.pcm) - size + 1, size):
            # The driver uses the same memory again for the next block.
            self._callback(memoryview(self.pcm[start : start + size].tobytes()), size, None, self.status)
        self.has_played.set()
        self.is_closed.wait(30)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[_Device]:
    class Device(_Device):
        opened: ClassVar[list[_Device]] = []

    module = ModuleType("sounddevice")
    module.RawInputStream = Device  # type: ignore[attr-defined]
    module.PortAudioError = _PortAudioError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    return Device


@pytest.fixture
def service() -> FakeSttService:
    return FakeSttService()


@pytest.fixture
def server(service: FakeSttService, tmp_path: Path) -> Iterator[str]:
    address = f"unix:{tmp_path}/stt"
    with serving_aside(service, address):
        yield address


def test_speech_is_streamed_until_it_ends(
    device: type[_Device], service: FakeSttService, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mic.main(["--server", server, "--vad-mode", "auto", "--device", "7"]) == 0
    assert capsys.readouterr() == ("alpha bravo\n", "")
    (opened,) = device.opened
    assert opened.is_closed.is_set()
    assert opened.options == {
        "samplerate": 16_000,
        "blocksize": 1600,
        "device": 7,
        "channels": 1,
        "dtype": "int16",
    }
    assert service.created[0].vad.mode == pb.VAD_MODE_AUTO_END


def test_rate_chunk_and_device_are_chosen(
    device: type[_Device], service: FakeSttService, server: str, tmp_path: Path
) -> None:
    config = tmp_path / "mic.yaml"
    config.write_text("device: USB\nsample_rate: 48000\nchunk_ms: 50\nvad_mode: auto\n")
    assert mic.main(["-c", str(config), "--server", server, "--sample-rate", "8000"]) == 0
    options = device.opened[0].options
    assert (options["samplerate"], options["blocksize"], options["device"]) == (8000, 400, "USB")
    assert service.created[0].audio.sample_rate_hz == 8000


async def _first(chunks: AsyncIterator[bytes], count: int) -> list[bytes]:
    return [await anext(chunks) for _ in range(count)]


async def test_what_waits_too_long_is_dropped_and_told(device: type[_Device]) -> None:
    device.pcm = np.repeat(np.arange(34, dtype=np.int16), 1000)  # 34 s at 1 kHz, of which 30 s may wait
    told: list[str] = []
    source = Microphone(None, sample_rate_hz=1000, chunk_ms=1000)
    await source.prepare()
    async with aclosing(source.chunks(told.append)) as chunks:
        # Nothing is read while the event loop is busy.
        opening = anext(chunks)
        heard = [await _while_blocked(opening, device)]
        heard += await _first(chunks, 29)
    firsts = [int(np.frombuffer(chunk, np.int16)[0]) for chunk in heard]
    assert firsts == list(range(4, 34))
    assert told == ["4.0 s of audio were dropped: the server is too slow"]
    assert device.opened[0].is_closed.is_set()


async def _while_blocked(opening: Any, device: type[_Device]) -> bytes:
    class Played(device):  # type: ignore[misc, valid-type]
        def start(self) -> None:
            super().start()
            assert self.has_played.wait(30)

    sys.modules["sounddevice"].RawInputStream = Played  # type: ignore[attr-defined]
    chunk: bytes = await opening
    return chunk


async def test_audio_that_the_driver_lost_is_told(device: type[_Device]) -> None:
    device.status = SimpleNamespace(input_overflow=True)
    told: list[str] = []
    source = Microphone(None, sample_rate_hz=16_000, chunk_ms=100)
    await source.prepare()
    async with aclosing(source.chunks(told.append)) as chunks:
        await _first(chunks, 1)
    assert told == ["the microphone lost audio: the machine was too slow"]


def test_a_device_that_cannot_be_opened_is_told(
    device: type[_Device], server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    device.error = _PortAudioError("Invalid device")
    assert mic.main(["--server", server]) == 2
    assert capsys.readouterr().err == "the microphone cannot be opened: Invalid device\n"


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (ModuleNotFoundError("No module named 'sounddevice'"), "whisper-server[microphone]"),
        (OSError("PortAudio library not found"), "PortAudio"),
    ],
)
def test_a_missing_library_is_told(
    error: Exception, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def fail(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "sounddevice":
            raise error
        return real_import(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(builtins, "__import__", fail)
    assert mic.main([]) == 2
    assert complaint in capsys.readouterr().err


_SOUNDDEVICE = """
import threading

class PortAudioError(Exception):
    pass

class RawInputStream:
    def __init__(self, callback, **options):
        self._callback = callback
    def start(self):
        threading.Thread(target=self._play, daemon=True).start()
    def _play(self):
        data = open({path!r}, "rb").read()
        for start in range(0, len(data), 3200):
            self._callback(data[start : start + 3200], 1600, None, None)
    def close(self):
        pass
"""


def test_ctrl_c_ends_the_session_with_its_last_final(
    service: FakeSttService, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pcm").write_bytes(_TALK.pcm.tobytes())
    (tmp_path / "sounddevice.py").write_text(_SOUNDDEVICE.format(path=str(tmp_path / "pcm")))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    command = [sys.executable, "-m", "whisper_server.clients.realtime.mic", "--server", server, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if '"text": "charlie"' in line:
                    break
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == ""
    assert service.half_closed.is_set()
    *_, final, ended = [json.loads(line) for line in out.splitlines()]
    assert (final["event"], final["text"]) == ("final", "charlie")
    assert (ended["event"], ended["reason"]) == ("ended", "completed")
