"""CPU time of a process and all below it. Linux only."""

import os
from collections import defaultdict
from pathlib import Path

_PROC = Path("/proc")
_PARENT, _USER, _SYSTEM = 1, 11, 12
"""Places in /proc/<pid>/stat behind the name."""


def tree_cpu_s(root: int) -> float | None:
    """User and system time of a process and its living descendants since each started, seconds.

    None where there is no /proc to read it from.
    """
    if not (_PROC / str(root) / "stat").exists():
        return None
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and (facts := _stat(folder)):
            pid = int(folder.name)
            children[int(facts[_PARENT])].append(pid)
            ticks[pid] = int(facts[_USER]) + int(facts[_SYSTEM])
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        total += ticks.get(pid, 0)
        waiting += children[pid]
    return total / os.sysconf("SC_CLK_TCK")


def _stat(folder: Path) -> list[str]:
    """The numbers of a process; empty if it has ended meanwhile."""
    try:
        text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
