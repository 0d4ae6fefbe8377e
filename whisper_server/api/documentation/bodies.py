"""Answers that their routes write without a model of their own."""

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetails(BaseModel):
    """What went wrong. `param` names the field at fault, if one is; `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetails


class AudioJsonTranscript(BaseModel):
    """The answer to JSON with the recording in `audio`, unless another format is asked for."""

    text: str
    processing_time: float
    model: str
    format: str


class AssistantMessage(BaseModel):
    """The transcript, as what a chat model says."""

    role: Literal["assistant"]
    content: str
    refusal: None
    annotations: list[dict[str, Any]]


class ChatChoice(BaseModel):
    """The only choice."""

    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: Literal["stop"]


class PromptTokenDetails(BaseModel):
    """What the prompt's tokens were."""

    audio_tokens: int
    cached_tokens: int


class ChatUsage(BaseModel):
    """Tokens, counted as in the stream of a transcription."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokenDetails


class ChatCompletion(BaseModel):
    """A transcript as the answer in a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


class ChatDelta(BaseModel):
    """What a chunk adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChunkChoice(BaseModel):
    """The only choice of a chunk; none is in the chunk with the usage."""

    index: int
    delta: ChatDelta
    logprobs: None
    finish_reason: Literal["stop"] | None


class ChatCompletionChunk(BaseModel):
    """An event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: ChatUsage | None = None
