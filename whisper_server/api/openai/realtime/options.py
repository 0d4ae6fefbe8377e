"""From a session's configuration, and the server's settings, to what a stream is asked for."""

from dataclasses import replace

from whisper_server.api.openai.realtime.config import (
    CLIENT_COMMITS_MODELS,
    LOGPROBS,
    WORDS,
    ConfigDefaults,
    RealtimeConfig,
    SemanticVad,
    ServerVad,
    TurnDetection,
)
from whisper_server.api.streams.options import default_options
from whisper_server.config import Settings
from whisper_server.core.languages import language_code
from whisper_server.core.stream_events import Eagerness, Endpointing, StreamOptions, VoiceOptions

_DETECT = "auto"


def config_defaults(settings: Settings) -> ConfigDefaults:
    """What the operator's settings say of sessions that nobody has configured."""
    vad = settings.vad
    turn_detection = ServerVad(
        threshold=vad.threshold,
        prefix_padding_ms=vad.prefix_padding_ms,
        silence_duration_ms=vad.min_silence_ms,
    )
    return ConfigDefaults(settings.model.name, turn_detection if vad.enabled else None)


def stream_options(config: RealtimeConfig, settings: Settings, *, has_live_deltas: bool) -> StreamOptions:
    """What to ask a stream for.

    Args:
        config: of the session.
        settings: of the server.
        has_live_deltas: text is sent while somebody speaks.

    Raises:
        InvalidRequestError: as `StreamOptions`.
    """
    usual, told, turns = default_options(settings), config.transcription, config.turn_detection
    idle_timeout_ms = turns.idle_timeout_ms if isinstance(turns, ServerVad) else None
    language, languages = _languages(config, usual)
    return replace(
        usual,
        language=language,
        languages=languages,
        prompt=told.prompt or usual.prompt,
        hotwords=", ".join(told.keywords or ()) or usual.hotwords,
        endpointing=Endpointing.MANUAL if turns is None else Endpointing.CONTINUE,
        voice=_voice(usual.voice, turns),
        eagerness=Eagerness(turns.eagerness) if isinstance(turns, SemanticVad) else None,
        partials=has_live_deltas,
        word_timestamps=WORDS in config.include,
        token_logprobs=LOGPROBS in config.include,
        idle_timeout_s=settings.streaming.session_timeout_s,
        silence_timeout_s=None if idle_timeout_ms is None else idle_timeout_ms / 1000,
        # A client may send minutes in one event; they are handed on second by second.
        max_chunk_ms=None,
    )


def wants_live_deltas(config: RealtimeConfig) -> bool:
    """Whether a client asks for text while somebody speaks, as OpenAI's live models give it."""
    told = config.transcription
    return told.delay is not None or told.model.startswith(CLIENT_COMMITS_MODELS)


def _voice(usual: VoiceOptions, turns: TurnDetection | None) -> VoiceOptions:
    if turns is None:
        return usual
    if isinstance(turns, SemanticVad):
        return replace(usual, enabled=True)
    return replace(
        usual,
        enabled=True,
        threshold=turns.threshold,
        min_silence_ms=turns.silence_duration_ms,
        prefix_padding_ms=turns.prefix_padding_ms,
    )


def _languages(config: RealtimeConfig, usual: StreamOptions) -> tuple[str | None, tuple[str, ...]]:
    """The language of the turns, and those that they are held to."""
    told = config.transcription
    if told.language is not None:
        return None if told.language == _DETECT else language_code(told.language), ()
    if told.languages is None:
        return usual.language, usual.languages
    codes = tuple(code for text in told.languages if (code := language_code(text)) is not None)
    return codes[0] if len(codes) == 1 else None, codes
