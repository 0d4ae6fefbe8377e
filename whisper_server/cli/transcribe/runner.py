"""Runs jobs side by side, until they are done or the user has had enough."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from whisper_server.cli.transcribe.delivery import Delivery
from whisper_server.cli.transcribe.planning import Job
from whisper_server.cli.transcribe.progress import Reporter
from whisper_server.cli.transcribe.requesting import Backend
from whisper_server.core.errors import WhisperServerError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """How a run went so far.

    Attributes:
        done: recordings with all their results written.
        failed: recordings without.
        is_reader_gone: whoever read standard output has closed it, which ends the run.
    """

    done: int = 0
    failed: int = 0
    is_reader_gone: bool = False


class JobRunner:
    """Runs jobs with one backend. For one event loop.

    Args:
        backend: does the work.
        delivery: takes the results.
        reporter: shows what happens.
    """

    def __init__(self, backend: Backend, delivery: Delivery, reporter: Reporter) -> None:
        self._backend = backend
        self._delivery = delivery
        self._reporter = reporter

    async def run(self, jobs: Sequence[Job], outcome: Outcome, *, parallel: int) -> None:
        """Run all jobs, `parallel` at once. A job that fails is reported, and the others go on.

        Args:
            jobs: in the order in which they begin.
            outcome: is kept up to date, so that it is right also after a cancellation.
            parallel: at least 1.
        """
        waiting = iter(enumerate(jobs))

        async def work() -> None:
            for index, job in waiting:
                await self._run_one(index, job, outcome)
                if outcome.is_reader_gone:
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(min(parallel, len(jobs))):
                group.start_soon(work)

    async def _run_one(self, index: int, job: Job, outcome: Outcome) -> None:
        reporter = self._reporter
        track = reporter.start(job.name)
        message = None
        try:
            results = await self._backend.transcribe(
                job, lambda position_s, duration_s: reporter.advance(track, position_s, duration_s)
            )
            if results.duration_s is not None:
                track.duration_s = results.duration_s
            self._delivery.deliver(index, job, results.texts)
        except WhisperServerError as error:
            message = error.message
        except BrokenPipeError:
            outcome.is_reader_gone = True
            return
        except OSError as error:
            message = error.strerror or type(error).__name__
        except Exception as error:  # one recording must not take the others with it, whatever it is
            logger.exception("The work on %s failed", job.name)
            message = f"failed with {type(error).__name__}; --log-file FILE keeps the details"
        finally:
            reporter.end(track)
        if message is None:
            outcome.done += 1
            reporter.finish(track)
        else:
            outcome.failed += 1
            reporter.fail(job.name, message)
            self._delivery.skip(index)
