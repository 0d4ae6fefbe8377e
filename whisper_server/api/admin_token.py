"""The token that opens the admin API: it is no API key, and no API key is it."""

import logging
import re

from starlette.requests import Request

from whisper_server.api.security import SHORT_CHARACTERS, ApiKeys, bearer_tokens, is_same_secret
from whisper_server.config import AdminSettings
from whisper_server.core.errors import AdminDisabledError, ConfigurationError, InvalidAdminTokenError
from whisper_server.services.model_path_allowlist import check_prefixes

logger = logging.getLogger(__name__)

_TOKEN = re.compile(r"[!-~]+")


def check_admin_settings(settings: AdminSettings, keys: ApiKeys) -> None:
    """Check the settings of an admin API that is enabled. What the operator should know goes to the log.

    Raises:
        ConfigurationError: the token is missing, cannot be sent in a header, or is one of the API keys; or
            the allowlist has an entry that means nothing.
    """
    if not settings.enabled:
        return
    if settings.token is None:
        raise ConfigurationError(
            "The admin API is enabled without a token. Set STT_ADMIN_TOKEN (admin.token) to a long random "
            "word, or STT_ADMIN_ENABLED (admin.enabled) to false."
        )
    if _TOKEN.fullmatch(settings.token) is None:
        raise ConfigurationError(
            "admin.token (STT_ADMIN_TOKEN) cannot be sent in a header. Set it to visible ASCII characters, "
            "without spaces."
        )
    if keys.name_of(settings.token.encode()) is not None:
        raise ConfigurationError(
            "admin.token (STT_ADMIN_TOKEN) is one of the API keys. Set it to a token of its own."
        )
    if len(settings.token) < SHORT_CHARACTERS:
        logger.warning(
            "The admin token has fewer than %d characters; such tokens can be guessed.", SHORT_CHARACTERS
        )
    check_prefixes(settings.model_path_allowlist)


def require_admin_token(request: Request, settings: AdminSettings) -> None:
    """Let only the operator go on. Takes the same time for any token.

    Raises:
        AdminDisabledError: the admin API is not enabled.
        InvalidAdminTokenError: the request does not bring the token.
    """
    if not settings.enabled or settings.token is None:
        raise AdminDisabledError("The admin API is not enabled on this server.")
    presented = list(bearer_tokens(request.scope))
    if not presented:
        raise InvalidAdminTokenError(
            "The admin token is missing: send the header 'Authorization: Bearer <token>'."
        )
    token = settings.token.encode()
    if not any([is_same_secret(each, token) for each in presented]):
        raise InvalidAdminTokenError("The admin token is wrong.")
