"""The pure session: every case gives the same finals however its audio is cut, and nothing is lost."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.live_speech import WORDS, Speech, hear, probabilities, speech
from tests.session_replay import Replay
from whisper_server.core.errors import EmptyCommitError, EngineError, SessionEndedError, SessionTimeoutError
from whisper_server.core.session import Session
from whisper_server.core.session_states import (
    TRANSITIONS,
    AudioReceived,
    CancelAsked,
    ClearAsked,
    CommitAsked,
    DecodeDone,
    DecodeFailed,
    EndAsked,
    OptionsChanged,
    SessionEvent,
    SessionFailed,
    SpeechJudged,
    State,
    TimePassed,
)
from whisper_server.core.stream_events import (
    BufferCleared,
    Eagerness,
    Endpointing,
    EndReason,
    FinalTranscript,
    PartialTranscript,
    SessionEnded,
    SpeechStarted,
    SpeechStopped,
    SpeechTimedOut,
    StreamOptions,
    TranscriptFailed,
    UtteranceCommitted,
    VoiceOptions,
)
from whisper_server.core.types import SAMPLE_RATE, AudioContext, Decoded, Pcm16, Samples, Timestamps, Window

MANUAL = StreamOptions(endpointing=Endpointing.MANUAL)
SHORT = StreamOptions(max_utterance_s=2.0)
LONG_SENTENCE = " ".join(itertools.islice(itertools.cycle(WORDS), 85))  # 34 s


@dataclass(frozen=True)
class Case:
    """A session: audio, commands at their places, and the finals it must give."""

    name: str
    audio: Speech
    finals: Sequence[str]
    options: StreamOptions = StreamOptions()  # noqa: RUF009  # frozen
    commands: Sequence[tuple[float, SessionEvent]] = ()
    judge: Callable[[Pcm16], Samples] = probabilities
    word_s: float = 0.4

    def replay(self, sizes: Sequence[int] = (), *, is_prompt: bool = True) -> Replay:
        engine = partial(hear, word_s=self.word_s)
        replay = Replay(self.options, engine=engine, judge=self.judge, is_prompt=is_prompt)
        done = 0
        for at_s, command in sorted(self.commands, key=lambda entry: entry[0]):
            at = int(at_s * SAMPLE_RATE)
            replay.feed(self.audio.pcm[done:at], sizes).do(command)
            done = at
        replay.feed(self.audio.pcm[done:], sizes).do(EndAsked())
        replay.answer()
        return replay


def everything_is_speech(pcm: Pcm16) -> Samples:
    return np.ones(len(pcm) // 512, dtype=np.float32)


CASES = [
    Case(
        "utterances end by silence",
        speech(0.5, "alpha bravo", 0.3, "charlie", 1.0, "delta echo", 0.9),
        ["alpha bravo charlie", "delta echo"],
    ),
    Case("the last word before the end counts", speech(0.4, "alpha bravo"), ["alpha bravo"]),
    Case(
        "a word too short to be an utterance counts at the end",
        speech(1.0, "alpha", 1.0, "bravo", word_s=0.2),
        ["bravo"],
        word_s=0.2,
    ),
    Case("silence says nothing", speech(3.0), []),
    Case(
        "a commit ends the utterance where it is",
        speech(0.2, "alpha bravo charlie delta", 1.0),
        ["alpha bravo", "charlie delta"],
        commands=[(1.0, CommitAsked())],
    ),
    Case(
        "a commit in silence makes an empty utterance",
        speech(0.2, "alpha", 2.0, "bravo", 1.0),
        ["alpha", "", "bravo"],
        commands=[(2.0, CommitAsked())],
    ),
    Case(
        "what is cleared is gone, what was committed is not",
        speech(0.2, "alpha", 1.0, "bravo charlie delta", 0.8),
        ["alpha", "delta"],
        commands=[(2.4, ClearAsked())],
    ),
    Case(
        "long speech is cut, and no word is lost or doubled",
        speech(0.3, "alpha bravo charlie delta echo foxtrot golf hotel india juliet alpha bravo", 0.7),
        ["alpha bravo charlie delta", "echo foxtrot golf", "hotel india juliet alpha", "bravo"],
        options=SHORT,
    ),
    Case(
        "the same word again and again is counted right across cuts",
        speech(0.3, "alpha " * 12, 0.7),
        ["alpha alpha alpha alpha", "alpha alpha alpha", "alpha alpha alpha alpha", "alpha"],
        options=SHORT,
    ),
    Case(
        "one utterance may be longer than a window",
        speech(0.3, LONG_SENTENCE, 0.7),
        [LONG_SENTENCE],
        options=StreamOptions(max_utterance_s=None, partials=False),
    ),
    Case(
        "with manual endpointing only commits end utterances",
        speech(0.2, "alpha", 2.0, "bravo", 0.5, "charlie delta", 0.1),
        ["alpha bravo", "charlie delta"],
        options=MANUAL,
        commands=[(3.2, CommitAsked())],
    ),
    Case(
        "a manual utterance may be longer than a window",
        speech(0.3, LONG_SENTENCE, 0.7),
        [LONG_SENTENCE],
        options=replace(MANUAL, partials=False),
        commands=[(34.9, CommitAsked())],
    ),
    Case("a manual commit of silence is empty", speech(1.0), [""], MANUAL, [(0.9, CommitAsked())]),
    Case(
        "the first silence ends an auto-end session",
        speech(0.3, "alpha bravo", 1.0, "charlie", 1.0),
        ["alpha bravo"],
        options=StreamOptions(endpointing=Endpointing.AUTO_END),
    ),
    Case(
        "without voice detection everything is one utterance",
        speech(0.3, "alpha", 1.5, "bravo", 0.2),
        ["alpha bravo"],
        options=StreamOptions(voice=VoiceOptions(enabled=False)),
        judge=everything_is_speech,
    ),
    Case(
        "long silence makes one empty utterance",
        speech(0.2, "alpha", 5.0, "bravo", 0.8),
        ["alpha", "", "bravo"],
        options=StreamOptions(silence_timeout_s=2.0),
    ),
]
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@by_name
def test_a_case_gives_its_finals(case: Case) -> None:
    replay = case.replay()
    assert replay.texts == list(case.finals)
    (end,) = replay.of(SessionEnded)
    assert (end.reason, end.utterances) == (EndReason.COMPLETED, len(case.finals))
    assert replay.events[-1] == end


@by_name
@pytest.mark.parametrize("is_prompt", [True, False], ids=["at once", "late"])
def test_a_case_in_tiny_frames_gives_the_same(case: Case, is_prompt: bool) -> None:
    in_frames = case.replay([160], is_prompt=is_prompt).lasting
    assert sorted(map(str, in_frames)) == sorted(map(str, case.replay().lasting))


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from([case for case in CASES if len(case.audio.pcm) < 10 * SAMPLE_RATE]),
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 400),
    is_prompt=st.booleans(),
)
def test_a_case_cut_at_random_gives_the_same(case: Case, sizes: list[int], is_prompt: bool) -> None:
    cut = case.replay(sizes, is_prompt=is_prompt).lasting
    assert sorted(map(str, cut)) == sorted(map(str, case.replay().lasting))


@settings(max_examples=80, deadline=None)
@given(
    longest_s=st.floats(1.0, 6.0),
    overlap_ms=st.integers(300, 1500),
    word_s=st.floats(0.15, 0.45),
    lead_s=st.floats(0.0, 0.7),
    count=st.integers(5, 40),
)
def test_no_word_is_lost_or_doubled_wherever_the_cuts_fall(
    longest_s: float, overlap_ms: int, word_s: float, lead_s: float, count: int
) -> None:
    sentence = " ".join(itertools.islice(itertools.cycle(WORDS), count))
    overlap_ms = max(overlap_ms, int(2100 * word_s))  # half of it takes a whole word
    longest_s = max(longest_s, overlap_ms / 250)
    options = StreamOptions(max_utterance_s=longest_s, overlap_ms=overlap_ms, partials=False)
    replay = Replay(options, engine=lambda window: hear(window, word_s=word_s))
    replay.feed(speech(lead_s, sentence, 0.8, word_s=word_s).pcm, [4096]).do(EndAsked())
    assert " ".join(filter(None, replay.texts)) == sentence


# States and events.


@st.composite
def steps(draw: st.DrawFn) -> list[object]:
    audio = st.sampled_from(
        [speech(0.4), speech("alpha"), speech("bravo charlie"), speech(0.9), speech("delta", word_s=0.1)]
    )
    changes = st.sampled_from(
        [StreamOptions(), MANUAL, SHORT, StreamOptions(endpointing=Endpointing.AUTO_END, partials=False)]
    )
    others = st.sampled_from(["answer", "answer one", "fail", CommitAsked(), ClearAsked(), TimePassed()])
    ends = st.sampled_from([EndAsked(), CancelAsked(), SessionFailed(EngineError("Broken."))])
    some = draw(st.lists(audio | audio | others | changes.map(OptionsChanged), max_size=25))
    return [*some, draw(ends)]


@settings(max_examples=150, deadline=None)
@given(steps=steps(), options=st.sampled_from([StreamOptions(), MANUAL, SHORT]))
def test_whatever_happens_every_commit_is_settled_once_in_order_and_the_session_ends(
    steps: list[object], options: StreamOptions
) -> None:
    replay = Replay(options, is_prompt=False)
    for step in steps:
        if not replay.is_open:
            break
        if isinstance(step, Speech):
            replay.feed(step.pcm, [2048])
        elif step == "fail":
            replay.answer(EngineError("Broken."))
        elif isinstance(step, str):
            replay.answer(most=1 if step == "answer one" else None)
        else:
            try:
                replay.do(step)  # type: ignore[arg-type]  # the rest are events
            except EmptyCommitError:
                continue
    replay.answer()
    (end,) = replay.of(SessionEnded)
    assert replay.events[-1] is end
    assert replay.session.state is State.ENDED
    assert replay.session.held_bytes == 0
    committed = [event.utterance_id for event in replay.of(UtteranceCommitted)]
    assert end.utterances == len(committed)
    settled = [e.utterance_id for e in replay.events if isinstance(e, FinalTranscript | TranscriptFailed)]
    if end.reason is EndReason.COMPLETED:
        assert settled == committed
    assert settled == committed[: len(settled)]
    previous = [event.previous_utterance_id for event in replay.of(UtteranceCommitted)]
    assert previous == [None, *committed[:-1]][: len(previous)]
    for utterance in committed:
        partials = [p.stable_text for p in replay.of(PartialTranscript) if p.utterance_id == utterance]
        assert all(after.startswith(before) for before, after in itertools.pairwise(partials))


EXAMPLES: dict[type, SessionEvent] = {
    AudioReceived: AudioReceived(speech(0.1).pcm),
    SpeechJudged: SpeechJudged(np.zeros(1, dtype=np.float32)),
    DecodeDone: DecodeDone(99, hear(Window(np.zeros(100, dtype=np.float32)))),
    DecodeFailed: DecodeFailed(99, EngineError("Broken.")),
    CommitAsked: CommitAsked(),
    ClearAsked: ClearAsked(),
    OptionsChanged: OptionsChanged(StreamOptions()),
    EndAsked: EndAsked(),
    CancelAsked: CancelAsked(),
    SessionFailed: SessionFailed(EngineError("Broken.")),
    TimePassed: TimePassed(),
}


def in_state(state: State) -> Replay:
    replay = Replay(is_prompt=False).feed(speech(0.2).pcm)
    if state is not State.LISTENING:
        replay.feed(speech("alpha bravo").pcm)
    if state is State.PAUSED:
        replay.feed(speech(0.3).pcm)
    if state in (State.DRAINING, State.ENDED):
        replay.do(EndAsked())
    if state is State.ENDED:
        replay.answer()
    assert replay.session.state is state
    return replay


@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
def test_what_the_table_does_not_list_is_refused_by_the_name_of_the_state(state: State) -> None:
    assert all(
        hasattr(Session, f"_{transition.action}")
        for row in TRANSITIONS.values()
        for transition in row.values()
    )
    for kind, event in EXAMPLES.items():
        replay = in_state(state)
        if kind in TRANSITIONS[state]:
            replay.do(event)
            assert replay.session.state in TRANSITIONS[state][kind].to
        else:
            with pytest.raises(SessionEndedError, match=state.value):
                replay.do(event)


def test_events_tell_an_utterance_on_the_sessions_clock() -> None:
    replay = Replay(StreamOptions(partials=False)).feed(speech(1.0, "alpha bravo", 1.0).pcm)
    kinds = [type(event) for event in replay.events]
    assert kinds == [SpeechStarted, SpeechStopped, UtteranceCommitted, FinalTranscript]
    (started,), (stopped,) = replay.of(SpeechStarted), replay.of(SpeechStopped)
    (committed,), (final,) = replay.of(UtteranceCommitted), replay.of(FinalTranscript)
    assert started.at_s == pytest.approx(1.0, abs=0.04)
    assert started.audio_start_s == committed.audio_start_s == final.audio_start_s
    assert started.at_s - started.audio_start_s == pytest.approx(0.3)
    assert stopped.at_s == final.speech_end_s == pytest.approx(1.8, abs=0.04)
    assert stopped.audio_end_s == committed.audio_end_s == pytest.approx(stopped.at_s + 0.5, abs=0.07)
    assert [(word.text, word.start_s) for word in final.words] == [(" alpha", 1.0), (" bravo", 1.4)]
    assert final.segments[0].start_s == 1.0
    assert final.language == "en"
    assert final.confidence == pytest.approx(0.9)
    assert len({started.utterance_id, stopped.utterance_id, committed.utterance_id}) == 1


def test_a_commit_of_less_than_100_ms_is_refused_and_changes_nothing() -> None:
    replay = Replay().feed(speech("alpha bravo", 1.0).pcm).feed(speech(0.09).pcm)
    replay.do(CommitAsked())
    replay.feed(speech(0.09).pcm)
    with pytest.raises(EmptyCommitError, match="90 ms"):
        replay.do(CommitAsked())
    replay.feed(speech(0.02).pcm).do(CommitAsked())
    assert replay.texts == ["alpha bravo", "", ""]


def test_a_clear_says_when_it_is_done_and_calls_decodes_off() -> None:
    replay = Replay(MANUAL, is_prompt=False).feed(speech("alpha bravo", 0.3).pcm, [512])
    assert [decode.is_final for decode in replay.waiting.values()] == [False, True]
    replay.do(ClearAsked())
    assert replay.events == [BufferCleared()]
    assert not replay.waiting


# Finals.


def test_a_final_begins_at_the_pause_and_is_published_when_the_silence_holds() -> None:
    replay = Replay(StreamOptions(partials=False), is_prompt=False).feed(speech("alpha bravo", 0.3).pcm)
    assert [decode.is_final for decode in replay.decodes] == [True]
    replay.answer()
    assert not replay.of(FinalTranscript)
    replay.feed(speech(0.4).pcm)
    assert replay.texts == ["alpha bravo"]
    assert len(replay.decodes) == 1
    assert replay.of(FinalTranscript)[0].timing.waited_for_speech_end_s > 0.3


def test_a_speculative_final_is_dropped_when_speech_resumes() -> None:
    replay = Replay(StreamOptions(partials=False), is_prompt=False).feed(speech("alpha", 0.3, "bravo").pcm)
    assert replay.cancelled == [replay.decodes[0].job]
    replay.feed(speech(0.8).pcm).answer()
    assert replay.texts == ["alpha bravo"]


def test_nothing_is_speculated_while_finals_wait_and_the_final_is_the_same() -> None:
    quiet, busy = (Replay(is_congested=is_congested) for is_congested in (False, True))
    for replay in (quiet, busy):
        replay.feed(speech("alpha bravo charlie", 0.3, "delta", 0.8).pcm, [512])
    finals = [sum(decode.is_final for decode in replay.decodes) for replay in (quiet, busy)]
    assert finals == [2, 1]
    assert quiet.lasting == busy.lasting


def test_dear_decodes_and_many_speakers_do_not_keep_a_final_from_beginning_early() -> None:
    replay = Replay(cost_s=0.2, sharing=9.0).feed(speech("alpha bravo charlie", 0.3).pcm, [512])
    assert [decode.is_final for decode in replay.decodes][-1]


def test_no_partial_holds_a_final_up_that_is_about_to_begin() -> None:
    for is_congested in (False, True):
        replay = Replay(is_prompt=False, is_congested=is_congested)
        replay.feed(speech("alpha bravo", 0.1).pcm, [512]).answer()
        replay.feed(speech(0.2).pcm, [512])
        assert [decode.is_final for decode in replay.decodes] == [False, not is_congested]


def test_finals_come_in_the_order_of_their_commits() -> None:
    replay = Replay(StreamOptions(partials=False), is_prompt=False)
    replay.feed(speech("alpha", 0.8, "bravo", 0.8).pcm)
    first, second = replay.waiting.values()
    replay.do(DecodeDone(second.job, hear(second.window)))
    assert replay.texts == []
    replay.do(DecodeDone(first.job, hear(first.window)))
    assert replay.texts == ["alpha", "bravo"]


def test_a_final_that_fails_is_told_and_the_session_goes_on() -> None:
    replay = Replay(StreamOptions(partials=False), is_prompt=False).feed(speech("alpha", 0.8).pcm)
    replay.answer(EngineError("Broken."))
    (failed,) = replay.of(TranscriptFailed)
    assert failed.error.message == "Broken."
    replay.feed(speech("bravo", 0.8).pcm).answer()
    assert replay.texts == ["bravo"]


def test_a_final_looks_at_the_whole_context_with_the_sessions_options() -> None:
    options = StreamOptions(
        language="pt", prompt="Nomes", hotwords="delta", partials=False, token_logprobs=True
    )
    replay = Replay(options).feed(speech("alpha bravo", 0.8).pcm)
    (window,) = (decode.window for decode in replay.decodes)
    assert window.audio_context is AudioContext.FULL
    assert (window.language, window.prompt, window.options.hotwords) == ("pt", "Nomes", "delta")
    assert (window.timestamps, window.token_logprobs) == (Timestamps.WORD_ONLY, True)


def test_a_final_says_what_it_replaced_of_the_stable_text() -> None:
    def engine(window: Window) -> Decoded:
        decoded = hear(window)
        if window.audio_context is AudioContext.FULL:
            segment = replace(decoded.segments[0], text=" alfa bravo charlie delta")
            words = tuple(replace(w, text=w.text.replace("alpha", "alfa")) for w in decoded.alignment)
            return replace(decoded, segments=(segment,), alignment=words)
        return decoded

    options = StreamOptions(speculative_finals=False, word_timestamps=False)
    replay = Replay(options, engine=engine).feed(speech("alpha bravo charlie delta", 0.8).pcm, [512])
    (final,) = replay.of(FinalTranscript)
    assert final.text == "alfa bravo charlie delta"
    assert final.stable_text == replay.of(PartialTranscript)[-1].stable_text == "alpha bravo"
    assert [(one.before, one.after) for one in final.replaced] == [("alpha", "alfa")]
    assert final.continuation == " charlie delta"
    assert final.words == ()


def test_an_engine_without_words_is_not_asked_for_them_and_nothing_overlaps() -> None:
    options = StreamOptions(max_utterance_s=2.0, word_timestamps=False)
    replay = Replay(options, times_words=False)
    replay.feed(speech("alpha bravo charlie delta echo foxtrot golf", 0.8).pcm, [512]).do(EndAsked())
    assert {decode.window.timestamps for decode in replay.decodes} == {Timestamps.NONE}
    spans = [(e.audio_start_s, e.audio_end_s) for e in replay.of(UtteranceCommitted)]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def test_an_utterance_in_a_language_nobody_expects_is_decoded_again_in_the_likeliest() -> None:
    options = StreamOptions(languages=("pt", "de", "pt"), partials=False)
    replay = Replay(options).feed(speech("alpha bravo", 0.8).pcm)
    assert [decode.window.language for decode in replay.decodes] == [None, "pt"]
    assert replay.of(FinalTranscript)[0].language == "pt"


def test_the_first_language_is_kept_on_request() -> None:
    options = StreamOptions(keep_language=True, partials=False)
    replay = Replay(options).feed(speech("alpha bravo", 0.8, "charlie", 0.8).pcm, [512])
    assert [decode.window.language for decode in replay.decodes] == [None, "en"]


# Partials.


def test_partials_show_stable_and_unstable_text_while_somebody_speaks() -> None:
    replay = Replay(StreamOptions(speculative_finals=False))
    replay.feed(speech("alpha bravo charlie delta", 0.8).pcm, [512])
    shown = [(partial.stable_text, partial.unstable_text) for partial in replay.of(PartialTranscript)]
    assert shown[0] == ("", "alpha")
    assert shown[-1] == ("alpha bravo", " charlie delta")
    window = replay.decodes[0].window
    assert window.audio_context is AudioContext.AUTO
    assert window.options.beam_size == 1


def test_only_one_partial_is_made_at_a_time_and_the_next_takes_the_latest_audio() -> None:
    replay = Replay(is_prompt=False).feed(speech("alpha bravo charlie delta echo").pcm, [512])
    assert len(replay.decodes) == 1
    replay.answer(most=1)
    assert [decode.is_final for decode in replay.decodes] == [False, False]
    assert replay.decodes[1].window.duration_s == pytest.approx(2.0)


def test_nothing_is_decoded_without_new_speech() -> None:
    options = StreamOptions(speculative_finals=False, voice=VoiceOptions(min_silence_ms=5000))
    replay = Replay(options).feed(speech("alpha bravo").pcm, [512])
    before = len(replay.decodes)
    replay.feed(speech(4.0).pcm, [512])
    assert len(replay.decodes) <= before + 1
    quiet = Replay().feed(speech(10.0).pcm, [512])
    assert not quiet.decodes


def test_partials_thin_out_when_decodes_are_dear_and_workers_are_shared() -> None:
    sentence = speech("alpha bravo charlie delta echo foxtrot golf hotel india juliet").pcm
    counts = []
    for cost_s, sharing in ((0.01, 1.0), (0.2, 4.0)):
        replay = Replay(cost_s=cost_s, sharing=sharing).feed(sentence, [512])
        counts.append(len(replay.decodes))
    assert counts[0] >= 11
    assert counts[1] <= 4


def test_long_windows_leave_stable_audio_out_and_give_its_tokens_as_prompt() -> None:
    options = StreamOptions(max_partial_window_s=4.0)
    sentence = " ".join(WORDS * 3)
    replay = Replay(options).feed(speech(sentence).pcm, [512])
    assert max(decode.window.duration_s for decode in replay.decodes) <= 4.0
    prompt = replay.decodes[-1].window.previous_tokens
    assert len(prompt) == 16
    assert "".join(map(str, prompt)) in "".join(str(i % 10 + 1) for i in range(30))
    assert sentence == replay.of(PartialTranscript)[-1].text.rstrip("~")  # the last word is not over


def test_a_window_that_never_agrees_still_moves_on() -> None:
    counter = itertools.count()

    def engine(window: Window) -> Decoded:
        decoded = hear(window)
        mark = next(counter)
        words = tuple(replace(word, text=f"{word.text}{mark}") for word in decoded.alignment)
        return replace(decoded, alignment=words)

    replay = Replay(StreamOptions(max_partial_window_s=2.0), engine=engine)
    replay.feed(speech(" ".join(WORDS)).pcm, [512])
    assert max(decode.window.duration_s for decode in replay.decodes) <= 2.0
    assert len(replay.of(PartialTranscript)[-1].stable_text.split()) >= 4


def test_a_failed_partial_is_made_up_for_by_the_next() -> None:
    replay = Replay(is_prompt=False).feed(speech("alpha").pcm, [512])
    replay.answer(EngineError("Broken."))
    replay.feed(speech("bravo").pcm, [512]).answer()
    assert replay.of(PartialTranscript)
    assert not replay.of(TranscriptFailed)


def test_a_finished_speculative_final_shows_in_a_partial() -> None:
    options = StreamOptions(eagerness=Eagerness.LOW)
    replay = Replay(options).feed(speech("alpha bravo charlie", 1.0).pcm, [512])
    assert replay.of(PartialTranscript)[-1].text == "alpha bravo charlie"
    assert not replay.of(FinalTranscript)


# Endpointing, time and the end.


@pytest.mark.parametrize(
    ("mark", "silence_s", "is_over"),
    [(".", 0.7, True), ("", 0.7, False), ("...", 0.7, False), ("", 2.2, True), (",", 1.9, False)],
)
def test_eagerness_waits_for_the_end_of_a_sentence(mark: str, silence_s: float, is_over: bool) -> None:
    options = StreamOptions(eagerness=Eagerness.HIGH)
    replay = Replay(options, engine=lambda window: hear(window, mark=mark))
    replay.feed(speech("alpha bravo", silence_s).pcm, [512])
    assert bool(replay.of(FinalTranscript)) is is_over


def test_quiet_audio_is_silence_below_the_floor() -> None:
    loud = Replay(StreamOptions(voice=VoiceOptions(rms_floor_dbfs=-80.0)))
    quiet = Replay(StreamOptions(voice=VoiceOptions(rms_floor_dbfs=-40.0)))
    for replay in (loud, quiet):
        replay.feed(speech("juliet juliet", 0.8).pcm)  # -50 dBFS
    assert loud.texts == ["juliet juliet"]
    assert not quiet.events


def test_short_speech_is_no_utterance() -> None:
    assert not Replay().feed(speech(0.3, "alpha", 1.0, word_s=0.2).pcm).events


def test_manual_endpointing_tells_no_speech_but_partials() -> None:
    replay = Replay(MANUAL).feed(speech("alpha bravo charlie", 1.0).pcm, [512])
    assert {type(event) for event in replay.events} == {PartialTranscript}


def test_an_utterance_only_a_commit_could_end_is_committed_when_silence_shall_end_them() -> None:
    replay = Replay(MANUAL).feed(speech("alpha bravo", 2.0).pcm)
    replay.do(OptionsChanged(StreamOptions()))
    assert replay.texts == ["alpha bravo"]
    replay.feed(speech("charlie", 0.8).pcm)
    assert replay.texts == ["alpha bravo", "charlie"]


def test_silence_times_out_once_and_again_after_speech() -> None:
    replay = Replay(StreamOptions(silence_timeout_s=1.0)).feed(speech(5.0, "alpha", 5.0).pcm, [512])
    timeouts = replay.of(SpeechTimedOut)
    assert [round(event.audio_end_s) for event in timeouts] == [1, 7]
    assert replay.texts == ["", "alpha", ""]


def test_a_session_without_audio_ends_by_name_and_keeps_what_was_said() -> None:
    replay = Replay(StreamOptions(idle_timeout_s=60.0), is_prompt=False).feed(speech("alpha bravo").pcm)
    replay.do(TimePassed(), now_s=59.0)
    assert replay.session.state is State.SPEAKING
    assert replay.session.idle_deadline_s == 60.0
    replay.do(TimePassed(), now_s=60.0)
    replay.answer()
    assert replay.texts == ["alpha bravo"]
    (end,) = replay.of(SessionEnded)
    assert end.reason is EndReason.TIMEOUT
    assert isinstance(end.error, SessionTimeoutError)


def test_a_cancelled_session_drops_everything() -> None:
    replay = Replay(is_prompt=False).feed(speech("alpha", 0.8, "bravo").pcm)
    replay.do(CancelAsked())
    assert not replay.waiting
    assert replay.events[-1] == SessionEnded(EndReason.CANCELLED, 1.6, 1)


def test_memory_does_not_grow_with_the_session() -> None:
    replay = Replay(StreamOptions(partials=False))
    silence, words = speech(5.0).pcm, speech("alpha bravo charlie", 1.0).pcm
    for _ in range(20):
        replay.feed(silence, [2048]).feed(words, [2048])
    assert replay.session.held_bytes <= SAMPLE_RATE * 2
    manual = Replay(replace(MANUAL, partials=False))
    for _ in range(20):
        manual.feed(silence, [2048])
    assert manual.session.held_bytes <= 31 * SAMPLE_RATE * 2
