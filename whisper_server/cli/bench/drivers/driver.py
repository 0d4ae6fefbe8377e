"""What a load test needs of a door, and what all doors are asked for."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

from whisper_server.cli.bench.session import SessionTrace
from whisper_server.core.errors import ConfigurationError

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and how to come in.

    Attributes:
        target: a URL, or what gRPC connects to.
        api_key: None brings none.
        is_encrypted: gRPC uses TLS; a URL says that itself.
        ca_path: certificates of the authorities to trust; None trusts the system's.
        cert_path: the client's certificate chain, for servers that want one; None has none.
        key_path: its private key; None where `cert_path` has it too.
    """

    target: str
    api_key: str | None = None
    is_encrypted: bool = False
    ca_path: Path | None = None
    cert_path: Path | None = None
    key_path: Path | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What every session asks for; None leaves it to the server. Doors ignore what they do not have.

    Attributes:
        vad_mode: `continue`, `auto` or `manual`.
        vad_silence_s: silence that ends an utterance.
        vad_threshold: probability at which speech begins.
        language: code, name or `auto`.
        task: `transcribe` or `translate`.
        model: its name.
        decode_profile: its name.
        attributes: for logs and recordings.
        has_token: every message is to bring a token.
        delay: of live text at `/v1/realtime`, in OpenAI's words.
    """

    vad_mode: str = "continue"
    vad_silence_s: float | None = None
    vad_threshold: float | None = None
    language: str | None = None
    task: str | None = None
    model: str | None = None
    decode_profile: str | None = None
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    has_token: bool = False
    delay: str | None = None

    @property
    def vad_silence_ms(self) -> int | None:
        """The silence in milliseconds."""
        return None if self.vad_silence_s is None else round(self.vad_silence_s * 1000)


class Channel(Protocol):
    """A connection, on which sessions run one after the other."""

    async def run_session(self, trace: SessionTrace) -> None:
        """Run a session to its end. When it is cancelled, the session is called off at the server too.

        Args:
            trace: notes what happens. A failure after which the session went on is noted there as well.

        Raises:
            SessionFailedError: it broke off; the channel can be used for the next session.
        """


class Driver(Protocol):
    """Speaks to one door of one server."""

    @property
    def door(self) -> str:
        """Its name, for people."""

    async def check(self) -> None:
        """See that somebody is there.

        Raises:
            ConfigurationError: nobody is, or nobody who knows this door or takes this key.
        """

    def channel(self) -> AbstractAsyncContextManager[Channel]:
        """A connection of its own, which is closed when the block ends. It is made with the first session."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast audio is sent: in real time a chunk leaves when its last sample is spoken.

    Attributes:
        chunk_s: length of a chunk; None sends as fast as the server takes it.
        audio_s: length of all of them.
    """

    chunk_s: float | None
    audio_s: float


async def send_audio(
    messages: Sequence[Message], send: Callable[[Message], Awaitable[object]], trace: SessionTrace, pace: Pace
) -> None:
    """Send prepared messages, one for each chunk."""
    begin_s = time.perf_counter()
    trace.begin_audio()
    for number, message in enumerate(messages, 1):
        if pace.chunk_s is None:
            await asyncio.sleep(0)  # sending need not wait, and other channels want to read
        else:
            due_s = begin_s + min(number * pace.chunk_s, pace.audio_s)
            await asyncio.sleep(due_s - time.perf_counter())
        await send(message)
    trace.end_audio()


async def call_off(task: "asyncio.Task[None]") -> None:
    """Cancel a task that sends, and wait for its end. What it raises, the receiving side tells better."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


def read_file(path: Path, flag: str) -> bytes:
    """The content of a file that a flag names.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{flag} '{path}' cannot be read: {error.strerror or type(error).__name__}."
        ) from error
