"""Workers and threads found by measuring: the rules, the trial on engines of known speed, the cache."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_server.bootstrap import built_in_engines
from whisper_server.cli.main import main
from whisper_server.core.calibration import (
    MAX_CANDIDATES,
    Measurement,
    Parallelism,
    batch_for,
    candidates,
    machine_fingerprint,
    winner,
)
from whisper_server.core.engine import Capabilities, ComputeChoice
from whisper_server.core.errors import EngineError, ModelLoadError
from whisper_server.core.hardware import Decision, HardwareFacts, HardwareRequest, choose_compute
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import Decoded, LanguageProbabilities, Timestamps, Window
from whisper_server.engines.hardware_probe import gather_facts
from whisper_server.engines.scripted import scripted_capabilities
from whisper_server.services.calibration import Calibrator
from whisper_server.services.calibration_cache import (
    FILE_NAME,
    MAX_ENTRIES,
    Calibration,
    CalibrationCache,
    CalibrationKey,
    platform_cache_folder,
)
from whisper_server.services.engine_measuring import measure_engine

FACTS = HardwareFacts(
    system="Linux",
    architecture="x86_64",
    instruction_sets=frozenset({"AVX2"}),
    physical_cores=8,
    logical_cores=16,
    cpu_limit=None,
    memory_bytes=None,
    memory_limit_bytes=None,
    gpus=(),
    mps_available=False,
    cpu_compute_types=frozenset({"int8", "float32"}),
    installed_engines=frozenset({"faster-whisper", "transformers"}),
    cpu_name="Test CPU",
)
TWO_CORES = replace(FACTS, physical_cores=2, logical_cores=2)
WIDE = Parallelism(1, 2)
TWIN = Parallelism(2, 1)
"""The candidates of two cores: the default, and its challenger."""


def decide(facts: HardwareFacts, *, workers: int = 0, cpu_threads: int = 0) -> Decision:
    return choose_compute(facts, HardwareRequest(device="cpu", workers=workers, cpu_threads=cpu_threads))


@pytest.mark.parametrize(
    ("cores", "limit", "set_by_operator", "expected"),
    [
        (1, None, {}, [(1, 1)]),
        (2, None, {}, [(1, 2), (2, 1)]),
        (4, None, {}, [(1, 2), (1, 4), (2, 2), (4, 1)]),
        (6, None, {}, [(1, 3), (1, 6), (2, 3), (3, 2)]),
        (8, None, {}, [(1, 4), (1, 8), (2, 4), (4, 2)]),
        (64, None, {}, [(1, 32), (4, 16), (8, 8), (16, 4)]),
        (64, 2.9, {}, [(1, 2), (2, 1)]),
        (64, 0.5, {}, [(1, 1)]),
        (8, None, {"workers": 2}, [(2, 4), (2, 2), (2, 1)]),
        (8, None, {"workers": 9}, [(9, 1)]),
        (8, None, {"cpu_threads": 3}, [(1, 3), (2, 3)]),
        (8, None, {"cpu_threads": 9}, [(1, 9)]),
        (8, None, {"cpu_threads": 1}, [(1, 1), (8, 1), (4, 1), (2, 1)]),
        (8, None, {"cpu_threads": 2, "workers": 2}, [(2, 2)]),
    ],
)
def test_candidates_fill_the_usable_cores_around_what_is_set(
    cores: int, limit: float | None, set_by_operator: dict[str, int], expected: list[tuple[int, int]]
) -> None:
    facts = replace(FACTS, physical_cores=cores, logical_cores=2 * cores, cpu_limit=limit)
    tried = candidates(decide(facts, **set_by_operator), facts)
    assert [(c.workers, c.cpu_threads) for c in tried] == expected


@given(
    cores=st.integers(1, 300),
    limit=st.none() | st.floats(0.1, 300),
    workers=st.integers(0, 40),
    cpu_threads=st.integers(0, 40),
)
def test_candidates_are_few_and_never_overload_the_machine_or_overrule_the_operator(
    cores: int, limit: float | None, workers: int, cpu_threads: int
) -> None:
    facts = replace(FACTS, physical_cores=cores, logical_cores=cores, cpu_limit=limit)
    decision = decide(facts, workers=workers, cpu_threads=cpu_threads)
    default, *challengers = candidates(decision, facts)
    assert default.applied_to(decision.choice) == decision.choice
    assert len({default, *challengers}) == 1 + len(challengers) <= MAX_CANDIDATES
    assert all(c.threads <= facts.usable_cores for c in challengers)
    assert all(c.workers == workers for c in challengers if workers)
    assert all(c.cpu_threads == cpu_threads for c in challengers if cpu_threads)


@pytest.mark.parametrize("changed", [{"device": "cuda"}, {"engine": "transformers"}])
def test_other_devices_and_engines_have_nothing_to_try(changed: dict[str, str]) -> None:
    decision = decide(FACTS)
    choice = replace(decision.choice, **changed)  # type: ignore[arg-type]  # mypy does not look into the dict
    assert candidates(replace(decision, choice=choice), FACTS) == (Parallelism(1, 4),)


def measured(workers: int, latency_ms: float, windows_per_s: float | None) -> Measurement:
    return Measurement(Parallelism(workers, 8 // workers), latency_ms / 1000, windows_per_s, 4)


@pytest.mark.parametrize(
    ("measurements", "workers"),
    [
        ([measured(1, 100, 10)], 1),
        ([measured(1, 100, None)], 1),
        ([measured(1, 100, 10), measured(2, 109, 12)], 2),
        ([measured(1, 100, 10), measured(2, 111, 99)], 1),
        ([measured(1, 100, 10), measured(2, 100, 10.4)], 1),
        ([measured(1, 100, 10), measured(2, 100, 10.6)], 2),
        ([measured(1, 100, 10), measured(2, 85, 8)], 2),
        ([measured(1, 100, 10), measured(2, 95, 8)], 1),
        ([measured(1, 100, 10), measured(2, 105, 12), measured(4, 90, 11)], 4),
        ([measured(1, 100, 10), measured(2, 99, 12), measured(4, 108, 13)], 4),
    ],
)
def test_the_winner_is_quick_for_one_and_best_for_many(measurements: list[Measurement], workers: int) -> None:
    assert winner(measurements).workers == workers


@pytest.mark.parametrize(
    ("call_s", "workers", "max_batch", "batch"),
    [(0.0, 1, 8, 4), (0.01, 1, 8, 4), (0.01, 1, 2, 2), (0.1, 1, 8, 2), (0.1, 4, 8, 1), (1.0, 1, 8, 1)],
)
def test_the_batch_fits_the_time_there_is(call_s: float, workers: int, max_batch: int, batch: int) -> None:
    assert batch_for(call_s, workers, max_batch) == batch


@pytest.mark.parametrize(
    "other",
    [
        {"cpu_name": "Other CPU"},
        {"physical_cores": 4},
        {"cpu_limit": 2.5},
        {"instruction_sets": frozenset({"AVX512F"})},
    ],
)
def test_another_machine_or_limit_has_another_fingerprint(other: dict[str, object]) -> None:
    assert machine_fingerprint(replace(FACTS)) == machine_fingerprint(FACTS)
    changed = replace(FACTS, **other)  # type: ignore[arg-type]  # mypy does not look into the dict
    assert machine_fingerprint(changed) != machine_fingerprint(FACTS)


class Bench:
    """Engines of known speed on a clock of their own. A loader, and all that was loaded.

    Attributes:
        latency_s: of one window alone, by parallelism.
        windows_per_s: of several windows, by parallelism.
        load_s: what each load takes.
        on_decode: called before each call.
    """

    def __init__(
        self,
        latency_s: Mapping[Parallelism, float],
        windows_per_s: Mapping[Parallelism, float],
        *,
        load_s: float = 0.5,
        on_decode: Callable[["TimedEngine"], None] = lambda engine: None,
        on_load: Callable[[Parallelism], None] = lambda parallelism: None,
    ) -> None:
        self.latency_s = latency_s
        self.windows_per_s = windows_per_s
        self.load_s = load_s
        self.on_decode = on_decode
        self.on_load = on_load
        self.engines: list[TimedEngine] = []
        self.now_s = 0.0
        self._lock = threading.Lock()

    def clock(self) -> float:
        return self.now_s

    def pass_time(self, seconds: float) -> None:
        with self._lock:
            self.now_s += seconds

    def load(self, _folder: Path, compute: ComputeChoice) -> "TimedEngine":
        parallelism = Parallelism(compute.workers, compute.cpu_threads)
        self.on_load(parallelism)
        self.pass_time(self.load_s)
        self.engines.append(TimedEngine(self, parallelism))
        return self.engines[-1]

    @property
    def loads(self) -> list[Parallelism]:
        return [engine.parallelism for engine in self.engines]

    @property
    def open(self) -> list["TimedEngine"]:
        return [engine for engine in self.engines if not engine.is_closed]


class TimedEngine:
    """Behind `core.engine.Engine`."""

    def __init__(self, bench: Bench, parallelism: Parallelism) -> None:
        self.parallelism = parallelism
        self.is_closed = False
        self.is_aborted = False
        self.calls: list[list[Window]] = []
        self._bench = bench

    @property
    def capabilities(self) -> Capabilities:
        return scripted_capabilities(parallel_calls=self.parallelism.workers + 1)

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        self._bench.on_decode(self)
        self.calls.append(list(windows))
        alone_s = self._bench.latency_s[self.parallelism]
        together_s = len(windows) / self._bench.windows_per_s[self.parallelism]
        self._bench.pass_time(alone_s if len(windows) == 1 else together_s)
        return [Decoded((), "en", 1.0, window.duration_s, True, 0.0) for window in windows]

    def detect_language(
        self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
    ) -> list[LanguageProbabilities]:
        return [[("en", 1.0)] for _ in windows]

    def wait_until_ready(self) -> None:
        pass

    def abort(self) -> bool:
        self.is_aborted = True
        return False

    def close(self) -> None:
        self.is_closed = True


TWIN_IS_BETTER = ({WIDE: 0.05, TWIN: 0.05}, {WIDE: 20.0, TWIN: 30.0})
TWIN_IS_SLOWER = ({WIDE: 0.05, TWIN: 0.09}, {WIDE: 20.0, TWIN: 30.0})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def calibrator(
    bench: Bench, folder: Path | None, *, facts: HardwareFacts = TWO_CORES, hang_limit_s: float = 30.0
) -> Calibrator:
    return Calibrator(
        decide(facts),
        facts,
        CalibrationCache(folder),
        measure=partial(measure_engine, clock=bench.clock, hang_limit_s=hang_limit_s),
        clock=bench.clock,
        now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )


def load(model: Path, bench: Bench, cache: Path | None) -> TimedEngine:
    """Load through a new calibrator, as after a restart."""
    engine = calibrator(bench, cache).calibrated_loader(bench.load)(model, decide(TWO_CORES).choice)
    assert isinstance(engine, TimedEngine)
    return engine


def test_the_first_load_measures_and_later_ones_take_what_was_found(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench, cache = Bench(*TWIN_IS_BETTER), tmp_path / "cache"
    engine = load(model, bench, cache)
    assert engine.parallelism == TWIN
    assert bench.loads == [WIDE, TWIN], "the winner was loaded last and stays"
    assert bench.open == [engine]
    line = caplog.messages[-1]
    assert "1 worker × 2 threads: 50 ms a window, 20.00 windows/s" in line
    assert f"Chosen: 2 workers × 1 thread, kept in {cache / FILE_NAME}" in line

    later = Bench(*TWIN_IS_BETTER)
    assert load(model, later, cache).parallelism == TWIN
    assert later.loads == [TWIN]
    assert later.engines[0].calls == []
    assert "2 workers × 1 thread, as measured 2026-01-02T03:04:05+00:00" in caplog.messages[-1]


def test_the_default_is_loaded_again_when_it_wins_after_others(model: Path) -> None:
    bench = Bench(*TWIN_IS_SLOWER)
    engine = load(model, bench, None)
    assert bench.loads == [WIDE, TWIN, WIDE]
    assert bench.open == [engine]
    assert engine.calls == []


def test_all_candidates_decode_the_same_cheap_windows(model: Path) -> None:
    bench = Bench(*TWIN_IS_BETTER)
    load(model, bench, None)
    wide, twin = bench.engines
    assert {len(call) for call in wide.calls} == {len(call) for call in twin.calls} == {1, 4}
    windows = [window for engine in bench.engines for call in engine.calls for window in call]
    for window in windows:
        assert window.options.beam_size == 1
        assert window.options.temperatures == (0.0,)
        assert window.options.max_new_tokens is not None
        assert window.options.log_prob_threshold is window.options.compression_ratio_threshold is None
        assert window.options.no_speech_threshold is None
        assert window.timestamps is Timestamps.NONE
        assert window.language == "en"
    assert {window.duration_s for call in wide.calls[1:] for window in call} == {30.0}
    first, *others = (call[0].samples for call in wide.calls[1:])
    assert all((first == other).all() for other in others)
    assert abs(first).max() <= 1.0


def test_measuring_ends_within_its_time_on_a_model_of_any_speed(model: Path) -> None:
    for latency_s in (0.0001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 1.0, 1.5, 11.0):
        speed = 1 / latency_s
        bench = Bench({WIDE: latency_s, TWIN: 1.3 * latency_s}, {WIDE: speed, TWIN: speed}, load_s=0.4)
        assert load(model, bench, None).parallelism == WIDE
        assert bench.now_s <= 12.0, latency_s


def test_a_model_too_slow_to_measure_keeps_the_default_and_that_is_remembered(
    model: Path, tmp_path: Path
) -> None:
    slow = ({WIDE: 3.0, TWIN: 3.0}, {WIDE: 0.3, TWIN: 9.0})
    bench = Bench(*slow)
    engine = load(model, bench, tmp_path)
    assert (engine.parallelism, bench.loads, len(engine.calls)) == (WIDE, [WIDE], 1)
    (entry,) = CalibrationCache(tmp_path).for_machine(machine_fingerprint(TWO_CORES))
    assert entry.note == "2 workers × 1 thread left out: no time"
    assert entry.measurements[0].windows_per_s is None
    again = Bench(*slow)
    assert load(model, again, tmp_path).calls == []


def test_loads_that_take_long_leave_no_time_for_challengers(model: Path) -> None:
    bench = Bench(*TWIN_IS_BETTER, load_s=5.0)
    assert load(model, bench, None).parallelism == WIDE
    assert bench.loads == [WIDE]


@pytest.mark.parametrize("fails_in", ["load", "decode"])
def test_a_challenger_that_fails_is_left_out(model: Path, tmp_path: Path, fails_in: str) -> None:
    def refuse(parallelism: Parallelism) -> None:
        if parallelism == TWIN:
            raise ModelLoadError("No memory.") if fails_in == "load" else EngineError("It broke.")

    bench = Bench(*TWIN_IS_BETTER)
    if fails_in == "load":
        bench.on_load = refuse
    else:
        bench.on_decode = lambda engine: refuse(engine.parallelism)
    engine = load(model, bench, tmp_path)
    assert engine.parallelism == WIDE
    assert bench.open == [engine]
    (entry,) = CalibrationCache(tmp_path).for_machine(machine_fingerprint(TWO_CORES))
    assert (entry.chosen, entry.note) == (WIDE, "2 workers × 1 thread failed")


def test_a_default_that_cannot_be_measured_is_loaded_afresh_and_nothing_is_remembered(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: TimedEngine) -> None:
        raise EngineError("It broke.")

    bench = Bench(*TWIN_IS_BETTER, on_decode=fail)
    engine = load(model, bench, tmp_path)
    assert bench.loads == [WIDE, WIDE]
    assert bench.open == [engine]
    assert "failed: It broke." in caplog.text
    assert list(tmp_path.glob(FILE_NAME)) == []


def test_an_engine_that_hangs_is_given_up_and_never_closed(model: Path) -> None:
    released = threading.Event()
    bench = Bench(*TWIN_IS_BETTER, on_decode=lambda engine: (released.wait(30), None)[1])
    choice = decide(TWO_CORES).choice
    try:
        engine = calibrator(bench, None, hang_limit_s=0.05).load(model, choice, bench.load)
    finally:
        released.set()
    hung, fresh = bench.engines
    assert (hung.is_aborted, hung.is_closed) == (True, False)
    assert engine is fresh


def test_a_model_that_does_not_load_fails_as_without_calibration(model: Path) -> None:
    def refuse(_: Parallelism) -> None:
        raise ModelLoadError("The model's files could not be loaded.")

    with pytest.raises(ModelLoadError, match="could not be loaded"):
        load(model, Bench(*TWIN_IS_BETTER, on_load=refuse), None)


def test_a_choice_that_loads_no_more_gives_way_to_the_default(model: Path, tmp_path: Path) -> None:
    load(model, Bench(*TWIN_IS_BETTER), tmp_path)

    def refuse(parallelism: Parallelism) -> None:
        if parallelism == TWIN:
            raise ModelLoadError("No memory.")

    assert load(model, Bench(*TWIN_IS_BETTER, on_load=refuse), tmp_path).parallelism == WIDE


def test_a_stopped_calibrator_measures_no_more_and_remembers_nothing(model: Path, tmp_path: Path) -> None:
    bench = Bench(*TWIN_IS_BETTER)
    subject = calibrator(bench, tmp_path)
    bench.on_decode = lambda engine: subject.stop()
    engine = subject.load(model, decide(TWO_CORES).choice, bench.load)
    assert bench.open == [engine]
    assert bench.loads == [WIDE]
    assert list(tmp_path.glob(FILE_NAME)) == []
    asked = len(bench.engines[0].calls)
    subject.load(model, decide(TWO_CORES).choice, bench.load)
    assert [len(e.calls) for e in bench.engines] == [asked, 0]


def test_without_a_measure_only_what_is_known_counts(model: Path, tmp_path: Path) -> None:
    def known_only(bench: Bench) -> TimedEngine:
        subject = Calibrator(decide(TWO_CORES), TWO_CORES, CalibrationCache(tmp_path), measure=None)
        subject.load(model, decide(TWO_CORES).choice, bench.load)
        (engine,) = bench.engines
        assert engine.calls == []
        return engine

    assert known_only(Bench(*TWIN_IS_BETTER)).parallelism == WIDE
    load(model, Bench(*TWIN_IS_BETTER), tmp_path)
    assert known_only(Bench(*TWIN_IS_BETTER)).parallelism == TWIN


def test_what_the_operator_set_is_never_measured(model: Path) -> None:
    bench = Bench(*TWIN_IS_BETTER)
    decision = decide(TWO_CORES, workers=1, cpu_threads=2)
    Calibrator(decision, TWO_CORES, CalibrationCache(None)).load(model, decision.choice, bench.load)
    assert bench.loads == [WIDE]
    assert bench.engines[0].calls == []


def test_another_model_or_format_is_measured_anew(model: Path, tmp_path: Path) -> None:
    def is_measured(compute_type: str = "int8") -> bool:
        bench = Bench(*TWIN_IS_BETTER)
        choice = replace(decide(TWO_CORES).choice, compute_type=compute_type)
        calibrator(bench, tmp_path).load(model, choice, bench.load)
        return len(bench.loads) > 1

    assert is_measured()
    assert not is_measured()
    assert is_measured("float32")
    (model / "model.bin").write_bytes(b"other weights")
    assert is_measured()
    (model / "config.json").write_text('{"changed": true}')
    assert is_measured()
    assert not is_measured()


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "CT2_USE_MKL"])
def test_what_makes_the_libraries_compute_otherwise_is_measured_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def is_measured() -> bool:
        bench = Bench(*TWIN_IS_BETTER)
        calibrator(bench, tmp_path).load(model, decide(TWO_CORES).choice, bench.load)
        return len(bench.loads) > 1

    monkeypatch.delenv(name, raising=False)
    assert is_measured()
    monkeypatch.setenv(name, "1")
    assert is_measured()
    assert not is_measured()


def test_models_are_measured_one_at_a_time_and_each_once(tmp_path: Path) -> None:
    """Two threads at the barrier at once would both pass it."""
    barrier = threading.Barrier(2)
    measurements: list[bool] = []

    def measure(_: object, parallelism: Parallelism, batch: int | None) -> Measurement:
        try:
            barrier.wait(0.05)
            measurements.append(False)
        except threading.BrokenBarrierError:
            barrier.reset()
            measurements.append(True)
        return Measurement(parallelism, 0.1, 10.0, 4)

    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "model.bin").write_bytes(bytes(str(folder), "utf-8"))
        (folder / "config.json").write_text(f'"{folder.name}"')
    bench = Bench(*TWIN_IS_BETTER)
    subject = Calibrator(decide(TWO_CORES), TWO_CORES, CalibrationCache(None), measure=measure)
    choice = decide(TWO_CORES).choice
    threads = [
        threading.Thread(target=subject.load, args=(folder, choice, bench.load)) for folder in folders * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert measurements == [True] * 4, "two candidates of two models, one after the other"


def entry(name: str, chosen: Parallelism = TWIN, *, machine: str = "here") -> Calibration:
    return Calibration(
        key=CalibrationKey(machine, name, "int8", "ctranslate2 9", (WIDE, TWIN)),
        folder=f"/models/{name}",
        chosen=chosen,
        measurements=(Measurement(WIDE, 0.1, 10.0, 4), Measurement(TWIN, 0.1, None, 4)),
        note="",
        measured_at="2026-01-02T03:04:05+00:00",
    )


def test_the_cache_gives_back_what_it_was_given_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    assert CalibrationCache(folder).store(entry("a"))
    assert CalibrationCache(folder).store(entry("b", machine="there"))
    assert CalibrationCache(folder).store(entry("a", WIDE))
    cache = CalibrationCache(folder)
    assert cache.find(entry("a").key) == entry("a", WIDE)
    assert cache.find(entry("c").key) is None
    assert cache.for_machine("there") == [entry("b", machine="there")]
    assert [path.name for path in folder.iterdir()] == [FILE_NAME], "no drafts are left"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[1, 2]",
        b'{"version": 2}',
        b'{"version": 1, "entries": []}',
        b'{"version": 2, "entries": [{"key": "a"}]}',
        b" " * 1_000_001,
    ],
)
def test_a_file_that_is_not_the_servers_is_ignored_and_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    cache = CalibrationCache(tmp_path)
    assert cache.find(entry("a").key) is None
    assert cache.store(entry("a"))
    assert CalibrationCache(tmp_path).find(entry("a").key) == entry("a")


def test_a_choice_that_was_not_to_choose_from_does_not_count(tmp_path: Path) -> None:
    CalibrationCache(tmp_path).store(entry("a", Parallelism(1000, 1000)))
    assert CalibrationCache(tmp_path).find(entry("a").key) is None


def test_the_oldest_results_go_first(tmp_path: Path) -> None:
    cache = CalibrationCache(tmp_path)
    names = [str(number) for number in range(MAX_ENTRIES + 3)]
    for name in names:
        cache.store(entry(name))
    for kept in (cache, CalibrationCache(tmp_path)):
        assert [e.key.model for e in kept.for_machine("here")] == names[3:]


def test_a_folder_that_cannot_be_written_is_told_once_and_memory_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = CalibrationCache(tmp_path / "file" / "folder")
    assert not cache.store(entry("a"))
    assert not cache.store(entry("b"))
    assert cache.find(entry("a").key) == entry("a")
    assert len(caplog.records) == 1


def test_a_failed_write_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert not CalibrationCache(tmp_path).store(entry("a"))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("Linux", {}, "~/.cache/whisper_server"),
        ("Linux", {"XDG_CACHE_HOME": "/var/cache"}, "/var/cache/whisper_server"),
        ("Linux", {"XDG_CACHE_HOME": "relative"}, "~/.cache/whisper_server"),
        ("Darwin", {}, "~/Library/Caches/whisper_server"),
        ("Windows", {}, "~/AppData/Local/whisper_server"),
        ("Windows", {"LOCALAPPDATA": "/local"}, "/local/whisper_server"),
    ],
)
def test_the_cache_is_where_the_system_keeps_caches(
    system: str, environment: dict[str, str], expected: str
) -> None:
    assert platform_cache_folder(system, environment) == Path(expected).expanduser()


def test_the_demo_model_is_calibrated_once_and_doctor_shows_it(
    demo_model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    # As on a machine with two cores at least; what is measured is this one.
    facts = gather_facts()
    facts = replace(facts, physical_cores=max(2, facts.physical_cores), cpu_limit=None)
    monkeypatch.setattr("whisper_server.cli.doctor.gather_facts", lambda: facts)
    decision = decide(facts)
    load_engine = built_in_engines("thread")["faster-whisper"]
    cache = CalibrationCache(platform_cache_folder())

    engine = Calibrator(decision, facts, cache).load(demo_model_path, decision.choice, load_engine)
    engine.close()
    (found,) = CalibrationCache(platform_cache_folder()).for_machine(machine_fingerprint(facts))
    assert found.chosen in candidates(decision, facts)
    assert found.chosen.threads <= facts.usable_cores
    assert engine.capabilities.parallel_calls == found.chosen.workers + 1
    assert all(m.latency_s > 0 and m.windows_per_s for m in found.measurements)

    only_known = Calibrator(decision, facts, CalibrationCache(platform_cache_folder()), measure=None)
    again = only_known.load(demo_model_path, decision.choice, load_engine)
    assert again.capabilities.parallel_calls == found.chosen.workers + 1
    again.close()

    assert main(["doctor", "--device", "cpu"]) == 0
    section = capsys.readouterr().out.partition("\nCalibration\n")[2]
    assert str(demo_model_path) in section
    assert f"{found.chosen} for int8" in section
    assert "not used" not in section
    assert main(["doctor", "--device", "cpu", "--model-workers", "1"]) == 0
    assert "not used: the settings leave other candidates" in capsys.readouterr().out
