"""`stream=true`: events that the OpenAI SDK parses, whose deltas joined are the text."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from openai import APIError, BadRequestError, NotFoundError, OpenAI

from tests.live_server import make_settings, running_server
from tests.media import silence, wav
from whisper_server.api.sse import EventStream, with_pauses
from whisper_server.engines.scripted import ScriptedEngine, Step


def stream(client: OpenAI, sample: dict[str, Any], **options: Any) -> list[Any]:
    return list(client.audio.transcriptions.create(file=sample["path"], model="demo", stream=True, **options))


@pytest.mark.parametrize("response_format", ["json", "text"])
def test_deltas_joined_are_the_text_of_the_plain_answer(
    client: OpenAI, sample_recordings: list[dict[str, Any]], response_format: Any
) -> None:
    greedy = {"beam_size": 1, "temperatures": [0]}
    for sample in sample_recordings:
        plain = client.audio.transcriptions.create(file=sample["path"], model="demo", extra_body=greedy)
        *deltas, done = stream(client, sample, response_format=response_format, extra_body=greedy)
        assert {event.type for event in deltas} == {"transcript.text.delta"}
        assert done.type == "transcript.text.done"
        assert "".join(event.delta for event in deltas) == done.text == plain.text
        usage = done.usage
        assert usage.type == "tokens"
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert usage.output_tokens > 0
        assert usage.input_tokens == pytest.approx(sample["seconds"] * 50, abs=6)


def test_a_long_recording_comes_in_several_deltas(
    client: OpenAI, sample_recordings: list[dict[str, Any]]
) -> None:
    long = next(sample for sample in sample_recordings if sample["seconds"] > 60)
    assert len(stream(client, long)) > 3


def test_logprobs_belong_to_the_text(client: OpenAI, sample_recordings: list[dict[str, Any]]) -> None:
    sample = sample_recordings[0]
    plain = client.audio.transcriptions.create(file=sample["path"], model="demo", include=["logprobs"])
    assert plain.logprobs
    assert (
        b"".join(bytes(map(int, entry.bytes or [])) for entry in plain.logprobs).decode().strip()
        == plain.text
    )
    assert all(entry.logprob is not None and -20 < entry.logprob <= 0 for entry in plain.logprobs)
    assert len({entry.logprob for entry in plain.logprobs}) > 3
    *deltas, done = stream(client, sample, include=["logprobs"])
    streamed = [entry.token for event in deltas for entry in event.logprobs]
    assert streamed == [entry.token for entry in done.logprobs] == [entry.token for entry in plain.logprobs]


def test_the_wire_is_plain_data_frames(server_url: str, sample_recordings: list[dict[str, Any]]) -> None:
    with sample_recordings[0]["path"].open("rb") as file:
        response = httpx.post(
            f"{server_url}/v1/audio/transcriptions",
            files={"file": file},
            data={"model": "demo", "stream": "true"},
            timeout=60,
        )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.text.endswith("\n\n")
    frames = response.text.removesuffix("\n\n").split("\n\n")
    assert all(frame.startswith("data: {") for frame in frames)
    assert [json.loads(frame[6:])["type"] for frame in frames][-1] == "transcript.text.done"


def test_faults_before_the_first_event_keep_their_status(
    client: OpenAI, sample_recordings: list[dict[str, Any]]
) -> None:
    with pytest.raises(NotFoundError):
        client.audio.transcriptions.create(file=sample_recordings[0]["path"], model="nobody", stream=True)
    with pytest.raises(BadRequestError) as caught:
        client.audio.transcriptions.create(file=b"no audio at all, only words", model="demo", stream=True)
    assert caught.value.code == "unsupported_format"
    for response_format in ("verbose_json", "srt", "vtt"):
        with pytest.raises(BadRequestError) as caught:
            stream(client, sample_recordings[0], response_format=response_format)
        assert caught.value.param == "stream"


def test_silence_streams_only_the_end(client: OpenAI) -> None:
    events = list(
        client.audio.transcriptions.create(
            file=("silence.wav", wav(silence(2.0), 16_000)), model="demo", stream=True
        )
    )
    assert len(events) == 1
    assert events[0].type == "transcript.text.done"
    assert events[0].text == ""


NINETY_SECONDS = wav(silence(90.0), 16_000)
UNFILTERED = {"vad_filter": False, "without_timestamps": True}


def test_a_fault_in_the_middle_is_an_event_that_the_sdk_raises() -> None:
    engine = ScriptedEngine([Step("one"), Step(error=RuntimeError("secret"))])
    with running_server(make_settings(), engines={"faster-whisper": engine.load}) as url:
        client = OpenAI(base_url=url, api_key="none-needed", max_retries=0)
        events = client.audio.transcriptions.create(
            file=("a.wav", NINETY_SECONDS), model="demo", stream=True, extra_body=UNFILTERED
        )
        assert next(iter(events)).type == "transcript.text.delta"
        with pytest.raises(APIError) as caught:
            list(events)
    assert caught.value.code == "inference_failed"
    assert "secret" not in caught.value.message


def test_a_client_that_leaves_stops_its_stream_after_the_running_window() -> None:
    gate = threading.Event()
    engine = ScriptedEngine([Step("one"), Step("two", gate=gate)])
    with running_server(make_settings(), engines={"faster-whisper": engine.load}) as url:
        with httpx.stream(
            "POST",
            f"{url}/v1/audio/transcriptions",
            files={"file": NINETY_SECONDS},
            data={"model": "demo", "stream": "true", "vad_filter": "false", "without_timestamps": "true"},
        ) as response:
            next(response.iter_lines())
            engine.wait_for_windows(2)
        gate.set()
        wait_until_idle(url)
        assert len(engine.windows) == 2


def wait_until_idle(url: str) -> None:
    for _ in range(500):
        if httpx.get(f"{url}/health").json()["requests_inside"] == 0:
            return
    raise AssertionError("the request did not end")


@pytest.mark.anyio
async def test_pauses_are_filled_and_cancel_the_work() -> None:
    is_closed = asyncio.Event()
    go_on = asyncio.Event()

    async def slow() -> AsyncGenerator[str, None]:
        try:
            yield "first"
            await go_on.wait()
            yield "second"
            await asyncio.Event().wait()
        finally:
            is_closed.set()

    seen: list[str | None] = []
    async with contextlib.aclosing(with_pauses(slow(), 0.001)) as items:
        async for item in items:
            seen.append(item)
            if item is None:
                go_on.set()
            if "second" in seen and item is None:
                break
    assert seen[:2] == ["first", None]
    assert [item for item in seen if item] == ["first", "second"]
    assert is_closed.is_set()


async def test_a_client_that_reads_nothing_is_cut_off_and_its_resources_are_given_back() -> None:
    given_back: list[str] = []

    async def events() -> AsyncGenerator[str, None]:
        try:
            while True:
                yield "{}"
        finally:
            given_back.append("events")

    async def receive() -> Any:
        await asyncio.Event().wait()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 3:
            await asyncio.Event().wait()  # the connection's buffers are full

    resources = contextlib.AsyncExitStack()
    resources.callback(given_back.append, "resources")
    await EventStream(events(), resources, unread_s=0.05)({"type": "http"}, receive, send)
    assert given_back == ["events", "resources"]
    assert len(sent) == 4
