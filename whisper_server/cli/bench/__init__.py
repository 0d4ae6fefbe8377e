"""`whisper-server bench`: a load test of a running server.

`flags` reads the command line; `load` runs sessions on channels, each by a driver of `drivers` and noted in a
trace of `session`; `speech` is what they say. `totals` sums the records up with `histogram`, `session_log`
writes them as rows, and `report` shows the totals.
"""

from whisper_server.cli.bench.command import run
from whisper_server.cli.bench.flags import configure

__all__ = ["configure", "run"]
