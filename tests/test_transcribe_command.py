"""`whisper-server transcribe`, with the demo model and on a live server."""

import argparse
import asyncio
import io
import json
import logging
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.media import silence, wav
from whisper_server.cli.main import main
from whisper_server.cli.settings_flags import add_settings_arguments
from whisper_server.cli.transcribe import configure
from whisper_server.cli.transcribe.delivery import FileDelivery, write_whole
from whisper_server.cli.transcribe.planning import Job, OutputFormat
from whisper_server.cli.transcribe.progress import (
    LineReporter,
    Track,
    clock,
    finished_line,
    make_reporter,
    shown,
    state_line,
)
from whisper_server.cli.transcribe.remote import RemoteBackend, RemoteError, base_url, open_remote
from whisper_server.cli.transcribe.requesting import OnProgress, Results, Wish
from whisper_server.cli.transcribe.runner import JobRunner, Outcome
from whisper_server.cli.transcribe.verbose_json import NotVerboseJsonError, transcription_from
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.formats import SubtitleOptions

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "whisper_server" / "demo" / "samples"
KITCHEN = SAMPLES / "kitchen_en.wav"
KITCHEN_TEXT = "Send a message to David on Monday.\n"
ALL_FORMATS = ["text", "verbose_json", "srt", "vtt", "tsv"]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(autouse=True)
def demo_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHISPER_MODEL_SIZE", "demo")
    monkeypatch.setenv("WHISPER_MODEL_CPU_THREADS", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def transcribe(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str | Path) -> Done:
        capsys.readouterr()
        code = main(["transcribe", *map(str, words)])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recordings, a third in a folder below, and things that are no recordings."""
    folder = tmp_path / "recordings"
    (folder / "more").mkdir(parents=True)
    shutil.copy(KITCHEN, folder / "kitchen.wav")
    shutil.copy(SAMPLES / "meeting_pt.mp3", folder / "meeting.MP3")
    shutil.copy(KITCHEN, folder / "more" / "deep.wav")
    (folder / "notes.txt").write_text("mine")
    (folder / "._kitchen.wav").write_bytes(b"a Mac's leftovers")
    return folder


def start(*words: str | Path, **pipes: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "whisper_server", "transcribe", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **pipes)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# In this process


def test_a_single_file_is_printed_and_its_speed_told(transcribe: Command) -> None:
    done = transcribe(KITCHEN)
    assert (done.code, done.out) == (0, KITCHEN_TEXT)
    line = re.escape(f"{KITCHEN}: 3.7 s of audio in ") + r"\d+\.\d s \(\d+\.\d x real time\)\n"
    assert re.fullmatch(line, done.err)


def test_each_format_is_a_file_next_to_the_recording(transcribe: Command, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "meeting_pt.mp3", tmp_path / "a.b.mp3")
    flags = [word for kind in ALL_FORMATS for word in ("--format", kind)]
    done = transcribe("a.b.mp3", *flags)
    assert (done.code, done.out) == (0, "")
    assert names(tmp_path) == ["a.b.json", "a.b.mp3", "a.b.srt", "a.b.tsv", "a.b.txt", "a.b.vtt"]
    text = (tmp_path / "a.b.txt").read_text(encoding="utf-8")
    body = json.loads((tmp_path / "a.b.json").read_text(encoding="utf-8"))
    assert text == body["text"] + "\n"
    assert "Ligue para Maria às doze horas." in text
    assert body["segments"][0]["text"].strip() == "Ligue para Maria às doze horas."
    assert "words" not in body
    start_s = body["segments"][0]["start"]
    for suffix, head in (("srt", f"1\n00:00:00,{start_s * 1000:03.0f} --> "), ("vtt", "WEBVTT\n\n")):
        assert (tmp_path / f"a.b.{suffix}").read_text(encoding="utf-8").startswith(head)
    rows = (tmp_path / "a.b.tsv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "start\tend\ttext"
    assert rows[1].startswith(f"{start_s * 1000:.0f}\t")


def test_word_timestamps_and_limits_of_lines(transcribe: Command) -> None:
    done = transcribe(KITCHEN, "--format", "verbose_json", "--word-timestamps")
    assert " ".join(word["word"] for word in json.loads(done.out)["words"]) == KITCHEN_TEXT.strip()
    done = transcribe(KITCHEN, "--format", "srt", "--max-words-per-line", "3", "--max-line-count", "1")
    cues = [block.splitlines()[2] for block in done.out.strip().split("\n\n")]
    assert " ".join(cues) == KITCHEN_TEXT.strip()
    assert max(len(cue.split()) for cue in cues) <= 3


def test_results_are_printed_in_the_order_of_the_inputs(transcribe: Command) -> None:
    files = [SAMPLES / "household_en.flac", KITCHEN, SAMPLES / "meeting_pt.mp3"]
    done = transcribe("--stdout", "--jobs", "3", "--format", "json", *files)
    assert done.code == 0
    texts = [json.loads(line)["text"] for line in done.out.splitlines()]
    assert [text[:9] for text in texts] == ["The train", "Send a me", "Ligue par"]
    assert "3 done, 0 skipped, 0 failed" in done.err


def test_request_fields_reach_the_model(transcribe: Command) -> None:
    german = transcribe(KITCHEN, "--language", "de", "--format", "verbose_json")
    assert json.loads(german.out)["language"] == "german"
    clip = transcribe(SAMPLES / "train_de.ogg", "--option", "clip_timestamps=3,6.6", "--beam-size", "1")
    assert "acht" in clip.out
    assert "Madrid" not in clip.out
    flags = ["--decode-profile", "accurate", "--long-form", "batched"]
    flags += ["--option", "temperatures[]=0", "--option", "vad_parameters[threshold]=0.4"]
    assert transcribe(KITCHEN, *flags).out == KITCHEN_TEXT
    logprobs = transcribe(KITCHEN, "--format", "json", "--option", "include[]=logprobs")
    assert json.loads(logprobs.out)["logprobs"]


def test_translation_is_english(transcribe: Command) -> None:
    done = transcribe(SAMPLES / "meeting_pt.mp3", "--task", "translate")
    assert done.code == 0
    assert "door" in done.out


# Folders, skipping, conflicts


def test_a_folder_gives_its_recordings_and_no_others(transcribe: Command, folder: Path) -> None:
    done = transcribe(folder)
    assert done.code == 0
    assert {"kitchen.txt", "meeting.txt"} < set(names(folder))
    assert not (folder / "more" / "deep.txt").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_output_folder_keeps_the_shape_of_the_input(
    transcribe: Command, folder: Path, tmp_path: Path
) -> None:
    done = transcribe(folder, folder / "kitchen.wav", "--recursive", "--output-dir", "out/new")
    assert done.code == 0
    assert names(tmp_path / "out" / "new") == ["kitchen.txt", "meeting.txt", "more/deep.txt"]
    assert "3 done, 0 skipped, 0 failed" in done.err


def test_what_is_there_is_skipped(transcribe: Command, folder: Path) -> None:
    (folder / "kitchen.txt").write_text("by hand")
    done = transcribe(folder)
    assert (done.code, "1 done, 1 skipped, 0 failed" in done.err) == (0, True)
    assert (folder / "kitchen.txt").read_text() == "by hand"
    again = transcribe(folder)
    assert (again.code, again.err) == (0, "0 done, 2 skipped, 0 failed\n")
    more = transcribe(folder / "kitchen.wav", "--format", "text", "--format", "json")
    assert more.code == 0
    assert (folder / "kitchen.txt").read_text() == "by hand"
    assert json.loads((folder / "kitchen.json").read_text())["text"] == KITCHEN_TEXT.strip()


def test_overwrite_does_it_again(transcribe: Command, folder: Path) -> None:
    (folder / "kitchen.txt").write_text("by hand")
    done = transcribe(folder, "--overwrite", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert (folder / "kitchen.txt").read_text() == KITCHEN_TEXT


def test_bad_inputs_do_not_stop_the_good_ones(transcribe: Command, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.mp3").write_bytes(b"no sound at all")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    done = transcribe("missing.wav", "empty", "pipe", folder)
    assert done.code == 1
    assert (folder / "kitchen.txt").read_text() == KITCHEN_TEXT
    assert {"meeting.txt"} <= set(names(folder))
    assert [name for name in names(folder) if "bad" in name or name.endswith(".tmp")] == ["bad.mp3"]
    lines = done.err.splitlines()
    assert "missing.wav: no such file" in lines
    assert "empty: no recordings in this folder (with --recursive its folders count too)" in lines
    assert "pipe: not a regular file; pipe it into '-'" in lines
    (bad,) = [line for line in lines if "bad.mp3" in line]
    assert bad.startswith(f"{folder / 'bad.mp3'}: ")
    assert lines[-1] == "2 done, 0 skipped, 4 failed"


def test_a_failed_recording_leaves_no_gap_on_stdout(transcribe: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    done = transcribe("--stdout", "--quiet", "bad.wav", KITCHEN)
    assert (done.code, done.out) == (1, KITCHEN_TEXT)
    assert done.err.startswith("bad.wav: ")
    assert done.err.count("\n") == 1


def test_silence_has_no_text(transcribe: Command, tmp_path: Path) -> None:
    (tmp_path / "silence.wav").write_bytes(wav(silence(2)))
    done = transcribe("silence.wav", "--format", "verbose_json")
    assert json.loads(done.out)["language"] == "unknown"


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        (["a.mp3", "a.wav"], ["."], "a.mp3 and a.wav would both be written to a.txt"),
        (["x/a.wav", "y/a.wav"], ["x/a.wav", "y/a.wav", "-o", "out"], "would both be written to out/a.txt"),
        (["a.wav"], ["a.wav", "-f", "json", "-f", "verbose_json"], "json or verbose_json?"),
        (["a.txt"], ["a.txt", "--output-dir", "."], "would replace a.txt, which is one of the recordings"),
        (["a.wav", "out"], [".", "--output-dir", "out"], "Cannot make the folder out"),
    ],
    ids=["suffixes", "folders", "formats", "the recording itself", "a file for a folder"],
)
def test_results_that_would_be_one_file_are_refused_before_the_work(
    transcribe: Command, tmp_path: Path, files: list[str], words: list[str], message: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(KITCHEN, tmp_path / name)
    done = transcribe(*words)
    assert done.code == 2
    assert message in done.err
    assert names(tmp_path) == sorted(files)


def test_kept_suffixes_tell_results_apart(transcribe: Command, tmp_path: Path) -> None:
    for name in ("a.mp3", "a.wav"):
        shutil.copy(KITCHEN, tmp_path / name)
    assert transcribe(".", "--keep-suffix").code == 0
    assert names(tmp_path) == ["a.mp3", "a.mp3.txt", "a.wav", "a.wav.txt"]


def test_a_result_that_cannot_be_written_is_a_failure_and_leaves_nothing(
    transcribe: Command, folder: Path
) -> None:
    (folder / "kitchen.txt" / "in the way").mkdir(parents=True)
    done = transcribe(folder / "kitchen.wav", folder / "meeting.MP3", "--overwrite")
    assert done.code == 1
    assert f"{folder / 'kitchen.wav'}: Is a directory" in done.err.splitlines()
    assert (folder / "meeting.txt").exists()
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_whole({good: "after", bad: "half of it \udcff"})
    assert names(tmp_path) == ["good.txt"]
    assert good.read_text() == "before"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "smal"], "Did you mean 'small'?"),
        (["--model", "./nowhere"], "./nowhere"),
        (["--port", "http"], "--port"),
        (["--option", "beam_sise=3"], "no request field 'beam_sise'. Did you mean 'beam_size'?"),
        (["--option", "beam_size"], "FIELD=VALUE"),
        (["--option", "response_format=srt"], "use --format"),
        (["--beam-size", "0"], "'beam_size' must be between 1 and"),
        (["--decode-profile", "fast"], "'decode_profile' does not support 'fast'"),
        (["--language", "xx"], "xx"),
        (["--max-line-width", "40"], "--format srt or vtt"),
        (["--api-key", "k"], "add --server"),
        (["--stdout", "-f", "text", "-f", "srt"], "Standard output takes one format"),
        (["--stdout", "-o", "out"], "--stdout or --output-dir"),
        (["--server", "localhost:8089"], "no address"),
        (["--server", "http://a:port"], "no address"),
        (["--log-file", "no/such/folder/log"], "Cannot write the log"),
    ],
)
def test_a_wrong_command_line_is_explained(transcribe: Command, words: list[str], message: str) -> None:
    done = transcribe(KITCHEN, *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_count_is_within_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["transcribe", str(KITCHEN), "--jobs", "0"])
    assert stop.value.code == 2
    assert "--jobs: must be between 1 and 64" in capsys.readouterr().err


def test_settings_limit_and_warn_as_for_the_server(
    transcribe: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_MODEL_NAM", "small")
    done = transcribe(KITCHEN, SAMPLES / "meeting_pt.mp3", "--stdout", "--limits-max-audio-s", "5")
    assert (done.code, done.out) == (1, KITCHEN_TEXT)
    warning, *_, failure, _ = done.err.splitlines()
    assert warning.startswith("warning: ")
    assert "WHISPER_MODEL_NAM" in warning
    assert failure.startswith(f"{SAMPLES / 'meeting_pt.mp3'}: The audio is longer than 5 seconds")
    assert failure.endswith(" Raise --limits-max-audio-s.")


# Standard input and output


def test_standard_input_is_a_recording() -> None:
    with KITCHEN.open("rb") as file, start("-", stdin=file, stdout=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, KITCHEN_TEXT)
    assert err.startswith("standard input: 3.7 s of audio")


def test_a_terminal_is_no_recording(transcribe: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(follower, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        done = transcribe("-")
    assert done.code == 2
    assert "Standard input is a terminal" in done.err


def test_a_reader_that_goes_ends_the_run_without_noise() -> None:
    with start(
        "--stdout", "--quiet", *[KITCHEN, SAMPLES / "meeting_pt.mp3"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_terminal_gets_bars_with_position_speed_and_eta() -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    command = [sys.executable, "-m", "whisper_server", "transcribe", "--stdout"]
    files = [SAMPLES / "morning_en.m4a", KITCHEN]
    with subprocess.Popen(
        [*command, *files], env=environment, stdout=subprocess.PIPE, stderr=follower
    ) as process:
        os.close(follower)
        shown_bytes = b"".join(iter(lambda: _read(leader), b""))
        assert process.stdout is not None
        out = process.stdout.read().decode()
        assert process.wait(60) == 0
    os.close(leader)
    screen = shown_bytes.decode()
    assert out.endswith(KITCHEN_TEXT)
    assert re.search(r"\d:\d\d / 2:12  \d+\.\d x  ETA \d:\d\d", screen)
    assert "all recordings" in screen
    assert "132.7 s of audio in " in screen
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")  # the cursor is visible again


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux: the other end is closed
        return b""


# Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_whole_files_only(tmp_path: Path, number: signal.Signals) -> None:
    shutil.copy(KITCHEN, tmp_path / "a.wav")
    # So long that the work on it is never over first.
    with (tmp_path / "b.wav").open("wb") as file:
        file.write(wav(silence(1800)))
    with start("a.wav", "b.wav", "--option", "vad_filter=false", "-f", "text", "-f", "json") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("a.wav: 3.7 s of audio")
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert rest == "Stopping. Once more stops at once.\n"
    assert names(tmp_path) == ["a.json", "a.txt", "a.wav", "b.wav"]
    assert (tmp_path / "a.txt").read_text() == KITCHEN_TEXT


def test_a_second_stop_does_not_wait_for_the_model(tmp_path: Path) -> None:
    """The model here is a thread that never comes back."""
    program = """
import asyncio, sys, threading
import anyio
from whisper_server.cli.transcribe.progress import LineReporter
from whisper_server.cli.interrupts import stopping

async def work():
    reporter = LineReporter(1)
    with anyio.CancelScope() as scope, stopping(scope.cancel, warn=reporter.warn, close=reporter.close):
        print("ready", file=sys.stderr, flush=True)
        await anyio.to_thread.run_sync(threading.Event().wait)

asyncio.run(work())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith("Stopping.")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


# By a server


def test_a_server_gives_what_this_process_gives(
    transcribe: Command, server_url: str, tmp_path: Path, folder: Path
) -> None:
    flags = [word for kind in ALL_FORMATS for word in ("--format", kind)]
    flags += ["--max-line-width", "20", "--max-line-count", "1", "--option", "temperatures[]=0"]
    here = transcribe(folder, *flags, "-o", "here")
    there = transcribe(folder, *flags, "-o", "there", "--server", f"{server_url}/", "--jobs", "2")
    assert (here.code, there.code) == (0, 0)
    assert len(names(tmp_path / "here")) == 2 * len(ALL_FORMATS)
    for name in names(tmp_path / "here"):
        ours, theirs = (tmp_path / "here" / name).read_text(), (tmp_path / "there" / name).read_text()
        assert ours == theirs, name
    assert f"{folder / 'kitchen.wav'}: 3.7 s of audio in " in there.err


@pytest.mark.parametrize("kind", ["json", "srt", "tsv"])
def test_a_server_prints_what_this_process_prints(transcribe: Command, server_url: str, kind: str) -> None:
    flags = ["--format", kind, "--option", "temperatures[]=0", "--language", "de"]
    here = transcribe(SAMPLES / "train_de.ogg", *flags)
    there = transcribe(SAMPLES / "train_de.ogg", *flags, "--server", f"{server_url}/v1")
    assert (there.code, there.out) == (0, here.out)


def test_a_server_translates_and_reads_standard_input_too(server_url: str) -> None:
    with (SAMPLES / "meeting_pt.mp3").open("rb") as file:
        flags = ["--server", server_url, "--task", "translate"]
        with start("-", *flags, stdin=file, stdout=subprocess.PIPE) as process:
            out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "door" in out


def test_what_a_server_says_is_told(transcribe: Command, server_url: str, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    done = transcribe("bad.wav", KITCHEN, "--stdout", "--server", server_url)
    assert (done.code, done.out) == (1, KITCHEN_TEXT)
    assert "bad.wav: The server says 400 Bad Request: " in done.err
    done = transcribe(KITCHEN, "--model", "smal-model-x/y", "--server", server_url, "--option", "model=smal")
    assert done.code == 1
    assert f"{KITCHEN}: The server says 404 Not Found: The model 'smal' does not exist." in done.err


def test_a_server_that_is_not_there_is_told_once(transcribe: Command) -> None:
    done = transcribe(KITCHEN, SAMPLES / "meeting_pt.mp3", "--server", "http://127.0.0.1:9")
    assert done.code == 2
    assert done.err.startswith("Cannot reach the server at http://127.0.0.1:9/v1: ")
    assert done.err.count("\n") == 1


class FakeServer:
    """Answers with what it is given, one after the other, and remembers what was asked and awaited."""

    def __init__(self, *answers: httpx.Response, models: int = 200) -> None:
        self._answers = list(answers)
        self._models = models
        self.requests: list[httpx.Request] = []
        self.slept_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(self._models, json={"error": {"message": "Who are you?"}})
        self.requests.append(request)
        answer = self._answers.pop(0)
        answer.request = request
        return answer

    @asynccontextmanager
    async def backend(self, wish: Wish | None = None, api_key: str = "") -> AsyncIterator[RemoteBackend]:
        async with open_remote(
            "http://fake",
            api_key,
            wish or Wish(),
            None,
            transport=httpx.MockTransport(self.answer),
            sleep=self.sleep,
        ) as backend:
            yield backend

    async def transcribe(
        self, formats: Sequence[OutputFormat] = (OutputFormat.TEXT,), wish: Wish | None = None
    ) -> Results:
        async with self.backend(wish) as backend:
            return await backend.transcribe(Job("k", KITCHEN, tuple(formats)), lambda *_: None)


def busy(status: int, **headers: str) -> httpx.Response:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=fields, json={"error": {"message": "Come back later."}})


@pytest.mark.anyio
async def test_a_busy_server_is_asked_again_when_it_says() -> None:
    server = FakeServer(busy(429, retry_after="7"), busy(503), busy(503), httpx.Response(200, text="Hello."))
    results = await server.transcribe()
    assert results.texts == {OutputFormat.TEXT: "Hello.\n"}
    assert server.slept_s == [7, 2, 4]
    assert len({len(request.content) for request in server.requests}) == 1  # the whole file each time


@pytest.mark.anyio
async def test_retry_after_may_be_a_date_in_the_past() -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server = FakeServer(busy(503, retry_after=date), httpx.Response(200, text="Hello."))
    await server.transcribe()
    assert server.slept_s == [0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answers", "slept_s"),
    [
        ([busy(503, x_should_retry="false")], []),
        ([busy(429, retry_after="86400")], []),
        ([busy(400)], []),
        ([busy(500)], []),
        ([busy(429, retry_after="soon")] * 6, [1, 2, 4, 8, 16]),
    ],
    ids=["no use", "tomorrow", "refused", "failed", "always busy"],
)
async def test_a_server_is_not_asked_for_ever(answers: list[httpx.Response], slept_s: list[float]) -> None:
    server = FakeServer(*answers)
    with pytest.raises(RemoteError, match="Come back later"):
        await server.transcribe()
    assert server.slept_s == slept_s


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(502, text="<html>"), "The server says 502 Bad Gateway."),
        (httpx.Response(422, json={"detail": "No\nfile."}), "The server says 422 .*: No�file."),
        (httpx.Response(400, json=[]), "The server says 400 Bad Request."),
    ],
)
async def test_any_refusal_is_told_on_one_line(answer: httpx.Response, message: str) -> None:
    with pytest.raises(RemoteError, match=message) as failure:
        await FakeServer(answer).transcribe()
    assert failure.value.message.isprintable()


