"""A Hugging Face hub on this machine: what huggingface_hub 2.4 asks for when it downloads one model.

It serves the files of a folder as one repository, writes down each request, and misbehaves as told:

    with FakeHub(folder, "acme/model") as hub:
        hub.on("file", Break(after_bytes=1000), file="model.bin", times=1)
        ModelStore(cache, endpoint=hub.url).locate(...)
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias
from urllib.parse import urlsplit

Step: TypeAlias = Literal["info", "tree", "head", "file"]
"""Repository info, its list of files, a file's metadata, a file's bytes: the order of a download."""

_WAIT_S = 30
_BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Status:
    """Answer with this status code and, where given, the hub's own error code in `X-Error-Code`."""

    code: int
    error_code: str | None = None


@dataclass(frozen=True)
class Break:
    """Promise the whole body, send this many bytes of it and close the connection."""

    after_bytes: int


@dataclass(frozen=True)
class Hold:
    """Send this many bytes of the body, then nothing until `FakeHub.release`; 0 holds even the headers."""

    after_bytes: int = 0


Behaviour: TypeAlias = Status | Break | Hold


@dataclass(frozen=True)
class HubRequest:
    """One request as it arrived.

    Attributes:
        step: what it asked for.
        file: the file it asked for; empty for the two lists.
        byte_range: its `Range` header, or None.
        authorization: its `Authorization` header, or None.
    """

    step: Step
    file: str
    byte_range: str | None
    authorization: str | None


@dataclass
class _Rule:
    step: Step
    file: str | None
    behaviour: Behaviour
    times: int | None


class FakeHub:
    """The hub with its thread; a context manager.

    Args:
        folder: its files are the repository's.
        repo_id: the only repository there is.
        offers_xet: say of each file that it can be had through Xet, too, as the public hub does.
    """

    def __init__(
        self, folder: Path, repo_id: str = "acme/faster-whisper-demo", *, offers_xet: bool = False
    ) -> None:
        self.folder = folder
        self.repo_id = repo_id
        self.sha = hashlib.sha1(repo_id.encode()).hexdigest()
        self.offers_xet = offers_xet
        self.requests: list[HubRequest] = []
        self._rules: list[_Rule] = []
        self._changed = threading.Condition()
        self._released = threading.Event()
        self.is_closing = False
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fake-hub")

    @property
    def url(self) -> str:
        """What to use as `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def on(
        self, step: Step, behaviour: Behaviour, *, file: str | None = None, times: int | None = None
    ) -> None:
        """Behave like this at this step, for one file or all, a number of times or until `repair`."""
        with self._changed:
            self._rules.append(_Rule(step, file, behaviour, times))

    def repair(self) -> None:
        """Behave well from now on."""
        with self._changed:
            self._rules.clear()

    def release(self) -> None:
        """Let everything go on that `Hold` holds."""
        self._released.set()

    def wait_for(self, step: Step, *, file: str = "") -> None:
        """Wait until such a request has arrived."""
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: any(r.step == step and r.file == file for r in self.requests), timeout=_WAIT_S
            )
        assert arrived, f"no {step} request for {file!r} arrived"

    def asked(self, step: Step, *, file: str = "") -> list[HubRequest]:
        """The requests of this step, for this file, so far."""
        with self._changed:
            return [r for r in self.requests if r.step == step and r.file == file]

    def close(self) -> None:
        """Hang up on everybody and end."""
        self.is_closing = True
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_WAIT_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def received(self, request: HubRequest) -> Behaviour | None:
        """Write the request down; how to behave, None for well."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            for rule in self._rules:
                if rule.step == request.step and rule.file in (None, request.file) and rule.times != 0:
                    rule.times = None if rule.times is None else rule.times - 1
                    return rule.behaviour
        return None

    def hold(self) -> None:
        """Wait for `release`."""
        self._released.wait(_WAIT_S)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that `server_close` waits for them

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent; `FakeHub.requests` is the log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        place = self._place()
        if place is None:
            self._send_status(Status(404, "RepoNotFound"))
            return
        step, file = place
        behaviour = hub.received(HubRequest(step, file, self.headers["Range"], self.headers["Authorization"]))
        try:
            if isinstance(behaviour, Status):
                self._send_status(behaviour)
            elif file and not (hub.folder / file).is_file():
                self._send_status(Status(404, "EntryNotFound"))
            else:
                self._send(step, file, behaviour)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up, as some tests want it to
        self.close_connection = True

    def _place(self) -> tuple[Step, str] | None:
        """Which step the address belongs to and for which file; None where the repository is another."""
        hub = self.server.hub
        path = urlsplit(self.path).path
        repo = re.escape(hub.repo_id)
        if re.fullmatch(rf"/api/models/{repo}/revision/main", path):
            return "info", ""
        if re.fullmatch(rf"/api/models/{repo}/tree/{hub.sha}", path):
            return "tree", ""
        if found := re.fullmatch(rf"/{repo}/resolve/{hub.sha}/(.+)", path):
            return ("head" if self.command == "HEAD" else "file"), found[1]
        return None

    def _send_status(self, status: Status) -> None:
        self.send_response(status.code)
        if status.error_code:
            self.send_header("X-Error-Code", status.error_code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, step: Step, file: str, behaviour: Behaviour | None) -> None:
        hub = self.server.hub
        if behaviour == Hold(0):
            hub.hold()
            if hub.is_closing:
                return
        body = (hub.folder / file).read_bytes() if file else json.dumps(self._listing(step)).encode()
        start = self._start(len(body))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if file:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", hub.sha)
            self.send_header("Accept-Ranges", "bytes")
            if hub.offers_xet:
                self.send_header("X-Xet-Hash", hashlib.sha256(body).hexdigest())
                self.send_header("X-Xet-Refresh-Route", f"{hub.url}/xet-token")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command == "GET":
            self._send_body(body[start:], behaviour)

    def _send_body(self, body: bytes, behaviour: Behaviour | None) -> None:
        stop = behaviour.after_bytes if isinstance(behaviour, Break | Hold) else len(body)
        for block in _blocks(body[:stop]):
            self.wfile.write(block)
        if isinstance(behaviour, Hold):
            self.wfile.flush()
            self.server.hub.hold()
            if not self.server.hub.is_closing:
                self.wfile.write(body[stop:])

    def _start(self, size: int) -> int:
        wanted = self.headers["Range"]
        found = re.fullmatch(r"bytes=(\d+)-", wanted) if wanted else None
        return min(int(found[1]), size) if found else 0

    def _listing(self, step: Step) -> object:
        hub = self.server.hub
        files = sorted(path for path in hub.folder.iterdir() if path.is_file())
        sizes = {path.name: path.stat().st_size for path in files}
        if step == "info":
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            return {"id": hub.repo_id, "sha": hub.sha, "siblings": siblings}
        return [
            {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}
            for name, size in sizes.items()
        ]


def _blocks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _BLOCK_BYTES):
        yield body[start : start + _BLOCK_BYTES]
