"""Live streams below the transports: made-up speech for every case, the demo model for real ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from faster_whisper.audio import decode_audio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.live_speech import HearingEngine, PerfectDetector, speech
from whisper_server.core.engine import ComputeChoice, Engine
from whisper_server.core.errors import (
    AudioMemoryFullError,
    ChunkTooLongError,
    EmptyCommitError,
    EngineTimeoutError,
    InvalidRequestError,
    ModelLoadError,
    QueueCongestedError,
    QueueFullError,
    ServerBusyError,
    ServerDrainingError,
    SessionEndedError,
    SessionExistsError,
    SlowReaderError,
    TooManySessionsError,
    UnsupportedByEngineError,
    VoiceDetectorsExhaustedError,
)
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.stream_events import (
    BufferCleared,
    Endpointing,
    EndReason,
    FinalTranscript,
    PartialTranscript,
    SessionEnded,
    StreamEvent,
    StreamOptions,
    TranscriptFailed,
    VoiceOptions,
)
from whisper_server.core.types import Pcm16, Samples, Window
from whisper_server.engines.scripted import scripted_capabilities
from whisper_server.engines.silero_vad import SileroVad
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.pcm_input import PcmFormat, PcmInput
from whisper_server.services.scheduler import Backlog, Scheduler, TimedDecode
from whisper_server.services.scheduler_limits import SchedulerLimits
from whisper_server.services.stream_queues import Outgoing
from whisper_server.services.streaming import LiveStream, StreamLimits, StreamService
from whisper_server.services.voice_detectors import VoiceDetectorPool

pytestmark = pytest.mark.anyio

DEMO = Path(__file__).parent.parent / "whisper_server" / "demo"
MODEL = ModelReference(id="made-up")
CALLER = Caller("ann")
QUIET = StreamOptions(partials=False)
MANUAL = StreamOptions(partials=False, endpointing=Endpointing.MANUAL)


class Models:
    """Lends one engine for every model, and counts the borrowers.

    Args:
        engine: to lend.
        spares: take its place one after the other, each time it is given up.
    """

    def __init__(self, engine: Engine, spares: Sequence[Engine] = ()) -> None:
        self.engine = engine
        self.spares = list(spares)
        self.users = 0
        self.error: Exception | None = None

    @asynccontextmanager
    async def acquire(self, reference: ModelReference) -> AsyncIterator[Engine]:
        if self.error is not None:
            raise self.error
        self.users += 1
        try:
            yield self.engine
        finally:
            self.users -= 1

    def retire(self, engine: Engine) -> None:
        assert engine is self.engine
        self.engine = self.spares.pop(0)


def service(
    engine: Engine | None = None, limits: StreamLimits | None = None, scheduler: Scheduler | None = None
) -> StreamService:
    models = Models(engine or HearingEngine())
    return StreamService(models, scheduler or Scheduler(), VoiceDetectorPool(PerfectDetector), limits)


async def read(stream: LiveStream) -> list[StreamEvent]:
    async with asyncio.timeout(30):
        return [event async for event in stream]


def texts(events: Sequence[StreamEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, FinalTranscript)]


async def transcribe(
    streams: StreamService, pcm: Pcm16, options: StreamOptions = QUIET, sizes: Sequence[int] = (640,)
) -> list[StreamEvent]:
    """Send 16-bit audio in pieces of so many bytes, and end."""
    data, start, turn = pcm.tobytes(), 0, 0
    async with await streams.open(options, MODEL, caller=CALLER) as stream:
        reader = asyncio.create_task(read(stream))
        while start < len(data):
            size = sizes[turn % len(sizes)]
            await stream.send(data[start : start + size])
            start, turn = start + size, turn + 1
        await stream.end()
        return await reader


SPOKEN = speech(0.3, "alpha bravo", 0.8, "charlie", 0.8, "delta echo")


@pytest.mark.parametrize("size", [1, 3, 640, 641, 1 << 20])
async def test_bytes_cut_anywhere_give_the_same_finals(size: int) -> None:
    pcm = SPOKEN.pcm if size > 1 else speech(0.1, "alpha bravo").pcm
    async with service() as streams:
        events = await transcribe(streams, pcm, sizes=[size])
    assert texts(events) == (["alpha bravo", "charlie", "delta echo"] if size > 1 else ["alpha bravo"])
    end = events[-1]
    assert isinstance(end, SessionEnded)
    assert (end.reason, end.total_audio_s) == (EndReason.COMPLETED, len(pcm) / 16000)


async def test_int16_and_float_arrays_are_audio_too() -> None:
    async with service() as streams:
        for pcm in (SPOKEN.pcm, SPOKEN.pcm.astype(np.float32) / np.float32(32768)):
            async with await streams.open(QUIET, MODEL, caller=CALLER) as stream:
                await stream.send(pcm)
                await stream.end()
                assert texts(await read(stream)) == ["alpha bravo", "charlie", "delta echo"]


async def test_many_speakers_each_get_exactly_their_own_words() -> None:
    sentences = ["alpha bravo", "charlie delta echo", "foxtrot", "golf hotel india juliet"] * 4
    async with service() as streams:
        audio = [speech(0.3, sentence, 0.7).pcm for sentence in sentences]
        options = StreamOptions()
        results = await asyncio.gather(*(transcribe(streams, pcm, options) for pcm in audio))
        assert streams.registry.active == 0
    assert [texts(events) for events in results] == [[sentence] for sentence in sentences]


async def test_a_client_faster_than_real_time_waits_and_loses_nothing() -> None:
    engine = HearingEngine()
    limits = StreamLimits(max_buffer_s=1.0, max_pending_finals=1)
    audio = np.tile(speech(0.6, "alpha").pcm, 12)
    async with service(engine, limits) as streams, await streams.open(QUIET, MODEL, caller=CALLER) as stream:
        engine.gate.clear()
        sender = asyncio.create_task(stream.send(np.concatenate([audio, speech(0.6).pcm])))
        await asyncio.to_thread(wait_for_windows, engine, 1)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not sender.done()
        assert streams.registry.held_bytes < 8 * 32000
        engine.gate.set()
        await sender
        await stream.end()
        assert texts(await read(stream)) == ["alpha"] * 12


def wait_for_windows(engine: HearingEngine, count: int) -> None:
    with engine.changed:
        assert engine.changed.wait_for(lambda: len(engine.windows) >= count, 30)


async def test_a_commit_names_its_utterance_and_takes_its_place_among_the_audio() -> None:
    async with service() as streams, await streams.open(MANUAL, MODEL, caller=CALLER) as stream:
        ids = []
        for sentence in ("alpha bravo", "charlie"):
            await stream.send(speech(sentence).pcm)
            ids.append(await stream.commit())
        with pytest.raises(EmptyCommitError):
            await stream.commit()
        await stream.send(speech("delta").pcm)
        await stream.clear()
        await stream.send(speech("echo", "", 0.2).pcm)
        await stream.end()
        events = await read(stream)
    finals = [event for event in events if isinstance(event, FinalTranscript)]
    assert [(final.utterance_id, final.text) for final in finals[:2]] == [
        (ids[0], "alpha bravo"),
        (ids[1], "charlie"),
    ]
    assert texts(events) == ["alpha bravo", "charlie", "echo"]
    assert BufferCleared() in events


async def test_a_commit_during_a_decode_loses_nothing() -> None:
    engine = HearingEngine()
    async with service(engine) as streams, await streams.open(MANUAL, MODEL, caller=CALLER) as stream:
        engine.gate.clear()
        for sentence in ("alpha", "bravo", "charlie"):
            await stream.send(speech(sentence).pcm)
            await stream.commit()
        await stream.end()
        engine.gate.set()
        assert texts(await read(stream)) == ["alpha", "bravo", "charlie"]


async def test_new_options_hold_for_the_audio_that_follows() -> None:
    engine = HearingEngine()
    async with service(engine) as streams, await streams.open(MANUAL, MODEL, caller=CALLER) as stream:
        await stream.send(speech("alpha").pcm)
        await stream.commit()
        await stream.update(StreamOptions(partials=False, language="pt"))
        with pytest.raises(UnsupportedByEngineError):
            await stream.update(StreamOptions(language="xx"))
        await stream.send(speech("bravo", 0.8).pcm)
        await stream.end()
        assert texts(await read(stream)) == ["alpha", "bravo"]
        assert stream.options.language == "pt"
    assert [window.language for window in engine.windows] == [None, "pt"]


async def test_without_voice_detection_the_detector_is_not_asked() -> None:
    options = StreamOptions(partials=False, voice=VoiceOptions(enabled=False))
    async with service() as streams:
        assert texts(await transcribe(streams, speech(0.5, "alpha", 1.0).pcm, options)) == ["alpha"]


async def test_after_its_end_a_session_takes_nothing_but_another_end() -> None:
    async with service() as streams, await streams.open(QUIET, MODEL, caller=CALLER) as stream:
        await stream.end()
        await stream.end()
        for call in (stream.send(b"\0\0"), stream.commit(), stream.clear(), stream.update(QUIET)):
            with pytest.raises(SessionEndedError):
                await call
        assert len(await read(stream)) == 1
        await stream.cancel()


async def test_speech_ends_an_auto_end_session_whatever_is_still_sent() -> None:
    options = StreamOptions(partials=False, endpointing=Endpointing.AUTO_END)
    async with service() as streams, await streams.open(options, MODEL, caller=CALLER) as stream:
        await stream.send(speech("alpha", 1.0, "bravo", 1.0).pcm)
        assert texts(await read(stream)) == ["alpha"]


async def test_leaving_cancels_and_gives_everything_back() -> None:
    engine = HearingEngine()
    models, pool = Models(engine), VoiceDetectorPool(PerfectDetector)
    async with StreamService(models, Scheduler(), pool) as streams:
        async with await streams.open(StreamOptions(), MODEL, caller=CALLER, session_id="mine") as stream:
            assert streams.get("mine") is stream
            assert streams.registry.by_client() == {"ann": 1}
            engine.gate.clear()
            await stream.send(speech("alpha bravo", 0.8).pcm)
            await asyncio.to_thread(wait_for_windows, engine, 1)
            assert models.users == 1
            await stream.cancel()
            engine.gate.set()
        last = (await read(stream))[-1]
        assert isinstance(last, SessionEnded)
        assert last.reason is EndReason.CANCELLED
        assert (models.users, pool.lent, streams.registry.active, streams.registry.held_bytes) == (0, 0, 0, 0)
        assert streams.get("mine") is None


async def test_one_sessions_fault_never_reaches_another() -> None:
    class Broken(PerfectDetector):
        def probabilities(self, samples: Samples) -> Samples:
            raise RuntimeError("secret")

    detectors = iter([Broken(), PerfectDetector()])
    pool = VoiceDetectorPool(lambda: next(detectors))
    async with (
        StreamService(Models(HearingEngine()), Scheduler(), pool) as streams,
        await streams.open(QUIET, MODEL, caller=CALLER) as broken,
    ):
        events, healthy = await asyncio.gather(
            read_after_sending(broken, SPOKEN.pcm), transcribe(streams, SPOKEN.pcm)
        )
        (end,) = events
        assert isinstance(end, SessionEnded)
        assert end.reason is EndReason.ERROR
        assert end.error is not None
        assert "secret" not in end.error.message
        with pytest.raises(type(end.error), match="failed on this session"):
            await broken.send(b"\0\0")
    assert texts(healthy) == ["alpha bravo", "charlie", "delta echo"]


async def read_after_sending(stream: LiveStream, pcm: Pcm16) -> list[StreamEvent]:
    await stream.send(pcm[:8000])
    return await read(stream)


async def test_an_engine_that_fails_fails_the_utterance_alone() -> None:
    engine = HearingEngine()
    engine.error = RuntimeError("secret")
    async with service(engine) as streams, await streams.open(QUIET, MODEL, caller=CALLER) as stream:
        await stream.send(speech("alpha", 0.8).pcm)
        events = aiter(stream)
        failed = [await anext(events) for _ in range(4)][-1]
        assert isinstance(failed, TranscriptFailed)
        assert "secret" not in failed.error.message
        engine.error = None
        await stream.send(speech("bravo", 0.8).pcm)
        await stream.end()
        assert texts([event async for event in events]) == ["bravo"]


HASTY = SchedulerLimits(max_batch=1, call_timeout_s=0.5)


async def hung(stream: LiveStream, events: AsyncIterator[StreamEvent], *words: str) -> list[TranscriptFailed]:
    """Say words whose finals fail because the engine hangs."""
    for word in words:
        await stream.send(speech(word, 0.8).pcm)
    failed: list[TranscriptFailed] = []
    while len(failed) < len(words):
        event = await anext(events)
        assert not isinstance(event, FinalTranscript | SessionEnded)
        failed += [event] if isinstance(event, TranscriptFailed) else []
    return failed


async def test_after_a_hung_engine_a_stream_goes_on_with_the_model_loaded_anew() -> None:
    first, second = HearingEngine(), HearingEngine()
    models = Models(first, [second])
    scheduler = Scheduler(HASTY, on_lost=models.retire)
    async with StreamService(models, scheduler, VoiceDetectorPool(PerfectDetector)) as streams:
        async with await streams.open(QUIET, MODEL, caller=CALLER) as stream:
            events = aiter(stream)
            await stream.send(speech("alpha", 0.8).pcm)
            while not isinstance(await anext(events), FinalTranscript):
                pass
            first.gate.clear()
            [failed] = await hung(stream, events, "bravo")
            assert type(failed.error) is EngineTimeoutError
            await stream.send(speech("charlie", 0.8, "delta", 0.8).pcm)
            await stream.end()
            assert texts([event async for event in events]) == ["charlie", "delta"]
            assert models.users == 1, "the engine that was given up is held no more"
        assert models.users == 0
    first.gate.set()


async def test_a_window_that_waited_behind_a_hung_call_is_decoded_by_the_next_engine() -> None:
    first, second = HearingEngine(capabilities=scripted_capabilities(parallel_calls=1)), HearingEngine()
    models = Models(first, [second])
    scheduler = Scheduler(HASTY, on_lost=models.retire)
    first.gate.clear()
    async with (
        StreamService(models, scheduler, VoiceDetectorPool(PerfectDetector)) as streams,
        await streams.open(MANUAL, MODEL, caller=CALLER) as stream,
        await streams.open(MANUAL, MODEL, caller=Caller("bob")) as other,
    ):
        for one in (stream, other):  # commits begin both decodes before the first can time out
            await one.send(speech("alpha bravo").pcm)
        await asyncio.gather(stream.commit(), other.commit())
        await asyncio.gather(stream.end(), other.end())
        outcomes = [await read(stream), await read(other)]
        failures = [event for events in outcomes for event in events if isinstance(event, TranscriptFailed)]
        assert [type(failure.error) for failure in failures] == [EngineTimeoutError]
        assert [text for events in outcomes for text in texts(events)] == ["alpha bravo"]
    first.gate.set()


async def test_a_stream_whose_model_cannot_be_loaded_anew_says_so_and_tries_again() -> None:
    first, second = HearingEngine(), HearingEngine()
    models = Models(first, [second])
    scheduler = Scheduler(HASTY, on_lost=models.retire)
    first.gate.clear()
    async with (
        StreamService(models, scheduler, VoiceDetectorPool(PerfectDetector)) as streams,
        await streams.open(QUIET, MODEL, caller=CALLER) as stream,
    ):
        events = aiter(stream)
        await hung(stream, events, "alpha")
        models.error = ModelLoadError("The model cannot be loaded.")
        [failed] = await hung(stream, events, "bravo")
        assert type(failed.error) is ModelLoadError
        models.error = None
        await stream.send(speech("charlie", 0.8).pcm)
        await stream.end()
        assert texts([event async for event in events]) == ["charlie"]
    first.gate.set()


async def test_a_final_waits_for_room_in_the_queue_and_a_partial_does_not() -> None:
    class Busy(Scheduler):
        refused: list[Priority] = []  # noqa: RUF012  # one test, one class

        async def decode_timed(
            self, engine: Engine, window: Window, *, priority: Priority, caller: Caller | None = None
        ) -> TimedDecode:
            if self.refused.count(Priority.LIVE_FINAL) < 2:
                self.refused.append(priority)
                raise ServerBusyError("Full.", retry_after_s=1.0)
            return await super().decode_timed(engine, window, priority=priority, caller=caller)

    async with service(scheduler=Busy()) as streams:
        options = StreamOptions(speculative_finals=False)
        assert texts(await transcribe(streams, speech("alpha bravo", 0.7).pcm, options)) == ["alpha bravo"]


async def test_a_client_that_reads_nothing_loses_its_session_by_name() -> None:
    async def send_for_ever(stream: LiveStream) -> None:
        while True:
            await stream.send(speech("alpha", 0.7).pcm)
            await asyncio.sleep(0)

    limits = StreamLimits(max_unread_events=6)
    async with service(limits=limits) as streams, await streams.open(QUIET, MODEL, caller=CALLER) as stream:
        with pytest.raises(SlowReaderError):
            await send_for_ever(stream)
        events = await read(stream)
    assert len(events) == 7
    end = events[-1]
    assert isinstance(end, SessionEnded)
    assert (end.reason, type(end.error)) == (EndReason.ERROR, SlowReaderError)


async def test_an_unread_partial_gives_way_to_a_newer_one_of_its_utterance() -> None:
    def partial(utterance: str, text: str) -> PartialTranscript:
        return PartialTranscript(utterance, "", text, 0.9, "en")

    outgoing = Outgoing(longest=2)
    assert outgoing.put(partial("one", "a"))
    assert outgoing.put(partial("one", "a b"))
    assert outgoing.put(partial("two", "c"))
    assert outgoing.put(partial("two", "c d"))
    assert not outgoing.put(BufferCleared())
    end = SessionEnded(EndReason.COMPLETED, 0.0, 0)
    assert outgoing.put(end)
    read = [await outgoing.get() for _ in range(4)]
    assert read == [partial("one", "a b"), partial("two", "c d"), end, None]


async def test_a_session_without_audio_ends() -> None:
    options = StreamOptions(partials=False, idle_timeout_s=0.05)
    async with service() as streams, await streams.open(options, MODEL, caller=CALLER) as stream:
        await stream.send(speech("alpha bravo").pcm)
        events = await read(stream)
    assert texts(events) == ["alpha bravo"]
    assert isinstance(events[-1], SessionEnded)
    assert events[-1].reason is EndReason.TIMEOUT


# Limits and refusals.


async def test_a_message_may_not_be_too_long() -> None:
    options = StreamOptions(max_chunk_ms=100)
    async with service() as streams, await streams.open(options, MODEL, caller=CALLER) as stream:
        await stream.send(bytes(3200))
        with pytest.raises(ChunkTooLongError, match="100 ms"):
            await stream.send(bytes(3202))
        assert stream.received_s == 0.1


class Loaded(Scheduler):
    """A scheduler with much to do."""

    def __init__(self, *, waiting: int = 0, wait_s: float = 0.0) -> None:
        super().__init__()
        self._load = (waiting, wait_s)

    def backlog(self) -> Backlog:
        return Backlog({Priority.LIVE_FINAL: self._load[0], Priority.LIVE_PARTIAL: 1}, 0.0, 0, None)

    def estimated_wait_s(self, priority: Priority) -> float:
        return self._load[1]


@pytest.mark.parametrize(
    ("scheduler", "error", "match"),
    [
        (Loaded(waiting=19), QueueFullError, "20/20"),
        (Loaded(wait_s=0.6), QueueCongestedError, "600 ms"),
    ],
    ids=["queue", "delay"],
)
async def test_a_loaded_server_opens_no_stream(
    scheduler: Scheduler, error: type[ServerBusyError], match: str
) -> None:
    async with service(scheduler=scheduler) as streams:
        with pytest.raises(error, match=match):
            await streams.open(QUIET, MODEL, caller=CALLER)
        assert (streams.registry.active, streams.registry.refused) == (0, 1)


async def test_sessions_are_refused_by_number_name_memory_and_while_stopping() -> None:
    limits = StreamLimits(max_sessions=2, max_total_buffer_bytes=20_000, memory_timeout_s=0.01)
    async with service(limits=limits) as streams:
        first = await streams.open(MANUAL, MODEL, caller=CALLER, session_id="one")
        with pytest.raises(SessionExistsError):
            await streams.open(QUIET, MODEL, caller=CALLER, session_id="one")
        with pytest.raises(UnsupportedByEngineError, match="xx"):
            await streams.open(StreamOptions(language="xx"), MODEL, caller=CALLER)
        second = await streams.open(QUIET, MODEL, caller=CALLER)
        with pytest.raises(TooManySessionsError, match="2/2"):
            await streams.open(QUIET, MODEL, caller=CALLER)
        await second.cancel()
        await second.wait_closed()
        with pytest.raises(AudioMemoryFullError):
            await first.send(np.tile(speech("alpha").pcm, 100))
        with pytest.raises(AudioMemoryFullError):
            await streams.open(QUIET, MODEL, caller=CALLER)
        await streams.drain()
        assert texts(await read(first))[0].startswith("alpha")
        with pytest.raises(ServerDrainingError):
            await streams.open(QUIET, MODEL, caller=CALLER)
        assert streams.registry.refused == 5


async def test_a_session_without_a_detector_is_refused_and_leaves_no_trace() -> None:
    pool = VoiceDetectorPool(PerfectDetector, cap=1)
    async with StreamService(Models(HearingEngine()), Scheduler(), pool) as streams:
        async with await streams.open(QUIET, MODEL, caller=CALLER):
            with pytest.raises(VoiceDetectorsExhaustedError):
                await streams.open(QUIET, MODEL, caller=CALLER)
        assert streams.registry.active == 0


# Input formats.


@settings(max_examples=25, deadline=None)
@given(
    format=st.sampled_from(PcmFormat),
    rate_hz=st.sampled_from([8000, 16000, 24000, 44100]),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    gather_s=st.sampled_from([0.0, 0.05, 0.2]),
)
def test_converted_audio_does_not_depend_on_how_it_is_cut_and_gathered(
    format: PcmFormat, rate_hz: int, sizes: list[int], gather_s: float
) -> None:
    data = np.random.default_rng(7).integers(0, 256, 20_001).astype(np.uint8).tobytes()
    whole, cut = PcmInput(format, rate_hz), PcmInput(format, rate_hz)
    parts, start, turn = [], 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        parts.append(cut.feed(data[start : start + size], gather_s=gather_s))
        start, turn = start + size, turn + 1
    expected = np.concatenate([whole.feed(data), whole.flush()])
    np.testing.assert_array_equal(np.concatenate([*parts, cut.flush()]), expected)
    samples = len(data) // (2 if format is PcmFormat.S16LE else 1)
    assert abs(len(expected) - samples * 16000 / rate_hz) <= 1


def test_g711_codes_are_those_of_the_standard() -> None:
    mu_law = PcmInput(PcmFormat.PCMU, 16000).feed(bytes([0x00, 0x7F, 0x80, 0xFF, 0x55]))
    assert mu_law.tolist() == [-32124, 0, 32124, 0, -716]
    a_law = PcmInput(PcmFormat.PCMA, 16000).feed(bytes([0x55, 0xD5, 0x2A, 0xAA, 0x00]))
    assert a_law.tolist() == [-8, 8, -32256, 32256, -5504]


def test_a_tone_keeps_its_pitch_and_loudness_at_another_rate() -> None:
    tone = (10_000 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype("<i2")
    source = PcmInput(PcmFormat.S16LE, 24_000)
    heard = np.concatenate([source.feed(tone.tobytes()), source.flush()])
    spectrum = np.abs(np.fft.rfft(heard))
    assert int(np.argmax(spectrum)) == 440
    assert np.abs(heard).max() == pytest.approx(10_000, rel=0.02)


def test_audio_is_gathered_until_there_is_enough_and_then_heard_whole() -> None:
    sent = np.arange(640, dtype="<i2")
    source = PcmInput(PcmFormat.S16LE, 16_000)
    pieces = [sent[start : start + 160].tobytes() for start in range(0, len(sent), 160)]
    assert [source.gather(piece, 0.03) for piece in pieces[:3]] == [True, True, False]
    heard = source.feed(pieces[2], gather_s=0.03)
    assert heard.tolist() == sent[:480].tolist()
    assert not source.gather(pieces[3], 0.0)
    assert source.feed(pieces[3]).tolist() == sent[480:].tolist()


@pytest.mark.parametrize("rate_hz", [0, 3999, 192_001])
def test_impossible_rates_are_refused(rate_hz: int) -> None:
    with pytest.raises(InvalidRequestError, match="sample rate"):
        PcmInput(PcmFormat.S16LE, rate_hz)


# The demo model.


@pytest.fixture(scope="module")
def demo_engine() -> Engine:
    from whisper_server.engines import faster_whisper

    return faster_whisper.load(DEMO / "model", ComputeChoice("faster-whisper", "cpu", "int8", 1, 1))


@pytest.mark.parametrize("index", [0, 1])
async def test_the_demo_model_transcribes_a_stream_as_it_was_spoken(demo_engine: Engine, index: int) -> None:
    sample = json.loads((DEMO / "samples" / "samples.json").read_text())[index]
    pcm = (decode_audio(str(DEMO / "samples" / sample["file"])) * 32767).astype(np.int16)
    pool = VoiceDetectorPool(SileroVad)
    async with StreamService(Models(demo_engine), Scheduler(), pool) as streams:
        frames = await transcribe(streams, pcm, sizes=[640])
        odd = await transcribe(streams, pcm, sizes=[1, 999, 4001, 33])
    assert texts(frames) == texts(odd) == [segment["text"] for segment in sample["segments"]]
    for final in frames:
        if isinstance(final, FinalTranscript):
            times = [time for word in final.words for time in (word.start_s, word.end_s)]
            assert times == sorted(times)
            assert final.audio_start_s <= times[0] <= times[-1] <= len(pcm) / 16000
            assert final.timing.inference_s > 0
            assert final.language == sample["language"]
