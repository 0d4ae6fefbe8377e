"""The parts of the load benchmark that turn what was seen into numbers and verdicts."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from itertools import count, pairwise
from pathlib import Path

import pytest

from bench.load import __main__ as command
from bench.load.arrivals import Answer, at_random, cancelled_at_end, closed_loop, evenly, open_loop
from bench.load.clips import Clip, dense_clips, long_clip, short_clips
from bench.load.measures import growth, percentile, progress_rate, spread
from bench.load.models import LoadLog, phases
from bench.load.overload import outcome_of
from bench.load.own_server import NotMeasurableError, flags_for
from bench.load.plan import Peer, Plan
from bench.load.report import Result, Verdict, render, write_json
from bench.load.targets import Reply
from bench.load.turns import compare, take_turns
from bench.server_process import server_process, tree_memory_mb

OK = 200


@pytest.mark.parametrize(("percent", "value"), [(0, 10), (50, 25), (95, 38.5), (100, 40)])
def test_percentiles_are_interpolated_between_neighbours(percent: float, value: float) -> None:
    assert percentile([40, 10, 30, 20], percent) == pytest.approx(value)


def test_the_spread_is_the_quartiles_range_over_the_median() -> None:
    assert spread([90, 95, 100, 105, 110]) == pytest.approx(0.1)
    assert spread([7]) == 0


def test_growth_leaves_out_the_warm_up_and_single_peaks() -> None:
    assert growth([1, 50, 100, 100, 100, 900, 103, 103]) == pytest.approx(0.03)
    assert growth([100.0] * 7) is None


def test_progress_counts_neither_what_lies_outside_nor_the_gaps_between_runs() -> None:
    runs = [[(0.0, 0.0), (10.0, 100.0), (12.0, 104.0)], [(20.0, 1.0), (23.0, 7.0), (90.0, 900.0)]]
    assert progress_rate(runs, 10, 30) == pytest.approx((4 + 6) / (2 + 3))
    assert progress_rate(runs, 21, 22) is None


def test_clips_are_as_asked_and_repeatable() -> None:
    dense = dense_clips(3, seconds=10)
    assert all(5 < clip.seconds <= 10 for clip in dense)
    assert len({clip.text for clip in dense}) == 3
    assert [clip.flac for clip in dense_clips(3, seconds=10)] == [clip.flac for clip in dense]
    assert all(abs(clip.seconds - 3) < 0.2 for clip in short_clips(5))
    assert long_clip(31).seconds == 31


def test_random_arrivals_have_the_rate_that_was_asked_for() -> None:
    moments_s = at_random(20, 100)
    assert moments_s == sorted(moments_s)
    assert moments_s[-1] < 100
    assert len(moments_s) == pytest.approx(2000, rel=0.1)


@pytest.mark.anyio
async def test_an_open_loop_does_not_wait_for_answers() -> None:
    everyone_came = asyncio.Event()
    came: list[int] = []

    async def send(number: int) -> Reply:
        came.append(number)
        if len(came) == 4:
            everyone_came.set()
        await everyone_came.wait()
        return Reply(OK, str(number))

    answers = await open_loop(send, evenly(0.001, 4))
    assert [answer.reply.text for answer in answers] == ["0", "1", "2", "3"]
    assert [each.intended_s - answers[0].intended_s for each in answers] == pytest.approx(evenly(0.001, 4))


def test_a_request_that_was_sent_late_has_waited_too() -> None:
    late = Answer(0, Reply(OK), intended_s=1.0, sent_s=3.0, done_s=3.5)
    assert (late.latency_s, late.took_s) == (2.5, 0.5)


@pytest.mark.anyio
async def test_a_closed_loop_has_no_more_requests_under_way_than_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.load.arrivals.time.perf_counter", count().__next__)
    under_way = most = 0

    async def send(_: int) -> Reply:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return Reply(OK)

    answers = await closed_loop(send, 3, 50)
    assert most == 3
    assert len(answers) > 3
    assert sorted(answer.number for answer in answers) == list(range(len(answers)))


@pytest.mark.anyio
async def test_the_failure_of_what_runs_beside_ends_the_measurement() -> None:
    async def fail() -> None:
        raise ConnectionError("the file was refused")

    with pytest.raises(ExceptionGroup) as caught:
        async with cancelled_at_end(fail()):
            await asyncio.Event().wait()
    assert caught.group_contains(ConnectionError)


def answer(number: int, reply: Reply, took_s: float = 0.05) -> Answer:
    return Answer(number, reply, intended_s=1.0, sent_s=2.0, done_s=2.0 + took_s)


def test_answers_under_overload_are_right_wrong_refused_or_failed() -> None:
    answers = [
        answer(0, Reply(OK, "even")),
        answer(1, Reply(OK, "even")),
        answer(2, Reply(429, retry_after="3"), took_s=0.2),
        answer(3, Reply(503)),
        answer(4, Reply(500)),
        answer(5, Reply(0)),
    ]
    outcome = outcome_of(answers, lambda number: "odd" if number % 2 else "even")
    assert (outcome.right, outcome.wrong) == (1, 1)
    assert outcome.refused_ms == pytest.approx([200, 50])
    assert outcome.without_retry_after == 1
    assert outcome.failed == {500: 1, 0: 1}
    assert outcome.right_ms == pytest.approx([1050])


def test_the_log_shows_double_loads_and_how_many_models_are_held() -> None:
    log = LoadLog()
    for line in (
        "12:00:00 INFO Model /m/one: loading",
        "12:00:01 INFO Model /m/one: loaded in 0.1 s (cpu, int8, 2 MB)",
        "12:00:02 INFO Model /m/two: loading",
        "12:00:03 ERROR Model /m/two: the load failed: broken",
        "12:00:04 INFO Model /m/two: loading",
        "12:00:05 INFO Model /m/one: unloaded (lru)",
        "12:00:06 INFO Model /m/one: loading",
    ):
        log.add(line)
    assert (log.loads, log.double_loads, log.most_held) == (4, 0, 2)
    log.add("12:00:07 INFO Model /m/two: loading")
    assert (log.double_loads, log.most_held) == (1, 3)


def test_each_phase_keeps_one_model_and_exchanges_the_other() -> None:
    wanted = phases(1000)
    assert len(wanted) == 50
    assert all(len({*before, *after}) == 3 for before, after in pairwise(wanted))


def test_settings_become_flags_and_unknown_ones_are_named() -> None:
    flags = flags_for({"model.max_loaded": 2, "model.aliases": {"a": "b"}, "model.name": "demo"})
    assert flags == ["--model-max-loaded", "2", "--model-aliases", '{"a": "b"}', "--model", "demo"]
    with pytest.raises(NotMeasurableError, match=r"model\.of_tomorrow"):
        flags_for({"model.of_tomorrow": 1})


class Echo:
    """A target that answers with the clip's name, or with nothing at all."""

    def __init__(self, name: str, order: list[str], *, is_busy: bool = False) -> None:
        self.name = name
        self._order = order
        self._is_busy = is_busy

    async def transcribe(self, clip: Clip) -> Reply:
        self._order.append(self.name)
        return Reply(429) if self._is_busy else Reply(OK, clip.name)

    async def follow(self, clip: Clip) -> AsyncGenerator[str, None]:
        yield clip.name


