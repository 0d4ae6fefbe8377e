"""The settings of the gRPC service."""

from typing import Annotated

from pydantic import Field

from whisper_server.config.fields import NoneFromText, Section, Text, UserPath


class GrpcSettings(Section):
    """Where gRPC is served, and how."""

    enabled: Annotated[bool, Field(description="Serve gRPC.")] = True
    host: Annotated[
        Text | None,
        NoneFromText,
        Field(description="Address to listen on; `none` takes `server.host`."),
    ] = None
    port: Annotated[
        Annotated[int, Field(ge=0, le=65535)] | None,
        NoneFromText,
        Field(description="Port to listen on; 0 takes a free one, `none` opens none."),
    ] = 50051
    unix_socket: Annotated[
        UserPath | None,
        NoneFromText,
        Field(description="Unix socket to listen on besides, for the server's user alone; `none` for none."),
    ] = None
    tls_certificate: Annotated[
        UserPath | None,
        NoneFromText,
        Field(description="PEM file with the server's certificate chain: the port takes TLS only."),
    ] = None
    tls_key: Annotated[
        UserPath | None, NoneFromText, Field(description="PEM file with the key of that certificate.")
    ] = None
    tls_client_ca: Annotated[
        UserPath | None,
        NoneFromText,
        Field(
            description="PEM file with authorities; clients must bring a certificate of theirs (mutual TLS)."
        ),
    ] = None
    max_receive_message_bytes: Annotated[
        int, Field(ge=1024, le=1 << 30, description="Largest message a client may send, bytes.")
    ] = 8 << 20
    max_send_message_bytes: Annotated[
        int, Field(ge=1024, le=1 << 30, description="Largest message the server sends, bytes.")
    ] = 4 << 20
    max_concurrent_calls: Annotated[
        int, Field(ge=1, description="Calls at once; more are refused with RESOURCE_EXHAUSTED.")
    ] = 1000
    keepalive_time_s: Annotated[
        float, Field(gt=0, description="A quiet connection is asked whether it lives after so long, seconds.")
    ] = 60.0
    keepalive_timeout_s: Annotated[
        float,
        Field(gt=0, description="A connection that does not answer that is closed after so long, seconds."),
    ] = 20.0
    reflection: Annotated[
        bool, Field(description="Tell clients such as grpcurl what the service looks like.")
    ] = True
