"""Log lines for people or for programs, each with the id of the request it belongs to."""

import json
import logging
import logging.config
import re
from datetime import UTC, datetime
from typing import Any

from whisper_server.api.request_id import request_id
from whisper_server.config import LoggingSettings
from whisper_server.core.errors import ConfigurationError

_HUMAN_FORMAT = "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class RequestIdFilter(logging.Filter):
    """Gives each line the id of the request it belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add `request_id` to the record."""
        record.request_id = request_id()
        return True


class HumanFormatter(logging.Formatter):
    """Time, level, request id, logger, message; a traceback on the lines below."""

    def __init__(self) -> None:
        super().__init__(_HUMAN_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name of the library
        """The line without its traceback. Control characters are escaped: no message forges a line."""
        line = super().formatMessage(record)
        return _CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], line)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `ts` (UTC), `level`, `logger`, `message`, `request_id`.

    A line about an exception has it with its traceback in `exception`. What a caller passes as
    `extra={"fields": {…}}` goes in as it is.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "ts": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", "-"),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}), default=str)


class NoQueryFilter(logging.Filter):
    """Drops uvicorn's own line for each WebSocket: it has the query in it, and the server writes its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        return not (record.name == "uvicorn.error" and "WebSocket" in str(record.msg))


def set_up_logging(settings: LoggingSettings) -> None:
    """Log to standard error, and to a file too where one is set.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    handlers: dict[str, dict[str, Any]] = {"stderr": {"class": "logging.StreamHandler"}}
    if settings.file is not None:
        handlers["file"] = {
            "class": "logging.FileHandler",
            "filename": str(settings.file),
            "encoding": "utf-8",
        }
    for handler in handlers.values():
        handler |= {"formatter": settings.format, "filters": ["request_id", "no_query"]}
    configuration = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"human": {"()": HumanFormatter}, "json": {"()": JsonFormatter}},
        "filters": {"request_id": {"()": RequestIdFilter}, "no_query": {"()": NoQueryFilter}},
        "handlers": handlers,
        "root": {"level": settings.level, "handlers": list(handlers)},
        "loggers": _logger_levels(settings),
    }
    logging.captureWarnings(True)
    try:
        logging.config.dictConfig(configuration)
    except ValueError as error:
        reason = error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise ConfigurationError(
            f"The log file {settings.file} cannot be written: {reason.strerror}. Set WHISPER_LOGGING_FILE."
        ) from error


def _logger_levels(settings: LoggingSettings) -> dict[str, dict[str, Any]]:
    # At DEBUG these write the headers of requests, and with them keys and tokens.
    no_headers = "INFO" if settings.level == "DEBUG" else settings.level
    return {
        "faster_whisper": {"level": settings.faster_whisper_level},
        "uvicorn.error": {"level": no_headers},
        "websockets": {"level": no_headers},
        # The server writes its own line per request; uvicorn's has the query in it.
        "uvicorn.access": {"handlers": [], "propagate": False},
        # A malformed body is the client's fault; the server's own line names it.
        "python_multipart": {"level": "ERROR"},
        # Each line of a download at INFO would drown the server's own.
        "httpx": {"level": "WARNING"},
        "httpx2": {"level": "WARNING"},
        "httpcore": {"level": "WARNING"},
        "httpcore2": {"level": "WARNING"},
    }
