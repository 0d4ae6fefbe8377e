"""Write the gRPC stubs from `proto/stt/v1/stt.proto`, or check that they are fresh.

python -m tools.stubs            writes `whisper_server/stt_v1/` anew
python -m tools.stubs --check    names each stale file and exits with 1
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
_PROTOS = _REPOSITORY / "proto"
_PROTO = Path("stt/v1/stt.proto")
_PACKAGE = "whisper_server.stt_v1"
_TARGET = _REPOSITORY / _PACKAGE.replace(".", "/")


def main(arguments: Sequence[str] | None = None, *, target: Path = _TARGET) -> int:
    """Write or check the stubs in `target`; the exit code is 1 when a check finds stale files."""
    parser = argparse.ArgumentParser(prog="python -m tools.stubs", description="Stubs of the gRPC service.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file is stale")
    is_check = parser.parse_args(arguments).check
    stubs = generate()
    if not is_check:
        for name, text in stubs.items():
            (target / name).write_text(text, encoding="utf-8")
        return 0
    stale = [name for name, text in stubs.items() if not _is_fresh(target / name, text)]
    for name in stale:
        print(f"{target / name} is stale: run `make stubs` and commit the result.", file=sys.stderr)
    return 1 if stale else 0


def generate() -> dict[str, str]:
    """The text of each stub by its file name."""
    scripts = Path(sysconfig.get_path("scripts"))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={_PROTOS}"),
            *(f"--{kind}_out={folder}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
            *(f"--plugin=protoc-gen-{kind}={scripts}/protoc-gen-{kind}" for kind in ("mypy", "mypy_grpc")),
            str(_PROTO),
        ]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        made = sorted((Path(folder) / _PROTO.parent).iterdir())
        return {path.name: _in_package(path.read_text(encoding="utf-8")) for path in made}


def _in_package(text: str) -> str:
    """The same with imports from where the stubs lie, which is not where the proto's path says.

    The proto keeps its own path in the descriptor: stubs that a client made from it can live in one program
    with these.
    """
    package = ".".join(_PROTO.parent.parts)
    return text.replace(f"from {package} import", f"from {_PACKAGE} import")


def _is_fresh(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
