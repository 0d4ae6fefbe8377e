"""The clients against the server itself, with the demo model."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.live_server import make_settings, running_server
from whisper_server.clients.batch import file as batch_file
from whisper_server.clients.command.audio_file import read_pcm
from whisper_server.clients.grpc import (
    Event,
    Final,
    RecognitionOptions,
    RetryPolicy,
    SessionOptions,
    SttClient,
    SttError,
    VadOptions,
)
from whisper_server.clients.realtime import file as realtime_file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("grpc") / "s"
    with running_server(make_settings(grpc={"port": None, "unix_socket": path})):
        yield f"unix:{path}"


@pytest.fixture
def kitchen(sample_recordings: list[dict[str, Any]]) -> tuple[Path, list[str]]:
    """A recording, and the words in it."""
    (sample,) = [sample for sample in sample_recordings if sample["path"].name == "kitchen_en.wav"]
    return sample["path"], " ".join(segment["text"] for segment in sample["segments"]).split()


@pytest.mark.parametrize("pace", [[], ["--no-realtime"]])
def test_a_file_is_streamed(
    server: str, kitchen: tuple[Path, list[str]], pace: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, words = kitchen
    flags = [str(path), "--server", server, "--metrics", "--require-token", "--attr", "room=7"]
    assert realtime_file.main([*flags, *pace]) == 0
    out, err = capsys.readouterr()
    assert out.split() == words
    assert "decodes" in err


def test_a_file_is_sent_as_a_whole(
    server: str, kitchen: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, words = kitchen
    assert batch_file.main([str(path), "--server", server, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert " ".join(event["text"] for event in events if event["event"] == "final").split() == words
    assert events[-1]["reason"] == "completed"


def test_a_wrong_threshold_is_refused(
    server: str, kitchen: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert realtime_file.main([str(kitchen[0]), "--server", server, "--vad-threshold", "2"]) == 1
    assert capsys.readouterr().err.startswith("ERR1003: ")


async def test_the_library_tells_settings_words_and_totals(
    server: str, kitchen: tuple[Path, list[str]]
) -> None:
    path, words = kitchen
    options = SessionOptions(
        session_id="mine", recognition=RecognitionOptions(language="en"), vad=VadOptions(silence_ms=700)
    )
    async with SttClient(server) as client:
        session = await client.create_session(options)
        assert (session.session_id, session.vad.silence_ms) == ("mine", 700)
        assert session.max_message_bytes > 0
        with pytest.raises(SttError) as caught:
            await client.create_session(options)
        assert caught.value.code == "ERR1002"
        async with client.stream(session, read_pcm(path)) as stream:
            finals = [event async for event in stream if isinstance(event, Final)]
    assert " ".join(final.text for final in finals).split() == words
    assert [word.text.strip() for final in finals for word in final.words] == words
    assert stream.decode_totals is not None
    assert stream.decode_totals.count >= len(finals)


class _Proxy:
    """Stands between a client and the server's socket, and breaks the connections when told."""

    def __init__(self, server_path: str) -> None:
        self._server_path = server_path
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_unix_connection(self._server_path)
        self._writers += [writer, behind_writer]
        for source, target in ((reader, behind_writer), (behind_reader, writer)):
            task = asyncio.create_task(self._pump(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        target.close()

    def break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


async def test_a_broken_connection_costs_no_word(
    server: str, sample_recordings: list[dict[str, Any]], tmp_path: Path
) -> None:
    (sample,) = [sample for sample in sample_recordings if sample["path"].name == "household_en.flac"]
    proxy = _Proxy(server.removeprefix("unix:"))
    events: list[Event] = []
    async with (
        await asyncio.start_unix_server(proxy, tmp_path / "p"),
        SttClient(f"unix:{tmp_path}/p", retries=RetryPolicy(initial_pause_s=0.01, max_attempts=50)) as client,
    ):
        session = await client.create_session(SessionOptions(session_id="broken"))
        async with client.stream(session, read_pcm(sample["path"])) as stream:
            async for event in stream:
                events.append(event)
                if isinstance(event, Final) and stream.session.attempt < 3:
                    proxy.break_all()
        proxy.break_all()
    finals = [event for event in events if isinstance(event, Final)]
    truth = " ".join(segment["text"] for segment in sample["segments"])
    assert " ".join(final.text for final in finals).split() == truth.split()
    assert stream.session.attempt >= 3
    starts = [word.start_s for final in finals for word in final.words]
    assert starts == sorted(starts)
    for final, segment in zip(finals, sample["segments"], strict=True):
        assert final.end_s == pytest.approx(segment["end"], abs=0.5)


async def test_the_library_transcribes_a_recording(server: str, kitchen: tuple[Path, list[str]]) -> None:
    path, words = kitchen
    async with SttClient(server) as client:
        transcript = await client.recognize(path.read_bytes(), RecognitionOptions(language="en"))
    assert transcript.text.split() == words
    assert transcript.language == "en"
    assert transcript.duration_s == pytest.approx(3.68, abs=0.05)
