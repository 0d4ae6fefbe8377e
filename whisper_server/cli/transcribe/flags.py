"""The flags of `whisper-server transcribe`, and what they ask for."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from whisper_server.cli.settings_flags import add_settings_arguments
from whisper_server.cli.transcribe.planning import OutputFormat, PlanOptions
from whisper_server.cli.transcribe.requesting import SUBTITLE_FORMATS, FieldPairs, Wish
from whisper_server.config import LoadedSettings
from whisper_server.config.loading import DEFAULT_SOURCE
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.formats import SubtitleOptions
from whisper_server.core.types import Task

_MAX_JOBS: Final = 64
_MAX_LIMIT: Final = 1000
_FILE_JSON_INDENT: Final = 2

_REQUEST_FLAGS: Final = ("prompt", "decode_profile", "beam_size", "long_form")
_RESERVED: Final = {
    "file": "name the file itself",
    "response_format": "use --format",
    "stream": "progress is shown anyway",
    "timestamp_granularities": "use --word-timestamps",
    "max_line_width": "use --max-line-width",
    "max_line_count": "use --max-line-count",
    "max_words_per_line": "use --max-words-per-line",
}
"""Request fields that cannot be set by `--option`, and what does it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of this command."""
    parser.usage = (
        "%(prog)s [--format FORMAT] [--output-dir DIR] [--model NAME] [--<option> ...] FILE|DIR|- ..."
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE|DIR|-", help="recordings; '-' is standard input")
    _add_output_arguments(parser.add_argument_group("results"))
    _add_request_arguments(parser.add_argument_group("transcription"))
    run_group = parser.add_argument_group("run")
    run_group.add_argument(
        "-j", "--jobs", type=_count(_MAX_JOBS), default=1, metavar="N", help="recordings at once (default: 1)"
    )
    run_group.add_argument(
        "-q", "--quiet", action="store_true", help="show nothing but failures and warnings"
    )
    run_group.add_argument(
        "--server",
        metavar="URL",
        help="send the recordings to a running server, such as http://127.0.0.1:8089",
    )
    run_group.add_argument(
        "--api-key",
        metavar="KEY",
        help="key of that server (environment: OPENAI_API_KEY, which others cannot see)",
    )
    add_settings_arguments(parser)


def _add_output_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "-f",
        "--format",
        action="append",
        dest="formats",
        choices=[kind.value for kind in OutputFormat],
        help="format of the results; may be repeated (default: text)",
    )
    group.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="folder for results (default: next to the recordings)",
    )
    group.add_argument(
        "--stdout",
        action="store_true",
        default=None,
        help="print the results (default for a single file in a single format)",
    )
    group.add_argument(
        "-r", "--recursive", action="store_true", help="take the recordings in the folders of folders too"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="do recordings again whose results are there already"
    )
    group.add_argument("--keep-suffix", action="store_true", help="name results a.mp3.txt instead of a.txt")


def _add_request_arguments(group: "argparse._ArgumentGroup") -> None:
    group.description = "--model and --language are among the settings below."
    group.add_argument(
        "--task", choices=[task.value for task in Task], help="translate writes English (default: model.task)"
    )
    group.add_argument("--prompt", metavar="TEXT", help="text that went before: style and vocabulary")
    group.add_argument("--word-timestamps", action="store_true", help="time every word")
    group.add_argument("--decode-profile", metavar="NAME", help="decode options by name, such as accurate")
    group.add_argument("--beam-size", metavar="N", help="beams at temperature 0; 1 is greedy")
    group.add_argument("--long-form", metavar="sequential|batched", help="how long recordings are cut")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        dest="options",
        metavar="FIELD=VALUE",
        help="any other request field of docs/api.md; may be repeated",
    )
    for name, meaning in (
        ("--max-line-width", "most columns on a line of subtitles"),
        ("--max-line-count", "most lines of a subtitle"),
        ("--max-words-per-line", "most words on a line of subtitles"),
    ):
        group.add_argument(name, type=_count(_MAX_LIMIT), metavar="N", help=meaning)


def plan_options(arguments: argparse.Namespace) -> PlanOptions:
    """What the flags say of inputs and results."""
    names = dict.fromkeys(arguments.formats or [OutputFormat.TEXT.value])
    return PlanOptions(
        formats=tuple(OutputFormat(name) for name in names),
        recursive=arguments.recursive,
        output_dir=arguments.output_dir,
        to_stdout=arguments.stdout,
        overwrite=arguments.overwrite,
        keep_suffix=arguments.keep_suffix,
    )


def wish_from(
    arguments: argparse.Namespace,
    loaded: LoadedSettings,
    formats: Sequence[OutputFormat],
    *,
    to_stdout: bool,
) -> Wish:
    """What the flags and the settings say of the transcription.

    Raises:
        ConfigurationError: a flag is of no use without another, or `--option` is not FIELD=VALUE.
    """
    subtitles = SubtitleOptions(
        max_line_width=arguments.max_line_width,
        max_line_count=arguments.max_line_count,
        max_words_per_line=arguments.max_words_per_line,
    )
    if subtitles != SubtitleOptions() and SUBTITLE_FORMATS.isdisjoint(formats):
        raise ConfigurationError("The limits of lines and words are for subtitles: add --format srt or vtt.")
    if arguments.api_key is not None and arguments.server is None:
        raise ConfigurationError("--api-key is for a server: add --server.")
    return Wish(
        fields=_fields(arguments, loaded),
        translate=(arguments.task or loaded.settings.model.task) == Task.TRANSLATE,
        subtitles=subtitles,
        has_words=arguments.word_timestamps,
        # Several results on standard output are told apart by their lines.
        json_indent=None if to_stdout else _FILE_JSON_INDENT,
    )


def _fields(arguments: argparse.Namespace, loaded: LoadedSettings) -> FieldPairs:
    pairs: list[tuple[str, str]] = []
    if arguments.server is not None:
        pairs += _server_fields(loaded)
    pairs += [(name, value) for name in _REQUEST_FLAGS if (value := getattr(arguments, name)) is not None]
    pairs += map(_option, arguments.options)
    return _last_of_each(pairs)


def _server_fields(loaded: LoadedSettings) -> Iterable[tuple[str, str]]:
    """The model and the language, which the settings give to a model in this process.

    A default is not sent: the server has its own.
    """
    settings = loaded.settings.model
    if loaded.sources["model.name"] != DEFAULT_SOURCE:
        yield "model", settings.name
    if settings.language is not None:
        yield "language", settings.language


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ConfigurationError(f"--option takes FIELD=VALUE, not '{text}'.")
    field = name.partition("[")[0]
    if field in _RESERVED:
        raise ConfigurationError(f"--option cannot set '{field}': {_RESERVED[field]}.")
    return name, value


def _last_of_each(pairs: Iterable[tuple[str, str]]) -> FieldPairs:
    """Without the earlier values of fields given twice; arrays keep all of theirs."""
    kept: dict[tuple[str, int], tuple[str, str]] = {}
    for index, (name, value) in enumerate(pairs):
        kept[name, index if name.endswith("[]") else 0] = (name, value)
    return list(kept.values())


def _count(most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        number = int(text)
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"must be between 1 and {most}")
        return number

    return count
