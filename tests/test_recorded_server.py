"""The whole server with recording on, off, and impossible."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from blockbuster import blockbuster_ctx
from faster_whisper.audio import decode_audio
from websockets.sync.client import connect

from tests.live_server import make_settings, running_server
from tests.realtime_client import talking
from tests.recordings import WAIT_S, all_of, only, pcm_of, sidecar_of
from whisper_server.bootstrap import create_app
from whisper_server.config import StorageSettings, load_settings
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.types import Pcm16


@pytest.fixture(scope="module")
def spoken(sample_recordings: list[dict[str, Any]]) -> Pcm16:
    audio = decode_audio(str(sample_recordings[0]["path"]), sampling_rate=16000)
    assert isinstance(audio, np.ndarray)
    pcm: Pcm16 = np.rint(np.clip(audio, -1, 32767 / 32768) * 32768).astype(np.int16)
    return pcm[: 8 * 16000]


def through_websocket(url: str, pcm: bytes) -> list[str]:
    with connect(f"{url.replace('http', 'ws')}/ws/stt", open_timeout=WAIT_S) as ws:
        ws.send(json.dumps({"type": "start_session", "session_id": "../mine"}))
        for start in range(0, len(pcm), 3200):
            ws.send(pcm[start : start + 3200])
        ws.send(json.dumps({"type": "end_session"}))
        found = []
        while (message := json.loads(ws.recv(timeout=WAIT_S)))["type"] != "session_ended":
            if message["type"] == "final_transcript" and message["text"]:
                found.append(message["text"])
    return found


def through_http(url: str, pcm: bytes) -> list[str]:
    route = f"{url}/v1/audio/transcriptions/stream?format=s16le&session_id=../mine&stream_format=ndjson"
    answer = httpx.post(route, content=pcm, timeout=WAIT_S)
    events = [json.loads(line) for line in answer.text.splitlines()]
    return [event["text"] for event in events if event.get("type") == "transcript.text.segment"]


def through_realtime(url: str, pcm: bytes) -> list[str]:
    with talking(f"{url}/v1") as client:
        client.configure(turn_detection=None, transcription={"model": "demo"})
        client.speak(np.frombuffer(pcm, dtype=np.int16))
        client.send("input_audio_buffer.commit")
        return [client.until("transcription.completed")[-1]["transcript"]]


@pytest.mark.parametrize("speak", [through_websocket, through_http, through_realtime])
def test_the_server_records_what_came_through_its_doors(
    tmp_path: Path, spoken: Pcm16, speak: Callable[[str, bytes], list[str]]
) -> None:
    folder = tmp_path / "audio"
    settings = make_settings(storage={"persist_audio": True, "directory": folder})
    data = spoken.tobytes()
    with running_server(settings) as url, blockbuster_ctx("whisper_server"):
        finals = speak(url, data)
    assert finals
    assert pcm_of(only(folder, "*.wav")) == data
    sidecar = sidecar_of(folder)
    assert [entry["text"] for entry in sidecar["transcript"]] == finals
    assert sidecar["model"] == "demo"
    if (
        speak is not through_realtime
    ):  # whose sessions are named by the server, and end when the client leaves
        assert (sidecar["session_id"], sidecar["end_reason"]) == ("../mine", "completed")


def test_nothing_is_written_unless_it_is_asked_for(
    tmp_path: Path, spoken: Pcm16, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with running_server() as url:
        assert through_websocket(url, spoken.tobytes())
        assert "recordings" not in {thread.name for thread in threading.enumerate()}
    assert not all_of(tmp_path)


def test_the_name_of_a_key_is_recorded_and_never_the_key(tmp_path: Path, spoken: Pcm16) -> None:
    settings = make_settings(
        storage={"persist_audio": True, "directory": tmp_path}, security={"api_keys": ["ann:very-secret"]}
    )
    with running_server(settings) as url:
        route = f"{url}/v1/audio/transcriptions/stream?format=s16le"
        bearer = {"authorization": "Bearer very-secret"}
        assert httpx.post(route, content=spoken.tobytes()[:3200], headers=bearer, timeout=WAIT_S).is_success
    assert sidecar_of(tmp_path)["client"] == "ann"
    for path in all_of(tmp_path):
        assert b"very-secret" not in path.read_bytes()


def test_a_folder_that_cannot_be_written_to_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = make_settings(storage={"persist_audio": True, "directory": tmp_path / "file" / "audio"})
    with pytest.raises(ConfigurationError, match=r"Set storage\.directory \(WHISPER_STORAGE_DIRECTORY\)"):
        create_app(settings)


@pytest.mark.parametrize("value", ["-1", "none", "", "-0.5"])
def test_negative_and_none_set_no_limit(value: str) -> None:
    environ = {f"WHISPER_STORAGE_{name}": value for name in ("MAX_BYTES", "MAX_FILES", "MAX_AGE_DAYS")}
    storage = load_settings(environ=environ).settings.storage
    assert (storage.max_bytes, storage.max_files, storage.max_age_days) == (None, None, None)
    assert StorageSettings(max_bytes=-1, max_files=-1, max_age_days=-1.0) == StorageSettings()


@pytest.mark.parametrize("value", ["0", "some", "true"])
def test_other_limits_are_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"storage\.max_bytes"):
        load_settings(environ={"WHISPER_STORAGE_MAX_BYTES": value})
