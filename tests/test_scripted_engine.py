"""The engine the other tests rely on does what its script says."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from whisper_server.core.types import DecodeOptions, Timestamps, Window
from whisper_server.engines.scripted import ScriptedEngine, Step


def window(seconds: float = 2.0, **options: object) -> Window:
    return Window(np.zeros(round(seconds * 16_000), np.float32), **options)  # type: ignore[arg-type]  # any field


def test_it_says_the_script_and_then_repeats_what_comes_after() -> None:
    engine = ScriptedEngine([Step("one"), Step("")], then=Step("more", language="de"))
    first, second, third, fourth = (engine.decode([window()])[0] for _ in range(4))
    assert [s.text for s in first.segments] == [" one"]
    assert second.segments == ()
    assert [s.text for d in (third, fourth) for s in d.segments] == [" more", " more"]
    assert (first.language, third.language) == ("en", "de")
    assert third.consumed_s == 2.0


def test_it_writes_down_every_window_and_call() -> None:
    engine = ScriptedEngine()
    asked = [window(1.0), window(3.0, prompt="before", language="pt", options=DecodeOptions(beam_size=7))]
    engine.decode(asked)
    engine.decode([asked[0]])
    assert engine.windows == [*asked, asked[0]]
    assert engine.calls == [2, 1]
    assert engine.most_running == 1


def test_words_cover_the_window_evenly_when_asked_for() -> None:
    (decoded,) = ScriptedEngine([Step("two words")]).decode([window(2.0, timestamps=Timestamps.WORD)])
    assert [(w.text, w.start_s, w.end_s) for w in decoded.alignment] == [
        (" two", 0.0, 1.0),
        (" words", 1.0, 2.0),
    ]
    assert ScriptedEngine().decode([window()])[0].alignment == ()


def test_a_step_may_fail() -> None:
    engine = ScriptedEngine([Step(error=RuntimeError("broken"))])
    with pytest.raises(RuntimeError, match="broken"):
        engine.decode([window()])
    assert engine.decode([window()])[0].segments


def test_a_step_waits_for_its_gate() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step(gate=gate)])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.decode, [window()])
        engine.wait_for_windows(1)
        assert not waiting.done()
        gate.set()
        assert waiting.result(10)
    engine.wait_until_idle()


def test_closing_is_noted() -> None:
    engine = ScriptedEngine()
    assert not engine.is_closed
    engine.close()
    assert engine.is_closed
