"""`POST /v1/chat/completions`: a chat model that answers audio with its transcript."""

import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from whisper_server.api.disconnect import until_disconnect
from whisper_server.api.documentation import operations
from whisper_server.api.openai.chat_request import ChatRequest, parse_chat_request
from whisper_server.api.openai.fields import Fields
from whisper_server.api.openai.json_body import read_object
from whisper_server.api.openai.parsing import decode_file, max_file_bytes, parse_fields
from whisper_server.api.openai.responses import token_usage
from whisper_server.api.openai.transcription_request import ParsedRequest
from whisper_server.api.paths import deployment_model
from whisper_server.api.running import enter
from whisper_server.api.services import Services, ServicesDep
from whisper_server.api.sse import EventStream, first_of
from whisper_server.core.errors import AudioTooLongError, InvalidAudioError
from whisper_server.core.recording import Recording
from whisper_server.core.types import Segment
from whisper_server.services.requests import RunningRequest

router = APIRouter()

_SEPARATOR = "\n\n"
"""Between the transcripts of several recordings."""

_DONE = "[DONE]"


@router.post("/chat/completions", response_class=Response, **operations.CHAT_COMPLETION)
async def create_chat_completion(request: Request, services: ServicesDep) -> Response:
    """Answer the audio of a chat with its transcript."""
    started_s = time.perf_counter()
    limit = max_file_bytes(services)
    async with AsyncExitStack() as resources:
        running = resources.enter_context(enter(request, services))
        build = partial(parse_chat_request, max_file_bytes=limit)
        with await running.run(lambda: read_object(request, build, max_file_bytes=limit)) as chat:
            # Azure's clients name the model in the path; the last of several counts, and empty is absent.
            fields = Fields([("model", deployment_model(request) or ""), *chat.fields])
            parsed = await parse_fields(fields, services, running)
            recordings = await until_disconnect(
                request, running, lambda: _decode_all(chat, parsed, services, running)
            )
        completion = _Completion(parsed.transcription.model.requested)
        pieces = _pieces(recordings, parsed, services, running, completion)
        if chat.is_stream:
            # The first piece comes when the model is loaded; faults until then get their status.
            pieces = await until_disconnect(request, running, lambda: first_of(pieces))
            return EventStream(_chunks(pieces, completion, has_usage=chat.has_usage), resources.pop_all())
        content = "".join(await until_disconnect(request, running, lambda: _all(pieces)))
    took_ms = (time.perf_counter() - started_s) * 1000
    return JSONResponse(completion.reply(content), headers={"openai-processing-ms": str(round(took_ms))})


@dataclass(slots=True)
class _Completion:
    """An answer, and what it has taken so far."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created_s: int = field(default_factory=lambda: int(time.time()))
    segments: list[Segment] = field(default_factory=list)
    duration_s: float = 0.0

    def reply(self, content: str) -> dict[str, Any]:
        """The answer as a whole."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content,
            "refusal": None,
            "annotations": [],
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return self._envelope("chat.completion", [choice]) | {"usage": self.usage()}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A part of the answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._envelope("chat.completion.chunk", [choice])

    def last_chunk(self) -> dict[str, Any]:
        """The part that tells the usage."""
        return self._envelope("chat.completion.chunk", []) | {"usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """What the answer took, counted as `token_usage` does: the text of the prompt counts nothing."""
        tokens = token_usage(self.segments, self.duration_s)
        return {
            "prompt_tokens": tokens.input_tokens,
            "completion_tokens": tokens.output_tokens,
            "total_tokens": tokens.total_tokens,
            "prompt_tokens_details": {
                "audio_tokens": tokens.input_token_details.audio_tokens,
                "cached_tokens": 0,
            },
        }

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        }


async def _decode_all(
    chat: ChatRequest, parsed: ParsedRequest, services: Services, running: RunningRequest
) -> list[Recording]:
    """The recordings, together no longer than one may be: they are in memory at the same time."""
    limit_s = services.settings.limits.max_audio_s
    recordings: list[Recording] = []
    for part in chat.audio:
        try:
            recording = await decode_file(part.file, parsed, services, running)
        except InvalidAudioError as error:
            error.param = part.param
            raise
        recordings.append(recording)
        if sum(each.original_duration_s for each in recordings) > limit_s:
            raise AudioTooLongError(
                f"The recordings together are longer than {limit_s:.10g} seconds, the most this server "
                "takes. Send fewer.",
                param=part.param,
                code="audio_too_long",
            )
    return recordings


async def _pieces(
    recordings: list[Recording],
    parsed: ParsedRequest,
    services: Services,
    running: RunningRequest,
    completion: _Completion,
) -> AsyncGenerator[str, None]:
    """The answer as it grows, noted in `completion`; the first piece, often empty, comes with the model."""
    is_begun = False
    for recording in recordings:
        steps = running.follow(
            services.transcriber.stream(recording, parsed.transcription),
            start_s=completion.duration_s,
            audio_s=recording.original_duration_s,
        )
        completion.duration_s += recording.original_duration_s
        segments: list[Segment] = []
        text = ""
        async with aclosing(steps):
            async for progress in steps:
                segments += progress.segments
                completion.segments += progress.segments
                # White space at the end waits for what follows: a transcript ends without it.
                grown = "".join(segment.text for segment in segments).strip()
                separator = _SEPARATOR if is_begun and not text and grown else ""
                yield separator + grown[len(text) :]
                text = grown
        is_begun = is_begun or bool(text)


async def _all(pieces: AsyncGenerator[str, None]) -> list[str]:
    async with aclosing(pieces):
        return [piece async for piece in pieces]


async def _chunks(
    pieces: AsyncGenerator[str, None], completion: _Completion, *, has_usage: bool
) -> AsyncGenerator[str, None]:
    """The events of a streamed answer."""
    usage = {"usage": None} if has_usage else {}
    async with aclosing(pieces):
        yield json.dumps(completion.chunk({"role": "assistant", "content": "", "refusal": None}) | usage)
        async for piece in pieces:
            if piece:
                yield json.dumps(completion.chunk({"content": piece}) | usage, ensure_ascii=False)
    yield json.dumps(completion.chunk({}, finish_reason="stop") | usage)
    if has_usage:
        yield json.dumps(completion.last_chunk())
    yield _DONE
