"""A real server in this process, on a real port."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
from fastapi import FastAPI

from whisper_server.bootstrap import create_app
from whisper_server.cli.serve import bind
from whisper_server.cli.websocket_protocol import WebSocketProtocol
from whisper_server.config import ServerSettings, Settings
from whisper_server.core.engine import EngineLoader


def make_settings(**sections: Any) -> Settings:
    """The defaults with the demo model, changed by sections such as `limits={"max_audio_s": 5}`.

    One thread computes, as the CI machine has two, and in this process, which starts sooner. gRPC is served
    where a test says so.
    """
    sections.setdefault("grpc", {"enabled": False})
    model = {"name": "demo", "cpu_threads": 1, "workers": 1, "engine_isolation": "thread"} | sections.pop(
        "model", {}
    )
    return Settings(model=model, **sections)


@contextlib.contextmanager
def running_server(
    settings: Settings | None = None, *, engines: Mapping[str, EngineLoader] | None = None
) -> Iterator[str]:
    """Serve until the block ends; yields the base URL without `/v1`."""
    with running_app(create_app(settings or make_settings(), engines=engines)) as url:
        yield url


@contextlib.contextmanager
def running_app(app: FastAPI) -> Iterator[str]:
    """The same for an app that was made already."""
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    with bind(ServerSettings(port=0)) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            lifespan="on",
            ws=WebSocketProtocol,
            ws_max_size=24 << 20,
            ws_ping_timeout=None,
            timeout_graceful_shutdown=5,
        )
        server = Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            if not started.wait(30):
                raise RuntimeError("the server did not start")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            if thread.is_alive():
                raise RuntimeError("the server did not stop")
