"""What a terminal shows of partials and finals."""

import io
from typing import Any

from rich.console import Console

from whisper_server.clients.command.output import TerminalOutput
from whisper_server.clients.grpc import (
    AudioLost,
    DecodeTiming,
    Failure,
    Final,
    Partial,
    Reconnected,
    SpeechStarted,
)

_TIMING = DecodeTiming(0.0, 0.0, 0.0)
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_WIDTH = 20


class _Screen:
    """A terminal just clever enough: line feed, carriage return, erase line, up, and styles left out."""

    def __init__(self, written: str) -> None:
        lines, row, column, rest = [""], 0, 0, written
        while rest:
            if rest.startswith("\x1b["):
                end = next(i for i, c in enumerate(rest) if c.isalpha())
                argument, command, rest = rest[2:end], rest[end], rest[end + 1 :]
                if command == "K":
                    lines[row] = ""
                elif command == "A":
                    row -= int(argument or 1)
                else:
                    assert command in "mhl", f"unknown command {command}"
                continue
            character, rest = rest[0], rest[1:]
            if character == "\r":
                column = 0
            elif character == "\n":
                row, column = row + 1, 0
                if row == len(lines):
                    lines.append("")
            else:
                lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
                column += 1
        self.lines = [line.rstrip() for line in lines]


class _Terminal:
    def __init__(self) -> None:
        self.written = io.StringIO()
        self.errors = io.StringIO()
        console = Console(file=self.written, force_terminal=True, width=_WIDTH, color_system="standard")
        self.output = TerminalOutput(console, self.errors)

    @property
    def lines(self) -> list[str]:
        return [line for line in _Screen(self.written.getvalue()).lines if line]


def _partial(stable: str, unstable: str) -> Partial:
    return Partial("u1", f"{stable} {unstable}".strip(), stable, unstable, 0.9, "en", _TIMING)


def _final(text: str) -> Final:
    return Final("u1", text, 0.0, 1.0, "en", 1.0, 0.9, (), (), _TIMING)


def test_a_partial_overwrites_the_one_before() -> None:
    terminal = _Terminal()
    terminal.output.show(_partial("", "alpha bra"))
    assert terminal.lines == ["alpha bra"]
    terminal.output.show(_partial("alpha", "bravo"))
    assert terminal.lines == ["alpha bravo"]


def test_finals_take_the_place_of_partials() -> None:
    terminal = _Terminal()
    for event in (_partial("", "alpha bravo"), _final("Alpha."), _partial("", "charlie"), _final("Charlie.")):
        terminal.output.show(event)
    terminal.output.close()
    assert terminal.lines == ["Alpha.", "Charlie."]


def test_a_partial_of_several_lines_is_overwritten_as_a_whole() -> None:
    terminal = _Terminal()
    terminal.output.show(_partial("alpha bravo charlie", "delta echo foxtrot golf"))
    assert len(terminal.lines) == 3
    terminal.output.show(_final("Alpha."))
    assert terminal.lines == ["Alpha."]


def test_what_may_change_is_dim() -> None:
    terminal = _Terminal()
    terminal.output.show(_partial("alpha", "bravo"))
    written = terminal.written.getvalue()
    assert f"alpha{_DIM} bravo{_PLAIN}" in written
    terminal.output.show(_final("alpha bravo"))
    assert terminal.written.getvalue().splitlines()[-1].endswith("\x1b[2Kalpha bravo")


def test_an_empty_final_erases_its_partial() -> None:
    terminal = _Terminal()
    terminal.output.show(_partial("", "hm"))
    terminal.output.show(_final(""))
    assert terminal.lines == []


def test_closing_erases_the_partial() -> None:
    terminal = _Terminal()
    terminal.output.show(SpeechStarted("u1", 0.0))
    terminal.output.show(_partial("", "hm"))
    terminal.output.close()
    assert terminal.lines == []
    assert terminal.written.getvalue().endswith("\x1b[2K")


def test_text_cannot_steer_the_terminal() -> None:
    terminal = _Terminal()
    terminal.output.show(_partial("", "a\x1b[2Jb\nc"))
    terminal.output.show(_final("[bold]a\x1b[2Jb\r\x9bc"))
    terminal.output.close()
    assert terminal.lines == ["[bold]a [2Jb  c"]


def test_trouble_goes_to_standard_error() -> None:
    terminal = _Terminal()
    events: list[Any] = [
        Failure("u1", "ERR2002", "No luck."),
        Reconnected("mine-2", 1.0, "UNAVAILABLE: Socket closed"),
        AudioLost(0.0, 1.25),
    ]
    terminal.output.show(_partial("", "hm"))
    for event in events:
        terminal.output.show(event)
    assert terminal.lines == []
    assert terminal.errors.getvalue().splitlines() == [
        "an utterance was lost: ERR2002: No luck.",
        "connected again after UNAVAILABLE: Socket closed",
        "audio from 0.0 s to 1.2 s was lost",
    ]