@pytest.mark.anyio
async def test_a_broken_connection_is_told() -> None:
    def hang_up(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(404)
        raise httpx.RemoteProtocolError("peer closed connection", request=request)

    transport = httpx.MockTransport(hang_up)
    async with open_remote("http://fake", "", Wish(), None, transport=transport) as backend:
        with pytest.raises(
            RemoteError, match="connection to the server at http://fake/v1 broke: peer closed"
        ):
            await backend.transcribe(Job("k", KITCHEN, (OutputFormat.TEXT,)), lambda *_: None)


@pytest.mark.anyio
async def test_a_server_that_wants_a_key_is_not_sent_recordings() -> None:
    server = FakeServer(models=401)
    with pytest.raises(ConfigurationError, match=r"Who are you\? Give its key with --api-key"):
        await server.transcribe()
    assert server.requests == []
    with pytest.raises(ConfigurationError, match="ASCII"):
        async with FakeServer().backend(api_key="schlüssel"):
            pass


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    """The requests that leave this process; they get an answer and go nowhere."""
    requests = []

    async def send(_: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        await request.aread()
        requests.append(request)
        return httpx.Response(200, text="Hello.", request=request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", send)
    return requests


def form(request: httpx.Request) -> list[tuple[str, str]]:
    return re.findall(r'name="([^"]+)"\r\n\r\n([^\r]*)', request.content.decode("latin-1"))


def test_the_key_comes_from_the_flag_or_the_environment(
    transcribe: Command, monkeypatch: pytest.MonkeyPatch, sent: list[httpx.Request]
) -> None:
    for flags in ([], ["--api-key", "from-flag"]):
        monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
        assert transcribe(KITCHEN, "--server", "http://fake", *flags).out == "Hello.\n"
    assert [(request.url.path, request.headers["authorization"]) for request in sent] == [
        (path, f"Bearer {key}")
        for key in ("from-environment", "from-flag")
        for path in ("/v1/models", "/v1/audio/transcriptions")
    ]


def test_flags_become_fields_of_the_request(
    transcribe: Command, monkeypatch: pytest.MonkeyPatch, sent: list[httpx.Request]
) -> None:
    flags = ["--prompt", "Hello,", "--beam-size", "2", "--word-timestamps", "--task", "translate"]
    flags += ["--decode-profile", "accurate", "--long-form", "batched", "--language", "pt"]
    flags += ["--option", "beam_size=3", "--option", "temperatures[]=0", "--option", "temperatures[]=0.5"]
    transcribe(KITCHEN, "--server", "http://fake", "--max-line-width", "30", "--format", "srt", *flags)
    assert sent[1].url.path == "/v1/audio/translations"
    assert sorted(form(sent[1])) == [
        ("beam_size", "3"),
        ("decode_profile", "accurate"),
        ("language", "pt"),
        ("long_form", "batched"),
        ("max_line_width", "30"),
        ("model", "demo"),
        ("prompt", "Hello,"),
        ("response_format", "srt"),
        ("temperatures[]", "0"),
        ("temperatures[]", "0.5"),
        ("word_timestamps", "true"),
    ]
    monkeypatch.delenv("WHISPER_MODEL_SIZE")
    transcribe(KITCHEN, "--server", "http://fake")
    assert form(sent[3]) == [("response_format", "text")]


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [httpx.Response(200, text="<html>"), httpx.Response(200, json={"a": 1})])
async def test_an_answer_that_is_no_transcript_is_a_failure(answer: httpx.Response) -> None:
    with pytest.raises(RemoteError, match="not a transcript"):
        await FakeServer(answer).transcribe([OutputFormat.JSON])


@pytest.mark.anyio
async def test_one_request_serves_all_formats() -> None:
    body = {"text": " Hello.", "duration": 2, "segments": [{"start": 0, "end": 1.5, "text": " Hello."}]}
    server = FakeServer(httpx.Response(200, json=body))
    wish = Wish(subtitles=SubtitleOptions(max_line_width=30), fields=[("beam_size", "3")])
    results = await server.transcribe(list(OutputFormat), wish)
    (request,) = server.requests
    assert form(request) == [
        ("beam_size", "3"),
        ("response_format", "verbose_json"),
        ("timestamp_granularities[]", "segment"),
        ("timestamp_granularities[]", "word"),
    ]
    assert results.duration_s == 2
    assert results.texts[OutputFormat.TEXT] == "Hello.\n"
    assert json.loads(results.texts[OutputFormat.JSON]) == {"text": " Hello."}
    assert json.loads(results.texts[OutputFormat.VERBOSE_JSON]) == body
    assert "00:00:00,000 --> 00:00:01,500\nHello.\n" in results.texts[OutputFormat.SRT]
    assert results.texts[OutputFormat.TSV].endswith("0\t1500\tHello.\n")


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8089", "http://127.0.0.1:8089/v1"),
        ("http://127.0.0.1:8089/v1/", "http://127.0.0.1:8089/v1"),
        ("https://example.com/stt", "https://example.com/stt/v1"),
    ],
)
def test_the_address_may_lack_v1(url: str, base: str) -> None:
    assert base_url(url) == base


