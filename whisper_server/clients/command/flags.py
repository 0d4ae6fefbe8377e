"""The flags of the commands. Only those that are given are in the result: YAML and defaults fill the rest."""

import argparse
from pathlib import Path

from whisper_server.clients.command.settings import API_KEY_VARIABLE
from whisper_server.clients.grpc import Task, VadMode


def common_flags(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags of all commands.

    Args:
        program: as it is called, such as "python -m …".
        description: what it does.
    """
    parser = argparse.ArgumentParser(
        prog=program, description=description, argument_default=argparse.SUPPRESS, allow_abbrev=False
    )
    parser.add_argument(
        "-c", "--config", type=Path, metavar="YAML", help="file with defaults; flags override it"
    )
    _add_connection(parser.add_argument_group("server"))
    _add_session(parser.add_argument_group("session"))
    output = parser.add_argument_group("output")
    output.add_argument("--json", action=argparse.BooleanOptionalAction, help="one JSON object per event")
    output.add_argument(
        "--metrics", action=argparse.BooleanOptionalAction, help="tell at the end where the time went"
    )
    return parser


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of commands for files."""
    parser.add_argument("audio_path", nargs="?", metavar="FILE", help="recording, of any format FFmpeg reads")


def add_pace_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of streaming a file."""
    parser.add_argument("--chunk-ms", metavar="MS", help="audio of a message (100)")
    parser.add_argument(
        "--realtime",
        action=argparse.BooleanOptionalAction,
        help="send as fast as it was spoken, or as fast as possible",
    )


def add_microphone_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the microphone."""
    parser.add_argument("--device", metavar="DEVICE", help="number or part of the name (the system's)")
    parser.add_argument("--sample-rate", metavar="HZ", help="16000")
    parser.add_argument("--chunk-ms", metavar="MS", help="audio of a message (100)")


def _add_connection(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--server", metavar="ADDRESS", help="host:port or unix:/path (localhost:50051)")
    group.add_argument("--api-key", metavar="KEY", help=f"better in the environment as {API_KEY_VARIABLE}")
    group.add_argument(
        "--tls", action=argparse.BooleanOptionalAction, help="encrypt, trusting the CAs that gRPC brings"
    )
    group.add_argument("--tls-ca", metavar="PEM", help="encrypt, trusting these CAs")
    group.add_argument("--tls-cert", metavar="PEM", help="the client's certificate, for mutual TLS")
    group.add_argument("--tls-key", metavar="PEM", help="the key of that certificate")


def _add_session(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--session-id", metavar="ID", help="name of the session (made up)")
    group.add_argument(
        "--attr",
        "--meta",
        dest="attributes",
        action="append",
        type=_attribute,
        metavar="KEY=VALUE",
        help="attach an attribute; may be repeated",
    )
    group.add_argument(
        "--require-token",
        action=argparse.BooleanOptionalAction,
        help="have the server issue a token and check it with each message",
    )
    group.add_argument("--model", metavar="NAME", help="as /v1/models lists them")
    group.add_argument("--language", metavar="CODE", help='such as de; "auto" detects it')
    group.add_argument("--task", choices=[task.value for task in Task])
    group.add_argument("--decode-profile", metavar="NAME", help="such as realtime or accurate")
    group.add_argument("--prompt", metavar="TEXT", help="text that went before")
    group.add_argument("--hotwords", metavar="WORDS", help="words to expect, with commas between them")
    group.add_argument(
        "--vad-mode",
        choices=[mode.value for mode in VadMode],
        help="auto: silence ends the session (continue)",
    )
    group.add_argument("--vad-silence", metavar="SECONDS", help="silence that ends an utterance")
    group.add_argument("--vad-threshold", metavar="P", help="speech starts at this probability, 0 to 1")


def _attribute(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
