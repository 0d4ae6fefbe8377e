"""Sends a recording as a whole: `python -m whisper_server.clients.batch.file`."""

import sys
from collections.abc import Sequence

from whisper_server.clients.command.audio_file import WholeFile
from whisper_server.clients.command.flags import add_file_flags, common_flags
from whisper_server.clients.command.runner import run_command
from whisper_server.clients.command.settings import BatchSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its flags; None takes those of the process.

    Returns:
        The exit code.
    """
    parser = common_flags(
        "python -m whisper_server.clients.batch.file",
        "Send a recording in one piece, or in as few as the server takes, and write what is heard.",
    )
    add_file_flags(parser)
    return run_command(parser, BatchSettings, lambda s: WholeFile(s.audio_path), argv)


if __name__ == "__main__":
    sys.exit(main())
