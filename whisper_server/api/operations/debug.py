"""`POST /debug/audio-info`: what the server makes of a recording before any model hears it."""

import os
from typing import BinaryIO

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import BaseModel

from whisper_server.api.disconnect import until_disconnect
from whisper_server.api.documentation import operations
from whisper_server.api.openai.json_body import read_body
from whisper_server.api.openai.parsing import max_file_bytes
from whisper_server.api.running import enter
from whisper_server.api.services import ServicesDep
from whisper_server.core.levels import levels
from whisper_server.core.recording import Recording
from whisper_server.core.validators import HEAD_BYTES, sniff_format
from whisper_server.services.audio_decoding import read_facts

router = APIRouter()


class AudioInfo(BaseModel):
    """A file and the audio in it.

    The format is what the first bytes say. The rate, the channels and the bit rate are those of the file;
    the duration and the levels those of the decoded audio, which is mono at 16 kHz. Silence has no level.
    """

    format: str | None
    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    bit_rate_bps: int | None
    duration_s: float
    size_bytes: int
    peak_dbfs: float | None
    rms_dbfs: float | None


@router.post("/debug/audio-info", **operations.AUDIO_INFO)
async def audio_info(request: Request, services: ServicesDep) -> AudioInfo:
    """Describe the audio of an uploaded recording without transcribing it."""
    limit = max_file_bytes(services)
    with (
        enter(request, services) as running,
        await running.run(lambda: read_body(request, max_file_bytes=limit)) as body,
    ):
        file = body.form.required_file()

        async def describe() -> AudioInfo:
            recording = await services.audio_processor.decode(file, on_decoded=running.place.reserve)
            running.place.hold(recording.original_duration_s, work_s=0.0)
            return await to_thread.run_sync(_describe, file, recording)

        return await until_disconnect(request, running, describe)


def _describe(file: BinaryIO, recording: Recording) -> AudioInfo:
    facts, loudness = read_facts(file), levels(recording)
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return AudioInfo(
        format=sniff_format(file.read(HEAD_BYTES)),
        container=facts.container,
        codec=facts.codec,
        sample_rate_hz=facts.rate_hz,
        channels=facts.channels,
        bit_rate_bps=facts.bit_rate_bps,
        duration_s=round(recording.original_duration_s, 3),
        size_bytes=size_bytes,
        peak_dbfs=_rounded(loudness.peak_dbfs),
        rms_dbfs=_rounded(loudness.rms_dbfs),
    )


def _rounded(level_dbfs: float | None) -> float | None:
    return None if level_dbfs is None else round(level_dbfs, 2)
