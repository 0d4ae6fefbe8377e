"""`whisper-server demo`: a server with the demo model, its samples through the OpenAI SDK, and the end."""

import argparse
import json
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any, Literal, get_args

from whisper_server.cli.server_process import server_process
from whisper_server.demo import SAMPLES_PATH

if TYPE_CHECKING:
    from openai import OpenAI

_SHOWN_SEGMENTS = 8
_SHOWN_CHARS = 110
_Format = Literal["json", "text", "srt", "vtt", "verbose_json"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of this command: none."""


def run(_: argparse.Namespace) -> int:
    """Show the server at work.

    Returns:
        The exit code: 0 when every sample came back, 1 otherwise.
    """
    from openai import OpenAI, OpenAIError

    samples = json.loads((SAMPLES_PATH / "samples.json").read_text(encoding="utf-8"))
    started_s = time.perf_counter()
    try:
        with server_process("--model", "demo") as server:
            print(f"Server ready at {server.url} in {time.perf_counter() - started_s:.1f} s (model: demo)\n")
            client = OpenAI(base_url=f"{server.url}/v1", api_key="none-needed")
            for sample in samples:
                _show_segments(client, sample)
            _show_formats(client, samples[0]["file"])
            _show_stream(client, max(samples, key=lambda sample: sample["seconds"])["file"])
    except (OpenAIError, RuntimeError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    print("The demo model knows a few household sentences and nothing else; real models: docs/models.md.")
    return 0


def _show_segments(client: "OpenAI", sample: dict[str, Any]) -> None:
    started_s = time.perf_counter()
    transcript = client.audio.transcriptions.create(
        file=SAMPLES_PATH / sample["file"], model="demo", response_format="verbose_json"
    )
    took_s = time.perf_counter() - started_s
    print(
        f"{sample['file']}: {transcript.duration:.1f} s of {transcript.language} "
        f"in {took_s:.2f} s ({transcript.duration / took_s:.0f} x real time)"
    )
    segments = transcript.segments or []
    for segment in segments[:_SHOWN_SEGMENTS]:
        print(f"  {segment.start:6.2f} - {segment.end:6.2f} {segment.text}")
    if len(segments) > _SHOWN_SEGMENTS:
        print(f"  … and {len(segments) - _SHOWN_SEGMENTS} more segments")
    print()


def _show_formats(client: "OpenAI", file: str) -> None:
    for response_format in get_args(_Format):
        answer = client.audio.transcriptions.with_raw_response.create(
            file=SAMPLES_PATH / file, model="demo", response_format=response_format
        )
        print(f"{file} as {response_format}:\n{textwrap.indent(answer.text.strip(), '  ')}\n")


def _show_stream(client: "OpenAI", file: str) -> None:
    print(f"{file} as a stream:")
    for event in client.audio.transcriptions.create(file=SAMPLES_PATH / file, model="demo", stream=True):
        print(f"  {textwrap.shorten(event.to_json(indent=None), _SHOWN_CHARS, placeholder=' …')}")
    print()