def test_words_of_a_server_get_their_segments_and_spaces_back() -> None:
    body = {
        "language": "english",
        "segments": [
            {"start": 0.0, "end": 1.0, "text": " Hello, big world."},
            {"start": 1.0, "end": 2.0, "text": " The end"},
            {"start": 2.0, "end": 3.0, "text": " the"},
        ],
        "words": [
            {"word": "Hello,", "start": 0.0, "end": 0.3},
            {"word": "big", "start": 0.3, "end": 0.5},
            {"word": "world", "start": 0.5, "end": 1.0},  # OpenAI's have no marks
            {"word": "the", "start": 2.2, "end": 2.9},
        ],
    }
    transcription = transcription_from(body)
    assert (transcription.language, transcription.duration_s) == ("en", 3.0)
    words = [[word.text for word in segment.words] for segment in transcription.segments]
    assert words == [[" Hello,", " big", " world."], [], [" the"]]


@pytest.mark.parametrize(
    "body", [{}, {"segments": [{}]}, {"segments": 3}, {"segments": [], "duration": "x"}, {"segments": [3]}]
)
def test_another_answer_is_no_verbose_json(body: dict[str, Any]) -> None:
    with pytest.raises(NotVerboseJsonError):
        transcription_from(body)


# Progress and logs


