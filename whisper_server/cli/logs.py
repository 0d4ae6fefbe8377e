"""Log lines: time, level, request id, logger, message."""

import logging
import logging.config

from whisper_server.api.request_id import request_id
from whisper_server.config import LoggingSettings


class RequestIdFilter(logging.Filter):
    """Gives each line the id of the request it belongs to."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add `request_id` to the record."""
        record.request_id = request_id()
        return True


def set_up_logging(settings: LoggingSettings) -> None:
    """Log to stderr, or to a file where one is set."""
    target = {"filename": str(settings.file), "encoding": "utf-8"} if settings.file else {}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "plain": {"format": "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"}
            },
            "filters": {"request_id": {"()": RequestIdFilter}},
            "handlers": {
                "main": {
                    "class": "logging.FileHandler" if settings.file else "logging.StreamHandler",
                    "formatter": "plain",
                    "filters": ["request_id"],
                    **target,
                }
            },
            "root": {"level": settings.level, "handlers": ["main"]},
            "loggers": {
                "faster_whisper": {"level": settings.faster_whisper_level},
                # Each line of a download at INFO would drown the server's own.
                "httpx": {"level": "WARNING"},
                "httpx2": {"level": "WARNING"},
            },
        }
    )
