"""`python -m whisper_server`, and the `whisper-server` script."""

import sys


def main() -> int:
    """Run the command of this process, and return its exit code."""
    # Here, because the process of each model imports this module too.
    from whisper_server.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
