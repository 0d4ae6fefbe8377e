"""What every request passes before it reaches a route."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from whisper_server.api import errors
from whisper_server.api.access_log import AccessLogMiddleware
from whisper_server.api.admin_token import check_admin_settings
from whisper_server.api.callers import HostMiddleware, WebSocketOriginMiddleware, check_allowed_hosts
from whisper_server.api.operations import admin
from whisper_server.api.paths import PathMiddleware
from whisper_server.api.request_id import HEADER, RequestIdMiddleware
from whisper_server.api.response_headers import SecurityHeadersMiddleware
from whisper_server.api.security import ApiKeys, AuthenticationMiddleware, check_open_paths, load_api_keys
from whisper_server.config import Settings

_READABLE_HEADERS = (HEADER, "openai-processing-ms", "retry-after", "x-should-retry")
"""Response headers that scripts of an allowed origin get to see; the OpenAI SDK looks for them."""


def install(app: FastAPI, settings: Settings) -> ApiKeys:
    """Put everything between the network and the app's routes, the innermost first.

    Returns:
        The keys that open the server.

    Raises:
        ConfigurationError: the settings of keys, hosts, open paths or the admin API are wrong.
    """
    server, security = settings.server, settings.security
    check_allowed_hosts(server.allowed_hosts)
    check_open_paths(security.open_paths)
    keys = load_api_keys(settings)
    check_admin_settings(settings.admin, keys)
    if keys:
        # Inside the path's middleware: it must judge the path that is routed.
        app.add_middleware(
            AuthenticationMiddleware, keys=keys, open_paths=security.open_paths, own_paths=admin.PATHS
        )
    app.add_middleware(WebSocketOriginMiddleware, allowed_origins=server.allowed_origins)
    app.add_middleware(PathMiddleware)
    app.add_middleware(HostMiddleware, allowed_hosts=server.allowed_hosts)
    errors.install(app)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(server.allowed_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=_READABLE_HEADERS,
        # Browsers ask before a public page reaches a private address; the origin decides here too.
        allow_private_network=True,
    )
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(AccessLogMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return keys
