"""How the threads of one call to CTranslate2 wait for each other."""

import os
import sys
from typing import Final

_SPINS: Final = 10_000
"""How often a thread looks before it sleeps: well under a millisecond.

Where there are more threads than cores, as with several workers, it is 1000 at most, and 100 unless OpenMP is
told to wait actively. Source: GNU libgomp's manual, GOMP_SPINCOUNT.
"""

_POLICY: Final = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": str(_SPINS)}


def wait_actively() -> None:
    """Let threads look for a moment before they sleep; to be called before CTranslate2 is imported.

    A decoder's step is hundreds of short stretches that threads share, and they meet after each. Putting a
    thread to sleep and waking it takes longer than such a stretch, in a virtual machine ten times as long:
    there decoding a lone window took three times what it takes so. What the environment says already stays.
    Processes that are started inherit it.
    """
    # CTranslate2's wheels bring GNU's OpenMP on Linux alone; others would look for ever.
    if sys.platform == "linux" and not _POLICY.keys() & os.environ.keys():
        os.environ.update(_POLICY)
