"""Streams a recording as if it were spoken now: `python -m whisper_server.clients.realtime.file`."""

import sys
from collections.abc import Sequence

from whisper_server.clients.command.audio_file import PacedFile
from whisper_server.clients.command.flags import add_file_flags, add_pace_flags, common_flags
from whisper_server.clients.command.runner import run_command
from whisper_server.clients.command.settings import FileSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its flags; None takes those of the process.

    Returns:
        The exit code.
    """
    parser = common_flags(
        "python -m whisper_server.clients.realtime.file", "Stream a recording and show what is heard."
    )
    add_file_flags(parser)
    add_pace_flags(parser)
    return run_command(
        parser,
        FileSettings,
        lambda s: PacedFile(s.audio_path, chunk_ms=s.chunk_ms, realtime=s.realtime),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
