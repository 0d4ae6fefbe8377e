"""This project's server under load: its settings, its counters, its memory."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.load.targets import OWN_FIELDS, HttpTarget
from bench.server_process import ServerProcess, server_process, tree_memory_mb
from whisper_server.config import Settings, leaves_of

MODEL = "bench"
"""The name by which requests ask for the weights under test."""

_NOT_FOUND = 404
_TIMEOUT_S = 1800.0
_NO_LIMIT = httpx.Limits(max_connections=None, max_keepalive_connections=100)


class NotMeasurableError(Exception):
    """The server lacks what a scenario needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What the scheduler has done since the start, and holds now."""

    windows_decoded: int
    windows_waiting: int
    windows_running: int


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A running server of this project.

    Attributes:
        target: to send requests to it.
        process: where it runs.
    """

    target: HttpTarget
    process: ServerProcess

    async def counters(self) -> Counters | None:
        """The scheduler's counters; None where the server shows none."""
        response = await self.target.client.get("/debug/scheduler")
        if response.status_code == _NOT_FOUND:
            return None
        shown = response.raise_for_status().json()
        return Counters(
            windows_decoded=shown["counters"]["windows_decoded"],
            windows_waiting=shown["windows_waiting"],
            windows_running=shown["windows_running"],
        )

    async def requests_inside(self) -> int:
        """How many requests run or wait."""
        response = await self.target.client.get("/health")
        inside: int = response.raise_for_status().json()["requests_inside"]
        return inside

    def memory_mb(self) -> float | None:
        """Resident memory of all its processes; None where it cannot be read."""
        return tree_memory_mb(self.process.pid)


def flags_for(settings: Mapping[str, object]) -> list[str]:
    """The command line that gives a server these settings, which have dotted names.

    Raises:
        NotMeasurableError: the server has no such setting.
    """
    leaves = {leaf.name: leaf for leaf in leaves_of(Settings)}
    missing = [name for name in settings if name not in leaves]
    if missing:
        raise NotMeasurableError(f"this version of the server has no setting {', '.join(missing)}")
    return [part for name, value in settings.items() for part in (leaves[name].flags[0], _text(value))]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@asynccontextmanager
async def own_server(
    weights: Path,
    settings: Mapping[str, object],
    more_flags: tuple[str, ...] = (),
    *,
    name: str = "whisper-server",
    on_log: Callable[[str], None] | None = None,
) -> AsyncIterator[OwnServer]:
    """A server whose model `bench` is these weights, until the block ends.

    Raises:
        NotMeasurableError: the server has no such setting.
    """
    base: dict[str, object] = {
        "model.name": str(weights),
        "model.aliases": {MODEL: str(weights)},
        "model.device": "cpu",
        "model.compute_type": "int8",
        "limits.max_audio_file_size_mb": 500,
    }
    flags = [*flags_for(base | dict(settings)), *more_flags]
    with server_process(*flags, on_log=on_log) as process:
        async with http_client(process.url) as client:
            yield OwnServer(HttpTarget(name, client, MODEL, OWN_FIELDS), process)


def http_client(url: str, api_key: str | None = None) -> httpx.AsyncClient:
    """A client for a server at `url` that opens as many connections as there are requests at once."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_S, limits=_NO_LIMIT)
