"""The README's examples do what the README says they do."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_server import make_settings, running_server

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_ADDRESS = "http://127.0.0.1:8089"
_GRPC_ADDRESS = "127.0.0.1:50051"


def blocks() -> list[tuple[str, str]]:
    """(language, content) of each code block."""
    return [
        (match[1], match[2]) for match in _BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))
    ]


def examples() -> Iterator[tuple[str, str, tuple[str, str] | None]]:
    """Each example that talks to the server, with the block of its output if there is one."""
    found = blocks()
    for index, (language, code) in enumerate(found):
        if language in ("sh", "python") and (_ADDRESS in code or _GRPC_ADDRESS in code):
            after = found[index + 1] if index + 1 < len(found) else ("", "")
            yield language, code, after if after[0] in ("json", "text") else None


EXAMPLES = list(examples())


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server's URL and its gRPC address."""
    path = tmp_path_factory.mktemp("grpc") / "stt.sock"
    with running_server(make_settings(grpc={"port": None, "unix_socket": path})) as url:
        yield url, f"unix:{path}"


def test_there_are_examples() -> None:
    assert {language for language, _, _ in EXAMPLES} == {"sh", "python"}
    assert sum(output is not None for _, _, output in EXAMPLES) >= 3


@pytest.mark.parametrize(("language", "code", "output"), EXAMPLES)
def test_example_gives_what_it_shows(
    language: str, code: str, output: tuple[str, str] | None, addresses: tuple[str, str]
) -> None:
    if "curl " in code and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url, grpc_address = addresses
    code = code.replace(_ADDRESS, url).replace(_GRPC_ADDRESS, grpc_address)
    code = code.replace("python -m", f"{shlex.quote(sys.executable)} -m")
    command = ["sh", "-ec", code.replace("curl ", "curl -sS --fail-with-body ")]
    if language == "python":
        command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr + done.stdout
    if output is None:
        return
    kind, shown = output
    if kind == "json":
        assert json.loads(done.stdout) == json.loads(shown)
    else:
        assert done.stdout.strip() == shown.strip()


def test_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shell = "\n".join(code for language, code in blocks() if language == "sh")
    targets = re.findall(r"^make (\w+)", shell, re.MULTILINE)
    assert targets == ["demo", "test", "run"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for file in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / file).exists(), file
