"""Every fault the server can name, as one tree.

    WhisperServerError
    ├── ConfigurationError            the operator must change a setting; the server does not start
    ├── InvalidRequestError           the client must change the request
    │   ├── UnsupportedByEngineError
    │   ├── InvalidAudioError         the upload cannot be used as audio
    │   │   ├── EmptyAudioError
    │   │   ├── UnsupportedAudioFormatError
    │   │   ├── NoAudioStreamError
    │   │   └── AudioTooLongError
    │   ├── SessionExistsError        a live session of this name is running
    │   ├── SessionEndedError         the live session takes no more
    │   ├── EmptyCommitError          there is nothing to commit
    │   └── ChunkTooLongError         one message with too much audio
    ├── MissingApiKeyError
    ├── InvalidApiKeyError
    ├── HostNotAllowedError
    ├── OriginNotAllowedError
    ├── UploadTooLargeError
    ├── UploadStalledError            the client stopped sending in the middle of its request
    ├── ModelNotFoundError            no such model, here or at the hub
    ├── ModelUnavailableError         it exists but cannot be had now; trying again may help
    │   ├── ModelAccessDeniedError
    │   ├── ModelDownloadError
    │   └── ModelLoadError
    ├── ServerBusyError
    │   ├── ServerDrainingError       it stops, and takes no more requests
    │   ├── TooManySessionsError      of live streams
    │   ├── VoiceDetectorsExhaustedError
    │   ├── QueueFullError            too many decodes of live streams wait
    │   ├── QueueCongestedError       a live stream would lag too far behind
    │   └── AudioMemoryFullError      live streams hold too much audio
    ├── RequestCancelledError         somebody called the request off
    ├── DeadlineExceededError         the request took longer than it may
    │   └── SessionTimeoutError       no audio came for too long
    ├── UnknownSessionError           no live session of this name is open
    ├── InvalidSessionTokenError      the message lacks the token of its live session
    ├── SlowReaderError               the client does not read what the session tells it
    ├── AdminError                    of the admin API
    │   ├── AdminDisabledError
    │   ├── InvalidAdminTokenError
    │   ├── ModelAlreadyLoadedError
    │   ├── AdminModelError           the model is not there, or is the default
    │   └── ModelPathNotAllowedError
    └── EngineError                   inference failed
        ├── EngineOutOfMemoryError
        ├── EngineCrashedError        the process that ran the model died, twice
        └── EngineTimeoutError        a call to the model did not return

`message` is written for the client: no paths, secrets or exception texts. The cause is chained and logged.
`api/error_table.py` gives each class its statuses and codes.
"""

_MAX_CAUSES = 4
_MAX_CAUSE_CHARS = 300


class WhisperServerError(Exception):
    """A fault with a message for whoever asked.

    Attributes:
        message: one or two sentences for the client.
        param: the request field at fault, if one is.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def causes(self) -> str:
        """What led to it, in one line for the log: the message keeps that from the client."""
        parts: list[str] = []
        cause = self.__cause__
        while cause is not None and len(parts) < _MAX_CAUSES:
            parts.append(" ".join(f"{type(cause).__name__}: {cause}".split())[:_MAX_CAUSE_CHARS])
            cause = cause.__cause__ or cause.__context__
        return " <- ".join(parts)


class ConfigurationError(WhisperServerError):
    """A setting is wrong; the message says which, where it came from, and what to set."""


class InvalidRequestError(WhisperServerError):
    """A field is missing, malformed or out of range.

    Attributes:
        code: a word for programs, such as `unsupported_value`; None where the type says enough.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class UnsupportedByEngineError(InvalidRequestError):
    """The engine behind the model cannot do this; the message names both."""


class InvalidAudioError(InvalidRequestError):
    """The upload is in a known format but damaged beyond use."""


class EmptyAudioError(InvalidAudioError):
    """There is not one sample to transcribe."""


class UnsupportedAudioFormatError(InvalidAudioError):
    """The content is in none of the formats the server reads."""


