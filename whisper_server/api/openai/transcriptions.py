"""`POST /v1/audio/transcriptions` and `/translations`."""

import time
from contextlib import AsyncExitStack

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from whisper_server.api.disconnect import until_disconnect
from whisper_server.api.documentation import operations
from whisper_server.api.openai.events import text_events
from whisper_server.api.openai.fields import Fields
from whisper_server.api.openai.json_body import audio_json_response, read_body
from whisper_server.api.openai.parsing import decode_file, max_file_bytes, parse_fields
from whisper_server.api.openai.responses import dump, json_transcript, verbose_transcript
from whisper_server.api.openai.transcription_request import ParsedRequest, ResponseFormat
from whisper_server.api.paths import deployment_model
from whisper_server.api.running import enter
from whisper_server.api.services import Services, ServicesDep
from whisper_server.api.sse import EventStream, first_of
from whisper_server.core import formats
from whisper_server.core.types import Task
from whisper_server.services.transcription import Transcription, collect

router = APIRouter()


@router.post("/audio/transcriptions", response_class=Response, **operations.TRANSCRIPTION)
async def create_transcription(request: Request, services: ServicesDep) -> Response:
    """Write down what is said in an uploaded recording."""
    return await _answer(request, services, Task(services.settings.model.task))


@router.post("/audio/translations", response_class=Response, **operations.TRANSLATION)
async def create_translation(request: Request, services: ServicesDep) -> Response:
    """Write down in English what is said in an uploaded recording."""
    return await _answer(request, services, Task.TRANSLATE)


async def _answer(request: Request, services: Services, task: Task) -> Response:
    async with AsyncExitStack() as resources:
        running = resources.enter_context(enter(request, services))
        limit = max_file_bytes(services)
        with await running.run(lambda: read_body(request, max_file_bytes=limit)) as body:
            file = body.form.required_file()
            fields = Fields(_with_deployment(body.form.fields, request))
            parsed = await parse_fields(fields, services, running, task)
            started_s = time.perf_counter()
            recording = await until_disconnect(
                request, running, lambda: decode_file(file, parsed, services, running)
            )
        steps = running.follow(
            services.transcriber.stream(recording, parsed.transcription),
            audio_s=recording.original_duration_s,
        )
        if parsed.is_stream:
            # The first step comes when the model is loaded and the request checked: faults get their status.
            steps = await until_disconnect(request, running, lambda: first_of(steps))
            events = text_events(steps, recording.original_duration_s, has_logprobs=parsed.has_logprobs)
            return EventStream(events, resources.pop_all())
        transcription = await until_disconnect(
            request, running, lambda: collect(steps, recording, parsed.transcription)
        )
    took_s = time.perf_counter() - started_s
    is_plain = parsed.response_format is ResponseFormat.JSON and not parsed.has_logprobs
    if body.is_audio_json and is_plain:
        model = fields.text("model") or services.settings.model.name
        response: Response = JSONResponse(
            audio_json_response(transcription, model, took_s, body.audio_format)
        )
    else:
        # Subtitles of a long recording take a quarter of a second to break into lines.
        response = await to_thread.run_sync(_render, transcription, parsed)
    response.headers["openai-processing-ms"] = str(round(took_s * 1000))
    return response


def _with_deployment(fields: list[tuple[str, str]], request: Request) -> list[tuple[str, str]]:
    """The fields, and first the model that the path names: one in the body counts before it."""
    model = deployment_model(request)
    return fields if model is None else [("model", model), *fields]


def _render(transcription: Transcription, parsed: ParsedRequest) -> Response:
    match parsed.response_format:
        case ResponseFormat.TEXT:
            return PlainTextResponse(transcription.text + "\n")
        case ResponseFormat.SRT:
            return PlainTextResponse(formats.srt(transcription.segments, parsed.subtitles))
        case ResponseFormat.VTT:
            return PlainTextResponse(formats.vtt(transcription.segments, parsed.subtitles))
        case ResponseFormat.JSON:
            return JSONResponse(dump(json_transcript(transcription, has_logprobs=parsed.has_logprobs)))
        case ResponseFormat.VERBOSE_JSON:
            return JSONResponse(dump(verbose_transcript(transcription, parsed.granularities)))