@pytest.mark.anyio
async def test_targets_take_turns_and_another_begins_each_round() -> None:
    order: list[str] = []
    targets = [Echo("a", order), Echo("b", order)]
    found = await take_turns(targets, dense_clips(2, seconds=5), (2,), rounds=2, lone_rounds=2)
    assert "".join(order) == "aabb" + "abba" + "aabbbbaa"
    assert [len(each.rates[2]) for each in found] == [2, 2]
    assert found[0].differing(found[1]) == 0
    assert [row[0] for row in compare("x", found).rows] == ["a", "b"]


@pytest.mark.anyio
async def test_clips_without_transcript_are_no_throughput() -> None:
    targets = [Echo("a", []), Echo("b", [], is_busy=True)]
    answering, busy = await take_turns(targets, dense_clips(2, seconds=5), (2,), rounds=1, lone_rounds=1)
    assert (answering.unanswered, busy.unanswered) == (0, 3)
    assert busy.rates[2] == [0]
    assert "b: 3 requests got no transcript" in compare("x", [answering, busy]).notes


def test_a_verdict_needs_a_measurement() -> None:
    result = Result("x", ("",), verdicts=[Verdict("a", 3.0, 3), Verdict("b", 1.25, 1.25, is_floor=True)])
    assert result.is_passed
    assert not Result("x", ()).is_passed
    for verdict, word in (
        (Verdict("c", 3.01, 3), "FAIL"),
        (Verdict("d", 1.2, 1.25, is_floor=True), "FAIL"),
        (Verdict("e", None, 1), "NOT MEASURED"),
    ):
        assert verdict.word == word
        result.verdicts.append(verdict)
        assert not result.is_passed
    assert "| d      | 1.2      | ≥ 1.25 | FAIL         |" in render(result, is_quick=False)


def test_results_are_written_with_the_machine_and_the_verdicts(tmp_path: Path) -> None:
    result = Result("x", ("", "ms"), rows=[("server", 1.5)], verdicts=[Verdict("a", None, 3)])
    result.note_noise("speed", [50, 100, 150])
    write_json(tmp_path / "out.json", {"cores": "2"}, [result], is_quick=True)
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["machine"] == {"cores": "2"}
    assert written["results"][0]["verdicts"][0]["word"] == "NOT MEASURED"
    assert written["results"][0]["notes"] == ["noisy: speed varies by 50% between rounds"]


@pytest.mark.skipif(not Path("/proc").exists(), reason="memory is read from /proc")
def test_memory_counts_the_processes_below_too() -> None:
    alone_mb = tree_memory_mb(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        child_mb = tree_memory_mb(child.pid)
        both_mb = tree_memory_mb(os.getpid())
    assert alone_mb is not None
    assert child_mb is not None
    assert both_mb is not None
    assert both_mb > child_mb
    assert both_mb > alone_mb
    assert tree_memory_mb(child.pid) is None


def test_what_the_server_lacks_is_said_and_fails_the_run(
    server_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lacking(plan: Plan) -> Result:
        assert plan.server_flags == ("--model-workers", "2")
        assert plan.peer == Peer(server_url, "demo", "secret")
        raise NotMeasurableError("this version of the server has no setting model.of_tomorrow")

    monkeypatch.setenv("PEER_API_KEY", "secret")
    monkeypatch.setattr(command, "SCENARIOS", {"lacking": lacking})
    words = ["lacking", "--cost", "demo", "--quick", "--peer", f"{server_url}/v1/", "--peer-model", "demo"]
    assert command.main([*words, "--json", str(tmp_path / "out.json"), "--", "--model-workers", "2"]) == 1
    shown = capsys.readouterr().out
    assert "NOT MEASURED: this version of the server has no setting model.of_tomorrow" in shown
    assert "no results" in shown
    assert "secret" not in shown + (tmp_path / "out.json").read_text(encoding="utf-8")


def test_a_peer_that_does_not_transcribe_is_found_out_at_once(
    server_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--peer", server_url, "--peer-model", "no-such-model"]) == 2
    assert "status 404" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["nonsense"], ["--minutes", "0"], ["--threads", "0"], ["--cost", "huge"]])
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(words)
    assert words[0] in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="port"), server_process("--port", "nonsense"):
        pass
