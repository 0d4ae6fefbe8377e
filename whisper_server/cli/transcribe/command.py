"""The command `whisper-server transcribe`."""

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from typing import BinaryIO

import anyio

from whisper_server.cli.interrupts import INTERRUPTED, interrupts, stopping
from whisper_server.cli.settings_flags import settings_from
from whisper_server.cli.standard_output import drop_stdout
from whisper_server.cli.transcribe.delivery import Delivery, FileDelivery, StdoutDelivery
from whisper_server.cli.transcribe.flags import plan_options, wish_from
from whisper_server.cli.transcribe.logs import logging_to
from whisper_server.cli.transcribe.planning import OutputFormat, Plan, make_plan
from whisper_server.cli.transcribe.progress import Reporter, make_reporter
from whisper_server.cli.transcribe.requesting import Backend, Wish
from whisper_server.cli.transcribe.runner import JobRunner, Outcome
from whisper_server.config import LoadedSettings
from whisper_server.core.errors import ConfigurationError

_FAILED = 1


def run(arguments: argparse.Namespace) -> int:
    """Transcribe recordings.

    Returns:
        The exit code: 0 when all are done, 1 when some failed, 130 after Ctrl-C or SIGTERM.

    Raises:
        ConfigurationError: a flag or a setting is wrong, two results would be one file, the model cannot be
            had, or the server cannot be reached.
    """
    try:
        with interrupts():
            return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    loaded = settings_from(arguments)
    options = plan_options(arguments)
    plan = make_plan(arguments.inputs, options)
    wish = wish_from(arguments, loaded, options.formats, to_stdout=plan.to_stdout)
    outcome = Outcome(failed=len(plan.problems))
    with ExitStack() as stack:
        stdin = None
        if any(job.path is None for job in plan.jobs):
            stdin = stack.enter_context(_spooled(sys.stdin.buffer))
        reporter = stack.enter_context(make_reporter(len(plan.jobs), is_quiet=arguments.quiet))
        stack.enter_context(logging_to(reporter, loaded))
        for message in loaded.warnings:
            reporter.warn(f"warning: {message}")
        for name, message in plan.problems:
            reporter.fail(name, message)
        if plan.jobs:
            backend = _backend(arguments, loaded, wish, options.formats, stdin)
            if asyncio.run(_work(plan, backend, reporter, outcome, parallel=arguments.jobs)):
                return INTERRUPTED
        if plan.skipped or outcome.done + outcome.failed > 1:
            reporter.note(f"{outcome.done} done, {plan.skipped} skipped, {outcome.failed} failed")
    if outcome.is_reader_gone:
        drop_stdout()
    return _FAILED if outcome.failed or outcome.is_reader_gone else 0


async def _work(
    plan: Plan,
    backend: AbstractAsyncContextManager[Backend],
    reporter: Reporter,
    outcome: Outcome,
    *,
    parallel: int,
) -> bool:
    """Do the jobs; whether the user has stopped them."""
    delivery: Delivery = StdoutDelivery(reporter.aside) if plan.to_stdout else FileDelivery()
    with anyio.CancelScope() as scope, stopping(scope.cancel, warn=reporter.warn, close=reporter.close):
        async with AsyncExitStack() as stack:
            with reporter.busy("getting ready"):
                ready = await stack.enter_async_context(backend)
            await JobRunner(ready, delivery, reporter).run(plan.jobs, outcome, parallel=parallel)
    return scope.cancel_called


def _backend(
    arguments: argparse.Namespace,
    loaded: LoadedSettings,
    wish: Wish,
    formats: Sequence[OutputFormat],
    stdin: BinaryIO | None,
) -> AbstractAsyncContextManager[Backend]:
    # Imported here, so that other commands start without the web framework and the HTTP client.
    if arguments.server is None:
        from whisper_server.cli.transcribe.local import open_local

        return open_local(loaded.settings, wish, formats, stdin)
    from whisper_server.cli.transcribe.remote import open_remote

    api_key = arguments.api_key
    if api_key is None:
        api_key = os.environ.get("OPENAI_API_KEY", "")
    return open_remote(arguments.server, api_key.strip(), wish, stdin)


@contextmanager
def _spooled(stream: BinaryIO) -> Iterator[BinaryIO]:
    """All that comes from a stream, as a file one can seek in.

    Raises:
        ConfigurationError: somebody sits at the other end, not a recording.
    """
    if stream.isatty():
        raise ConfigurationError("Standard input is a terminal. Pipe a recording into it.")
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(stream, file)
        yield file
