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
    return _sum_mb(pid, "status", "VmHWM" if peak else "VmRSS")


def tree_memory_mb(pid: int) -> float | None:
    """What a process and all below it hold in memory, MB; None where there is no /proc to read it from.

    Pages of files, such as libraries, are left out: the system drops and reads them again as it likes, and a
    machine with time to spare drops much of them between two looks. Memory that the processes share counts
    once.
    """
    if not (_PROC / str(pid)).exists():
        return None
    total_mb = 0.0
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        try:
            waiting += _children(current)
            total_mb += _sum_mb(current, "smaps_rollup", "Pss_Anon", "Pss_Shmem")
        except (OSError, RuntimeError):  # it has ended meanwhile; what is ending shows none of these
            continue
    return total_mb


def _sum_mb(pid: int, file: str, *names: str) -> float:
    """The sum of some lines of a file about a process, MB."""
    lines = (_PROC / str(pid) / file).read_text().splitlines()
    found = [int(line.split()[1]) for line in lines if line.startswith(tuple(f"{name}:" for name in names))]
    if len(found) < len(names):
        raise RuntimeError(f"{' or '.join(names)} is not in /proc")
    return sum(found) * 1024 / 1e6


def _children(pid: int) -> list[int]:
    """The processes that the threads of a process have started."""
    found: list[int] = []
    for task in (_PROC / str(pid) / "task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except OSError:  # the thread has ended meanwhile
            continue
    return found
