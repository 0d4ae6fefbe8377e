"""What the routes call, as one object that lives as long as the server."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from whisper_server.config import Settings
from whisper_server.services.admission import Admission
from whisper_server.services.audio_archive import AudioArchive
from whisper_server.services.audio_processor import AudioProcessor
from whisper_server.services.model_catalog import ModelCatalog
from whisper_server.services.model_manager import ModelManager
from whisper_server.services.requests import RequestRegistry
from whisper_server.services.scheduler import Scheduler
from whisper_server.services.stream_timings import StreamTimings
from whisper_server.services.streaming import StreamService
from whisper_server.services.transcription import Transcriber


@dataclass(frozen=True, slots=True)
class Services:
    """The services of a running server."""

    settings: Settings
    catalog: ModelCatalog
    manager: ModelManager
    audio_processor: AudioProcessor
    scheduler: Scheduler
    transcriber: Transcriber
    streams: StreamService
    stream_timings: StreamTimings
    admission: Admission
    requests: RequestRegistry
    archive: AudioArchive | None


def get_services(request: Request) -> Services:
    """The services of the app that got the request; its lifespan has made them."""
    return cast("Services", request.state.services)


ServicesDep = Annotated[Services, Depends(get_services)]
