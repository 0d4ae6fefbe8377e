"""Speakers talk to a server, and what it tells is noted with its time."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from bench.streaming.doors import FRAME_MS, Address, Door, Kind, Message, Told, session

LAST_WORD_S = 60.0
"""How long the last transcripts are waited for."""

_FRAME_S = FRAME_MS / 1000
_LEAD_S = 0.3


@dataclass(slots=True)
class Heard:
    """What a speaker was told.

    Attributes:
        told: everything, with its moment on `time.perf_counter`.
        begin_s: when the first sample was spoken, on `time.perf_counter`.
        most_late_s: how much later than it was spoken a frame left.
    """

    told: list[tuple[float, Told]] = field(default_factory=list)
    begin_s: float = 0.0
    most_late_s: float = 0.0

    @property
    def faults(self) -> list[str]:
        """What went wrong."""
        return [told.text for _, told in self.told if told.kind is Kind.FAILED]


class Speaker:
    """Somebody at a door of a server, in a session that is set up.

    Args:
        door: which.
        connection: to it.
        frames: what is to be said.
    """

    def __init__(self, door: Door, connection: ClientConnection, frames: Sequence[Message]) -> None:
        self.heard = Heard()
        self._door = door
        self._connection = connection
        self._frames = frames
        self._committed: set[str] = set()
        self._is_closing = False
        self._is_over = asyncio.Event()

    async def talk(self, begin_s: float | None) -> None:
        """Say everything and listen until the last utterance has its final.

        Args:
            begin_s: when the first sample is spoken, on `time.perf_counter`; a frame leaves when its last
                sample is spoken. None sends as fast as the server takes it.
        """
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen())
            try:
                await self._say(begin_s)
                await asyncio.wait_for(self._is_over.wait(), LAST_WORD_S)
            except TimeoutError:
                self._note(Told(Kind.FAILED, "", f"no last transcript after {LAST_WORD_S:.0f} s"))
            except ConnectionClosed:
                await self._is_over.wait()  # the listener notes why
            listening.cancel()

    async def _say(self, begin_s: float | None) -> None:
        self.heard.begin_s = time.perf_counter() if begin_s is None else begin_s
        send = self._connection.send
        for number, frame in enumerate(self._frames, 1):
            if begin_s is not None:
                due_s = begin_s + number * _FRAME_S
                await asyncio.sleep(due_s - time.perf_counter())
                self.heard.most_late_s = max(self.heard.most_late_s, time.perf_counter() - due_s)
            await send(frame)
        await send(self._door.closing()[0])

    async def _listen(self) -> None:
        _, last = self._door.closing()
        try:
            async for raw in self._connection:
                message = json.loads(raw)
                told = self._door.read(message)
                if told is not None:
                    self._note(told)
                self._is_closing = self._is_closing or message["type"] == last
                if self._is_closing and not self._committed:
                    break
            else:
                self._note(Told(Kind.FAILED, "", "the server closed the session"))
        except ConnectionClosed as error:
            self._note(Told(Kind.FAILED, "", f"the connection broke: {error}"))
        self._is_over.set()

    def _note(self, told: Told) -> None:
        self.heard.told.append((time.perf_counter(), told))
        if told.kind is Kind.COMMITTED:
            self._committed.add(told.item)
        elif told.kind in (Kind.FINAL, Kind.FAILED):
            self._committed.discard(told.item)


async def converse(
    door: Door,
    address: Address,
    said: Sequence[Sequence[Message]],
    *,
    in_real_time: bool = True,
    on_begin: Callable[[], None] | None = None,
) -> list[Heard]:
    """Let everybody talk at once, each in a session of its own.

    All sessions are open before anybody talks, and frames of different speakers leave at different moments.

    Args:
        door: which.
        address: of the server.
        said: each speaker's frames.
        in_real_time: as fast as it is spoken; otherwise as fast as the server takes it.
        on_begin: called when all sessions are open.

    Raises:
        NotMeasurableError: a session is refused.
    """
    async with AsyncExitStack() as stack:
        present = [
            Speaker(
                door, await stack.enter_async_context(session(door, address, f"speaker-{number}")), frames
            )
            for number, frames in enumerate(said)
        ]
        begin_s = time.perf_counter() + _LEAD_S
        if on_begin is not None:
            on_begin()
        async with asyncio.TaskGroup() as group:
            for number, speaker in enumerate(present):
                phase_s = _FRAME_S * number / len(present)
                group.create_task(speaker.talk(begin_s + phase_s if in_real_time else None))
        return [speaker.heard for speaker in present]
