"""The words of live streams: those of the same recordings sent as files, and to each speaker their own.

By default 60 utterances go through `/v1/realtime` and as files. All 300 go with

    STREAMED_UTTERANCES=300 pytest --timeout 1800 tests/test_streaming_words.py

and with STREAMED_IN_REAL_TIME=1 as slowly as they are spoken, eight speakers at once, which takes 3 minutes.
Otherwise they go as fast as the server takes them.
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice, repeat
from typing import Any

import pytest
from openai import OpenAI

from bench.streaming.conversation import Heard, converse
from bench.streaming.doors import REALTIME, STT, Address, Door, Kind, RealtimeDoor, SttDoor
from bench.streaming.speech import Recording, clips, joined
from bench.word_errors import WordErrors
from whisper_server.cli.server_process import server_process

UTTERANCES = int(os.environ.get("STREAMED_UTTERANCES", "60"))
IN_REAL_TIME = os.environ.get("STREAMED_IN_REAL_TIME") == "1"
SPEAKERS = 8
PAUSE_S = 0.8
"""Longer than the silence that ends an utterance."""


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """A server in a process of its own, so that the speakers do not slow it down."""
    with server_process("--model-name", "demo") as process:
        yield process.url


@pytest.fixture(scope="module")
def client(server_url: str) -> OpenAI:
    return OpenAI(base_url=f"{server_url}/v1", api_key="none-needed", max_retries=0)


def finals(heard: Heard) -> list[str]:
    assert heard.faults == []
    texts = [told.text for _, told in heard.told if told.kind is Kind.FINAL]
    return [text for text in texts if text]


def stream(
    door: Door, server_url: str, said: Sequence[Recording], *, in_real_time: bool = False
) -> list[list[str]]:
    """Let everybody talk at once; the finals of each."""
    frames = [door.frames(recording.samples) for recording in said]
    heard = asyncio.run(converse(door, Address(server_url), frames, in_real_time=in_real_time))
    return [finals(each) for each in heard]


def as_file(client: OpenAI, clip: dict[str, Any]) -> str:
    options = {"decode_profile": "realtime"}
    return client.audio.transcriptions.create(file=clip["path"], model="demo", extra_body=options).text


@pytest.mark.timeout(240)
def test_streamed_utterances_have_the_word_errors_of_files(
    server_url: str, client: OpenAI, demo_test_set: list[dict[str, Any]]
) -> None:
    """In one stream the speaker changes between English, Portuguese and German."""
    numbers = list(islice(cycle(range(len(demo_test_set))), UTTERANCES))
    own = [numbers[speaker::SPEAKERS] for speaker in range(SPEAKERS)]
    said = [joined([clips(None)[number] for number in each], repeat(PAUSE_S)) for each in own]
    streamed = stream(RealtimeDoor("demo", language=None), server_url, said, in_real_time=IN_REAL_TIME)
    with ThreadPoolExecutor(2) as pool:
        sent = list(pool.map(lambda number: as_file(client, demo_test_set[number]), numbers))
    by_stream, by_file = WordErrors(), WordErrors()
    for each, texts in zip(own, streamed, strict=True):
        # Where a sentence has a pause it may be two utterances: what counts is the words, all of them.
        by_stream.add(" ".join(demo_test_set[number]["text"] for number in each), " ".join(texts))
    for number, text in zip(numbers, sent, strict=True):
        by_file.add(demo_test_set[number]["text"], text)
    assert by_stream.rate <= by_file.rate + 0.01
    assert by_file.rate <= 0.06


@pytest.mark.parametrize("name", [REALTIME, STT])
def test_each_of_sixteen_speakers_gets_their_own_words(server_url: str, name: str) -> None:
    door: Door = RealtimeDoor("demo", delay="minimal") if name == REALTIME else SttDoor("demo")
    said = [joined([clips()[2 * number], clips()[2 * number + 1]], repeat(PAUSE_S)) for number in range(16)]
    together = stream(door, server_url, said)
    alone = [stream(door, server_url, [recording])[0] for recording in said]
    assert together == alone
    assert len({tuple(texts) for texts in together}) == 16
    errors = WordErrors()
    for recording, texts in zip(said, together, strict=True):
        errors.add(" ".join(each.text for each in recording.utterances), " ".join(texts))
    assert errors.rate <= 0.06
