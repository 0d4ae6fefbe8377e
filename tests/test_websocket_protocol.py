"""Reading a WebSocket: messages that are taken as they come cost no pause, and a few that are not stop it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from whisper_server.cli.websocket_protocol import WebSocketProtocol


class RecordingTransport(asyncio.Transport):
    """Notes what is asked of it; like asyncio's, it ignores what it has done already."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.has_written = asyncio.Event()
        self.asked: list[str] = []
        self._is_paused = False

    def write(self, data: Any) -> None:
        self.written += data
        self.has_written.set()

    def pause_reading(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.asked.append("pause")

    def resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.asked.append("resume")

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


class Connection:
    """A client at a WebSocketProtocol whose app takes one message for each `take`."""

    def __init__(self) -> None:
        self.transport = RecordingTransport()
        self.wanted = asyncio.Semaphore(0)
        self.taken: asyncio.Queue[str] = asyncio.Queue()
        config = uvicorn.Config(self._app, interface="asgi3", log_config=None, ws_ping_interval=None)
        config.load()
        self.protocol = WebSocketProtocol(config, ServerState(), {})
        self.client = ClientProtocol(parse_uri("ws://host/"))
        self.protocol.connection_made(self.transport)

    async def open(self) -> None:
        self.client.send_request(self.client.connect())
        self.protocol.data_received(b"".join(self.client.data_to_send()))
        await self.transport.has_written.wait()
        self.client.receive_data(bytes(self.transport.written))

    def send(self, *texts: str) -> None:
        for text in texts:
            self.client.send_text(text.encode())
        self.protocol.data_received(b"".join(self.client.data_to_send()))

    async def take(self) -> str:
        self.wanted.release()
        return await self.taken.get()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await self.wanted.acquire()
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await self.taken.put(message["text"])


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    connection = Connection()
    await connection.open()
    yield connection
    connection.wanted.release()
    connection.protocol.connection_lost(None)
    await asyncio.gather(*connection.protocol.tasks)


async def test_messages_that_are_taken_as_they_come_pause_nothing(connection: Connection) -> None:
    for number in range(5):
        connection.send(f"{number}")
        assert await connection.take() == f"{number}"
    assert connection.transport.asked == []


async def test_reading_pauses_when_a_second_message_waits_and_goes_on_when_all_are_taken(
    connection: Connection,
) -> None:
    connection.send("a")
    connection.send("b")
    assert connection.transport.asked == ["pause"]
    assert await connection.take() == "a"
    assert connection.transport.asked == ["pause"]
    assert await connection.take() == "b"
    assert connection.transport.asked == ["pause", "resume"]


async def test_messages_that_are_read_at_once_pause_reading_too(connection: Connection) -> None:
    connection.send("a", "b", "c")
    assert connection.transport.asked == ["pause"]
    assert [await connection.take() for _ in range(3)] == ["a", "b", "c"]
    assert connection.transport.asked == ["pause", "resume"]
