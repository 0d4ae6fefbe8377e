"""Where gRPC is served: a TCP port, with TLS or without, and a Unix socket."""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio

from whisper_server.config import Settings
from whisper_server.config.grpc_schema import GrpcSettings
from whisper_server.core.errors import ConfigurationError

_LONGEST_PATH_BYTES = 100
"""Of a Unix socket; the system's limit is 108, on a Mac 104."""

_PROBE_S = 2.0
_PRIVATE = 0o600


def check(settings: Settings) -> None:
    """Find out whether the addresses are free, before anything else is started.

    Raises:
        ConfigurationError: one is taken, is not this machine's, or a file of TLS cannot be read.
    """
    grpc_settings = settings.grpc
    if grpc_settings.port is None and grpc_settings.unix_socket is None:
        raise ConfigurationError(
            "gRPC has nowhere to listen: set grpc.port or grpc.unix_socket, or grpc.enabled to false."
        )
    if grpc_settings.port is not None:
        _credentials(grpc_settings)
        _check_port(_host(settings), grpc_settings.port)
    if grpc_settings.unix_socket is not None:
        _clear_stale(grpc_settings.unix_socket)


def add_addresses(server: grpc.aio.Server, settings: Settings) -> list[str]:
    """Let a server that is not started yet listen where the settings say.

    Returns:
        The addresses as clients use them.

    Raises:
        ConfigurationError: as `check`.
    """
    check(settings)
    grpc_settings, addresses = settings.grpc, []
    if grpc_settings.port is not None:
        host = _host(settings)
        host = f"[{host}]" if ":" in host else host
        credentials = _credentials(grpc_settings)
        port = _add(server, f"{host}:{grpc_settings.port}", credentials)
        addresses.append(f"{host}:{port}")
    if grpc_settings.unix_socket is not None:
        addresses.append(_add_unix_socket(server, grpc_settings.unix_socket))
    return addresses


def remove_unix_socket(settings: Settings) -> None:
    """Take the Unix socket away once nobody listens on it."""
    if settings.grpc.unix_socket is not None:
        with suppress(OSError):
            settings.grpc.unix_socket.unlink()


def _host(settings: Settings) -> str:
    return settings.grpc.host or settings.server.host


def _add(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ConfigurationError(f"gRPC cannot listen on {address}. {_PORT_ADVICE}") from error


_PORT_ADVICE = (
    "Set WHISPER_GRPC_PORT (or --grpc-port) to a free port; 0 takes any, and --grpc-enabled false serves "
    "HTTP alone."
)


def _check_port(host: str, port: int) -> None:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise ConfigurationError(
            f"gRPC cannot listen on {host} port {port}: {error.strerror}. {_PORT_ADVICE}"
        ) from error


def _credentials(settings: GrpcSettings) -> grpc.ServerCredentials | None:
    """What TLS needs; None without TLS.

    Raises:
        ConfigurationError: something is missing, or cannot be read.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        if settings.tls_certificate or settings.tls_key or settings.tls_client_ca:
            raise ConfigurationError("TLS needs both grpc.tls_certificate and grpc.tls_key.")
        return None
    pair = _read("tls_key", settings.tls_key), _read("tls_certificate", settings.tls_certificate)
    authorities = None
    if settings.tls_client_ca is not None:
        authorities = _read("tls_client_ca", settings.tls_client_ca)
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)


def _read(name: str, path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The file of grpc.{name}, {path}, cannot be read: {error.strerror}."
        ) from error
    if b"-----BEGIN " not in content:
        raise ConfigurationError(f"The file of grpc.{name}, {path}, is not in PEM format.")
    return content


def _add_unix_socket(server: grpc.aio.Server, path: Path) -> str:
    address = f"unix:{path.absolute()}"
    # Nobody else gets to open it in the moment before its rights are set.
    mask = os.umask(0o777 - _PRIVATE)
    try:
        _add(server, address, None)
        path.chmod(_PRIVATE)
    finally:
        os.umask(mask)
    return address


def _clear_stale(path: Path) -> None:
    """Remove the socket that a server left behind which is gone.

    Raises:
        ConfigurationError: a server listens on it, or it cannot be a socket of this server.
    """
    if len(os.fsencode(path.absolute())) > _LONGEST_PATH_BYTES:
        raise ConfigurationError(
            f"grpc.unix_socket is longer than a socket's path may be: {_LONGEST_PATH_BYTES} bytes."
        )
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.absolute().parent.is_dir():
            raise ConfigurationError(f"The folder of grpc.unix_socket, {path}, does not exist.") from None
        return
    except OSError as error:
        raise ConfigurationError(f"grpc.unix_socket {path} cannot be used: {error.strerror}.") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigurationError(
            f"grpc.unix_socket {path} is a file, not a socket. Remove it, or set another."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigurationError(f"grpc.unix_socket {path} cannot be used: {error.strerror}.") from error
    raise ConfigurationError(f"A server listens on grpc.unix_socket {path}. Stop it, or set another path.")
