"""One thread for each call to CTranslate2 while as many compute as there are cores."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from threadpoolctl import threadpool_info

_NO_LEVELS: Final = 0
"""Of parallel regions inside each other; with none, the thread that meets a region computes it alone."""


class SharedCores:
    """Counts what computes and tells when that should take one thread each. Thread-safe.

    The threads of a call meet hundreds of times in a step of the decoder. Where two calls have more threads
    than there are cores, the one that is waited for is often not running: on two cores two calls with two
    threads each took half as long again as with one thread each.

    Args:
        cores: that all calls of the process share.
        use_one_thread: told whether each call is to compute on one thread, or on all it has; takes effect at
            once, within calls that run.
    """

    def __init__(self, cores: int, use_one_thread: Callable[[bool], None]) -> None:
        self._cores = cores
        self._use_one_thread = use_one_thread
        self._lock = threading.Lock()
        self._computing = 0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute a step of a call inside the block."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            was_busy = self._is_busy
            self._computing += more
            if self._is_busy != was_busy:
                self._use_one_thread(self._is_busy)

    @property
    def _is_busy(self) -> bool:
        return self._computing >= self._cores > 1


@cache
def shared_cores(cores: int) -> SharedCores:
    """The process's own, for steps of CTranslate2 on `cores` cores. CTranslate2 must have been imported.

    It does nothing where OpenMP lets each thread choose for itself alone, as others than GNU's and newer
    versions of that do; the one in CTranslate2's wheels for Linux lets one choose for all.
    """
    library = _openmp_of_ctranslate2()
    if library is None or not _is_one_for_all(library):
        return SharedCores(cores, lambda _: None)
    levels: int = library.omp_get_max_active_levels()
    return SharedCores(
        cores, lambda is_one: library.omp_set_max_active_levels(_NO_LEVELS if is_one else levels)
    )


def _openmp_of_ctranslate2() -> ctypes.CDLL | None:
    for found in threadpool_info():
        if found["user_api"] == "openmp" and "ctranslate2" in found["filepath"]:
            return ctypes.CDLL(found["filepath"])
    return None


def _is_one_for_all(library: ctypes.CDLL) -> bool:
    """Whether what one thread sets holds for the others."""
    before: int = library.omp_get_max_active_levels()
    seen: list[int] = []
    other = threading.Thread(target=lambda: seen.append(library.omp_get_max_active_levels()))
    library.omp_set_max_active_levels(before - 1)
    try:
        other.start()
        other.join()
    finally:
        library.omp_set_max_active_levels(before)
    return seen == [before - 1]
