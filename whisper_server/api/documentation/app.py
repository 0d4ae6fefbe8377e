"""FastAPI with an OpenAPI description of what the routes read and write by hand."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from fastapi import FastAPI

from whisper_server import __version__
from whisper_server.api.documentation import examples
from whisper_server.api.documentation.schemas import event_schemas, request_schemas
from whisper_server.config import SecuritySettings

_DESCRIPTION = """\
Speech to text with OpenAI's API. Every path below `/v1` is there without it too, and as Azure's clients
write it.

Every error is OpenAI's object: `{"error": {"message", "type", "param", "code"}}`.
"""

_VALIDATION_ERROR = "422"
"""FastAPI lists it for every route with a parameter; here such faults are 400."""

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "api-key",
        "description": "As Azure's clients send it.",
    },
}


class DescribedApp(FastAPI):
    """The app.

    Args:
        security: says whether keys are asked for, and where not.
        options: of FastAPI.
    """

    def __init__(self, security: SecuritySettings, **options: Any) -> None:
        super().__init__(
            title="whisper_server",
            version=__version__,
            description=_DESCRIPTION,
            license_info={"name": "MIT", "identifier": "MIT"},
            **options,
        )
        self._security = security

    def openapi(self) -> dict[str, Any]:
        """The description; made once."""
        if not self.openapi_schema:
            description = super().openapi()
            description["components"]["schemas"] |= event_schemas() | request_schemas()
            description["components"]["examples"] = examples.ALL
            self._drop_validation_errors(description)
            if self._security.api_keys or self._security.api_keys_file:
                self._ask_for_keys(description)
        return super().openapi()

    @staticmethod
    def _drop_validation_errors(description: Mapping[str, Any]) -> None:
        for operations in description["paths"].values():
            for operation in operations.values():
                operation["responses"].pop(_VALIDATION_ERROR, None)
        for name in ("HTTPValidationError", "ValidationError"):
            description["components"]["schemas"].pop(name, None)

    def _ask_for_keys(self, description: dict[str, Any]) -> None:
        description["components"]["securitySchemes"] = _SCHEMES
        description["security"] = [{name: []} for name in _SCHEMES]
        for path, operations in description["paths"].items():
            is_open = any(fnmatchcase(path, pattern) for pattern in self._security.open_paths)
            if is_open and "get" in operations:
                operations["get"]["security"] = []
