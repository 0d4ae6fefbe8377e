"""`python -m whisper_server`, and the `whisper-server` script."""

import logging
import os
import sys


def main() -> int:
    """Run the command of this process, and return its exit code."""
    # Here, because the process of each model imports this module too.
    from whisper_server.cli.main import main as run
    from whisper_server.services import daemon_calls

    code = run()
    if daemon_calls.are_running():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
