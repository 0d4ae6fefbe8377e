"""`POST /v1/chat/completions`: the OpenAI SDK chats with audio and reads its transcript."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, BadRequestError, NotFoundError, OpenAI

from tests.media import silence, tone, wav
from tests.wire import connection, error_of, head, health, request, scripted_server, settle, wait_until
from whisper_server.api.openai.chat_request import MAX_PROMPT_CHARS
from whisper_server.engines.scripted import ScriptedEngine, Step

LONG = "morning_en.m4a"
GREEDY = {"beam_size": 1, "temperatures": [0]}


def audio(recording: bytes, *, format_: str = "wav", prefix: str = "") -> dict[str, Any]:
    """A content part with a recording."""
    data = prefix + base64.b64encode(recording).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": format_}}


def text(content: str) -> dict[str, Any]:
    """A content part with text."""
    return {"type": "text", "text": content}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    """A message of the user's."""
    return {"role": "user", "content": list(parts)}


def post(url: str, **body: Any) -> httpx.Response:
    return request("POST", f"{url}/v1/chat/completions", json={"model": "demo"} | body)


def frames(response: httpx.Response) -> list[str]:
    """The data of each event of a stream."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return [frame.removeprefix("data: ") for frame in response.text.removesuffix("\n\n").split("\n\n")]


@pytest.fixture(scope="module")
def recordings(sample_recordings: list[dict[str, Any]]) -> dict[str, bytes]:
    """The bundled samples by file name."""
    return {sample["file"]: sample["path"].read_bytes() for sample in sample_recordings}


# --- With the demo model ---


def test_the_reply_is_the_transcript(client: OpenAI, recordings: dict[str, bytes]) -> None:
    for name, recording in recordings.items():
        if name == LONG:  # is streamed below
            continue
        plain = client.audio.transcriptions.create(file=recording, model="demo", extra_body=GREEDY)
        messages: Any = [user(audio(recording, format_=name.split(".")[1]))]
        completion = client.chat.completions.create(model="demo", messages=messages, extra_body=GREEDY)
        assert completion.object == "chat.completion"
        assert completion.id.startswith("chatcmpl-")
        assert completion.model == "demo"
        assert completion.created > 1_700_000_000
        (choice,) = completion.choices
        assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
        assert choice.message.refusal is None
        assert choice.message.content == plain.text != ""


def test_usage_counts_the_audio_and_the_text_of_the_answer(
    client: OpenAI, recordings: dict[str, bytes]
) -> None:
    messages: Any = [user(audio(recordings["kitchen_en.wav"]), text("Words of the prompt"))]
    usage = client.chat.completions.create(model="demo", messages=messages).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens == usage.prompt_tokens_details.audio_tokens == pytest.approx(3.68 * 50, abs=1)
    assert 5 <= usage.completion_tokens <= 20
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chunks_joined_are_the_reply(client: OpenAI, recordings: dict[str, bytes]) -> None:
    messages: Any = [user(audio(recordings["meeting_pt.mp3"]), audio(recordings[LONG]))]
    whole = client.chat.completions.create(model="demo", messages=messages, extra_body=GREEDY)
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=GREEDY,
        )
    )
    first, *deltas, finish, last = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert first.choices[0].delta.role == "assistant"
    assert len(deltas) > 3  # a long recording comes in several
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in deltas) == whole.choices[0].message.content
    )
    assert {chunk.choices[0].finish_reason for chunk in (first, *deltas)} == {None}
    assert finish.choices[0].finish_reason == "stop"
    assert finish.choices[0].delta.content is None
    assert last.choices == []
    assert last.usage == whole.usage
    assert {chunk.usage for chunk in (first, *deltas, finish)} == {None}


def test_the_stream_helper_of_the_sdk_gets_the_same(client: OpenAI, recordings: dict[str, bytes]) -> None:
    messages: Any = [user(audio(recordings["kitchen_en.wav"]))]
    whole = client.chat.completions.create(model="demo", messages=messages, extra_body=GREEDY)
    with client.chat.completions.stream(model="demo", messages=messages, extra_body=GREEDY) as stream:
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == whole.choices[0].message.content


def test_the_wire_of_a_stream_ends_with_done(server_url: str, recordings: dict[str, bytes]) -> None:
    response = post(server_url, stream=True, messages=[user(audio(recordings["kitchen_en.wav"]))])
    *chunks, done = frames(response)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert all("usage" not in chunk for chunk in parsed)
    assert parsed[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert parsed[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


def test_recordings_are_joined_by_a_blank_line_and_silent_ones_left_out(
    server_url: str, recordings: dict[str, bytes]
) -> None:
    kitchen, train = recordings["kitchen_en.wav"], recordings["train_de.ogg"]

    def reply(*parts: dict[str, Any]) -> str:
        content: str = post(server_url, messages=[user(*parts)], **GREEDY).json()["choices"][0]["message"][
            "content"
        ]
        return content

    one, other = reply(audio(kitchen)), reply(audio(train))
    assert reply(audio(kitchen), audio(train)) == f"{one}\n\n{other}"
    silent = audio(wav(silence(2)))
    assert reply(silent, audio(kitchen), silent, audio(train), silent) == f"{one}\n\n{other}"
    assert reply(silent) == ""


@pytest.mark.parametrize("prefix", ["", "data:audio/wav;base64,", "data:;base64,"])
@pytest.mark.parametrize("format_", ["wav", "mp3", "anything", ""])
def test_the_content_tells_the_format(
    server_url: str, recordings: dict[str, bytes], prefix: str, format_: str
) -> None:
    part = audio(recordings["kitchen_en.wav"], format_=format_, prefix=prefix)
    message = post(server_url, messages=[user(part)], language="en").json()["choices"][0]["message"]
    assert "david" in message["content"].lower()


def test_the_route_is_there_without_v1_and_a_model_is_not_needed(
    server_url: str, recordings: dict[str, bytes]
) -> None:
    body = {"messages": [user(audio(recordings["kitchen_en.wav"]))]}
    completion = request("POST", f"{server_url}/chat/completions", json=body).json()
    assert completion["model"] == "demo"


def test_azure_names_the_model_in_the_path(server_url: str, recordings: dict[str, bytes]) -> None:
    def ask(deployment: str, **body: Any) -> httpx.Response:
        url = f"{server_url}/openai/deployments/{deployment}/chat/completions?api-version=2024-10-21"
        return request("POST", url, json={"messages": [user(audio(recordings["kitchen_en.wav"]))]} | body)

    assert ask("demo").json()["model"] == "demo"
    assert ask("nobody", model="demo").json()["model"] == "demo"
    assert error_of(ask("nobody"))["code"] == "model_not_found"


def test_options_are_checked_like_those_of_a_transcription(
    client: OpenAI, server_url: str, recordings: dict[str, bytes]
) -> None:
    messages: Any = [user(audio(recordings["kitchen_en.wav"]))]
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="nobody", messages=messages)
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=messages, extra_body={"beam_size": 0})
    assert (caught.value.param, caught.value.code) == ("beam_size", "invalid_value")
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=messages, extra_body={"language": "xx"})
    assert (caught.value.param, caught.value.code) == ("language", "unsupported_language")


def test_the_example_of_the_docs_prints_a_transcript(
    server_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    example = (root / "docs" / "chat.md").read_text().split("```python\n")[1].split("```")[0]
    assert "http://localhost:8089" in example
    exec(example.replace("http://localhost:8089", server_url), {})
    assert "David" in capsys.readouterr().out


# --- What is refused ---

SHORT = audio(wav(tone(0.2)))
FINE = [user(SHORT)]
PART = "messages[0].content[0]"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "messages"),
        ({"messages": []}, "missing_required_parameter", "messages"),
        ({"messages": "hello"}, "invalid_value", "messages"),
        ({"messages": ["hello"]}, "invalid_value", "messages[0]"),
        ({"messages": [{"content": "hello"}]}, "unsupported_value", "messages[0].role"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unsupported_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "invalid_value", PART),
        ({"messages": [user({"type": "text"})]}, "invalid_value", f"{PART}.text"),
        ({"messages": [user({"type": "input_audio"})]}, "invalid_value", f"{PART}.input_audio"),
        (
            {"messages": [user({"type": "input_audio", "input_audio": {"format": "wav"}})]},
            "missing_required_parameter",
            f"{PART}.input_audio.data",
        ),
        (
            {"messages": [user({"type": "input_audio", "input_audio": {"data": "?"}})]},
            "invalid_base64",
            f"{PART}.input_audio.data",
        ),
        (
            {"messages": [user({"type": "image_url", "image_url": {"url": "data:"}}, SHORT)]},
            "unsupported_value",
            f"{PART}.type",
        ),
        ({"messages": [user(text("hello"))]}, "missing_required_parameter", "messages"),
        (
            {"messages": [*FINE, {"role": "assistant", "content": "x"}]},
            "missing_required_parameter",
            "messages",
        ),
        ({"messages": [user(*[SHORT] * 17)]}, "invalid_value", "messages[0].content[16]"),
        (
            {"messages": [user(SHORT, audio(b"no audio"))]},
            "unsupported_format",
            "messages[0].content[1].input_audio.data",
        ),
        ({"messages": FINE, "n": 2}, "unsupported_value", "n"),
        ({"messages": FINE, "tools": [{"type": "function"}]}, "unsupported_value", "tools"),
        ({"messages": FINE, "functions": [{"name": "f"}]}, "unsupported_value", "functions"),
        ({"messages": FINE, "modalities": ["text", "audio"]}, "unsupported_value", "modalities"),
        ({"messages": FINE, "audio": {"voice": "alloy"}}, "unsupported_value", "audio"),
        ({"messages": FINE, "logprobs": True}, "unsupported_value", "logprobs"),
        (
            {"messages": FINE, "response_format": {"type": "json_object"}},
            "unsupported_value",
            "response_format",
        ),
        ({"messages": FINE, "response_format": "srt"}, "unsupported_value", "response_format"),
        ({"messages": FINE, "stream": "yes"}, "invalid_value", "stream"),
        ({"messages": FINE, "stream_options": True}, "invalid_value", "stream_options"),
        (
            {"messages": FINE, "stream_options": {"include_usage": 1}},
            "invalid_value",
            "stream_options.include_usage",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_place(
    server_url: str, body: dict[str, Any], code: str, param: str
) -> None:
    response = post(server_url, **body)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)


def test_a_chat_without_audio_is_told_what_to_send(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="input_audio"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello?"}])


def test_a_body_that_is_no_json_is_refused(server_url: str) -> None:
    response = request("POST", f"{server_url}/v1/chat/completions", data={"model": "demo"})
    assert (response.status_code, error_of(response)["code"]) == (400, "unsupported_content_type")
    headers = {"content-type": "application/json"}
    response = request("POST", f"{server_url}/v1/chat/completions", content=b"{", headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_json")


# --- With a scripted engine ---


@contextmanager
def scripted(*steps: Step, **limits: float) -> Iterator[tuple[str, ScriptedEngine]]:
    """A server whose engine follows a script, and that engine."""
    engine = ScriptedEngine(steps)
    with scripted_server(engine, limits=limits) as url:
        yield url, engine


WHOLE = {"vad_filter": False, "without_timestamps": True}
"""No voice is heard in a tone, so nothing would be decoded."""


def test_the_text_of_the_messages_is_the_prompt() -> None:
    with scripted() as (url, engine):
        post(
            url,
            messages=[
                {"role": "system", "content": " Names: Ada, Grace. "},
                user(text("an answered question"), SHORT),
                {"role": "assistant", "content": "its answer"},
                {"role": "tool", "content": "ignored"},
                {"role": "developer", "content": [text("Spell well.")]},
                user(text("About engines."), SHORT, text("\n"), text("The end.")),
            ],
            **WHOLE,
        )
        assert [window.prompt for window in engine.windows] == [
            "Names: Ada, Grace. Spell well. About engines. The end."
        ]


def test_only_the_turn_that_waits_for_an_answer_is_transcribed() -> None:
    with scripted(Step("new"), Step("newer")) as (url, _):
        answered = [user(audio(wav(tone(3)))), {"role": "assistant", "content": "old"}]
        completion = post(url, messages=[*answered, user(SHORT), user(SHORT)], **WHOLE).json()
    assert completion["choices"][0]["message"]["content"] == "new\n\nnewer"
    assert completion["usage"]["prompt_tokens"] == 2 * 0.2 * 50


def test_a_long_prompt_is_its_end_and_the_prompt_field_comes_first() -> None:
    with scripted() as (url, engine):
        long = {"role": "system", "content": "x" * 10_000 + " the end"}
        post(url, messages=[long, *FINE], **WHOLE)
        post(url, messages=[long, *FINE], prompt="given", **WHOLE)
        post(url, messages=[long, *FINE], prompt="", **WHOLE)
        first, second, third = (window.prompt for window in engine.windows)
    assert len(first) == MAX_PROMPT_CHARS
    assert first.endswith(" the end")
    assert (second, third) == ("given", "")


def test_chat_parameters_do_not_change_how_audio_is_decoded() -> None:
    with scripted() as (url, engine):
        chat_only = {
            "temperature": 1.7,
            "top_p": 0.5,
            "max_tokens": 5,
            "seed": 1,
            "stop": ["."],
            "user": "me",
        }
        response = post(
            url,
            messages=FINE,
            n=1,
            tools=[],
            modalities=["text"],
            response_format={"type": "text"},
            metadata={"a": "b"},
            **chat_only,
            **WHOLE,
        )
        assert response.status_code == 200
        post(url, messages=FINE, temperatures=[0.4], language="pt", beam_size=2, **WHOLE)
        plain, changed = engine.windows
    assert plain.options.temperatures[0] == 0
    assert (changed.options.temperatures, changed.options.beam_size, changed.language) == ((0.4,), 2, "pt")


def test_a_fault_in_the_middle_is_an_event_that_the_sdk_raises() -> None:
    with scripted(Step("one"), Step(error=RuntimeError("secret"))) as (url, _):
        client = OpenAI(base_url=url, api_key="none-needed", max_retries=0)
        messages: Any = [user(SHORT, SHORT)]
        chunks = client.chat.completions.create(
            model="demo", messages=messages, stream=True, extra_body=WHOLE
        )
        seen = [next(chunks), next(chunks)]
        assert [chunk.choices[0].delta.content for chunk in seen] == ["", "one"]
        with pytest.raises(APIError) as caught:
            list(chunks)
        assert caught.value.code == "inference_failed"
        assert "secret" not in caught.value.message
        response = post(url, messages=[user(SHORT)], stream=True, **WHOLE)
        assert frames(response)[-1] == "[DONE]"


def test_a_fault_before_the_first_chunk_has_its_status() -> None:
    with scripted() as (url, engine):
        # What a model cannot do shows when it is loaded.
        response = post(url, messages=FINE, stream=True, language="ja")
    assert (response.status_code, error_of(response)["code"]) == (400, "unsupported_language")
    assert not engine.windows


def test_a_fault_of_a_plain_request_has_its_status() -> None:
    with scripted(Step("one"), Step(error=RuntimeError("secret"))) as (url, _):
        response = post(url, messages=[user(SHORT, SHORT)], **WHOLE)
    assert (response.status_code, error_of(response)["code"]) == (500, "inference_failed")


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_ends_its_work_after_the_running_window(is_stream: bool) -> None:
    gate = threading.Event()
    with scripted(Step("one"), Step("two", gate=gate), Step("three")) as (url, engine):
        messages = [user(SHORT, SHORT, SHORT)]
        body = json.dumps({"model": "demo", "messages": messages, "stream": is_stream} | WHOLE).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        with connection(url) as client:
            client.sendall(head(headers, path="/v1/chat/completions") + body)
            engine.wait_for_windows(2)
        settle(url)
        gate.set()
        wait_until(url, lambda state: state["requests_inside"] == 0)
        assert len(engine.windows) == 2


def test_recordings_count_together_against_the_limits() -> None:
    second = audio(wav(tone(1)))
    with scripted(max_audio_s=2.5, max_audio_file_size_mb=0.1) as (url, _):
        assert post(url, messages=[user(second, second)], **WHOLE).status_code == 200
        response = post(url, messages=[user(second, second), user(second)], **WHOLE)
        error = error_of(response)
        assert (response.status_code, error["code"]) == (400, "audio_too_long")
        assert error["param"] == "messages[1].content[0].input_audio.data"
        response = post(url, messages=[user(second, audio(wav(tone(4))))], **WHOLE)
        error = error_of(response)
        assert (response.status_code, error["code"]) == (413, "file_too_large")
        assert error["param"] == "messages[0].content[1].input_audio.data"
        assert health(url)["requests_inside"] == 0
        assert health(url)["loaded_models"][0]["users"] == 0


def test_no_more_requests_are_inside_than_allowed() -> None:
    gate = threading.Event()
    with scripted(Step("slow", gate=gate), max_waiting_requests=1) as (url, engine):
        first = threading.Thread(target=post, args=(url,), kwargs={"messages": FINE, **WHOLE})
        first.start()
        engine.wait_for_windows(1)
        response = post(url, messages=FINE, **WHOLE)
        gate.set()
        first.join(30)
    assert (response.status_code, error_of(response)["code"]) == (429, "server_busy")
