"""Fixtures every test may use."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.live_server import running_server

# Servers that tests start as processes of their own must not want one and the same port.
os.environ.setdefault("WHISPER_GRPC_PORT", "0")

ASSETS = Path(__file__).parent / "assets"
DEMO = Path(__file__).parent.parent / "whisper_server" / "demo"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def one_event_loop() -> AsyncIterator[None]:
    """One for all tests of a module: gRPC hands a test's last events to its loop, which must be open."""
    yield  # noqa: PT022 - until here the loop runs


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """The bundled demo model, a CTranslate2 folder."""
    return DEMO / "model"


@pytest.fixture(scope="session")
def sample_recordings() -> list[dict[str, Any]]:
    """The bundled sample recordings: `path`, `language`, `seconds` and true `segments`."""
    samples = json.loads((DEMO / "samples" / "samples.json").read_text())
    return [sample | {"path": DEMO / "samples" / sample["file"]} for sample in samples]


@pytest.fixture(scope="session")
def demo_test_set() -> list[dict[str, Any]]:
    """The demo model's test set: `path`, `text`, `english`, `language`, `seconds`."""
    folder = ASSETS / "demo_test_set"
    clips = json.loads((folder / "clips.json").read_text())
    return [clip | {"path": folder / clip["file"]} for clip in clips]


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server with the demo model as its default, shared by all tests; without `/v1`."""
    with running_server() as url:
        yield url


@pytest.fixture(scope="session")
def client(server_url: str) -> OpenAI:
    """The OpenAI SDK on the shared server. It does not retry, so that each fault shows."""
    return OpenAI(base_url=f"{server_url}/v1", api_key="none-needed", max_retries=0)
