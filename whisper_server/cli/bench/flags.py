"""The flags of `whisper-server bench`, and what they ask for."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from whisper_server.cli.bench.drivers.driver import Address, Wishes
from whisper_server.cli.bench.load import LoadPlan
from whisper_server.cli.bench.session_log import LogFormat
from whisper_server.cli.bench.speech import DEFAULT_SAMPLE
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.types import Task

DOORS: Final = {
    "grpc": "sessions of the gRPC service",
    "ws": "sessions of /ws/stt",
    "realtime": "sessions of /v1/realtime",
}

_GRPC_SERVER: Final = "127.0.0.1:50051"
_WEB_SERVER: Final = "http://127.0.0.1:8089"
_MAX_CHANNELS: Final = 10_000
_MAX_ITERATIONS: Final = 1_000_000
_MAX_CHUNK_MS: Final = 60_000
_MAX_WAIT_S: Final = 86_400.0
_MAX_SILENCE_S: Final = 60.0
_DELAYS: Final = ("minimal", "low", "medium", "high", "xhigh")


def configure(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of this command: a sub-command for each door."""
    doors = parser.add_subparsers(dest="door", required=True, metavar="DOOR")
    for door, summary in DOORS.items():
        subparser = doors.add_parser(door, help=summary, description=f"Load test with {summary}.")
        _add_server_arguments(subparser.add_argument_group("server"), door)
        _add_load_arguments(subparser.add_argument_group("load"))
        _add_audio_arguments(subparser.add_argument_group("audio"))
        _add_session_arguments(subparser.add_argument_group("every session"), door)
        _add_result_arguments(subparser.add_argument_group("results"))


def _add_server_arguments(group: "argparse._ArgumentGroup", door: str) -> None:
    if door == "grpc":
        group.add_argument(
            "--server",
            default=_GRPC_SERVER,
            metavar="HOST:PORT|unix:/PATH",
            help="its address (default: %(default)s)",
        )
        group.add_argument("--tls", action="store_true", help="encrypt; --tls-ca and --tls-cert imply it")
    else:
        group.add_argument(
            "--server",
            default=_WEB_SERVER,
            metavar="URL",
            help="its address (default: %(default)s)",
        )
    group.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="authorities to trust instead of the system's, PEM"
    )
    group.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="client certificate, for servers that want one, PEM"
    )
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, PEM")
    group.add_argument(
        "--api-key", metavar="KEY", help="environment: WHISPER_API_KEY, which others cannot see"
    )


def _add_load_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--channels",
        type=_count(1, _MAX_CHANNELS),
        default=1,
        metavar="N",
        help="connections at once (default: 1)",
    )
    group.add_argument(
        "--iterations",
        type=_count(1, _MAX_ITERATIONS),
        default=1,
        metavar="N",
        help="sessions on each channel, one after the other (default: 1)",
    )
    group.add_argument(
        "--warmup-iterations",
        type=_count(0, _MAX_ITERATIONS),
        default=0,
        metavar="N",
        help="sessions on each channel before that, which do not count (default: 0)",
    )
    group.add_argument(
        "--ramp-steps",
        type=_count(1, _MAX_CHANNELS),
        default=1,
        metavar="N",
        help="batches in which the channels begin (default: 1, all at once)",
    )
    group.add_argument(
        "--ramp-interval-sec",
        type=_number(0, _MAX_WAIT_S),
        default=1.0,
        metavar="S",
        help="time between two batches (default: 1)",
    )
    group.add_argument(
        "--timeout-s",
        type=_number(0.001, _MAX_WAIT_S),
        default=120.0,
        metavar="S",
        help="a session that is not over by then has failed (default: 120)",
    )


def _add_audio_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--audio",
        default=DEFAULT_SAMPLE,
        metavar="FILE",
        help="what every session says: a recording, or the name of a bundled sample (default: %(default)s)",
    )
    group.add_argument(
        "--check-text", action="store_true", help="count texts whose words are not those that are said"
    )
    group.add_argument(
        "--expect",
        metavar="TEXT",
        help="what is said; known of bundled samples (implies --check-text)",
    )
    group.add_argument(
        "--chunk-ms",
        type=_count(1, _MAX_CHUNK_MS),
        default=100,
        metavar="MS",
        help="audio of one message (default: 100)",
    )
    group.add_argument(
        "--realtime",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="send audio as fast as it is spoken, instead of flat out (default: flat out)",
    )


