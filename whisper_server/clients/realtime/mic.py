"""Streams the microphone: `python -m whisper_server.clients.realtime.mic`."""

import sys
from collections.abc import Sequence

from whisper_server.clients.command.flags import add_microphone_flags, common_flags
from whisper_server.clients.command.microphone import Microphone
from whisper_server.clients.command.runner import run_command
from whisper_server.clients.command.settings import MicrophoneSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its flags; None takes those of the process.

    Returns:
        The exit code.
    """
    parser = common_flags(
        "python -m whisper_server.clients.realtime.mic",
        "Stream the microphone and show what is heard. Ctrl-C ends the session.",
    )
    add_microphone_flags(parser)
    return run_command(
        parser,
        MicrophoneSettings,
        lambda s: Microphone(s.device, sample_rate_hz=s.sample_rate, chunk_ms=s.chunk_ms),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
