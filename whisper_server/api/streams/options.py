"""From what a client wishes, and the settings, to what a live stream is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from anyio import to_thread
from starlette.requests import HTTPConnection

from whisper_server.api.openai.fields import shown
from whisper_server.api.security import api_key_name
from whisper_server.api.services import Services
from whisper_server.config import DecodeProfile, Settings
from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.languages import language_code
from whisper_server.core.scheduling import Caller
from whisper_server.core.stream_events import Eagerness, Endpointing, StreamOptions, VoiceOptions
from whisper_server.core.types import AudioContext, DecodeOptions, Task
from whisper_server.services.streaming import LiveStream

MAX_ID_CHARS = 128
MAX_TEXT_CHARS = 10_000
"""Of a prompt, and of hotwords; a model takes far less."""

MAX_VOICE_MS = 10_000
MAX_SILENCE_MS = 60_000
MAX_PADDING_MS = 5_000
MAX_INTERVAL_MS = 60_000
LEAST_UTTERANCE_S = 1.0
MOST_UTTERANCE_S = 3600.0

SEGMENT_PREFIX = "seg-"

_DETECT = ("", "auto", "none")


@dataclass(frozen=True, slots=True)
class StreamWishes:
    """What a client says; None leaves it to the settings.

    Attributes:
        language: a code, one with a region, a name, or `auto`.
        model: name of the model.
        task: transcribe or translate.
        prompt: text that went before.
        hotwords: words to expect.
        decode_profile: of the finals.
        endpointing: what ends an utterance.
        eagerness: how soon an utterance ends that may go on.
        vad_enabled: tell speech from silence.
        vad_threshold: speech starts at this probability.
        min_speech_ms: shorter speech is no utterance.
        min_silence_ms: silence that ends an utterance.
        prefix_padding_ms: audio before the speech that belongs to it.
        partials: send partial transcripts.
        partial_interval_ms: least time between two.
        word_timestamps: finals bring words.
        max_utterance_s: a longer utterance is made final.
    """

    language: str | None = None
    model: str | None = None
    task: Task | None = None
    prompt: str | None = None
    hotwords: str | None = None
    decode_profile: str | None = None
    endpointing: Endpointing | None = None
    eagerness: Eagerness | None = None
    vad_enabled: bool | None = None
    vad_threshold: float | None = None
    min_speech_ms: int | None = None
    min_silence_ms: int | None = None
    prefix_padding_ms: int | None = None
    partials: bool | None = None
    partial_interval_ms: int | None = None
    word_timestamps: bool | None = None
    max_utterance_s: float | None = None


def stream_options(wishes: StreamWishes, settings: Settings, *, language_param: str) -> StreamOptions:
    """The options of a stream.

    Args:
        wishes: of the client.
        settings: what counts where it wishes nothing.
        language_param: what the language is called there, for errors.

    Raises:
        InvalidRequestError: the language or the decode profile does not exist.
    """
    options = default_options(settings)
    if wishes.decode_profile is not None:
        profile = _profile(settings.decode_profiles, wishes.decode_profile)
        options = replace(options, final_decode=profile.apply(DecodeOptions()))
    if wishes.language is not None:
        # What a client says of the language counts before the languages it is held to.
        options = replace(options, language=_language(wishes.language, language_param), languages=())
    return replace(
        options,
        voice=replace(options.voice, **_given(wishes, _VOICE_FIELDS)),
        **_given(wishes, _OPTION_FIELDS),
    )


def default_options(settings: Settings) -> StreamOptions:
    """What the settings say of live streams."""
    model, vad, streaming = settings.model, settings.vad, settings.streaming
    return StreamOptions(
        language=model.language,
        languages=() if model.language else model.languages or (),
        keep_language=model.language_fix,
        task=Task(model.task),
        prompt=model.prompt,
        hotwords=", ".join(model.hotwords),
        voice=VoiceOptions(
            enabled=vad.enabled,
            threshold=vad.threshold,
            neg_threshold=vad.neg_threshold,
            min_speech_ms=vad.min_speech_ms,
            min_silence_ms=vad.min_silence_ms,
            prefix_padding_ms=vad.prefix_padding_ms,
            rms_floor_dbfs=vad.rms_floor_dbfs,
        ),
        partial_interval_ms=streaming.partial_interval_ms,
        max_partial_window_s=streaming.max_partial_window_s,
        max_utterance_s=streaming.max_utterance_s,
        overlap_ms=streaming.overlap_ms,
        partial_audio_context=AudioContext(streaming.partial_audio_context),
        speculative_finals=streaming.speculative_finals,
        idle_timeout_s=streaming.session_timeout_s,
        max_chunk_ms=streaming.max_chunk_ms,
        final_decode=settings.decode_profiles[model.default_decode_profile].apply(DecodeOptions()),
    )


def services_of(connection: HTTPConnection) -> Services:
    """The services of the app that a WebSocket or a request came to."""
    return cast("Services", connection.state.services)


def caller_of(connection: HTTPConnection, services: Services) -> Caller:
    """For whom a stream is decoded: the API key's name, or the address."""
    address = connection.client.host if connection.client else ""
    return services.admission.caller(api_key_name(connection) or address)


async def open_stream(
    options: StreamOptions,
    model: str | None,
    connection: HTTPConnection,
    services: Services,
    session_id: str | None,
) -> LiveStream:
    """A live stream; errors as `ModelCatalog.resolve` and `StreamService.open`."""
    # A name may be a path, which is looked up on disk.
    reference = await to_thread.run_sync(services.catalog.resolve, model or "")
    return await services.streams.open(
        options,
        reference,
        caller=caller_of(connection, services),
        session_id=session_id,
        utterance_prefix=SEGMENT_PREFIX,
    )


_VOICE_FIELDS = {
    "vad_enabled": "enabled",
    "vad_threshold": "threshold",
    "min_speech_ms": "min_speech_ms",
    "min_silence_ms": "min_silence_ms",
    "prefix_padding_ms": "prefix_padding_ms",
}

_OPTION_FIELDS = {
    name: name
    for name in (
        *("task", "prompt", "hotwords", "endpointing", "eagerness", "partials", "partial_interval_ms"),
        *("word_timestamps", "max_utterance_s"),
    )
}


def _given(wishes: StreamWishes, fields: Mapping[str, str]) -> dict[str, Any]:
    values = {own: getattr(wishes, name) for name, own in fields.items()}
    return {name: value for name, value in values.items() if value is not None}


def _language(text: str, param: str) -> str | None:
    if text.strip().lower() in _DETECT:
        return None
    code = language_code(text)
    if code is None:
        raise InvalidRequestError(
            f"'{param}' knows no language '{shown(text)}'. Send a code such as en or pt-BR, or auto.",
            param=param,
            code="unsupported_language",
        )
    return code


def _profile(profiles: Mapping[str, DecodeProfile], name: str) -> DecodeProfile:
    if name not in profiles:
        raise InvalidRequestError(
            f"'decode_profile' does not support '{shown(name)}'. Supported values: {', '.join(profiles)}.",
            param="decode_profile",
            code="unsupported_value",
        )
    return profiles[name]
