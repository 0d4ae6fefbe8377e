"""The settings of live streams."""

from typing import Annotated, Literal

from pydantic import Field

from whisper_server.config.fields import NoneFromText, Section
from whisper_server.config.leaves import Setting


class VadSettings(Section):
    """How live streams tell speech from silence."""

    enabled: Annotated[
        bool,
        Field(description="Decode only where there is speech."),
        Setting(env=("STT_VAD_ENABLED",)),
    ] = True
    threshold: Annotated[
        float,
        Field(ge=0, le=1, description="Speech probability above which audio is speech."),
        Setting(env=("STT_VAD_THRESHOLD",)),
    ] = 0.5
    min_speech_ms: Annotated[
        int,
        Field(ge=0, le=10_000, description="Shorter speech is ignored, milliseconds."),
        Setting(env=("STT_VAD_MIN_SPEECH_MS",)),
    ] = 250
    min_silence_ms: Annotated[
        int,
        Field(ge=0, le=60_000, description="Silence that ends an utterance, milliseconds."),
        Setting(env=("STT_VAD_MIN_SILENCE_MS",)),
    ] = 500
    neg_threshold: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        NoneFromText,
        Field(
            description="Speech probability below which speech turns to silence; `none` is 0.15 below "
            "`threshold`."
        ),
    ] = None
    prefix_padding_ms: Annotated[
        int,
        Field(
            ge=0, le=5000, description="Audio before the speech that belongs to the utterance, milliseconds."
        ),
    ] = 300
    rms_floor_dbfs: Annotated[
        Annotated[float, Field(ge=-200, le=0)] | None,
        NoneFromText,
        Field(description="Quieter audio is silence whatever it sounds like, dBFS; `none` sets no floor."),
    ] = None
    model_pool_size: Annotated[
        int, Field(ge=0, description="Voice detectors there is room for; 0 takes `streaming.max_sessions`.")
    ] = 0
    model_prewarm: Annotated[int, Field(ge=0, description="Voice detectors made at start.")] = 1
    model_pool_growth_factor: Annotated[
        float,
        Field(
            ge=1,
            le=100,
            description="By how much the room grows when all are taken, up to `streaming.max_sessions`.",
        ),
    ] = 1.5


class StreamingSettings(Section):
    """What live streams may use."""

    max_sessions: Annotated[
        int,
        Field(ge=1, description="Live streams at once."),
        Setting(env=("STT_MAX_SESSIONS",), flags=("--max-sessions",)),
    ] = 100
    partial_interval_ms: Annotated[
        int,
        Field(ge=1, le=60_000, description="Time between partial transcripts, milliseconds."),
        Setting(env=("STT_PARTIAL_INTERVAL_MS",)),
    ] = 300
    max_partial_window_s: Annotated[
        float,
        Field(ge=1, le=30, description="Most audio a partial transcript is made from, seconds."),
        Setting(env=("STT_MAX_PARTIAL_WINDOW_S",)),
    ] = 8.0
    max_utterance_s: Annotated[
        float,
        Field(ge=1, le=86_400, description="A longer utterance is made final, seconds."),
        Setting(env=("STT_MAX_UTTERANCE_S",)),
    ] = 30.0
    max_buffer_ms: Annotated[
        int,
        Field(ge=1, description="Audio of one stream that may wait, milliseconds."),
        Setting(env=("STT_MAX_BUFFER_MS",)),
    ] = 5000
    max_queue_depth: Annotated[
        int,
        Field(ge=1, description="Decodes of live streams that may wait."),
        Setting(env=("STT_MAX_QUEUE_DEPTH",)),
    ] = 20
    max_estimated_server_total_ms: Annotated[
        int,
        Field(ge=1, description="New streams are refused above this estimated delay, milliseconds."),
        Setting(env=("STT_MAX_ESTIMATED_SERVER_TOTAL_MS",)),
    ] = 500
    speculative_finals: Annotated[
        bool,
        Field(description="Begin a final transcript at the first 200 ms of silence, in case it lasts."),
    ] = True
    partial_audio_context: Annotated[
        Literal["full", "auto"],
        Field(description="How much audio partial transcripts look at, as `transcription.audio_context`."),
    ] = "auto"
    overlap_ms: Annotated[
        int,
        Field(
            ge=0,
            le=5000,
            description="Audio decoded on both sides where an utterance is cut for its length, milliseconds.",
        ),
    ] = 500
    session_timeout_s: Annotated[
        Annotated[float, Field(gt=0)] | None,
        NoneFromText,
        Field(description="A live stream that brings no audio for so long ends, seconds; `none` never."),
    ] = 60.0
    max_chunk_ms: Annotated[
        Annotated[int, Field(ge=1)] | None,
        NoneFromText,
        Field(description="Longest audio of one message, milliseconds; `none` sets no limit."),
    ] = None
    max_buffer_bytes: Annotated[
        Annotated[int, Field(ge=1)] | None,
        NoneFromText,
        Field(description="`max_buffer_ms` in bytes; the smaller one counts."),
    ] = None
    max_total_buffer_bytes: Annotated[
        int, Field(ge=1, description="Audio held by all live streams together, bytes.")
    ] = 64 << 20
    memory_timeout_s: Annotated[
        float, Field(ge=0, description="How long a stream waits for room in that before it fails, seconds.")
    ] = 10.0
    max_pending_decodes_per_stream: Annotated[
        int,
        Field(ge=1, description="Final transcripts of one stream that may wait; then it listens no further."),
    ] = 8
    decode_queue_timeout_s: Annotated[
        float, Field(ge=0, description="How long a final transcript waits for room in a full queue, seconds.")
    ] = 10.0
    decode_timeout_s: Annotated[
        Annotated[float, Field(gt=0)] | None,
        NoneFromText,
        Field(
            description="How long a stream that ends waits for the next of its last transcripts, seconds; "
            "`none` for ever."
        ),
    ] = 120.0
    realtime_live_deltas: Annotated[
        bool,
        Field(
            description="Send text over `/v1/realtime` while somebody speaks, though the client did not ask "
            "for that."
        ),
    ] = False
    realtime_session_s: Annotated[
        float, Field(gt=0, description="A session of `/v1/realtime` expires after so long, seconds.")
    ] = 3600.0
    max_unread_events: Annotated[
        int, Field(ge=8, description="Events a client may leave unread; with more its stream is closed.")
    ] = 256
