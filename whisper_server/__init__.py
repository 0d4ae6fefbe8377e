"""A speech-to-text server with an OpenAI-compatible API, for audio that must not leave your machine."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("whisper-server")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.1.0"
