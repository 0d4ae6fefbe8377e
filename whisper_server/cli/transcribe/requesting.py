"""What is asked of the model or the server: request fields of the API, and how results are written down."""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from whisper_server.api.openai.fields import Fields
from whisper_server.cli.transcribe.planning import Job, OutputFormat
from whisper_server.core.errors import ConfigurationError
from whisper_server.core.formats import SubtitleOptions

SUBTITLE_FORMATS: Final = frozenset([OutputFormat.SRT, OutputFormat.VTT])

FieldPairs: TypeAlias = Sequence[tuple[str, str]]
"""Form fields in order: (name, value)."""

OnProgress: TypeAlias = Callable[[float, float], None]
"""Takes the position that the text has reached and the recording's length, seconds."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of every recording.

    Attributes:
        fields: of the request, without those that follow from the rest.
        translate: write English, whatever is spoken.
        subtitles: how subtitles are broken into lines.
        has_words: a verbose result lists the words, and every word is timed.
        json_indent: of JSON results; None puts each on one line.
    """

    fields: FieldPairs = ()
    translate: bool = False
    subtitles: SubtitleOptions = field(default_factory=SubtitleOptions)
    has_words: bool = False
    json_indent: int | None = None

    def asked_format(self, formats: Sequence[OutputFormat]) -> OutputFormat:
        """The response format from which all of `formats` can be written."""
        if len(formats) == 1 and formats[0] is not OutputFormat.TSV:
            return formats[0]
        if any(kind.is_timed for kind in formats):
            return OutputFormat.VERBOSE_JSON
        return OutputFormat.JSON

    def request_fields(self, formats: Sequence[OutputFormat]) -> FieldPairs:
        """All fields of one request, whose answer holds what `formats` need."""
        asked = self.asked_format(formats)
        limits = _subtitle_fields(self.subtitles)
        pairs = [*self.fields, ("response_format", asked.value)]
        if asked in SUBTITLE_FORMATS:
            pairs += limits
        needs_words = self.has_words or (bool(limits) and not SUBTITLE_FORMATS.isdisjoint(formats))
        if asked is OutputFormat.VERBOSE_JSON:
            pairs.append(("timestamp_granularities[]", "segment"))
            if needs_words:
                pairs.append(("timestamp_granularities[]", "word"))
        elif self.has_words:
            pairs.append(("word_timestamps", "true"))
        return pairs


@dataclass(frozen=True, slots=True)
class Results:
    """What came of a recording.

    Attributes:
        texts: by format, each ending with a newline.
        duration_s: of the recording, where it is known.
    """

    texts: Mapping[OutputFormat, str]
    duration_s: float | None


class Backend(Protocol):
    """Turns recordings into results. For one event loop."""

    async def transcribe(self, job: Job, on_progress: OnProgress) -> Results:
        """The results of a job in all its formats.

        Raises:
            WhisperServerError: it cannot be done; the message is for the user.
            OSError: the recording cannot be read.
        """


def json_text(body: Any, indent: int | None) -> str:
    """A JSON document with a newline."""
    return json.dumps(body, ensure_ascii=False, indent=indent) + "\n"


class WatchedFields(Fields):
    """Request fields that remember which of them were asked for."""

    def __init__(self, pairs: FieldPairs) -> None:
        super().__init__(pairs)
        self._asked: set[str] = set()

    def text(self, name: str) -> str | None:
        """As `Fields.text`."""
        self._asked.add(name)
        return super().text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """As `Fields.texts`."""
        self._asked.add(name)
        return super().texts(name)

    def is_given(self, name: str) -> bool:
        """As `Fields.is_given`."""
        self._asked.add(name)
        return super().is_given(name)

    def refuse_unknown(self) -> None:
        """Refuse what nobody asked for: HTTP ignores unknown fields, on a command line they are typos.

        Raises:
            ConfigurationError: it names the field and the nearest known one.
        """
        for key in sorted(self.keys()):
            name = key.partition("[")[0]
            if name not in self._asked:
                near = difflib.get_close_matches(name, self._asked, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise ConfigurationError(f"There is no request field '{name}'.{hint}")


def _subtitle_fields(subtitles: SubtitleOptions) -> list[tuple[str, str]]:
    limits = {
        "max_line_width": subtitles.max_line_width,
        "max_line_count": subtitles.max_line_count,
        "max_words_per_line": subtitles.max_words_per_line,
    }
    return [(name, str(limit)) for name, limit in limits.items() if limit is not None]
