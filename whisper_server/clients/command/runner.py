"""Runs a command: one session, from its source to the output, to an exit code."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from whisper_server.clients.command.interrupts import Interrupts
from whisper_server.clients.command.latency import LatencyMeter
from whisper_server.clients.command.output import Output, open_output
from whisper_server.clients.command.settings import CommandSettings, Settings, UsageError, read_settings
from whisper_server.clients.grpc import AudioFormat, ConnectionOptions, SttClient, SttError, SttStream

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130


class Source(Protocol):
    """Where the audio comes from.

    Attributes:
        audio: how its chunks are written.
        max_replay_s: audio kept to be sent again after a broken connection.
    """

    audio: AudioFormat
    max_replay_s: float

    async def prepare(self) -> None:
        """Do what can fail before there is a session.

        Raises:
            UsageError: there can be no audio.
        """

    def chunks(self, tell: Callable[[str], None]) -> AsyncGenerator[bytes]:
        """The audio.

        Args:
            tell: takes what is to be told to people.
        """


def run_command(
    parser: argparse.ArgumentParser,
    kind: type[Settings],
    new_source: Callable[[Settings], Source],
    argv: Sequence[str] | None,
) -> int:
    """Run a command.

    Args:
        parser: of its flags.
        kind: of its settings.
        new_source: makes the source.
        argv: the flags; None takes those of the process.

    Returns:
        The exit code: 0; 1 the session failed; 2 wrong usage; 130 Ctrl-C.
    """
    flags = parser.parse_args(argv)
    try:
        settings = read_settings(kind, flags)
        connection = settings.connection()
    except UsageError as error:
        parser.error(str(error))
    try:
        return asyncio.run(transcribe(settings, connection, new_source(settings)))
    except KeyboardInterrupt:
        return INTERRUPTED


async def transcribe(settings: CommandSettings, connection: ConnectionOptions, source: Source) -> int:
    """Run one session, and tell what went wrong.

    Args:
        settings: of the command.
        connection: where the server is.
        source: of the audio.

    Returns:
        The exit code.
    """
    task = asyncio.current_task()
    assert task is not None
    meter = LatencyMeter(source.audio, asyncio.get_running_loop().time)
    output = open_output(as_json=settings.json_lines)
    run = _Run(settings, connection, source, output, meter)
    code, trouble = 0, ""
    with Interrupts(task) as interrupts, _warnings_to(output):
        try:
            await run.stream_all(interrupts)
        except UsageError as error:
            code, trouble = WRONG_USAGE, str(error)
        except SttError as error:
            code, trouble = FAILED, str(error)
        except BrokenPipeError:
            code = FAILED
            # Python would fail once more when it flushes standard output at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except asyncio.CancelledError:
            if not interrupts.count:
                raise
        finally:
            output.close()
    if trouble:
        output.tell(trouble)
    if settings.metrics:
        for line in meter.report(run.stream.decode_totals if run.stream else None):
            output.tell(line)
    return INTERRUPTED if interrupts.count else code


class _Run:
    def __init__(
        self,
        settings: CommandSettings,
        connection: ConnectionOptions,
        source: Source,
        output: Output,
        meter: LatencyMeter,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._source = source
        self._output = output
        self._meter = meter
        self.stream: SttStream | None = None

    async def stream_all(self, interrupts: Interrupts) -> None:
        source, output, meter = self._source, self._output, self._meter
        await source.prepare()
        async with SttClient(self._connection) as client:
            session = await client.create_session(self._settings.session(source.audio))
            chunks = meter.watch(interrupts.until_stop(source.chunks(output.tell)))
            interrupts.can_drain = True
            async with client.stream(session, chunks, max_replay_s=source.max_replay_s) as self.stream:
                async for event in self.stream:
                    meter.heard(event)
                    output.show(event)


@contextmanager
def _warnings_to(output: Output) -> Iterator[None]:
    """Have the client library's warnings told, such as those of another attempt."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            output.tell(record.getMessage())

    logger, handler = logging.getLogger("whisper_server.clients.grpc"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
