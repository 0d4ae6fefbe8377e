"""`POST /v1/audio/languages`: which language a recording is in."""

from fastapi import APIRouter, Request
from pydantic import BaseModel

from whisper_server.api.disconnect import until_disconnect
from whisper_server.api.documentation import operations
from whisper_server.api.openai.fields import Fields
from whisper_server.api.openai.json_body import read_body
from whisper_server.api.openai.parsing import decode_file, max_file_bytes, parse_fields
from whisper_server.api.openai.responses import DurationUsage
from whisper_server.api.running import enter
from whisper_server.api.services import ServicesDep
from whisper_server.core.languages import LANGUAGES, language_name
from whisper_server.core.types import MAX_WINDOW_S, LanguageProbabilities

router = APIRouter()

_DEFAULT_TOP_K = 5


class RankedLanguage(BaseModel):
    """A language, by ISO 639-1 code and lower-case English name, and how likely it is."""

    code: str
    name: str
    probability: float


class LanguageRanking(BaseModel):
    """The languages of a recording, most likely first. Where nobody speaks, there is none."""

    language: str | None
    language_name: str | None
    probability: float | None
    languages: list[RankedLanguage]
    duration: float
    usage: DurationUsage


@router.post("/audio/languages", **operations.LANGUAGES)
async def detect_language(request: Request, services: ServicesDep) -> LanguageRanking:
    """Tell the language of the first 30 seconds of speech in an uploaded recording."""
    limit = max_file_bytes(services)
    with (
        enter(request, services) as running,
        await running.run(lambda: read_body(request, max_file_bytes=limit)) as body,
    ):
        file, fields = body.form.required_file(), Fields(body.form.fields)
        top_k = fields.integer("top_k", 1, len(LANGUAGES)) or _DEFAULT_TOP_K
        parsed = await parse_fields(fields, services, running)

        async def rank() -> LanguageRanking:
            recording = await decode_file(file, parsed, services, running, max_work_s=MAX_WINDOW_S)
            ranking = await services.transcriber.rank_languages(recording, parsed.transcription)
            return _answer(ranking[:top_k], recording.original_duration_s)

        return await until_disconnect(request, running, rank)


def _answer(ranking: LanguageProbabilities, duration_s: float) -> LanguageRanking:
    languages = [
        RankedLanguage(code=code, name=language_name(code), probability=round(probability, 6))
        for code, probability in ranking
    ]
    best = languages[0] if languages else None
    return LanguageRanking(
        language=best.code if best else None,
        language_name=best.name if best else None,
        probability=best.probability if best else None,
        languages=languages,
        duration=round(duration_s, 3),
        usage=DurationUsage(seconds=round(duration_s, 3)),
    )