class NoAudioStreamError(InvalidAudioError):
    """A media file without sound."""


class AudioTooLongError(InvalidAudioError):
    """The recording is longer than the server accepts."""


class SessionExistsError(InvalidRequestError):
    """A live session with this id is running."""


class SessionEndedError(InvalidRequestError):
    """The live session has ended or is ending; it takes no more audio and no commands."""


class EmptyCommitError(InvalidRequestError):
    """There is less audio than a commit needs: 100 ms."""


class ChunkTooLongError(InvalidRequestError):
    """One message brought more audio than it may."""


class MissingApiKeyError(WhisperServerError):
    """The server wants an API key, and the request has none."""


class InvalidApiKeyError(WhisperServerError):
    """The request has an API key that is not one of the server's."""


class HostNotAllowedError(WhisperServerError):
    """The server does not answer to the host name of the request."""


class OriginNotAllowedError(WhisperServerError):
    """Pages of this origin may not use the server."""


class UploadStalledError(WhisperServerError):
    """The rest of the request body did not come."""


class UploadTooLargeError(WhisperServerError):
    """The request body is larger than the server accepts."""


class ModelNotFoundError(WhisperServerError):
    """No model goes by this name, or it may not be used."""


class ModelUnavailableError(WhisperServerError):
    """The model exists but cannot be had now."""


class ModelAccessDeniedError(ModelUnavailableError):
    """The hub wants a token, or the token may not read the model."""


class ModelDownloadError(ModelUnavailableError):
    """The download failed; the next request tries again.

    Attributes:
        is_retryable: whether trying again soon may help.
    """

    def __init__(self, message: str, *, is_retryable: bool = True) -> None:
        super().__init__(message)
        self.is_retryable = is_retryable


class ModelLoadError(ModelUnavailableError):
    """The files are here but do not make a working model."""


class ServerBusyError(WhisperServerError):
    """Too much is waiting already.

    Attributes:
        retry_after_s: when to come back, seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerDrainingError(ServerBusyError):
    """The server is stopping and finishes what it has."""


class TooManySessionsError(ServerBusyError):
    """As many live sessions run as the server allows."""


class VoiceDetectorsExhaustedError(ServerBusyError):
    """Every voice detector is in use by a live session."""


class QueueFullError(ServerBusyError):
    """As many decodes of live sessions wait as the server allows."""


class QueueCongestedError(ServerBusyError):
    """A new live session would wait too long for its transcripts."""


class AudioMemoryFullError(ServerBusyError):
    """Live sessions hold as much audio as the server allows."""


class RequestCancelledError(WhisperServerError):
    """The request was called off while it waited or ran."""


class DeadlineExceededError(WhisperServerError):
    """The request has used up the time it may take."""


class SessionTimeoutError(DeadlineExceededError):
    """A live session received no audio for too long."""


class UnknownSessionError(WhisperServerError):
    """There is no live session of this id to stream to."""


class InvalidSessionTokenError(WhisperServerError):
    """A message of a live session does not bring the token that was issued for it."""


class SlowReaderError(WhisperServerError):
    """The client of a live session does not read its transcripts."""


class AdminError(WhisperServerError):
    """A fault of the admin API's own."""


class AdminDisabledError(AdminError):
    """The server does not serve the admin API."""


class InvalidAdminTokenError(AdminError):
    """The request does not bring the admin token."""


class ModelAlreadyLoadedError(AdminError):
    """The model that is to be loaded is loaded."""


class AdminModelError(AdminError):
    """The model does not exist, is not loaded, or is the default and so not unloaded."""


class ModelPathNotAllowedError(AdminError):
    """The server may not load models from this path."""


class EngineError(WhisperServerError):
    """Inference failed for a reason of the engine's own."""


class EngineOutOfMemoryError(EngineError):
    """The device has no memory for this."""


class EngineCrashedError(EngineError):
    """The process that ran the model has died."""


class EngineTimeoutError(EngineError):
    """A call to the model did not return in time."""