def test_lines_of_progress() -> None:
    track = Track("a", started_s=100.0)
    assert state_line(track, 165.0) == "1:05"
    track.duration_s = 132.7
    assert state_line(track, 101.0) == "0:00 / 2:12"
    track.position_s = 66.35
    assert state_line(track, 110.0) == "1:06 / 2:12  6.6 x  ETA 0:10"
    assert finished_line(track, 110.0) == "132.7 s of audio in 10.0 s (13.3 x real time)"
    assert finished_line(Track("b", 0.0), 2.5) == "done in 2.5 s"
    assert (clock(59.9), clock(3661)) == ("0:59", "1:01:01")
    assert shown("a\x1b[31m\n\udcff") == "a�[31m��"


def test_bars_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with make_reporter(2, is_quiet=False, stream=terminal) as reporter:
        with reporter.busy("getting ready"):
            reporter.note("note")
        assert "getting ready" in terminal.getvalue()
        track = reporter.start("a folder with a long name/" * 3 + "[b]a.mp3[/b]")
        reporter.advance(track, 30.0, 120.0)
        with reporter.aside():
            printed = terminal.getvalue()
        assert re.search(r"…\S.*/\[b\]a\.mp3\[/b\] .*0:30 / 2:00 ", printed)
        assert "all recordings" in printed
        assert "0 / 2" in printed
        reporter.end(track)
        reporter.finish(track)
        reporter.fail("bad\x1b[2J.mp3", "no")
    reporter.warn("afterwards")
    reporter.close()
    assert "bad�[2J.mp3: no" in terminal.getvalue()
    assert terminal.getvalue().endswith("afterwards\n")


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    yield root
    assert (root.level, list(root.handlers)) == before


