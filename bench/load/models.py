"""More models than there is room for."""

import asyncio
import re
import shutil
from collections.abc import Sequence

from bench.load.clips import Clip, short_clips
from bench.load.measures import growth
from bench.load.own_server import OwnServer
from bench.load.plan import Plan
from bench.load.report import Result, Verdict
from bench.load.targets import Reply

_NAMES = ("one", "two", "three")
_ROOM = 2
PHASE_REQUESTS = 20
"""Requests between two exchanges of a model."""

_REQUESTS = 1000
_QUICK_REQUESTS = 8 * PHASE_REQUESTS

_CLIENTS = 4
_MAX_GROWTH = 0.03
_LOADING = re.compile(r"Model (\S+): loading")
_GONE = re.compile(r"Model (\S+): (?:unloaded|the load failed)")


class LoadLog:
    """Follows loads and unloads in a server's log.

    Attributes:
        loads: begun so far.
        double_loads: begun while the same model was loaded or loading.
        most_held: the largest number of models loaded or loading at the same time.
    """

    def __init__(self) -> None:
        self.loads = 0
        self.double_loads = 0
        self.most_held = 0
        self._held: list[str] = []

    def add(self, line: str) -> None:
        """Take the next line of the log."""
        if match := _LOADING.search(line):
            self.loads += 1
            self.double_loads += match[1] in self._held
            self._held.append(match[1])
            self.most_held = max(self.most_held, len(self._held))
        elif (match := _GONE.search(line)) and match[1] in self._held:
            self._held.remove(match[1])


def phases(requests: int) -> list[tuple[str, str]]:
    """The two models that each phase asks for: one is that of the phase before, the other takes a place."""
    count = max(1, requests // PHASE_REQUESTS)
    return [(_NAMES[index % len(_NAMES)], _NAMES[(index + 1) % len(_NAMES)]) for index in range(count)]


async def models(plan: Plan) -> Result:
    """Send requests for three models to a server with room for two."""
    wanted = phases(_QUICK_REQUESTS if plan.is_quick else _REQUESTS)
    log = LoadLog()
    settings = {"model.max_loaded": _ROOM, "model.aliases": _copies(plan)}
    clips = short_clips(PHASE_REQUESTS, seconds=0.0)
    texts: dict[str, set[str]] = {}
    unanswered = 0
    memory_mb: list[float] = []
    async with plan.server(settings, on_log=log.add) as server:
        for names in wanted:
            replies = await _phase(server, names, clips)
            unanswered += sum(not reply.is_transcript for _, reply in replies)
            for clip, reply in replies:
                if reply.is_transcript:
                    texts.setdefault(clip.name, set()).add(reply.text)
            if (now_mb := server.memory_mb()) is not None:
                memory_mb.append(now_mb)
    columns = ("requests", "loads", "at least", "most at once", "MB after the 1st quarter", "MB at the end")
    result = Result("models", columns)
    quarter = len(memory_mb) // 4
    ends_mb = (memory_mb[quarter], memory_mb[-1]) if memory_mb else (None, None)
    result.rows.append((len(wanted) * PHASE_REQUESTS, log.loads, len(wanted) + 1, log.most_held, *ends_mb))
    result.verdicts = [
        Verdict("requests without transcript", unanswered, 0),
        Verdict("clips whose text is not always the same", sum(len(each) > 1 for each in texts.values()), 0),
        Verdict("loads of a model that is loaded or loading", log.double_loads, 0),
        Verdict("models loaded or loading at once", log.most_held, _ROOM),
        Verdict("growth of memory, 2nd to last quarter", growth(memory_mb), _MAX_GROWTH),
    ]
    result.notes += [
        f"three copies of one model, room for {_ROOM}; {_CLIENTS} clients at once; after every "
        f"{PHASE_REQUESTS} requests one of the two models asked for is exchanged",
        "the longest unused model goes, which by turns may be the one that is wanted next: hence loads above "
        "the least number",
        "the library and other servers are left out: they have no such room",
    ]
    return result


def _copies(plan: Plan) -> dict[str, str]:
    """A folder of its own for each model: two names of one folder are one model to the server."""
    folders = {name: plan.scratch / name for name in _NAMES}
    for folder in folders.values():
        shutil.copytree(plan.weights, folder, dirs_exist_ok=True)
    return {name: str(folder) for name, folder in folders.items()}


async def _phase(
    server: OwnServer, names: tuple[str, str], clips: Sequence[Clip]
) -> list[tuple[Clip, Reply]]:
    """Send every clip once, to one model and the other by turns, a few at a time."""
    waiting = list(enumerate(clips))
    replies: list[tuple[Clip, Reply]] = []

    async def client() -> None:
        while waiting:
            number, clip = waiting.pop()
            replies.append((clip, await server.target.transcribe(clip, model=names[number % 2])))

    async with asyncio.TaskGroup() as group:
        for _ in range(_CLIENTS):
            group.create_task(client())
    return replies
