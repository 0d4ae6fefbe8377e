"""Memory that was freed goes back to the system."""

import asyncio
import platform
import subprocess
import sys
import threading
from functools import partial

import pytest

from tests.live_server import make_settings
from whisper_server import bootstrap
from whisper_server.bootstrap import open_services
from whisper_server.core.admission import AdmissionLimits
from whisper_server.engines.isolation.heap import Trimmer
from whisper_server.services.admission import Admission
from whisper_server.services.idle_trimming import IdleTrimmer
from whisper_server.services.requests import RequestRegistry
from whisper_server.services.session_registry import SessionRegistry

pytestmark = pytest.mark.anyio

WAIT_S = 30

_FRAGMENTS = """
import ctypes, pathlib, sys, threading
from whisper_server.core.heap import share_one_heap, trim_heap

def resident_mb():
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1000

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)
everybody = threading.Barrier(8)
share_one_heap()
libc.free(libc.malloc(16 << 20))  # from here on glibc by itself would keep twice as much in each heap
before_mb = resident_mb()

def leave_fragments():
    everybody.wait()
    pieces = [libc.malloc(100_000) for _ in range(100)]
    for piece in pieces:
        ctypes.memset(piece, 1, 100_000)
    everybody.wait()
    for piece in pieces[1:]:
        libc.free(piece)

threads = [threading.Thread(target=leave_fragments) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
trim_heap()
print(resident_mb() - before_mb)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of glibc")
def test_what_threads_have_freed_can_be_given_back() -> None:
    """80 MB in eight threads, of which each keeps its first piece."""
    run = subprocess.run([sys.executable, "-c", _FRAGMENTS], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 8


_CALLS = """
import ctypes
from whisper_server.engines.isolation.heap import keep_freed_memory

keep_freed_memory()

import numpy as np
import whisper_server.demo
from whisper_server.core.engine import ComputeChoice
from whisper_server.core.types import Window
from whisper_server.engines import faster_whisper

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = MallInfo
compute = ComputeChoice("faster-whisper", "cpu", "int8", cpu_threads=2, workers=1)
engine = faster_whisper.load(whisper_server.demo.MODEL_PATH, compute)
window = Window(np.random.default_rng(1).normal(0, 0.1, 480_000).astype(np.float32), language="en")
before_bytes = mallinfo2().uordblks
for _ in range(4):
    engine.decode([window])
print((mallinfo2().uordblks - before_bytes) / 1e6)
"""


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.33"), reason="glibc's mallinfo2")
def test_calls_leave_nothing_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL's own heap would keep some 60 MB here."""
    monkeypatch.delenv("MKL_DISABLE_FAST_MM", raising=False)
    run = subprocess.run([sys.executable, "-c", _CALLS], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 25


class Trims:
    """Counts how often it was called; a test may wait for the next time."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self._changed = threading.Condition()

    def __call__(self) -> None:
        with self._changed:
            self.threads.append(threading.get_ident())
            self._changed.notify_all()

    async def reach(self, count: int) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: len(self.threads) >= count, WAIT_S)

        assert await asyncio.to_thread(wait)


async def test_the_heap_is_trimmed_once_after_the_last_use_and_off_the_event_loop() -> None:
    trims = Trims()
    trimmer = IdleTrimmer(0.05, trims)
    for _ in range(3):
        trimmer.note_use()
    await trims.reach(1)
    trimmer.note_use()
    await trims.reach(2)
    assert len(trims.threads) == 2
    assert threading.get_ident() not in trims.threads


async def test_after_closing_nothing_is_trimmed() -> None:
    closed, other = Trims(), Trims()
    trimmer = IdleTrimmer(0.01, closed)
    trimmer.note_use()
    trimmer.close()
    IdleTrimmer(0.02, other).note_use()
    await other.reach(1)
    assert not closed.threads


async def test_a_model_s_heap_is_trimmed_after_the_last_call_and_at_times_while_calls_go_on() -> None:
    idle, busy = Trims(), Trims()
    Trimmer(0.05, 1000, idle).note_use()
    await idle.reach(1)
    trimmer = Trimmer(1000, 0.05, busy)
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(0.001):
            trimmer.note_use()

    calls = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await busy.reach(2)
    finally:
        is_over.set()
        await calls


async def test_requests_and_sessions_tell_that_they_have_left() -> None:
    left: list[str] = []
    requests = RequestRegistry(Admission(AdmissionLimits(9)), on_leave=lambda: left.append("request"))
    with requests.enter("a", "/", key_name=None, address="here"):
        assert not left
    sessions = SessionRegistry(max_sessions=9, max_held_bytes=9, on_leave=lambda: left.append("session"))
    entry = sessions.enter(None, "here")
    assert left == ["request"]
    sessions.leave(entry)
    assert left == ["request", "session"]


async def test_the_server_trims_after_requests_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    trims = Trims()
    monkeypatch.setattr(bootstrap, "IdleTrimmer", partial(IdleTrimmer, 0.01, trims))
    async with open_services(make_settings()) as services:
        with services.requests.enter("a", "/", key_name=None, address="here"):
            pass
        await trims.reach(1)
        services.streams.registry.leave(services.streams.registry.enter(None, "here"))
        await trims.reach(2)
