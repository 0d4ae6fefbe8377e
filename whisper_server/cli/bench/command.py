"""The command `whisper-server bench`."""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from whisper_server.cli.bench.drivers.driver import Address, Driver, Pace, Wishes
from whisper_server.cli.bench.flags import address_from, plan_from, wishes_from
from whisper_server.cli.bench.load import Listeners, LoadTest
from whisper_server.cli.bench.progress import progress_bar
from whisper_server.cli.bench.report import Run, json_report, print_report
from whisper_server.cli.bench.session import SessionRecord, Status
from whisper_server.cli.bench.session_log import LogFormat, RowWriter, Sink
from whisper_server.cli.bench.speech import Speech, load_speech, same_words
from whisper_server.cli.bench.totals import Totals
from whisper_server.cli.interrupts import INTERRUPTED, interrupts, stopping
from whisper_server.cli.standard_output import drop_stdout
from whisper_server.core.errors import ConfigurationError

_FAILED = 1


def run(arguments: argparse.Namespace) -> int:
    """Test a running server.

    Returns:
        The exit code: 0 when all went well, 1 when sessions failed or texts were wrong, 130 after Ctrl-C or
        SIGTERM.

    Raises:
        ConfigurationError: a flag is wrong, or the server cannot be reached.
    """
    try:
        with interrupts():
            return asyncio.run(_run(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _FAILED
    finally:
        _leave_stdout()


async def _run(arguments: argparse.Namespace) -> int:
    if arguments.json and arguments.log_sessions:
        raise ConfigurationError("--json and --log-sessions both print: use --session-log-path for the rows.")
    address, plan, wishes = address_from(arguments), plan_from(arguments), wishes_from(arguments)
    speech = load_speech(arguments.audio, arguments.expect)
    is_right = _check_of(arguments, speech)
    driver = _driver(arguments, address, speech, wishes)
    with ExitStack() as stack:
        sinks = _sinks(arguments, stack)
        await driver.check()
        bar = stack.enter_context(progress_bar(plan, is_shown=not arguments.log_sessions))
        tally = _Tally(sinks, bar.advance)
        load = LoadTest(
            driver,
            plan,
            Listeners(tally.on_record, tally.on_warmup),
            audio_s=speech.duration_s,
            is_right=is_right,
        )
        started_at = _now()
        tally.begin(started_at)
        with stopping(load.stop, warn=_warn, close=bar.close):
            await load.run()
        bar.close()
        ended_at = _now()
        tally.end(ended_at)
    done = Run(
        door=driver.door,
        target=arguments.server,
        audio=speech.name,
        audio_s=speech.duration_s,
        is_realtime=arguments.realtime,
        is_text_checked=_is_text_checked(arguments),
        plan=plan,
        started_at=started_at,
        ended_at=ended_at,
        elapsed_s=load.elapsed_s,
        interrupted=load.interrupted,
        totals=tally.totals,
    )
    _report(done, arguments)
    if load.is_stopped:
        return INTERRUPTED
    return 0 if tally.is_clean else _FAILED


class _Tally:
    """Takes records as they come: sums them up, writes their rows, moves the bar."""

    def __init__(self, sinks: Sequence[Sink], advance: Callable[[], None]) -> None:
        self.totals = Totals()
        self._warmup = Totals()
        self._sinks = sinks
        self._advance = advance

    @property
    def is_clean(self) -> bool:
        """Whether every session that counts went well, and its row is written."""
        return self.totals.is_clean and not any(sink.error for sink in self._sinks)

    def begin(self, at: datetime) -> None:
        """Before the first record."""
        for sink in self._sinks:
            sink.begin(at)

    def on_record(self, record: SessionRecord) -> None:
        """A session that counts."""
        self.totals.add(record)
        for sink in self._sinks:
            sink.add(record)
        self._advance()

    def on_warmup(self, record: SessionRecord) -> None:
        """A session that does not."""
        self._warmup.add(record)
        self._advance()

    def end(self, at: datetime) -> None:
        """After the last record; tells what the summary does not."""
        for sink in self._sinks:
            sink.end(at)
            if sink.error is not None:
                _warn(f"Rows of sessions are missing: {sink.error.strerror or type(sink.error).__name__}.")
        if not self._warmup.is_clean:
            _warn(f"In the warm-up {_problems(self._warmup)}.")


def _report(done: Run, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json.dumps(json_report(done), ensure_ascii=False))
    else:
        print_report(done, sys.stderr if arguments.log_sessions else sys.stdout)


def _driver(arguments: argparse.Namespace, address: Address, speech: Speech, wishes: Wishes) -> Driver:
    pace = Pace(arguments.chunk_ms / 1000 if arguments.realtime else None, speech.duration_s)
    # Imported here, so that nobody waits for the protocol of another door.
    match arguments.door:
        case "grpc":
            from whisper_server.cli.bench.drivers.grpc import GrpcDriver

            return GrpcDriver(address, speech, wishes, chunk_ms=arguments.chunk_ms, pace=pace)
        case "ws":
            from whisper_server.cli.bench.drivers.websocket import SttDriver

            return SttDriver(address, speech, wishes, chunk_ms=arguments.chunk_ms, pace=pace)
        case _:
            from whisper_server.cli.bench.drivers.realtime import RealtimeDriver

            return RealtimeDriver(address, speech, wishes, chunk_ms=arguments.chunk_ms, pace=pace)


def _is_text_checked(arguments: argparse.Namespace) -> bool:
    return arguments.check_text or arguments.expect is not None


def _check_of(arguments: argparse.Namespace, speech: Speech) -> Callable[[str], bool]:
    """What tells whether a text is right.

    Raises:
        ConfigurationError: nobody knows what is said.
    """
    if not _is_text_checked(arguments):
        return lambda _: True
    said = speech.text
    if said is None:
        raise ConfigurationError(f"What is said in {speech.name} is not known: add --expect TEXT.")
    return lambda text: same_words(text, said)


def _sinks(arguments: argparse.Namespace, stack: ExitStack) -> list[Sink]:
    """Where the rows go.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    writer = RowWriter(LogFormat(arguments.session_log_format), f"Load test of {arguments.server}")
    sinks = [Sink(writer, sys.stdout, arguments.max_session_logs)] if arguments.log_sessions else []
    if (path := arguments.session_log_path) is not None:
        try:
            file = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigurationError(f"--session-log-path '{path}' cannot be written: {reason}.") from error
        sinks.append(Sink(writer, file, None))
    return sinks


def _problems(totals: Totals) -> str:
    codes = ", ".join(f"{count} × {code}" for code, count in totals.errors.most_common())
    bad = totals.sessions - totals.statuses[Status.OK]
    return f"{bad} of {totals.sessions} sessions did not go well" + (f": {codes}" if codes else "")


def _leave_stdout() -> None:
    """Write what is left, while it can be seen that nobody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()


def _warn(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _now() -> datetime:
    return datetime.now(UTC)
