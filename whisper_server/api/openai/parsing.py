"""From a request's fields to what the services take; shared by the routes that transcribe."""

from typing import BinaryIO

from anyio import to_thread

from whisper_server.api.openai.fields import Fields
from whisper_server.api.openai.transcription_request import ParsedRequest, RequestDefaults, parse_request
from whisper_server.api.services import Services
from whisper_server.core.recording import Recording
from whisper_server.core.types import Task


def max_file_bytes(services: Services) -> int:
    """The largest recording as it is sent."""
    return int(services.settings.limits.max_audio_file_size_mb * (1 << 20))


async def parse_fields(fields: Fields, services: Services, task: Task | None = None) -> ParsedRequest:
    """Check all fields, with the settings' defaults; a task of None is the settings', too.

    Raises:
        InvalidRequestError: as `parse_request`.
        ModelNotFoundError: as `ModelCatalog.resolve`.
    """
    settings = services.settings
    defaults = RequestDefaults(settings.transcription, settings.decode_profiles, settings.model.language)
    # A name may be a path, which is looked up on disk.
    model = await to_thread.run_sync(services.catalog.resolve, fields.text("model") or "")
    return parse_request(fields, model, Task(settings.model.task) if task is None else task, defaults)


async def decode_file(file: BinaryIO, parsed: ParsedRequest, services: Services) -> Recording:
    """The samples of an uploaded file; errors as `AudioProcessor.decode`."""
    return await services.audio_processor.decode(
        file, normalize=parsed.normalize, trim_silence=parsed.trim_silence
    )