def _add_session_arguments(group: "argparse._ArgumentGroup", door: str) -> None:
    group.description = "What is not given is as the server is set."
    modes = ["continue", "manual"] if door == "realtime" else ["continue", "auto", "manual"]
    group.add_argument(
        "--vad-mode",
        choices=modes,
        default="continue",
        help="what ends an utterance: silence (continue), silence and with it the session (auto), "
        "or the end of the audio (manual); default: %(default)s",
    )
    group.add_argument(
        "--vad-silence",
        type=_number(0, _MAX_SILENCE_S),
        metavar="S",
        help="silence that ends an utterance, seconds",
    )
    group.add_argument(
        "--vad-threshold", type=_number(0, 1), metavar="P", help="speech starts at this probability"
    )
    group.add_argument("--language", metavar="CODE", help="language of the audio; 'auto' detects it")
    group.add_argument("--model", metavar="NAME", help="model to ask for")
    if door == "realtime":
        group.add_argument(
            "--delay", choices=_DELAYS, help="ask for text while somebody speaks; partials are counted then"
        )
        return
    group.add_argument(
        "--task", choices=[task.value for task in Task], help="translate writes English, whatever is spoken"
    )
    group.add_argument("--decode-profile", metavar="NAME", help="decode options by name, such as accurate")
    if door == "grpc":
        group.add_argument(
            "--require-token", action="store_true", help="have a token issued, and send it in every message"
        )
        group.add_argument(
            "--attr",
            type=_attribute,
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="attribute of the sessions; may be repeated",
        )


def _add_result_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--log-sessions", action="store_true", help="print a row for each session; the summary goes to stderr"
    )
    group.add_argument(
        "--max-session-logs",
        type=_count(0, _MAX_CHANNELS * _MAX_ITERATIONS),
        default=100,
        metavar="N",
        help="print no more rows than that (default: 100)",
    )
    group.add_argument(
        "--session-log-format",
        choices=[kind.value for kind in LogFormat],
        default=LogFormat.JSONL.value,
        help="of the rows (default: %(default)s)",
    )
    group.add_argument(
        "--session-log-path", type=Path, metavar="FILE", help="write the rows of all sessions there"
    )
    group.add_argument("--json", action="store_true", help="print the summary as JSON")


def address_from(arguments: argparse.Namespace) -> Address:
    """Where the server is.

    Raises:
        ConfigurationError: a flag is of no use without another, or the key cannot be sent.
    """
    if arguments.tls_key is not None and arguments.tls_cert is None:
        raise ConfigurationError("--tls-key is the key of a certificate: add --tls-cert.")
    has_files = arguments.tls_ca is not None or arguments.tls_cert is not None
    is_web = arguments.door != "grpc"
    if is_web and has_files and not arguments.server.startswith(("https:", "wss:")):
        raise ConfigurationError("--tls-ca and --tls-cert are for a --server with https.")
    api_key = arguments.api_key
    if api_key is None:
        api_key = os.environ.get("WHISPER_API_KEY", "")
    if not api_key.isascii() or not api_key.isprintable():
        raise ConfigurationError("The API key may hold only printable ASCII characters.")
    return Address(
        arguments.server,
        api_key.strip() or None,
        is_encrypted=not is_web and (arguments.tls or has_files),
        ca_path=arguments.tls_ca,
        cert_path=arguments.tls_cert,
        key_path=arguments.tls_key,
    )


def plan_from(arguments: argparse.Namespace) -> LoadPlan:
    """How much load.

    Raises:
        ConfigurationError: there are more steps than channels.
    """
    if arguments.ramp_steps > arguments.channels:
        raise ConfigurationError(
            f"--ramp-steps {arguments.ramp_steps} is more than there are channels ({arguments.channels})."
        )
    return LoadPlan(
        channels=arguments.channels,
        iterations=arguments.iterations,
        warmup_iterations=arguments.warmup_iterations,
        ramp_steps=arguments.ramp_steps,
        ramp_interval_s=arguments.ramp_interval_sec,
        timeout_s=arguments.timeout_s,
    )


def wishes_from(arguments: argparse.Namespace) -> Wishes:
    """What every session asks for."""
    return Wishes(
        vad_mode=arguments.vad_mode,
        vad_silence_s=arguments.vad_silence,
        vad_threshold=arguments.vad_threshold,
        language=arguments.language,
        task=getattr(arguments, "task", None),
        model=arguments.model,
        decode_profile=getattr(arguments, "decode_profile", None),
        attributes=dict(getattr(arguments, "attr", ())),
        has_token=getattr(arguments, "require_token", False),
        delay=getattr(arguments, "delay", None),
    )


def _count(least: int, most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"must be between {least} and {most}")
        return number

    return count


def _number(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if math.isnan(value) or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be between {least:g} and {most:g}")
        return value

    return number


def _attribute(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, not '{text}'")
    return key.strip(), value
