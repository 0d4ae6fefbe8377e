"""Where the server is, and how to reach it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc

_FIRST_RECONNECT_MS = 100
_MAX_RECONNECT_MS = 2_000


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Certificates, PEM.

    Attributes:
        ca: whom to trust; None is the CAs that gRPC brings.
        certificate: the client's own, for mutual TLS.
        key: of that certificate.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a certificate without its key.

        Raises:
            ValueError: there is one of the two.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("A client certificate and its key go together.")

    @classmethod
    def from_files(
        cls, ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
    ) -> Self:
        """Read PEM files.

        Raises:
            OSError: one cannot be read.
            ValueError: a certificate without its key, or the other way round.
        """
        return cls(*(path.read_bytes() if path else None for path in (ca, certificate, key)))


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How to reach a server.

    Attributes:
        target: `host:port`, `unix:/path` or `unix:///path`.
        api_key: sent as `authorization: Bearer …`.
        tls: None is plain text.
        max_message_bytes: largest message taken from the server.
        keepalive_s: a connection that carries a call is probed when silent for so long.
        keepalive_timeout_s: a probe that is not answered for so long breaks it.
        create_timeout_s: for opening a session, which may load a model.
    """

    target: str
    api_key: str | None = field(default=None, repr=False)
    tls: TlsOptions | None = None
    max_message_bytes: int = 16 << 20
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    create_timeout_s: float = 120.0

    def __post_init__(self) -> None:
        """Refuse what is no target.

        Raises:
            ValueError: it has no port.
        """
        if not self.is_unix and not self.target.rpartition(":")[2].isdecimal():
            raise ValueError(f"The server must be host:port or unix:/path, not {self.target!r}.")

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.target.startswith("unix:") and len(self.target) > len("unix:")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call brings."""
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def open_channel(self) -> grpc.aio.Channel:
        """A channel of the running event loop. It connects with its first call."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", -1),  # the server's limit counts
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", round(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive_timeout_s * 1000)),
            # While gRPC waits before it connects again, calls fail at once: RetryPolicy sets the pauses.
            ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
        ]
        if self.is_unix:
            options.append(("grpc.default_authority", "localhost"))
        if self.tls is None:
            return grpc.aio.insecure_channel(self.target, options)
        credentials = grpc.ssl_channel_credentials(self.tls.ca, self.tls.key, self.tls.certificate)
        return grpc.aio.secure_channel(self.target, credentials, options)
