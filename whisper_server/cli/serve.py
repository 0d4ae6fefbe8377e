"""`whisper-server serve`: run the server until it is told to stop."""

import argparse
import gc
import logging
import signal
import socket
import sys
from contextlib import ExitStack
from types import FrameType

from whisper_server.cli.settings_flags import add_settings_arguments, settings_from
from whisper_server.config import LoadedSettings, ServerSettings
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.heap import share_one_heap

logger = logging.getLogger(__name__)

_INTERRUPTED = 130
_BACKLOG = 2048
_MAX_MESSAGE_BYTES = 24 << 20
"""Of a WebSocket: 15 MiB of audio in base64, the most OpenAI takes at once, and what is around it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of this command."""
    parser.usage = "%(prog)s [--config PATH] [--model-config PATH] [--port PORT] [--<setting> VALUE ...]"
    add_settings_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve.

    Returns:
        The exit code: 0 after an orderly stop, 130 after Ctrl-C. A second signal ends the process at once
        with 128 and the signal's number: 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ConfigurationError: a setting is wrong, cannot work on this machine, or names a taken port.
    """
    try:
        stopped_by = _serve(settings_from(arguments))
    except KeyboardInterrupt:  # before the server was there, or by uvicorn once it has stopped in order
        return _INTERRUPTED
    # A shell that starts programs in the background lets them ignore Ctrl-C, and uvicorn's with it.
    return _INTERRUPTED if stopped_by == signal.SIGINT else 0


def _serve(loaded: LoadedSettings) -> int | None:
    """Serve; the signal that ended it."""
    share_one_heap()
    # Here, so that other commands start without the web framework.
    import uvicorn

    from whisper_server.bootstrap import create_app
    from whisper_server.cli.draining_server import DrainingServer
    from whisper_server.cli.logs import set_up_logging
    from whisper_server.cli.websocket_protocol import WebSocketProtocol

    settings = loaded.settings
    set_up_logging(settings.logging)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    if not (settings.server.enabled or settings.grpc.enabled):
        raise ConfigurationError("There is nothing to serve: set server.enabled or grpc.enabled to true.")
    app = create_app(settings)
    if settings.grpc.enabled:
        from whisper_server.api.grpc.listening import check

        check(settings)
    with ExitStack() as stack:
        listeners = [stack.enter_context(bind(settings.server))] if settings.server.enabled else []
        config = uvicorn.Config(
            app,
            log_config=None,
            lifespan="on",
            ws=WebSocketProtocol,
            ws_max_size=_MAX_MESSAGE_BYTES,
            # A client that sends faster than real time is slowed down, and its pong waits behind its audio.
            ws_ping_timeout=None,
            server_header=False,
        )
        # uvicorn sends itself the signal that stopped it, once it has stopped in order.
        signal.signal(signal.SIGTERM, _exit)
        for listener in listeners:
            logger.info("Listening on %s", base_url(*listener.getsockname()[:2]))
        server = DrainingServer(config, grace_s=settings.server.shutdown_grace_s)
        # The program itself never becomes garbage: looking through it would hold everybody up, now and then.
        gc.freeze()
        server.run(sockets=listeners)
        return server.stopped_by


def _exit(_: int, __: FrameType | None) -> None:
    sys.exit(0)


def bind(server: ServerSettings) -> socket.socket:
    """Open the server's port.

    Raises:
        ConfigurationError: the address is taken or is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sends small answers at once only where a socket is declared to be TCP: without that the
        # second request of a connection waits 40 ms for its answer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            # From here on clients are not refused: they wait until the app has started.
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {server.host} port {server.port}: {error.strerror}. "
            "Set WHISPER_SERVER_PORT (or --port) to a free port; 0 takes any."
        ) from error
    return listener


def base_url(host: str, port: int) -> str:
    """The address as a client uses it."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
