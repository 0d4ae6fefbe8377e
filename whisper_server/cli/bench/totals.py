"""What all sessions come to."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from whisper_server.cli.bench.histogram import Histogram
from whisper_server.cli.bench.session import SessionRecord, Status


class Measure(NamedTuple):
    """A time that has percentiles.

    Attributes:
        name: as in the session log.
        label: for people.
        value: of a record; None where it has none.
    """

    name: str
    label: str
    value: Callable[[SessionRecord], float | None]


CLIENT_MEASURES = (
    Measure("first_partial_seconds", "first partial", lambda record: record.first_partial_s),
    Measure("first_final_seconds", "first final", lambda record: record.first_final_s),
    Measure(
        "final_after_last_chunk_seconds",
        "last final after last chunk",
        lambda record: record.final_after_last_chunk_s,
    ),
    Measure("wall_seconds", "whole session", lambda record: record.wall_s),
)
"""By the client's clock."""

SERVER_MEASURES = (
    Measure("decode_buffer_wait_seconds", "buffer wait", lambda record: record.decode.buffer_wait_s),
    Measure("decode_queue_wait_seconds", "queue wait", lambda record: record.decode.queue_wait_s),
    Measure("decode_inference_seconds", "inference", lambda record: record.decode.inference_s),
    Measure("decode_response_emit_seconds", "response emit", lambda record: record.decode.response_emit_s),
    Measure("decode_total_seconds", "decode total", lambda record: record.decode.total_s),
)
"""By the server's, summed over the decodes of a session."""


class Totals:
    """Sums records up; it keeps none of them. Failed sessions count, but their times do not."""

    def __init__(self) -> None:
        self.statuses: Counter[Status] = Counter()
        self.errors: Counter[str] = Counter()
        self.first_messages: dict[str, str] = {}
        self.histograms = {measure.name: Histogram() for measure in (*CLIENT_MEASURES, *SERVER_MEASURES)}
        self._audio_s = 0.0

    @property
    def sessions(self) -> int:
        """How many records came."""
        return self.statuses.total()

    @property
    def audio_s(self) -> float:
        """Audio of the sessions that were transcribed."""
        return self._audio_s

    @property
    def is_clean(self) -> bool:
        """Whether no session failed, and no text was wrong."""
        return self.statuses[Status.OK] == self.sessions

    def add(self, record: SessionRecord) -> None:
        """Count a session."""
        self.statuses[record.status] += 1
        if record.status is Status.FAILED:
            self.errors[record.error_code] += 1
            self.first_messages.setdefault(record.error_code, record.error_message)
            return
        self._audio_s += record.audio_s
        for measure in (*CLIENT_MEASURES, *SERVER_MEASURES):
            value = measure.value(record)
            if value is not None:
                self.histograms[measure.name].record(value)