def test_logs_go_to_a_file_and_shortly_to_the_terminal_if_asked_for(
    transcribe: Command, tmp_path: Path, root_logger: logging.Logger
) -> None:
    done = transcribe(KITCHEN, "--log-file", "log")
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert "Transcribed 3.7 s of audio" in (tmp_path / "log").read_text()
    done = transcribe(KITCHEN, "--log-level", "INFO")
    assert "info: Model demo: loading" in done.err.splitlines()


@pytest.mark.anyio
async def test_an_unforeseen_fault_costs_one_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Backend:
        async def transcribe(self, job: Job, on_progress: OnProgress) -> Results:
            on_progress(0.0, 1.0)
            await asyncio.sleep(0)
            if job.name == "bad":
                raise ZeroDivisionError
            return Results(dict.fromkeys(job.formats, "text\n"), 1.0)

    jobs = [
        Job(name, Path(name), (OutputFormat.TEXT,), {OutputFormat.TEXT: tmp_path / f"{name}.txt"})
        for name in ("bad", "good")
    ]
    outcome = Outcome()
    await JobRunner(Backend(), FileDelivery(), LineReporter(2)).run(jobs, outcome, parallel=2)
    assert (outcome.done, outcome.failed) == (1, 1)
    assert names(tmp_path) == ["good.txt"]
    assert "bad: failed with ZeroDivisionError" in capsys.readouterr().err
    assert caplog.records[0].exc_info is not None


