"""A server in its own process, and the memory that process and its children take."""

from pathlib import Path

from whisper_server.cli.server_process import ServerProcess, server_process

__all__ = ["ServerProcess", "memory_mb", "reset_peak_memory", "server_process", "tree_memory_mb"]

_PROC = Path("/proc")


def reset_peak_memory(pid: int) -> None:
    """Let the peak count from now on. Linux only."""
    (_PROC / str(pid) / "clear_refs").write_text("5")


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Resident memory of a process, or its peak since `reset_peak_memory`, MB. Linux only."""
    name = "VmHWM" if peak else "VmRSS"
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"{name} is not in /proc")


def tree_memory_mb(pid: int) -> float | None:
    """Resident memory of a process and all below it, MB; None where there is no /proc to read it from.

    Memory that processes share counts in each of them.
    """
    if not (_PROC / str(pid)).exists():
        return None
    total_mb = 0.0
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        try:
            waiting += _children(current)
            total_mb += memory_mb(current)
        except (OSError, RuntimeError):  # it has ended meanwhile; what is ending shows no VmRSS
            continue
    return total_mb


def _children(pid: int) -> list[int]:
    """The processes that the threads of a process have started."""
    found: list[int] = []
    for task in (_PROC / str(pid) / "task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # the thread has ended meanwhile
            continue
    return found
