"""What a live stream needs of an archive that records it, and an archive that records nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from whisper_server.core.stream_events import StreamEvent


@dataclass(frozen=True, slots=True)
class RecordedSession:
    """Whose recording it is.

    Attributes:
        id: of the session, as the client chose it.
        client: the name of the API key, or the address; never a key.
        model: id of the model that makes the finals.
        language: ISO 639-1 code that was asked for; None where it is detected.
        attributes: what the client said of the session.
    """

    id: str
    client: str
    model: str
    language: str | None
    attributes: Mapping[str, str] = field(default_factory=dict)


class Recorder(Protocol):
    """Records one session. For the event loop: every method returns at once and never fails."""

    def hear(self, pcm: bytes | bytearray | memoryview) -> None:
        """Whole samples that the session took: 16 kHz mono, signed 16-bit little-endian."""

    def tell(self, event: StreamEvent) -> None:
        """What the session tells. `SessionEnded` is the last call."""


class Archive(Protocol):
    """Makes recorders."""

    def begin(self, session: RecordedSession) -> Recorder:
        """Record a session from now on. Returns at once and never fails."""


class _NoRecorder:
    def hear(self, pcm: bytes | bytearray | memoryview) -> None:
        """Nothing."""

    def tell(self, event: StreamEvent) -> None:
        """Nothing."""


class NoArchive:
    """Records nothing."""

    def begin(self, session: RecordedSession) -> Recorder:
        """A recorder that does nothing."""
        return NO_RECORDER


NO_RECORDER: Recorder = _NoRecorder()
