"""How every fault looks on each wire: over HTTP, over gRPC, and on `/ws/stt`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from whisper_server.core import errors

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


@dataclass(frozen=True, slots=True)
class WireError:
    """How one class of fault looks.

    Attributes:
        status: HTTP status.
        type: OpenAI's `type`.
        code: OpenAI's `code`, where the fault itself brings none.
        should_retry: the `x-should-retry` header, which overrides what clients do by status; None leaves it.
        err: the code of gRPC and of the admin API; None takes that of the class above.
        stt: the code of `/ws/stt`; None takes that of the class above.
    """

    status: int
    type: str
    code: str | None
    should_retry: bool | None = None
    err: str | None = None
    stt: str | None = None


@dataclass(frozen=True, slots=True)
class ErrCode:
    """A code of gRPC.

    Attributes:
        status: name of the gRPC status.
        meaning: what it stands for.
    """

    status: str
    meaning: str


WIRE_ERRORS: dict[type[errors.WhisperServerError], WireError] = {
    errors.WhisperServerError: WireError(
        500, SERVER_ERROR, "internal_error", should_retry=False, err="ERR3002", stt="INTERNAL_ERROR"
    ),
    errors.ConfigurationError: WireError(500, SERVER_ERROR, "configuration_error", should_retry=False),
    errors.InvalidRequestError: WireError(400, INVALID_REQUEST, None, err="ERR1010", stt="INVALID_MESSAGE"),
    errors.UnsupportedByEngineError: WireError(400, INVALID_REQUEST, "unsupported_value"),
    errors.InvalidAudioError: WireError(400, INVALID_REQUEST, "invalid_audio", err="ERR1013"),
    errors.EmptyAudioError: WireError(400, INVALID_REQUEST, "empty_audio"),
    errors.UnsupportedAudioFormatError: WireError(400, INVALID_REQUEST, "unsupported_format"),
    errors.NoAudioStreamError: WireError(400, INVALID_REQUEST, "no_audio_stream"),
    errors.AudioTooLongError: WireError(400, INVALID_REQUEST, "audio_too_long"),
    errors.SessionExistsError: WireError(
        400, INVALID_REQUEST, "session_exists", err="ERR1002", stt="SESSION_EXISTS"
    ),
    errors.SessionEndedError: WireError(400, INVALID_REQUEST, "session_ended"),
    errors.EmptyCommitError: WireError(400, INVALID_REQUEST, "input_audio_buffer_commit_empty"),
    errors.ChunkTooLongError: WireError(400, INVALID_REQUEST, "chunk_too_long", err="ERR1007"),
    errors.MissingApiKeyError: WireError(401, INVALID_REQUEST, "missing_api_key", err="ERR1009"),
    errors.InvalidApiKeyError: WireError(401, INVALID_REQUEST, "invalid_api_key", err="ERR1009"),
    errors.HostNotAllowedError: WireError(400, INVALID_REQUEST, "invalid_host"),
    errors.OriginNotAllowedError: WireError(403, INVALID_REQUEST, "origin_not_allowed"),
    errors.UploadStalledError: WireError(408, INVALID_REQUEST, "upload_stalled", err="ERR1006"),
    errors.UploadTooLargeError: WireError(413, INVALID_REQUEST, "file_too_large", err="ERR1007"),
    errors.ModelNotFoundError: WireError(
        404, INVALID_REQUEST, "model_not_found", err="ERR1014", stt="INVALID_MESSAGE"
    ),
    errors.ModelUnavailableError: WireError(503, SERVER_ERROR, "model_unavailable", err="ERR2003"),
    errors.ModelAccessDeniedError: WireError(503, SERVER_ERROR, "model_access_denied", should_retry=False),
    errors.ModelDownloadError: WireError(503, SERVER_ERROR, "model_download_failed"),
    errors.ModelLoadError: WireError(503, SERVER_ERROR, "model_load_failed", should_retry=False),
    errors.ServerBusyError: WireError(
        429, "rate_limit_error", "server_busy", should_retry=True, err="ERR1011", stt="QUEUE_CONGESTION"
    ),
    errors.ServerDrainingError: WireError(
        503, SERVER_ERROR, "server_draining", should_retry=True, err="ERR1012", stt="MAX_SESSIONS_REACHED"
    ),
    errors.TooManySessionsError: WireError(
        429,
        "rate_limit_error",
        "too_many_sessions",
        should_retry=True,
        err="ERR1008",
        stt="MAX_SESSIONS_REACHED",
    ),
    errors.VoiceDetectorsExhaustedError: WireError(
        429,
        "rate_limit_error",
        "voice_detectors_exhausted",
        should_retry=True,
        err="ERR1008",
        stt="MAX_SESSIONS_REACHED",
    ),
    errors.QueueFullError: WireError(
        429, "rate_limit_error", "queue_full", should_retry=True, stt="QUEUE_FULL"
    ),
    errors.QueueCongestedError: WireError(429, "rate_limit_error", "queue_congested", should_retry=True),
    errors.AudioMemoryFullError: WireError(429, "rate_limit_error", "audio_memory_full", should_retry=True),
    errors.RequestCancelledError: WireError(
        409, INVALID_REQUEST, "request_cancelled", should_retry=False, err="ERR1015"
    ),
    errors.DeadlineExceededError: WireError(
        504, SERVER_ERROR, "deadline_exceeded", should_retry=False, err="ERR1016"
    ),
    errors.SessionTimeoutError: WireError(
        408, INVALID_REQUEST, "session_timeout", should_retry=False, err="ERR1006"
    ),
    errors.UnknownSessionError: WireError(
        401, INVALID_REQUEST, "unknown_session", should_retry=False, err="ERR1004"
    ),
    errors.InvalidSessionTokenError: WireError(
        403, INVALID_REQUEST, "invalid_session_token", should_retry=False, err="ERR1005"
    ),
    errors.SlowReaderError: WireError(
        408, INVALID_REQUEST, "reader_too_slow", should_retry=False, err="ERR1017"
    ),
    errors.AdminError: WireError(500, SERVER_ERROR, "admin_error", should_retry=False),
    errors.AdminDisabledError: WireError(
        501, SERVER_ERROR, "admin_disabled", should_retry=False, err="ERR4001"
    ),
    errors.ModelAlreadyLoadedError: WireError(
        409, INVALID_REQUEST, "model_already_loaded", should_retry=False, err="ERR4002"
    ),
    errors.AdminModelError: WireError(400, INVALID_REQUEST, "admin_model", err="ERR4003"),
    errors.InvalidAdminTokenError: WireError(401, INVALID_REQUEST, "invalid_admin_token", err="ERR4004"),
    errors.ModelPathNotAllowedError: WireError(403, INVALID_REQUEST, "model_path_not_allowed", err="ERR4005"),
    errors.EngineError: WireError(
        500, SERVER_ERROR, "inference_failed", err="ERR2002", stt="INFERENCE_ERROR"
    ),
    errors.EngineOutOfMemoryError: WireError(503, SERVER_ERROR, "engine_out_of_memory"),
    errors.EngineCrashedError: WireError(503, SERVER_ERROR, "engine_crashed"),
    errors.EngineTimeoutError: WireError(503, SERVER_ERROR, "engine_timeout", err="ERR2001"),
}
"""One row for each class of `core.errors`; a test walks the tree."""


ERR_CODES: Mapping[str, ErrCode] = MappingProxyType(
    {
        "ERR1001": ErrCode("INVALID_ARGUMENT", "`session_id` is missing or wrong in `CreateSession`"),
        "ERR1002": ErrCode("ALREADY_EXISTS", "the session is active already"),
        "ERR1003": ErrCode("INVALID_ARGUMENT", "`vad_threshold` is out of range"),
        "ERR1004": ErrCode("UNAUTHENTICATED", "unknown or missing `session_id`"),
        "ERR1005": ErrCode("PERMISSION_DENIED", "invalid session token"),
        "ERR1006": ErrCode("DEADLINE_EXCEEDED", "no audio came for too long"),
        "ERR1007": ErrCode("INVALID_ARGUMENT", "the audio of one message exceeds the maximum"),
        "ERR1008": ErrCode("RESOURCE_EXHAUSTED", "as many sessions, or voice detectors, as there may be"),
        "ERR1009": ErrCode("UNAUTHENTICATED", "an API key is required, and is missing or wrong"),
        "ERR1010": ErrCode("INVALID_ARGUMENT", "a decode option or another field is wrong"),
        "ERR1011": ErrCode("RESOURCE_EXHAUSTED", "too much is waiting; see `RetryInfo`"),
        "ERR1012": ErrCode("UNAVAILABLE", "the server is stopping"),
        "ERR1013": ErrCode("INVALID_ARGUMENT", "the recording cannot be used as audio"),
        "ERR1014": ErrCode("NOT_FOUND", "no model goes by this name, or it may not be used"),
        "ERR1015": ErrCode("CANCELLED", "the call was called off on the server"),
        "ERR1016": ErrCode("DEADLINE_EXCEEDED", "the call took longer than it may"),
        "ERR1017": ErrCode("RESOURCE_EXHAUSTED", "the client does not read its transcripts"),
        "ERR2001": ErrCode("INTERNAL", "a decode did not end in time"),
        "ERR2002": ErrCode("INTERNAL", "a decode failed"),
        "ERR2003": ErrCode("UNAVAILABLE", "the model cannot be had now"),
        "ERR3001": ErrCode("UNKNOWN", "unexpected error in `CreateSession`"),
        "ERR3002": ErrCode("UNKNOWN", "unexpected error in another call"),
    }
)
"""Every code of gRPC."""

ADMIN_CODES: Mapping[str, str] = MappingProxyType(
    {
        "ERR4001": "the admin API is not enabled",
        "ERR4002": "the model is loaded already",
        "ERR4003": "no such model, or it is not loaded, or it is the default and so not unloaded",
        "ERR4004": "the admin token is missing or wrong",
        "ERR4005": "`model_path` is not allowed",
    }
)
"""The codes that only the admin API has, over HTTP, with their meaning."""

_ERR_OF_PARAMS = MappingProxyType({"session_id": "ERR1001", "vad_threshold": "ERR1003"})
"""Fields whose faults have a code of their own."""


def err_code(error: errors.WhisperServerError) -> str:
    """The code of a fault over gRPC and from the admin API."""
    rows = _rows_upwards(error)
    code = next(row.err for row in rows if row.err is not None)
    return _ERR_OF_PARAMS.get(error.param or "", code) if code == "ERR1010" else code


def stt_code(error: errors.WhisperServerError) -> str:
    """The code of a fault on `/ws/stt`."""
    return next(row.stt for row in _rows_upwards(error) if row.stt is not None)


def _rows_upwards(error: errors.WhisperServerError) -> Iterator[WireError]:
    """The row of its class, and of those above it: the topmost has every code."""
    return (WIRE_ERRORS[kind] for kind in type(error).__mro__ if kind in WIRE_ERRORS)
