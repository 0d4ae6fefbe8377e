"""How long transcripts took, by the client's clock."""

import statistics
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from whisper_server.clients.grpc import AudioFormat, DecodeTotals, Event, Final, Partial

_MAX_MARKS = 36_000
_MAX_LATENCIES = 100_000


class LatencyMeter:
    """Measures one stream.

    Args:
        audio: how its chunks are written.
        clock: monotonic, seconds.
    """

    def __init__(self, audio: AudioFormat, clock: Callable[[], float]) -> None:
        self._bytes_per_s = audio.bytes_per_s
        self._clock = clock
        self._began_s = clock()
        self._sent_bytes = 0
        self._marks: deque[tuple[float, float]] = deque(maxlen=_MAX_MARKS)
        self._first_sent_s: float | None = None
        self._first_partial_s: float | None = None
        self._finals_s: deque[float] = deque(maxlen=_MAX_LATENCIES)

    async def watch(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """The same chunks; notes when each is handed over."""
        async with aclosing(chunks):
            async for chunk in chunks:
                now_s = self._clock()
                if self._first_sent_s is None:
                    self._first_sent_s = now_s
                self._sent_bytes += len(chunk)
                self._marks.append((self._sent_bytes / self._bytes_per_s, now_s))
                yield chunk

    def heard(self, event: Event) -> None:
        """Note when an event came."""
        now_s = self._clock()
        if isinstance(event, Partial) and self._first_partial_s is None:
            self._first_partial_s = now_s - (now_s if self._first_sent_s is None else self._first_sent_s)
        elif isinstance(event, Final):
            while self._marks and self._marks[0][0] < event.end_s:
                self._marks.popleft()
            if self._marks:
                self._finals_s.append(now_s - self._marks[0][1])

    def report(self, totals: DecodeTotals | None) -> list[str]:
        """Lines for people.

        Args:
            totals: what the server told; None if it told nothing.
        """
        audio_s = self._sent_bytes / self._bytes_per_s
        lines = [f"audio          {audio_s:.2f} s in {self._clock() - self._began_s:.2f} s"]
        if self._first_partial_s is not None:
            lines.append(f"first partial  {self._first_partial_s:.3f} s after the first audio")
        if self._finals_s:
            count, middle_s, longest_s = (
                len(self._finals_s),
                statistics.median(self._finals_s),
                max(self._finals_s),
            )
            lines.append(
                f"finals         {count}; median {middle_s:.3f} s, longest {longest_s:.3f} s after speech"
            )
        if totals is None:
            return [*lines, "server         did not tell where its time went"]
        return [
            *lines,
            f"server         {totals.count} decodes, {totals.total_s:.3f} s: buffer wait "
            f"{totals.buffer_wait_s:.3f} s, queue wait {totals.queue_wait_s:.3f} s, inference "
            f"{totals.inference_s:.3f} s, response emit {totals.response_emit_s:.3f} s",
        ]
