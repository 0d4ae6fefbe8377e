"""A server in its own process, and what that process takes."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LISTENING = re.compile(r"Listening on (http://\S+)")
_STOP_S = 30


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
def server_process(*flags: str) -> Iterator[ServerProcess]:
    """Start `whisper-server serve` with these flags on a free port; stop it when the block ends."""
    command = [sys.executable, "-m", "whisper_server", "serve", "--port", "0", *flags]
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        try:
            stderr = process.stderr
            if stderr is None:
                raise RuntimeError("the server's log is not there")
            url = next((m[1] for line in stderr if (m := _LISTENING.search(line))), None)
            if url is None:
                raise RuntimeError("the server did not start")
            threading.Thread(target=stderr.read, daemon=True).start()
            yield ServerProcess(url, process.pid)
        finally:
            process.terminate()
            process.wait(_STOP_S)


def reset_peak_memory(pid: int) -> None:
    """Let the peak count from now on. Linux only."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Resident memory of a process, or its peak since `reset_peak_memory`, MB. Linux only."""
    name = "VmHWM" if peak else "VmRSS"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"{name} is not in /proc")
