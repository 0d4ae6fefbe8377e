"""An engine without a model, for tests: it says what a script tells it to, and writes down what it was asked.

gate = threading.Event()
engine = ScriptedEngine([Step("first window"), Step("second", gate=gate), Step(error=RuntimeError())])
create_app(settings, engines={"faster-whisper": engine.load})
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from whisper_server.core.engine import Capabilities, ComputeChoice
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import AlignedWord, Decoded, LanguageProbabilities, Segment, Window

NAME = "scripted"

_WAIT_S = 30.0
"""A test that waits longer than this, or an engine that nobody releases, has failed."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one window.

    Attributes:
        text: what the window says, as one segment over all of it; empty for silence.
        error: raised instead.
        gate: the call waits until it is set.
        language: of a window whose language is not given.
    """

    text: str = "as scripted"
    error: Exception | None = None
    gate: threading.Event | None = None
    language: str = "en"


class ScriptedEngine:
    """Behind `core.engine.Engine`. Thread-safe.

    Words are timed evenly, each is one token, and probabilities are round numbers, so that a test can
    foretell the whole answer.

    Args:
        steps: one for each window, in the order in which the calls begin.
        then: for every window after them.
        capabilities: of the engine; None can do everything in English, Portuguese and German, one call
            at a time.
    """

    def __init__(
        self,
        steps: Iterable[Step] = (),
        *,
        then: Step | None = None,
        capabilities: Capabilities | None = None,
    ) -> None:
        self._steps = iter(tuple(steps))
        self._then = then or Step()
        self._capabilities = capabilities or scripted_capabilities()
        self._changed = threading.Condition()
        self._windows: list[Window] = []
        self._calls: list[int] = []
        self._running = 0
        self._most_running = 0
        self._is_closed = False

    def load(self, _folder: Path, _compute: ComputeChoice) -> "ScriptedEngine":
        """Itself, whatever the model: an `EngineLoader`."""
        return self

    @property
    def capabilities(self) -> Capabilities:
        """What it was told it can do."""
        return self._capabilities

    @property
    def windows(self) -> list[Window]:
        """Every window it was asked to decode so far, in the order in which the calls began."""
        with self._changed:
            return list(self._windows)

    @property
    def calls(self) -> list[int]:
        """How many windows each call brought, in the same order."""
        with self._changed:
            return list(self._calls)

    @property
    def most_running(self) -> int:
        """The most calls that ever ran at once."""
        with self._changed:
            return self._most_running

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    def wait_for_windows(self, count: int) -> None:
        """Block until so many windows have begun.

        Raises:
            TimeoutError: they have not in 30 s.
        """
        self._wait(lambda: len(self._windows) >= count, f"{count} windows")

    def wait_until_idle(self) -> None:
        """Block until no call runs; errors as `wait_for_windows`."""
        self._wait(lambda: not self._running, "the end of all calls")

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        """What the script says to each window."""
        with self._changed:
            steps = [next(self._steps, self._then) for _ in windows]
            self._windows += windows
            self._calls.append(len(windows))
            self._running += 1
            self._most_running = max(self._most_running, self._running)
            self._changed.notify_all()
        try:
            return [_follow(step, window) for step, window in zip(steps, windows, strict=True)]
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def detect_language(
        self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
    ) -> list[LanguageProbabilities]:
        """The language of the step that comes after the script, for every window."""
        return [[(self._then.language, 1.0)] for _ in windows]

    def wait_until_ready(self) -> None:
        """It always is."""

    def abort(self) -> bool:
        """Nothing of it can be given up: it runs in threads."""
        return False

    def close(self) -> None:
        """Note that it was closed."""
        self._is_closed = True

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, _WAIT_S):
                raise TimeoutError(f"The engine waited in vain for {what}.")


def scripted_capabilities(
    *, parallel_calls: int = 1, overtaking_calls: int = 0, max_batch: int = 8
) -> Capabilities:
    """Everything, in three languages."""
    return Capabilities(
        engine=NAME,
        device="cpu",
        compute_type="none",
        languages=frozenset(("en", "pt", "de")),
        translation=True,
        word_timestamps=True,
        hotwords=True,
        mel_bins=None,
        parallel_calls=parallel_calls,
        max_batch=max_batch,
        weights_bytes=0,
        overtaking_calls=overtaking_calls,
    )


def _follow(step: Step, window: Window) -> Decoded:
    if step.gate is not None and not step.gate.wait(_WAIT_S):
        raise TimeoutError("Nobody opened the gate of a scripted step.")
    if step.error is not None:
        raise step.error
    words = step.text.split()
    tokens = tuple(range(1, len(words) + 1))
    segment = Segment(
        start_s=0.0,
        end_s=window.duration_s,
        text=f" {step.text}",
        tokens=tokens,
        avg_logprob=-0.25,
        compression_ratio=1.0,
        no_speech_prob=0.0,
        temperature=window.options.temperatures[0],
        text_token_count=len(tokens),
    )
    word_s = window.duration_s / max(1, len(words))
    alignment = tuple(
        AlignedWord(f" {word}", (token,), index * word_s, (index + 1) * word_s, 0.5)
        for index, (word, token) in enumerate(zip(words, tokens, strict=True))
    )
    return Decoded(
        segments=(segment,) if words else (),
        language=window.language or step.language,
        language_probability=1.0 if window.language else 0.9,
        consumed_s=window.duration_s,
        is_complete=True,
        temperature=window.options.temperatures[0],
        alignment=alignment if window.timestamps.has_words else (),
    )
