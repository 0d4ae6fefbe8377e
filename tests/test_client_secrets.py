"""Ephemeral keys: how they are made, what they open, and when they no longer do."""

from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from websockets.exceptions import InvalidStatus

from tests.live_speech import HearingEngine, speech
from tests.realtime_client import realtime_server, talking
from tests.wire import error_of, request
from whisper_server.api.ephemeral_keys import EphemeralKeys
from whisper_server.core.errors import ServerBusyError

ALICE = "alice-has-this-key-0123456789"
NOW_S = 1_700_000_000.0


class Clock:
    """Seconds since the epoch, as a test sets them."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def url(clock: Clock) -> Iterator[str]:
    """A server that wants a key."""
    keys = EphemeralKeys(clock=clock)
    with realtime_server(HearingEngine(), keys=keys, security={"api_keys": (f"alice: {ALICE}",)}) as url:
        yield url


@pytest.fixture
def sdk(url: str) -> OpenAI:
    return OpenAI(base_url=url, api_key=ALICE, max_retries=0)


SESSION: Any = {
    "type": "transcription",
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 16000},
            "transcription": {"model": "demo", "language": "en"},
            "turn_detection": None,
        }
    },
}


def bearer(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


def test_a_secret_opens_a_session_with_the_configuration_it_was_made_with(sdk: OpenAI, url: str) -> None:
    secret = sdk.realtime.client_secrets.create(session=SESSION)
    assert secret.value.startswith("ek_")
    assert secret.expires_at == int(NOW_S) + 600
    assert secret.session.type == "transcription"
    made_with = secret.session.to_dict(warnings=False)["audio"]
    with talking(url, **bearer(secret.value)) as client:
        session = client.receive()["session"]
        assert session["audio"] == made_with
        assert session["audio"]["input"]["turn_detection"] is None
        client.speak(speech("alpha bravo").pcm)
        client.send("input_audio_buffer.commit")
        assert client.until(".completed")[-1]["transcript"] == "alpha bravo"


def test_a_browser_s_subprotocol_may_bring_it_more_than_once(sdk: OpenAI, url: str) -> None:
    key = sdk.realtime.client_secrets.create().value
    offered: Any = ["realtime", f"openai-insecure-api-key.{key}"]
    for base in (url, url.removesuffix("/v1")):
        with talking(base, subprotocols=offered) as client:
            assert client.receive()["type"] == "session.created"


def test_it_opens_nothing_else(sdk: OpenAI, url: str) -> None:
    key = sdk.realtime.client_secrets.create().value
    headers = {"Authorization": f"Bearer {key}"}
    for path in ("/models", "/realtime", "/realtime/client_secrets", "/audio/transcriptions"):
        response = request("POST", f"{url}{path}", headers=headers, json={})
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"


def test_it_expires(sdk: OpenAI, url: str, clock: Clock) -> None:
    after: Any = {"anchor": "created_at", "seconds": 10}
    secret = sdk.realtime.client_secrets.create(expires_after=after)
    assert secret.expires_at == int(clock.now_s) + 10
    clock.now_s += 10
    with pytest.raises(InvalidStatus) as caught, talking(url, **bearer(secret.value)):
        pass
    assert caught.value.response.status_code == 401


def test_making_one_needs_an_api_key(url: str) -> None:
    response = request("POST", f"{url}/realtime/client_secrets", json={})
    assert error_of(response)["code"] == "missing_api_key"


def test_the_older_route_answers_with_the_fields_of_a_session(sdk: OpenAI, url: str) -> None:
    session = sdk.beta.realtime.transcription_sessions.create(
        input_audio_format="g711_ulaw",
        input_audio_transcription={"model": "whisper-1", "language": "de"},
        turn_detection={"type": "server_vad", "silence_duration_ms": 400},
    )
    assert session.input_audio_format == "g711_ulaw"
    assert session.turn_detection is not None
    assert session.turn_detection.silence_duration_ms == 400
    with talking(url, **bearer(session.client_secret.value)) as client:
        told = client.receive()["session"]["audio"]["input"]
        assert told["format"] == {"type": "audio/pcmu"}
        assert told["transcription"]["language"] == "de"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": True}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now", "seconds": 60}}, "expires_after.anchor"),
        ({"expires_after": 600}, "expires_after"),
        ({"session": {"type": "realtime"}}, "session.type"),
        ({"session": {"audio": {"input": {"turn_detection": 1}}}}, "session.audio.input.turn_detection"),
        ({"session": "new"}, "session"),
    ],
)
def test_a_wrong_field_is_named(url: str, body: Any, param: str) -> None:
    response = request(
        "POST", f"{url}/realtime/client_secrets", headers={"Authorization": f"Bearer {ALICE}"}, json=body
    )
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_the_sdk_sees_wrong_sessions_as_its_errors(sdk: OpenAI) -> None:
    with pytest.raises(BadRequestError):
        sdk.realtime.client_secrets.create(session={"type": "realtime", "model": "gpt-realtime"})
    unknown: Any = {
        "type": "transcription",
        "audio": {"input": {"transcription": {"model": "no-such-model"}}},
    }
    with pytest.raises(NotFoundError):
        sdk.realtime.client_secrets.create(session=unknown)


def test_a_server_without_api_keys_makes_them_too_and_refuses_those_it_does_not_know() -> None:
    with realtime_server(HearingEngine()) as url:
        key = request("POST", f"{url}/realtime/client_secrets", json={"session": SESSION}).json()["value"]
        with talking(url, **bearer(key)) as client:
            assert client.receive()["session"]["audio"]["input"]["turn_detection"] is None
        with talking(url, **bearer("anything")) as client:
            assert client.receive()["type"] == "session.created"
        with pytest.raises(InvalidStatus) as caught, talking(url, **bearer("ek_unknown")):
            pass
        assert caught.value.response.status_code == 401


def test_there_are_only_so_many_at_once() -> None:
    clock = Clock()
    keys = EphemeralKeys(max_keys=2, clock=clock)
    first, _ = keys.create("alice", None, 10)
    keys.create("alice", None, 60)
    with pytest.raises(ServerBusyError) as caught:
        keys.create("bob", None, 60)
    assert caught.value.retry_after_s == 10
    clock.now_s += 10
    assert keys.find([first.encode()]) is None
    value, _ = keys.create("bob", None, 60)
    found = keys.find([b"other", value.encode()])
    assert found is not None
    assert found.owner == "bob"
    assert value not in repr(vars(keys))