# The examples of docs/cli.md

DOCS = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", DOCS, re.DOTALL)


def test_the_docs_have_examples_and_every_flag() -> None:
    assert len(EXAMPLES) >= 5
    assert sum(bool(output) for _, output in EXAMPLES) >= 3
    own = flags_of(configure) - flags_of(add_settings_arguments)
    assert len(own) >= 20
    assert [flag for flag in sorted(own) if flag not in DOCS] == []


def flags_of(configured: Callable[[argparse.ArgumentParser], None]) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    configured(parser)
    return set(re.findall(r"--[a-z][a-z-]+", parser.format_help()))


@pytest.mark.parametrize(("commands", "output"), EXAMPLES)
def test_an_example_of_the_docs_gives_what_it_shows(
    commands: str, output: str, tmp_path: Path, server_url: str
) -> None:
    (tmp_path / "recordings").mkdir()
    for name in ("kitchen_en.wav", "meeting_pt.mp3", "train_de.ogg"):
        shutil.copy(SAMPLES / name, tmp_path / "recordings")
    command = f"{shlex.quote(sys.executable)} -m whisper_server"
    script = commands.replace("whisper-server", command).replace("http://127.0.0.1:8089", server_url)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-ec", script], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if output:
        assert done.stdout.strip() == output.strip()
