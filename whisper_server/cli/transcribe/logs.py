"""What the services log, beside the progress bars."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from whisper_server.cli.logs import HumanFormatter, JsonFormatter, RequestIdFilter
from whisper_server.cli.transcribe.progress import LineReporter, Reporter
from whisper_server.config import LoadedSettings
from whisper_server.config.loading import DEFAULT_SOURCE
from whisper_server.core.errors import ConfigurationError

_DOWNLOADS = "model_download"


@contextmanager
def logging_to(reporter: Reporter, loaded: LoadedSettings) -> Iterator[None]:
    """Log to the reporter, and to a file where one is set, while the block runs.

    The reporter gets warnings and how far downloads are, on one line each; another level counts where it was
    set. Tracebacks are for the file.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    settings = loaded.settings.logging
    is_level_set = loaded.sources["logging.level"] != DEFAULT_SOURCE
    handlers: list[logging.Handler] = [_ReporterHandler(reporter, settings.level if is_level_set else None)]
    if settings.file is not None:
        try:
            file = logging.FileHandler(settings.file, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"Cannot write the log {settings.file}: {error.strerror}.") from error
        file.setFormatter(JsonFormatter() if settings.format == "json" else HumanFormatter())
        file.addFilter(RequestIdFilter())
        file.setLevel(settings.level)
        handlers.append(file)
    # At DEBUG httpcore writes the headers of requests, and with them the key.
    levels = dict.fromkeys(("httpx", "httpcore"), "WARNING")
    levels |= {"": settings.level, "faster_whisper": settings.faster_whisper_level}
    before = {name: logging.getLogger(name).level for name in levels}
    root = logging.getLogger()
    try:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for handler in handlers:
            root.addHandler(handler)
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        for name, old in before.items():
            logging.getLogger(name).setLevel(old)


class _ReporterHandler(logging.Handler):
    def __init__(self, reporter: Reporter, level: str | None) -> None:
        super().__init__(level or logging.NOTSET)
        self._reporter = reporter
        self._is_level_set = level is not None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the user wants to see this."""
        if self._is_level_set or record.levelno >= logging.WARNING:
            return True
        return record.module == _DOWNLOADS and isinstance(self._reporter, LineReporter)

    def emit(self, record: logging.LogRecord) -> None:
        """Show it."""
        self._reporter.warn(f"{record.levelname.lower()}: {record.getMessage()}")
