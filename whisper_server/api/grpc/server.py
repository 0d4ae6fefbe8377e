"""The gRPC server of a running server: started with its services, and stopped before them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from whisper_server.api.grpc.listening import add_addresses, remove_unix_socket
from whisper_server.api.grpc.servicer import SpeechToTextServicer
from whisper_server.api.grpc.sessions import CLAIM_S, SessionBook
from whisper_server.api.security import ApiKeys
from whisper_server.api.services import Services
from whisper_server.config.grpc_schema import GrpcSettings
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

logger = logging.getLogger(__name__)

SERVICE = stt_pb2.DESCRIPTOR.services_by_name["SpeechToText"].full_name

_STOP_S = 3.0
"""What the drain has left over is cut off after this; a client that goes on sending takes 2 s to be told."""

_LEAST_PING_MS = 10_000
"""A client may ask whether the server lives as often as this."""


@asynccontextmanager
async def grpc_server(
    services: Services, keys: ApiKeys, *, claim_s: float = CLAIM_S
) -> AsyncIterator[Sequence[str]]:
    """Serve gRPC until the block ends; yields the addresses as clients use them.

    Args:
        services: of the server.
        keys: one of them opens a call; where there are none, none is needed. Health and reflection are open.
        claim_s: a session that nobody streams to is closed after so long, seconds.

    Raises:
        ConfigurationError: an address is taken or wrong.
    """
    settings = services.settings
    server = grpc.aio.server(
        options=_options(settings.grpc), maximum_concurrent_rpcs=settings.grpc.max_concurrent_calls
    )
    health = health_aio.HealthServicer()
    async with SessionBook(claim_s=claim_s) as sessions:
        servicer = SpeechToTextServicer(services, keys, sessions)
        stt_pb2_grpc.add_SpeechToTextServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        if settings.grpc.reflection:
            names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        addresses = add_addresses(server, settings)
        for name in ("", SERVICE):
            await health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        logger.info("gRPC listens on %s", ", ".join(addresses))
        draining = asyncio.create_task(_tell_draining(services, health))
        try:
            yield addresses
        finally:
            draining.cancel()
            await health.enter_graceful_shutdown()
            await server.stop(_STOP_S)
            remove_unix_socket(settings)


async def _tell_draining(services: Services, health: health_aio.HealthServicer) -> None:
    await services.admission.wait_until_draining()
    await health.enter_graceful_shutdown()


def _options(settings: GrpcSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_receive_message_bytes),
        ("grpc.max_send_message_length", settings.max_send_message_bytes),
        ("grpc.keepalive_time_ms", round(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MS),
        # Two servers must not share one port by accident.
        ("grpc.so_reuseport", 0),
    ]
