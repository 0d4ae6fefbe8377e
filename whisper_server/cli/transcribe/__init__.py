"""`whisper-server transcribe`: recordings to transcripts, in this process or by a running server.

`flags` reads the command line, `planning` decides what is written where, `requesting` what is asked for;
`local` and `remote` turn a recording into results, `runner` runs them side by side, `progress` shows how far
they are, and `delivery` writes the results.
"""

from whisper_server.cli.transcribe.command import run
from whisper_server.cli.transcribe.flags import configure

__all__ = ["configure", "run"]
