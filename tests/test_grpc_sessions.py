"""Live sessions over gRPC: what is opened, what is heard, and what happens when a client goes."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.grpc_service import (
    WAIT_S,
    Heard,
    Request,
    Service,
    chunks,
    eventually,
    grpc_service,
    held_open,
    read,
)
from tests.live_speech import HearingEngine, Speech, speech
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.services.streaming import StreamLimits
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_event_loop")]

SENTENCE = speech(0.3, "alpha bravo charlie", 1.0)
TWO = speech(0.3, "alpha bravo", 1.0, "charlie delta", 1.0)
Config = stt_pb2.RecognitionConfig
Vad = stt_pb2.VadConfig


@pytest.fixture
def engine() -> HearingEngine:
    return HearingEngine()


@pytest.fixture
async def service(engine: HearingEngine) -> AsyncIterator[Service]:
    async with grpc_service(engine) as service:
        yield service


async def say(service: Service, said: Speech | bytes, chunk_bytes: int = 6400) -> Heard:
    await service.create()
    return await service.stream(chunks(said, chunk_bytes=chunk_bytes))


# What is opened


async def test_what_is_not_asked_for_is_as_the_settings_say(service: Service) -> None:
    created = await service.create("call-7", attributes={"customer": "4711"})
    assert (created.session_id, created.session_token) == ("call-7", "")
    assert dict(created.attributes) == {"customer": "4711"}
    assert (created.config.model, created.config.language) == ("demo", "auto")
    assert created.config.task == stt_pb2.TASK_TRANSCRIBE
    assert created.config.decode_profile == "realtime"
    assert created.config.decode_options.beam_size == 1
    assert created.config.word_timestamps is True
    assert created.vad.mode == stt_pb2.VAD_MODE_CONTINUE
    assert (created.vad.vad_threshold, created.vad.vad_silence_ms) == (0.5, 500)
    assert created.vad.eagerness == stt_pb2.EAGERNESS_UNSPECIFIED
    assert created.audio.encoding == stt_pb2.AUDIO_ENCODING_LINEAR16
    assert (created.audio.sample_rate_hz, created.audio.channels) == (16_000, 1)
    assert (created.partials, created.partial_interval_ms) == (True, 300)
    assert (created.session_timeout_s, created.max_chunk_ms) == (60.0, 0)
    assert created.max_message_bytes == 8 << 20


async def test_everything_asked_for_is_in_effect(service: Service, engine: HearingEngine) -> None:
    created = await service.create(
        config=Config(
            language="pt-BR",
            task=stt_pb2.TASK_TRANSLATE,
            decode_profile="accurate",
            decode_options=stt_pb2.DecodeOptions(
                beam_size=3, temperatures=[0.2, 0.4], log_prob_threshold=-0.5
            ),
            prompt="Before.",
            hotwords=["Anna", " ", "Lisbon"],
            word_timestamps=False,
        ),
        vad=Vad(
            mode=stt_pb2.VAD_MODE_MANUAL,
            vad_threshold=0.25,
            vad_silence_ms=900,
            min_speech_ms=0,
            prefix_padding_ms=120,
            eagerness=stt_pb2.EAGERNESS_LOW,
            max_utterance_s=12.5,
        ),
        audio=stt_pb2.AudioFormat(encoding=stt_pb2.AUDIO_ENCODING_MULAW),
        partials=False,
        partial_interval_ms=150,
    )
    assert (created.config.language, created.config.task) == ("pt", stt_pb2.TASK_TRANSLATE)
    options = created.config.decode_options
    assert (created.config.decode_profile, options.beam_size, options.best_of) == ("accurate", 3, 5)
    assert [round(each, 3) for each in options.temperatures] == [0.2, 0.4]
    assert options.log_prob_threshold == -0.5
    assert (created.config.prompt, list(created.config.hotwords)) == ("Before.", ["Anna, Lisbon"])
    assert not created.config.word_timestamps
    vad = created.vad
    assert (vad.mode, vad.vad_threshold, vad.vad_silence_ms) == (stt_pb2.VAD_MODE_MANUAL, 0.25, 900)
    assert (vad.min_speech_ms, vad.prefix_padding_ms, vad.max_utterance_s) == (0, 120, 12.5)
    assert vad.eagerness == stt_pb2.EAGERNESS_LOW
    assert (created.audio.encoding, created.audio.sample_rate_hz) == (stt_pb2.AUDIO_ENCODING_MULAW, 8000)
    assert (created.partials, created.partial_interval_ms) == (False, 150)


# What is heard


async def test_a_session_tells_everything_up_to_its_end(service: Service) -> None:
    heard = await say(service, SENTENCE)
    assert heard.failure is None
    assert {each.session_id for each in heard.responses} == {"one"}
    started, stopped = [each.speech_activity for each in heard.responses if each.HasField("speech_activity")]
    assert started.kind == stt_pb2.SpeechActivity.KIND_SPEECH_STARTED
    assert stopped.kind == stt_pb2.SpeechActivity.KIND_SPEECH_STOPPED
    assert started.at_s == pytest.approx(0.3, abs=0.05)
    assert stopped.at_s == pytest.approx(1.5, abs=0.1)
    (final,) = heard.finals
    assert final.text == "alpha bravo charlie"
    assert final.utterance_id == started.utterance_id == stopped.utterance_id
    assert final.language == "en"
    assert final.confidence == pytest.approx(0.9)
    assert [word.text for word in final.words] == ["alpha", "bravo", "charlie"]
    assert [word.start_s for word in final.words] == [
        pytest.approx(0.3 + i * 0.4, abs=0.02) for i in range(3)
    ]
    assert final.words[0].probability == pytest.approx(0.9)
    assert final.end_s == pytest.approx(1.5, abs=0.1)
    assert heard.ended.reason == stt_pb2.SessionEnded.REASON_COMPLETED
    assert heard.ended.audio_s == pytest.approx(len(SENTENCE.pcm) / SAMPLE_RATE)
    assert heard.ended.utterances == 1
    assert service.services.streams.registry.active == 0


async def test_partials_grow_stable_text_before_the_final(service: Service) -> None:
    await service.create(partial_interval_ms=100)
    said = chunks(speech(0.3, "alpha bravo charlie delta echo foxtrot", 1.0), chunk_bytes=1600)

    async def paced() -> AsyncIterator[Request]:
        for each in said:
            yield each
            await asyncio.sleep(0.005)

    heard = await service.stream(paced())
    assert heard.partials
    for partial in heard.partials:
        assert partial.text == f"{partial.stable_text} {partial.unstable_text}".strip()
    assert heard.partials[-1].stable_text
    assert heard.finals[0].text.startswith(heard.partials[-1].stable_text)


async def test_no_partials_where_none_are_wanted(service: Service) -> None:
    await service.create(partials=False)
    assert not (await service.stream(chunks(SENTENCE))).partials


async def test_continue_goes_on_and_auto_end_ends_with_the_first_utterance(service: Service) -> None:
    heard = await say(service, TWO)
    assert heard.texts == ["alpha bravo", "charlie delta"]
    await service.create("two", vad=Vad(mode=stt_pb2.VAD_MODE_AUTO_END))
    heard = await service.stream(chunks(TWO, session_id="two"))
    assert heard.failure is None
    assert heard.texts == ["alpha bravo"]
    assert heard.ended.reason == stt_pb2.SessionEnded.REASON_COMPLETED


async def test_a_client_ends_utterances_itself(service: Service) -> None:
    await service.create(vad=Vad(mode=stt_pb2.VAD_MODE_MANUAL))
    pieces = [speech("alpha bravo").pcm.tobytes(), speech("charlie").pcm.tobytes()]
    requests = [
        Request(session_id="one", commit=True),  # of nothing: harmless
        *(Request(session_id="one", audio=piece, commit=True) for piece in pieces),
        Request(audio=speech("delta").pcm.tobytes()),
        Request(clear=True, audio=speech("echo").pcm.tobytes()),
    ]
    heard = await service.stream(requests)
    assert heard.failure is None
    assert heard.texts == ["alpha bravo", "charlie", "echo"]


async def test_half_closing_in_the_middle_of_a_word_loses_nothing(service: Service) -> None:
    heard = await say(service, speech(0.3, "alpha bravo charlie"))
    assert heard.texts == ["alpha bravo charlie"]


async def test_silence_alone_is_no_utterance(service: Service) -> None:
    heard = await say(service, speech(2.0))
    assert not heard.finals
    assert heard.ended.utterances == 0


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 40_000), max_size=12))
async def test_finals_do_not_depend_on_how_the_audio_is_cut(cuts: list[int]) -> None:
    data = TWO.pcm.tobytes()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    async with grpc_service(HearingEngine()) as service:
        await service.create()
        parts = [data[a:b] for a, b in itertools.pairwise(edges)]
        heard = await service.stream([Request(session_id="one", audio=part) for part in parts])
    assert heard.texts == ["alpha bravo", "charlie delta"]


async def test_g711_in_stereo_is_heard_as_any_audio(service: Service) -> None:
    await service.create(
        vad=Vad(mode=stt_pb2.VAD_MODE_MANUAL, enabled=False),
        audio=stt_pb2.AudioFormat(encoding=stt_pb2.AUDIO_ENCODING_ALAW, sample_rate_hz=8000, channels=2),
    )
    heard = await service.stream(chunks(b"\xd5" * 32_000))
    assert heard.failure is None
    assert heard.ended.audio_s == pytest.approx(2.0, abs=0.05)


async def test_the_trailing_metadata_tells_where_the_time_went(
    service: Service, engine: HearingEngine
) -> None:
    heard = await say(service, TWO)
    times = {name: float(value) for name, value in heard.trailing.items() if name.startswith("stt-decode")}
    assert times.keys() == {
        *("stt-decode-buffer-wait-sec", "stt-decode-queue-wait-sec", "stt-decode-inference-sec"),
        *("stt-decode-response-emit-sec", "stt-decode-total-sec", "stt-decode-count"),
    }
    count, total_s = times.pop("stt-decode-count"), times.pop("stt-decode-total-sec")
    assert len(heard.finals) <= count <= len(engine.windows)
    assert total_s == pytest.approx(sum(times.values()), abs=1e-5)
    assert all(value >= 0 for value in times.values())
    # The results' own times are part of the sums.
    assert times["stt-decode-inference-sec"] >= max(each.timing.inference_s for each in heard.finals)


# Prompts and words


async def test_prompts_of_a_message_count_before_the_sessions_and_these_before_the_settings(
    engine: HearingEngine,
) -> None:
    model = {"prompt": "Of the settings.", "hotwords": ("settings",)}

    def used() -> tuple[str, str]:
        return engine.windows[-1].prompt, engine.windows[-1].options.hotwords

    async with grpc_service(engine, model=model) as service:
        await service.create("a", partials=False)
        await service.stream(chunks(SENTENCE, session_id="a"))
        assert used() == (
            "Of the settings.",
            "settings",
        )

        config = Config(prompt="Of the session.", hotwords=["session", "word"])
        await service.create("b", config=config, partials=False)
        await service.stream(chunks(SENTENCE, session_id="b"))
        assert used() == (
            "Of the session.",
            "session, word",
        )

        await service.create("c", config=config, partials=False)
        own = stt_pb2.Prompting(prompt="Of the message.", hotwords=["message"])
        first, *rest = chunks(SENTENCE, session_id="c")
        first.prompting.CopyFrom(own)
        await service.stream([first, *rest])
        assert used() == (
            "Of the message.",
            "message",
        )


@pytest.mark.parametrize("words", [[], [""], [" ", ""]])
async def test_empty_word_lists_are_harmless(
    service: Service, engine: HearingEngine, words: list[str]
) -> None:
    await service.create(config=Config(hotwords=words), partials=False)
    first, *rest = chunks(SENTENCE)
    first.prompting.CopyFrom(stt_pb2.Prompting(hotwords=words))
    heard = await service.stream([first, *rest])
    assert heard.texts == ["alpha bravo charlie"]
    assert engine.windows[-1].options.hotwords == ""


# Clients that go, wait, or hurry


async def test_a_client_that_cancels_leaves_nothing_behind(service: Service, engine: HearingEngine) -> None:
    await service.create()
    async with held_open(chunks(TWO)) as requests:
        call = service.stub.StreamingRecognize(requests)
        await anext(aiter(call))
        call.cancel()
        await eventually(lambda: service.services.streams.registry.active == 0)
    count = len(engine.windows)
    await service.create()  # the id is free again
    assert (await service.stream(chunks(speech(1.0)))).failure is None
    assert len(engine.windows) == count


async def test_a_deadline_ends_the_session(service: Service) -> None:
    await service.create()
    async with held_open(chunks(SENTENCE)) as requests:
        call = service.stub.StreamingRecognize(requests, timeout=0.5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: service.services.streams.registry.active == 0)


async def test_a_connection_that_breaks_ends_the_session(service: Service) -> None:
    await service.create()
    async with (
        held_open(chunks(SENTENCE)) as requests,
        grpc.aio.insecure_channel(service.addresses[0]) as channel,
    ):
        stub = stt_pb2_grpc.SpeechToTextStub(channel)
        await anext(aiter(stub.StreamingRecognize(requests)))
    await eventually(lambda: service.services.streams.registry.active == 0)


async def test_a_client_in_a_hurry_is_slowed_down_and_loses_nothing(engine: HearingEngine) -> None:
    engine.gate = threading.Event()
    parts: list[float | str] = ["alpha bravo", 0.8]
    said = speech(*parts * 40)
    limits = StreamLimits(max_buffer_s=2.0, max_pending_finals=2)
    async with grpc_service(engine, limits=limits) as service:
        await service.create(partials=False)
        reading = asyncio.create_task(service.stream(chunks(said)))
        stream = service.services.streams.get("one")
        assert stream is not None
        await eventually(lambda: stream.received_s > 4)
        await asyncio.sleep(0.3)
        assert stream.received_s < 12, "no more than two finals and the buffers"
        engine.gate.set()
        heard = await asyncio.wait_for(reading, WAIT_S)
    assert heard.failure is None
    assert heard.texts == ["alpha bravo"] * 40


async def test_a_session_that_nobody_streams_to_is_closed(engine: HearingEngine) -> None:
    async with grpc_service(engine, claim_s=0.05) as service:
        await service.create()
        await eventually(lambda: service.services.streams.registry.active == 0)
        heard = await service.stream(chunks(SENTENCE))
        assert heard.failure is not None
        assert heard.failure.code == "ERR1004"


async def test_sessions_of_one_service_do_not_disturb_each_other(service: Service) -> None:
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]

    async def one(word: str) -> list[str]:
        await service.create(word)
        said = speech(0.2, f"{word} {word}", 0.8, word, 0.8)
        return (await service.stream(chunks(said, session_id=word))).texts

    heard = await asyncio.gather(*(one(word) for word in words))
    assert heard == [[f"{word} {word}", word] for word in words]


async def test_a_drain_brings_running_sessions_their_last_final(service: Service) -> None:
    await service.create()
    async with held_open(chunks(speech(0.3, "alpha bravo"))) as requests:
        reading = asyncio.create_task(read(service.stub.StreamingRecognize(requests)))
        stream = service.services.streams.get("one")
        assert stream is not None
        await eventually(lambda: stream.received_s > 1.0)
        service.services.admission.drain(5.0)
        await service.services.streams.drain()
        heard = await asyncio.wait_for(reading, WAIT_S)
    assert heard.texts == ["alpha bravo"]
    assert heard.failure is not None, "the client had more to say"
    assert (heard.failure.code, heard.failure.status) == ("ERR1012", grpc.StatusCode.UNAVAILABLE)
    refused = await service.refused("two")
    assert (refused.code, refused.status) == ("ERR1012", grpc.StatusCode.UNAVAILABLE)
    assert refused.retry_after_s
