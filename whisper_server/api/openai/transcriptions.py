"""`POST /v1/audio/transcriptions`."""

import time
from typing import BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from whisper_server.api.disconnect import until_disconnect
from whisper_server.api.openai.fields import Fields
from whisper_server.api.openai.responses import dump, json_transcript, verbose_transcript
from whisper_server.api.openai.transcription_request import (
    ParsedRequest,
    RequestDefaults,
    ResponseFormat,
    parse_request,
)
from whisper_server.api.services import Services, ServicesDep
from whisper_server.api.uploads import read_form
from whisper_server.core.types import Task
from whisper_server.services.transcription import Transcription

router = APIRouter()


@router.post("/audio/transcriptions", response_class=Response)
async def create_transcription(request: Request, services: ServicesDep) -> Response:
    """Transcribe an uploaded recording."""
    limit_mb = services.settings.limits.max_audio_file_size_mb
    with (
        services.admission.enter(),
        await read_form(request, max_file_bytes=int(limit_mb * (1 << 20))) as form,
    ):
        file = form.required_file()
        parsed = _parse(Fields(form.fields), services)
        started_s = time.perf_counter()
        transcription = await until_disconnect(request, lambda: _transcribe(file, parsed, services))
        took_ms = (time.perf_counter() - started_s) * 1000
    response = _render(transcription, parsed)
    response.headers["openai-processing-ms"] = str(round(took_ms))
    return response


def _parse(fields: Fields, services: Services) -> ParsedRequest:
    settings = services.settings
    defaults = RequestDefaults(settings.transcription, settings.decode_profiles, settings.model.language)
    model = services.catalog.resolve(fields.text("model") or "")
    return parse_request(fields, model, Task(settings.model.task), defaults)


async def _transcribe(file: BinaryIO, parsed: ParsedRequest, services: Services) -> Transcription:
    recording = await services.audio_processor.decode(
        file, normalize=parsed.normalize, trim_silence=parsed.trim_silence
    )
    return await services.transcriber.transcribe(recording, parsed.transcription)


def _render(transcription: Transcription, parsed: ParsedRequest) -> Response:
    match parsed.response_format:
        case ResponseFormat.TEXT:
            return PlainTextResponse(transcription.text + "\n")
        case ResponseFormat.JSON:
            return JSONResponse(dump(json_transcript(transcription)))
        case ResponseFormat.VERBOSE_JSON:
            return JSONResponse(dump(verbose_transcript(transcription, parsed.granularities)))
