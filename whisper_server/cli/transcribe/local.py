"""Transcription in this process, by the server's own services."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from anyio import to_thread

from whisper_server.api.openai.transcription_request import ParsedRequest, RequestDefaults, parse_request
from whisper_server.api.services import Services
from whisper_server.bootstrap import open_services
from whisper_server.cli.transcribe.planning import Job, OutputFormat
from whisper_server.cli.transcribe.rendering import render
from whisper_server.cli.transcribe.requesting import OnProgress, Results, WatchedFields, Wish
from whisper_server.config import Settings
from whisper_server.core.errors import AudioTooLongError, ConfigurationError, WhisperServerError
from whisper_server.core.recording import Recording
from whisper_server.core.types import Segment, Task
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.transcription import Transcription, check_request


@asynccontextmanager
async def open_local(
    settings: Settings, wish: Wish, formats: Sequence[OutputFormat], stdin: BinaryIO | None
) -> AsyncIterator["LocalBackend"]:
    """A backend with its model loaded, until the block ends.

    Args:
        settings: of the model, and the defaults of the request.
        wish: what is wanted of every recording.
        formats: all that jobs may ask for.
        stdin: what came from standard input; seekable.

    Raises:
        ConfigurationError: the settings or the request cannot work, or the model cannot be had.
    """
    only_one = settings.model.model_copy(update={"preload": ()})
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(
            open_services(settings.model_copy(update={"model": only_one}))
        )
        try:
            fields = WatchedFields(wish.request_fields(formats))
            model = await to_thread.run_sync(services.catalog.resolve, fields.text("model") or "")
            backend = LocalBackend(services, wish, model, stdin)
            parsed = backend.parse(fields)
            fields.refuse_unknown()
            engine = await stack.enter_async_context(services.manager.acquire(model))
            check_request(engine, parsed.transcription, Recording(np.zeros(0, np.int16)))
        except WhisperServerError as error:  # what no recording could change
            raise ConfigurationError(error.message) from error
        yield backend


class LocalBackend:
    """Transcribes with services of this process."""

    def __init__(self, services: Services, wish: Wish, model: ModelReference, stdin: BinaryIO | None) -> None:
        self._services = services
        self._wish = wish
        self._model = model
        self._stdin = stdin

    def parse(self, fields: WatchedFields) -> ParsedRequest:
        """The request that these fields make.

        Raises:
            InvalidRequestError: a field is wrong.
        """
        defaults = RequestDefaults.of(self._services.settings)
        task = Task.TRANSLATE if self._wish.translate else Task.TRANSCRIBE
        return parse_request(fields, self._model, task, defaults)

    async def transcribe(self, job: Job, on_progress: OnProgress) -> Results:
        """The results of a job; see `Backend`."""
        parsed = self.parse(WatchedFields(self._wish.request_fields(job.formats)))
        recording = await self._decode(job.path, parsed)
        duration_s = recording.original_duration_s
        on_progress(0.0, duration_s)
        segments: list[Segment] = []
        language, probability = None, 0.0
        async with aclosing(self._services.transcriber.stream(recording, parsed.transcription)) as steps:
            async for progress in steps:
                segments += progress.segments
                language, probability = progress.language, progress.language_probability
                on_progress(min(progress.position_s, duration_s), duration_s)
        task = parsed.transcription.options.task
        transcription = Transcription(tuple(segments), language, probability, duration_s, task)
        texts = {
            kind: render(transcription, kind, self._wish, has_logprobs=parsed.has_logprobs)
            for kind in job.formats
        }
        return Results(texts, duration_s)

    async def _decode(self, path: Path | None, parsed: ParsedRequest) -> Recording:
        if path is None:
            assert self._stdin is not None
            return await self._decode_file(self._stdin, parsed)
        with await to_thread.run_sync(path.open, "rb") as file:
            return await self._decode_file(file, parsed)

    async def _decode_file(self, file: BinaryIO, parsed: ParsedRequest) -> Recording:
        try:
            return await self._services.audio_processor.decode(
                file, normalize=parsed.normalize, trim_silence=parsed.trim_silence
            )
        except AudioTooLongError as error:
            raise AudioTooLongError(f"{error.message} Raise --limits-max-audio-s.") from error
