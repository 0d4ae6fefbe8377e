"""A server in a process of its own, for the demo and the benchmarks."""

import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

_LISTENING = re.compile(r"Listening on (http://\S+)")
_START_S = 60
_STOP_S = 40
"""More than the server's own grace by default."""

_KEPT_LINES = 20

# A free port, no gRPC, no keys, and log lines to read, whatever the environment says.
_FLAGS = (
    *("--host", "127.0.0.1", "--port", "0", "--grpc-enabled", "false"),
    *("--log-level", "INFO", "--log-file", "none", "--log-format", "human"),
    *("--security-api-keys", "", "--security-api-keys-file", "none"),
)


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server.

    Attributes:
        url: without `/v1`.
        pid: its process.
    """

    url: str
    pid: int


@contextmanager
def server_process(*flags: str, on_log: Callable[[str], None] | None = None) -> Iterator[ServerProcess]:
    """Start `whisper-server serve` on a free port of this machine; stop it when the block ends.

    Nothing is downloaded: the hub is offline to it.

    Args:
        flags: of `serve`; they win over those that are set here.
        on_log: gets each line of the log, on another thread once the server has started.

    Raises:
        RuntimeError: it did not start; the message holds the end of its log.
    """
    command = [sys.executable, "-m", "whisper_server", "serve", *_FLAGS, *flags]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    # A byte of the log that is not text here must not end the reading.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as process:
        assert process.stderr is not None
        on_log = on_log or _drop
        reader = threading.Thread(target=_read_log, args=(process.stderr, on_log), daemon=True)
        try:
            url = _wait_for_url(process, process.stderr, on_log)
            reader.start()
            yield ServerProcess(url, process.pid)
        finally:
            _stop(process)
            if reader.is_alive():
                reader.join(_STOP_S)


def _wait_for_url(process: "subprocess.Popen[str]", log: IO[str], on_log: Callable[[str], None]) -> str:
    watchdog = threading.Timer(_START_S, process.kill)
    watchdog.start()
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        for line in log:
            on_log(line)
            lines.append(line)
            if match := _LISTENING.search(line):
                return match[1]
    finally:
        watchdog.cancel()
    raise RuntimeError("the server did not start:\n" + "".join(lines))


def _read_log(log: IO[str], on_log: Callable[[str], None]) -> None:
    for line in log:
        on_log(line)


def _drop(_: str) -> None:
    """Do nothing with a line; it is read so that the server is never held up by a full pipe."""


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
