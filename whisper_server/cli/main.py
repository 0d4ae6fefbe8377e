"""The `whisper-server` command."""

import argparse
import sys
from collections.abc import Sequence

from whisper_server import __version__
from whisper_server.cli import bench, config_command, demo_command, doctor, serve, transcribe
from whisper_server.core.errors import ConfigurationError

DEFAULT_COMMAND = "serve"

_WRONG_SETTINGS = 2
"""Exit code, as argparse's for a wrong command line."""

_COMMANDS = {
    "serve": (serve, "start the server (the default)"),
    "transcribe": (transcribe, "transcribe recordings, in this process or by a running server"),
    "bench": (bench, "load-test a running server with live streams"),
    "config": (config_command, "print the settings in effect and where each came from"),
    "doctor": (doctor, "print what the machine has and what the server makes of it"),
    "demo": (demo_command, "start a server with the bundled demo model and transcribe its samples"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the words after the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0] not in _COMMANDS and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, DEFAULT_COMMAND)
    parsed = make_parser().parse_args(words)
    command, _ = _COMMANDS[parsed.command]
    try:
        exit_code: int = command.run(parsed)
    except ConfigurationError as error:
        print(error.message, file=sys.stderr)
        return _WRONG_SETTINGS
    return exit_code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="whisper-server",
        description="Speech-to-text server with an OpenAI-compatible API. "
        f"Without a command it runs '{DEFAULT_COMMAND}'.",
    )
    parser.add_argument("--version", action="version", version=f"whisper-server {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (command, summary) in _COMMANDS.items():
        command.configure(subparsers.add_parser(name, help=summary, description=summary.capitalize() + "."))
    return parser
