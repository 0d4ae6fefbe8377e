"""`DELETE /v1/models/{id}` unloads a model and gives its memory back."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import NotFoundError, OpenAI

from bench.demo_weights import widened_model
from bench.server_process import server_process, tree_memory_mb
from tests.live_server import make_settings, running_server


def held_mb(pid: int) -> float:
    """What a server and its processes hold."""
    memory_mb = tree_memory_mb(pid)
    assert memory_mb is not None
    return memory_mb


def test_a_deleted_model_is_loaded_again_by_the_next_request(sample_recordings: list[dict[str, Any]]) -> None:
    with running_server(make_settings()) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none-needed", max_retries=0)
        with pytest.raises(NotFoundError) as caught:
            client.models.delete("demo")
        assert "not loaded" in caught.value.message
        for _ in range(2):
            text = client.audio.transcriptions.create(file=sample_recordings[0]["path"], model="demo").text
            assert text == "Send a message to David on Monday."
            assert len(httpx.get(f"{url}/health").json()["loaded_models"]) == 1
            deleted = client.models.delete("demo")
            assert (deleted.id, deleted.object, deleted.deleted) == ("demo", "model", True)
            assert httpx.get(f"{url}/health").json()["loaded_models"] == []


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_unloading_returns_the_memory(
    tmp_path: Path, sample_recordings: list[dict[str, Any]], isolation: str
) -> None:
    """A model of whisper-base's size, in a server of its own: what it took is free again, several times."""
    weights = widened_model("base", tmp_path / "base")
    weights_mb = (weights / "model.bin").stat().st_size / 1e6
    flags = ["--model", str(weights), "--log-level", "INFO", "--model-cpu-threads", "1"]
    flags += ["--model-workers", "1", "--model-engine-isolation", isolation]
    with server_process(*flags) as process:
        client = OpenAI(base_url=f"{process.url}/v1", api_key="none-needed", max_retries=0, timeout=60)
        unloaded_mb = []
        for _ in range(4):
            client.audio.transcriptions.create(file=sample_recordings[0]["path"], model="")
            loaded_mb = held_mb(process.pid)
            client.models.delete("gpt-4o-transcribe")  # a name of the default model
            unloaded_mb.append(held_mb(process.pid))
            assert loaded_mb - unloaded_mb[-1] > 0.8 * weights_mb
        # Threads and allocators keep some of their own; four models that stayed would be four times this.
        assert unloaded_mb[-1] - unloaded_mb[0] < weights_mb
