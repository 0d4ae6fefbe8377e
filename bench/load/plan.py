"""What all scenarios of a run share, and what they are compared with."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bench.load.clips import short_clips
from bench.load.own_server import NotMeasurableError, OwnServer, http_client, own_server
from bench.load.report import Result
from bench.load.targets import HttpTarget, Target, library


@dataclass(frozen=True, slots=True)
class Peer:
    """Another server to put under the same load.

    Attributes:
        url: without `/v1`.
        model: the name it knows its model by.
        api_key: if it asks for one.
    """

    url: str
    model: str
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the benchmark.

    Attributes:
        weights: folder of the model.
        threads: CPU threads of the library, in all; the server chooses for itself unless flags say.
        minutes: how long the overload lasts.
        clips: how many clips arrive while a file is transcribed.
        rounds: of a burst, for each number of clients.
        is_quick: shortened, to try the benchmark itself.
        peer: another server, or None.
        server_flags: further flags of this project's server.
        scratch: a folder for files that live as long as the run.
    """

    weights: Path
    threads: int
    minutes: float
    clips: int
    rounds: int
    is_quick: bool
    peer: Peer | None
    server_flags: tuple[str, ...]
    scratch: Path

    def server(
        self,
        settings: Mapping[str, object] | None = None,
        *,
        name: str = "whisper-server",
        on_log: Callable[[str], None] | None = None,
    ) -> AbstractAsyncContextManager[OwnServer]:
        """This project's server with these settings."""
        return own_server(self.weights, settings or {}, self.server_flags, name=name, on_log=on_log)

    @asynccontextmanager
    async def others(self) -> AsyncIterator[list[Target]]:
        """The library and, if there is one, the peer."""
        with library(self.weights, self.threads) as in_process:
            if self.peer is None:
                yield [in_process]
                return
            async with http_client(self.peer.url, self.peer.api_key) as client:
                yield [in_process, HttpTarget(self.peer.url, client, self.peer.model)]


async def check_peer(peer: Peer) -> None:
    """Have the peer transcribe one clip, before anything is measured.

    Raises:
        NotMeasurableError: it does not.
    """
    async with http_client(peer.url, peer.api_key) as client:
        reply = await HttpTarget(peer.url, client, peer.model).transcribe(short_clips(1)[0])
    if not reply.is_transcript:
        answered = f"answers with status {reply.status}" if reply.status else "does not answer"
        raise NotMeasurableError(f"the server at {peer.url} {answered} to a clip for model {peer.model!r}")


Scenario: TypeAlias = Callable[[Plan], Coroutine[Any, Any, Result]]
