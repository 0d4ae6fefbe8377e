"""From a request's fields to what the services take; shared by the routes that transcribe."""

import math
from dataclasses import replace
from typing import BinaryIO

from anyio import to_thread

from whisper_server.api.openai.fields import Fields
from whisper_server.api.openai.transcription_request import ParsedRequest, RequestDefaults, parse_request
from whisper_server.api.services import Services
from whisper_server.core.recording import Recording
from whisper_server.core.types import Task
from whisper_server.services.requests import RunningRequest


def max_file_bytes(services: Services) -> int:
    """The largest recording as it is sent."""
    return int(services.settings.limits.max_audio_file_size_mb * (1 << 20))


async def parse_fields(
    fields: Fields, services: Services, running: RunningRequest, task: Task | None = None
) -> ParsedRequest:
    """Check all fields, with the settings' defaults; a task of None is the settings', too.

    Raises:
        InvalidRequestError: as `parse_request`.
        ModelNotFoundError: as `ModelCatalog.resolve`.
    """
    settings = services.settings
    # A name may be a path, which is looked up on disk.
    model = await to_thread.run_sync(services.catalog.resolve, fields.text("model") or "")
    parsed = parse_request(
        fields, model, Task(settings.model.task) if task is None else task, RequestDefaults.of(settings)
    )
    return replace(parsed, transcription=replace(parsed.transcription, caller=running.caller))


async def decode_file(
    file: BinaryIO,
    parsed: ParsedRequest,
    services: Services,
    running: RunningRequest,
    *,
    max_work_s: float = math.inf,
) -> Recording:
    """The samples of an uploaded file, which the request holds from now on.

    Args:
        file: as it was uploaded.
        parsed: how it is to be decoded.
        services: of the server.
        running: the request.
        max_work_s: no more of it is for a model, seconds.

    Raises:
        InvalidAudioError: as `AudioProcessor.decode`.
        ServerBusyError: as `Place.hold`.
    """
    recording = await services.audio_processor.decode(
        file, normalize=parsed.normalize, trim_silence=parsed.trim_silence
    )
    duration_s = recording.original_duration_s
    running.place.hold(duration_s, min(duration_s, max_work_s))
    return recording
