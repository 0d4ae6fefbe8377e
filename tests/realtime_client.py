"""A server with `/v1/realtime` that hears made-up speech, and a client that speaks the raw protocol."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, get_args

from fastapi import FastAPI
from openai.types.realtime import RealtimeServerEvent
from pydantic import BaseModel
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from tests.live_server import make_settings, running_app
from tests.live_speech import HearingEngine, PerfectDetector
from whisper_server.api import ephemeral_keys, middleware
from whisper_server.api.ephemeral_keys import EphemeralKeys
from whisper_server.api.openai import client_secrets
from whisper_server.api.openai.realtime.routes import new_router
from whisper_server.api.openai.realtime.session import RealtimeLimits
from whisper_server.bootstrap import open_services
from whisper_server.core.types import Pcm16
from whisper_server.services.streaming import StreamLimits, StreamService
from whisper_server.services.voice_detectors import ReusableVoiceDetector, VoiceDetectorPool

Event = dict[str, Any]

_SDK_TYPES: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(RealtimeServerEvent)[0])
    if "type" in kind.model_fields
}
WAIT_S = 30.0


@contextmanager
def realtime_server(
    engine: HearingEngine | None = None,
    *,
    limits: RealtimeLimits | None = None,
    stream_limits: StreamLimits | None = None,
    new_detector: Callable[[], ReusableVoiceDetector] = PerfectDetector,
    keys: EphemeralKeys | None = None,
    **sections: Any,
) -> Iterator[str]:
    """Serve until the block ends; yields the URL of the API, with `/v1`."""
    settings = make_settings(**sections)
    engines = None if engine is None else {"faster-whisper": lambda _folder, _compute: engine}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with (
            open_services(settings, engines=engines) as services,
            StreamService(
                services.manager, services.scheduler, VoiceDetectorPool(new_detector), stream_limits
            ) as streams,
        ):
            yield {"services": replace(services, streams=streams)}

    app = FastAPI(lifespan=lifespan)
    ephemeral_keys.install(app.state, keys or EphemeralKeys())
    middleware.install(app, settings)
    for prefix in ("/v1", ""):
        app.include_router(new_router(limits), prefix=prefix)
        app.include_router(client_secrets.router, prefix=prefix)
    with running_app(app) as url:
        yield f"{url}/v1"


class Client:
    """One connection. Every event it reads is checked against the SDK's types."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, type_: str, **fields: Any) -> None:
        self.connection.send(json.dumps({"type": type_, **fields}))

    def speak(self, pcm: Pcm16, *, chunk_samples: int = 1600) -> None:
        for start in range(0, len(pcm), chunk_samples):
            self.append(pcm[start : start + chunk_samples].tobytes())

    def append(self, audio: bytes) -> None:
        self.send("input_audio_buffer.append", audio=base64.b64encode(audio).decode())

    def receive(self) -> Event:
        event: Event = json.loads(self.connection.recv(timeout=WAIT_S))
        assert event["event_id"]
        # The SDK knows one sample rate, and no classes for the beta shape.
        if not event["type"].startswith(("session.", "transcription_session.")):
            _SDK_TYPES[event["type"]].model_validate(event)
        return event

    def until(self, type_: str) -> list[Event]:
        """All events up to and with the next one of this type."""
        events = [self.receive()]
        while not events[-1]["type"].endswith(type_):
            events.append(self.receive())
        return events

    def configure(self, **sections: Any) -> Event:
        """Set the session up for 16 kHz, which is what made-up speech is in."""
        include = sections.pop("include", None)
        audio = {"input": {"format": {"type": "audio/pcm", "rate": 16000}, **sections}}
        session = {"type": "transcription", "audio": audio} | ({"include": include} if include else {})
        self.send("session.update", session=session)
        return self.until("session.updated")[-1]


@contextmanager
def talking(url: str, query: str = "intent=transcription", **options: Any) -> Iterator[Client]:
    """Connect; nothing is read yet."""
    address = f"{url.replace('http', 'ws', 1)}/realtime?{query}"
    with connect(address, proxy=None, open_timeout=WAIT_S, **options) as connection:
        yield Client(connection)


def types(events: list[Event]) -> list[str]:
    """The names of events, without what is long and the same in many."""
    return [
        event["type"].replace("conversation.item.input_audio_transcription.", "").replace("input_audio_", "")
        for event in events
    ]


def deltas(events: list[Event]) -> str:
    """All deltas joined."""
    return "".join(event["delta"] for event in events if event["type"].endswith(".delta"))
