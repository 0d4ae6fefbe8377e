"""One measurement: so many streams at one door."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice, repeat, zip_longest

from bench.load.measures import percentile
from bench.load.report import Cell
from bench.streaming.conversation import converse
from bench.streaming.cpu import tree_cpu_s
from bench.streaming.doors import FRAME_MS, Address, Door, Message
from bench.streaming.hearing import Measures, transcripts
from bench.streaming.speech import Recording, clips, joined, room_noise, speakers
from bench.word_errors import WordErrors
from whisper_server.core.types import SAMPLE_RATE

COLUMNS = (
    "door",
    "streams",
    "utterances",
    "first text ms p50",
    "p95",
    "word ms p50",
    "p95",
    "final ms p50",
    "p95",
    "unstable ratio",
    "word errors %",
    "CPU s per audio s",
    "CPU % of a core",
)

_NOISE_S = 5
_SPEAKING_WHEN_QUIET = 2


@dataclass(frozen=True, slots=True)
class Round:
    """What was measured; times in seconds.

    Attributes:
        door: name of the route.
        streams: at once.
        measures: of each utterance that got its text.
        lost: texts of utterances that got none.
        strays: texts where nobody spoke.
        faults: what the server complained of.
        audio_s: audio streamed, of all streams together.
        took_s: from the first sample to the last final.
        cpu_s: of the server with all its processes; None where it cannot be read.
        most_late_s: how late a frame left the client.
    """

    door: str
    streams: int
    measures: tuple[Measures, ...]
    lost: tuple[str, ...]
    strays: tuple[str, ...]
    faults: tuple[str, ...]
    audio_s: float
    took_s: float
    cpu_s: float | None
    most_late_s: float

    def first_text_ms(self, percent: float) -> float | None:
        """From the start of speech to the first text."""
        return _percentile_ms([each.first_text_s for each in self.measures], percent)

    def word_ms(self, percent: float) -> float | None:
        """From the end of a word to when it stood there for good."""
        return _percentile_ms([late_s for each in self.measures for late_s in each.word_s], percent)

    def final_ms(self, percent: float) -> float | None:
        """From the true end of speech to the final."""
        return _percentile_ms([each.final_s for each in self.measures], percent)

    @property
    def unstable_ratio(self) -> float | None:
        """Words of partials that were taken back, over words of finals."""
        words = sum(each.words for each in self.measures)
        return sum(each.unstable_words for each in self.measures) / words if words else None

    @property
    def word_error_rate(self) -> float | None:
        """Of the finals, and of what was lost."""
        errors = WordErrors()
        for each in self.measures:
            errors.add(each.reference, each.text)
        for text in self.lost:
            errors.add(text, "")
        return errors.rate if self.measures or self.lost else None

    @property
    def cores(self) -> float | None:
        """CPU the server took, in cores."""
        return None if self.cpu_s is None else self.cpu_s / self.took_s

    def row(self) -> list[Cell]:
        """For a table with `COLUMNS`."""
        errors = self.word_error_rate
        return [
            self.door,
            self.streams,
            len(self.measures),
            *(self.first_text_ms(percent) for percent in (50, 95)),
            *(self.word_ms(percent) for percent in (50, 95)),
            *(self.final_ms(percent) for percent in (50, 95)),
            self.unstable_ratio,
            None if errors is None else 100 * errors,
            None if self.cpu_s is None else self.cpu_s / self.audio_s,
            None if self.cores is None else 100 * self.cores,
        ]


def _percentile_ms(values_s: list[float], percent: float) -> float | None:
    return percentile(values_s, percent) * 1000 if values_s else None


async def streams_round(
    door: Door, address: Address, streams: int, seconds: float, pid: int | None = None
) -> Round:
    """So many speakers, each with sentences of his own and pauses, in real time.

    Args:
        door: which.
        address: of the server.
        streams: how many.
        seconds: of speech and pauses, about.
        pid: of the server, for its CPU time.

    Raises:
        NotMeasurableError: a session is refused.
    """
    spoken = speakers(streams, seconds)
    return await _round(door, address, spoken, [door.frames(each.samples) for each in spoken], pid)


async def quiet_round(
    door: Door, address: Address, streams: int, seconds: float, pid: int | None = None
) -> Round:
    """So many open sessions in quiet rooms, in two of which somebody says one sentence.

    Arguments and errors as `streams_round`; `seconds` leave room for a sentence.
    """
    noise = door.frames(room_noise(_NOISE_S * SAMPLE_RATE))
    quiet = list(islice(cycle(noise), int(seconds * 1000 / FRAME_MS)))
    spoken: list[Recording] = []
    said: list[list[Message]] = []
    for number in range(min(streams, _SPEAKING_WHEN_QUIET)):
        spoken.append(joined([clips()[number]], repeat(seconds * (number + 1) / 10)))
        frames = door.frames(spoken[-1].samples)
        said.append([*frames, *quiet[len(frames) :]])
    said += [quiet] * (streams - len(said))
    return await _round(door, address, spoken, said, pid)


async def _round(
    door: Door,
    address: Address,
    spoken: Sequence[Recording],
    said: Sequence[Sequence[Message]],
    pid: int | None,
) -> Round:
    """Measure; the first speakers say what is in `spoken`, the others nothing."""
    cpu = _CpuClock(pid)
    heard = await converse(door, address, said, on_begin=cpu.start)
    cpu_s, took_s = cpu.stop()
    measures: list[Measures] = []
    lost: list[str] = []
    strays: list[str] = []
    for recording, each in zip_longest(spoken, heard, fillvalue=None):
        assert each is not None
        found = transcripts(recording.utterances if recording else (), each)
        measures += found.measures
        lost += (utterance.text for utterance in found.lost)
        strays += found.strays
    return Round(
        door=door.name,
        streams=len(said),
        measures=tuple(measures),
        lost=tuple(lost),
        strays=tuple(strays),
        faults=tuple(fault for each in heard for fault in each.faults),
        audio_s=sum(map(len, said)) * FRAME_MS / 1000,
        took_s=took_s,
        cpu_s=cpu_s,
        most_late_s=max(each.most_late_s for each in heard),
    )


class _CpuClock:
    """The server's CPU time and the time that passes, from `start` to `stop`."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._cpu_s: float | None = None
        self._started_s = 0.0

    def start(self) -> None:
        self._started_s = time.perf_counter()
        self._cpu_s = self._now()

    def stop(self) -> tuple[float | None, float]:
        after_s = self._now()
        took_s = time.perf_counter() - self._started_s
        return (None if self._cpu_s is None or after_s is None else after_s - self._cpu_s), took_s

    def _now(self) -> float | None:
        return None if self._pid is None else tree_cpu_s(self._pid)
