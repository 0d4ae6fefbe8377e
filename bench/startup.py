"""How long the server takes from its start to the first 200 of /health, before any model is loaded.

python -m bench.startup [--rounds 7]
"""

import argparse
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
_LONGEST_S = 30.0


def main() -> None:
    """Start the server several times and print the median and the extremes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    times_s = [start_once() for _ in range(parser.parse_args().rounds + 1)][1:]
    print(
        f"start to /health 200: median {statistics.median(times_s):.2f} s, "
        f"{min(times_s):.2f} to {max(times_s):.2f} s in {len(times_s)} rounds"
    )


def start_once() -> float:
    """Seconds from the start of the process to the answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "whisper_server", "serve", "--port", str(port)]
    command += ["--grpc-port", "0", "--log-level", "ERROR"]
    started_s = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            while time.perf_counter() - started_s < _LONGEST_S:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/health", timeout=_LONGEST_S).raise_for_status()
                except httpx.TransportError:
                    time.sleep(0.005)
                else:
                    return time.perf_counter() - started_s
            raise RuntimeError("the server did not start")
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
