"""What a command shows of the events: on a terminal, in a pipe, or as JSON."""

import json
import re
import sys
from dataclasses import asdict
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from whisper_server.clients.grpc import (
    AudioLost,
    Ended,
    Event,
    Failure,
    Final,
    Partial,
    Reconnected,
    SpeechStarted,
    SpeechStopped,
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NAMES: dict[type[Any], str] = {
    SpeechStarted: "speech_started",
    SpeechStopped: "speech_stopped",
    Partial: "partial",
    Final: "final",
    Failure: "failure",
    Reconnected: "reconnected",
    AudioLost: "audio_lost",
    Ended: "ended",
}


class Output(Protocol):
    """Takes events, and what is to be told to people."""

    def show(self, event: Event) -> None:
        """Show an event."""

    def tell(self, text: str) -> None:
        """Tell people, on standard error."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def open_output(*, as_json: bool, stdout: TextIO | None = None, stderr: TextIO | None = None) -> Output:
    """The output that suits standard output.

    Args:
        as_json: one JSON object per event, wherever it goes.
        stdout: for tests.
        stderr: for tests.
    """
    stdout, stderr = stdout or sys.stdout, stderr or sys.stderr
    if as_json:
        return JsonOutput(stdout, stderr)
    return TerminalOutput(Console(file=stdout), stderr) if stdout.isatty() else LineOutput(stdout, stderr)


class JsonOutput:
    """One JSON object per event, its kind under "event"."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        self._stdout = stdout
        self._stderr = stderr

    def show(self, event: Event) -> None:
        """Write the event."""
        shown = {"event": _NAMES[type(event)], **_rounded(asdict(event))}
        print(json.dumps(shown, ensure_ascii=False), file=self._stdout, flush=True)

    def tell(self, text: str) -> None:
        """Tell people."""
        print(_plain(text), file=self._stderr, flush=True)

    def close(self) -> None:
        """Nothing is to be done."""


class LineOutput:
    """Finals alone, a line each."""

    def __init__(self, stdout: TextIO, stderr: TextIO) -> None:
        self._stdout = stdout
        self._stderr = stderr

    def show(self, event: Event) -> None:
        """Write a final with text; tell what went wrong."""
        if isinstance(event, Final):
            if event.text:
                print(_plain(event.text), file=self._stdout, flush=True)
        elif text := _trouble(event):
            self.tell(text)

    def tell(self, text: str) -> None:
        """Tell people."""
        print(_plain(text), file=self._stderr, flush=True)

    def close(self) -> None:
        """Nothing is to be done."""


class TerminalOutput:
    """The partial below the finals, overwritten by the next one and by its final. What may change is dim."""

    def __init__(self, console: Console, stderr: TextIO) -> None:
        self._console = console
        self._stderr = stderr
        self._live: Live | None = None

    def show(self, event: Event) -> None:
        """Draw the partial, or write a final in its place."""
        if isinstance(event, Partial):
            self._draw(event)
        elif isinstance(event, Final):
            self._erase()
            if event.text:
                self._console.print(Text(_plain(event.text)))
        elif text := _trouble(event):
            self.tell(text)

    def tell(self, text: str) -> None:
        """Tell people, above the next partial."""
        self._erase()
        print(_plain(text), file=self._stderr, flush=True)

    def close(self) -> None:
        """Erase the partial."""
        self._erase()

    def _draw(self, partial: Partial) -> None:
        text = Text(_plain(partial.text))
        text.stylize("dim", len(partial.stable_text) if partial.text.startswith(partial.stable_text) else 0)
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(text, refresh=True)

    def _erase(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def _trouble(event: Event) -> str | None:
    match event:
        case Failure(code=code, message=message):
            return f"an utterance was lost: {code}: {message}"
        case Reconnected(reason=reason):
            return f"connected again after {reason}"
        case AudioLost(start_s=start_s, end_s=end_s):
            return f"audio from {start_s:.1f} s to {end_s:.1f} s was lost"
    return None


def _plain(text: str) -> str:
    """Without what could steer a terminal or break a line."""
    return _CONTROL.sub(lambda found: " " * len(found[0]), text)


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
    return value
