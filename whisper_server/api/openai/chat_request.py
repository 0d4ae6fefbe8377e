"""A chat completion request: the audio and the text of its messages, and how to answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, BinaryIO, Self

from whisper_server.api.openai.fields import shown
from whisper_server.api.openai.json_body import form_fields, input_audio_data, spool_audio
from whisper_server.core.errors import InvalidRequestError

MAX_PROMPT_CHARS = 4000
"""The end of the text of all messages that becomes the prompt: more than the 223 tokens a Whisper reads."""

_MAX_AUDIO_PARTS = 16

_SYSTEM_ROLES = ("system", "developer")
_OTHER_ROLES = ("assistant", "tool", "function")

_CHAT_FIELDS = frozenset(
    (
        *("messages", "stream", "stream_options", "n", "tools", "tool_choice", "functions", "function_call"),
        *("modalities", "audio", "response_format", "logprobs", "top_logprobs", "include"),
        *("temperature", "timestamp_granularities"),
    )
)
"""What a chat request means otherwise than a transcription request, or what only the latter can show."""


@dataclass(frozen=True, slots=True)
class AudioPart:
    """One recording of the messages.

    Attributes:
        file: as it was sent, at its beginning.
        param: where it stands in the request.
    """

    file: BinaryIO
    param: str


@dataclass(slots=True)
class ChatRequest:
    """What a chat completion request asks for; close it to delete its files.

    Attributes:
        fields: those of the transcription, as a form has them.
        audio: the recordings, in order; at least one.
        is_stream: answer in chunks.
        has_usage: let the last chunk tell the usage.
    """

    fields: list[tuple[str, str]]
    audio: list[AudioPart] = field(default_factory=list)
    is_stream: bool = False
    has_usage: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self.audio:
            part.file.close()


def parse_chat_request(values: dict[str, Any], *, max_file_bytes: int) -> ChatRequest:
    """Check a request and decode its audio. Blocking.

    What is transcribed is the turn that waits for an answer: the user messages after the last one of the
    assistant. Their text and that of all system messages is the prompt, unless the field `prompt` is there.

    Raises:
        InvalidRequestError: a part is malformed or not offered, or there is no audio.
        UploadTooLargeError: a recording is larger than `max_file_bytes`.
    """
    _refuse_not_offered(values)
    content = _Content()
    for index, message in _open_messages(values.get("messages")):
        content.add(message, f"messages[{index}]")
    if not content.audio:
        raise InvalidRequestError(
            "There is no audio to transcribe. This server answers with transcripts: send a user message with "
            "a content part of type 'input_audio'.",
            param="messages",
            code="missing_required_parameter",
        )
    options = {name: value for name, value in values.items() if name not in _CHAT_FIELDS}
    if options.get("prompt") is None:
        options["prompt"] = " ".join(content.texts)[-MAX_PROMPT_CHARS:]
    is_stream = _flag(values, "stream", "stream")
    stream_options = _object(values.get("stream_options") or {}, "stream_options")
    request = ChatRequest(
        form_fields(options),
        is_stream=is_stream,
        has_usage=_flag(stream_options, "include_usage", "stream_options.include_usage"),
    )
    try:
        for base64, param in content.audio:
            file = spool_audio(base64, param, max_file_bytes=max_file_bytes)
            request.audio.append(AudioPart(file, param))
    except BaseException:
        with request:
            raise
    return request


@dataclass(slots=True)
class _Content:
    """What the messages hold: `audio` as (base64, where it stands)."""

    texts: list[str] = field(default_factory=list)
    audio: list[tuple[str, str]] = field(default_factory=list)

    def add(self, message: Mapping[str, Any], param: str) -> None:
        content, param = message.get("content"), f"{param}.content"
        if isinstance(content, str):
            self._add_text(content)
        elif isinstance(content, list):
            for index, part in enumerate(content):
                self._add_part(_object(part, f"{param}[{index}]"), f"{param}[{index}]")
        else:
            raise _invalid(param, "must be a string or an array of content parts")

    def _add_part(self, part: Mapping[str, Any], param: str) -> None:
        match part.get("type"):
            case "text":
                text = part.get("text")
                if not isinstance(text, str):
                    raise _invalid(f"{param}.text", "must be a string")
                self._add_text(text)
            case "input_audio":
                if len(self.audio) == _MAX_AUDIO_PARTS:
                    raise _invalid(param, f"is one recording too many: there may be {_MAX_AUDIO_PARTS}")
                audio_param = f"{param}.input_audio"
                text = input_audio_data(part.get("input_audio"), audio_param)
                self.audio.append((text, f"{audio_param}.data"))
            case other:
                raise _unsupported(
                    f"{param}.type",
                    f"Content parts are of type 'text' or 'input_audio', not {_quoted(other)}.",
                )

    def _add_text(self, text: str) -> None:
        if text.strip():
            self.texts.append(text.strip())


def _open_messages(messages: object) -> list[tuple[int, Mapping[str, Any]]]:
    """The system messages, and the user messages that have no answer yet, with their places."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequestError(
            "'messages' must be an array with at least one message.",
            param="messages",
            code="invalid_value" if messages else "missing_required_parameter",
        )
    found: list[tuple[int, Mapping[str, Any]]] = []
    for index, item in enumerate(messages):
        message = _object(item, f"messages[{index}]")
        role = message.get("role")
        if role == "assistant":
            found = [entry for entry in found if entry[1]["role"] in _SYSTEM_ROLES]
        elif role == "user" or role in _SYSTEM_ROLES:
            found.append((index, message))
        elif role not in _OTHER_ROLES:
            raise _unsupported(
                f"messages[{index}].role",
                f"The role of a message is one of {', '.join(('user', *_SYSTEM_ROLES, *_OTHER_ROLES))}, "
                f"not {_quoted(role)}.",
            )
    return found


def _refuse_not_offered(values: Mapping[str, Any]) -> None:
    for name, is_offered, message in _NOT_OFFERED:
        if not is_offered(values.get(name)):
            raise _unsupported(name, message)


_NOT_OFFERED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("n", lambda value: value in (None, 1), "There is one transcript: 'n' must be 1."),
    ("tools", lambda value: not value, "Transcripts use no tools: leave 'tools' out."),
    ("functions", lambda value: not value, "Transcripts use no functions: leave 'functions' out."),
    (
        "modalities",
        lambda value: value in (None, ["text"]),
        "The answer is text: 'modalities' must be ['text'].",
    ),
    ("audio", lambda value: value is None, "The answer is text: leave 'audio', the voice of an answer, out."),
    ("logprobs", lambda value: not value, "Log-probabilities are not offered here: leave 'logprobs' out."),
    (
        "response_format",
        lambda value: value is None or (isinstance(value, dict) and value.get("type", "text") == "text"),
        "The answer is plain text: 'response_format' must be {'type': 'text'}.",
    ),
)


def _flag(values: Mapping[str, Any], name: str, param: str) -> bool:
    value = values.get(name)
    if not isinstance(value, bool | None):
        raise _invalid(param, "must be true or false")
    return bool(value)


def _object(value: object, param: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(param, "must be an object")
    return value


def _quoted(value: object) -> str:
    return f"'{shown(value)}'" if isinstance(value, str) else "that"


def _invalid(param: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"'{param}' {problem}.", param=param, code="invalid_value")


def _unsupported(param: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param=param, code="unsupported_value")
