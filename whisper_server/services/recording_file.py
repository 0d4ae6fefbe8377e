"""One recording on disk: the WAV of a session, and beside it a JSON file that says what it is."""

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from whisper_server.core.stream_events import FinalTranscript, SessionEnded
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.services.archive_folder import PART, SIDECAR, ArchiveFolder
from whisper_server.services.recorder import RecordedSession
from whisper_server.services.wav_file import WavFile, repair

INTERRUPTED: Final = "interrupted"
"""The end reason of a session that the server did not live to see end."""

_MAX_TRANSCRIPT_CHARS: Final = 16 << 20
"""Of one session: a day of speech with the times of its words."""
_TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.%fZ"


class RecordingFile:
    """Writes one recording. For one thread. Methods raise `OSError` where the disk does.

    Args:
        folder: where to.
        session: whose recording it is.
        started_at: of the session, UTC.
    """

    def __init__(self, folder: ArchiveFolder, session: RecordedSession, started_at: datetime) -> None:
        self._folder = folder
        self._facts = _facts(session, started_at)
        self._transcript: list[str] = []
        self._chars = 0
        self._left_out = 0
        self._is_cut = False
        self.name, file = folder.create(started_at, session.id)
        try:
            self._wav = WavFile(file, SAMPLE_RATE)
            folder.write_sidecar(self.name, _encoded(self._facts, ()))
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                folder.remove(self.name)
            raise

    def write(self, pcm: bytes, *, silence_bytes: int = 0) -> None:
        """Add samples, and silence before them."""
        if not self._is_cut:
            self._wav.write(pcm, silence_bytes=silence_bytes)

    def cut(self) -> None:
        """Write no more audio: the disk does not take it. What is there stays playable."""
        self._is_cut = True

    def add_finals(self, finals: Sequence[FinalTranscript], *, left_out: int = 0) -> None:
        """Add to the transcript; never fails. What does not fit is counted."""
        self._left_out += left_out
        for final in finals:
            entry = json.dumps(_entry(final), ensure_ascii=False)
            if self._chars + len(entry) > _MAX_TRANSCRIPT_CHARS:
                self._left_out += 1
                continue
            self._transcript.append(entry)
            self._chars += len(entry)

    def finish(self, ended: SessionEnded | None, ended_at: datetime, *, dropped_chunks: int) -> None:
        """Close the WAV and write what the session came to; None where it is not known to have ended.

        Where it fails, the part is left for the next start to complete.
        """
        facts = self._facts | {
            "ended_at": f"{ended_at:{_TIME_FORMAT}}",
            "end_reason": INTERRUPTED if ended is None else ended.reason.value,
            "duration_s": round(self._wav.duration_s, 3),
            "dropped_chunks": dropped_chunks,
            "is_cut": self._is_cut,
            "finals_left_out": self._left_out,
        }
        try:
            self._folder.write_sidecar(self.name, _encoded(facts, self._transcript))
        finally:
            self._wav.close()
        self._folder.finish(self.name)


def complete_leftover(folder: ArchiveFolder, name: str, written_at: datetime) -> None:
    """Make a recording that was cut off whole.

    Args:
        folder: where it is.
        name: of the recording.
        written_at: when its audio was last written, UTC.

    Raises:
        OSError: it cannot be read or written.
    """
    duration_s = repair(folder.path_of(name, PART), SAMPLE_RATE)
    try:
        known = json.loads(folder.path_of(name, SIDECAR).read_bytes())
    except (FileNotFoundError, ValueError):
        known = None
    facts = known if isinstance(known, dict) else {"sample_rate_hz": SAMPLE_RATE}
    if facts.get("ended_at") is not None:
        return
    facts.pop("transcript", None)
    facts |= {
        "ended_at": f"{written_at:{_TIME_FORMAT}}",
        "end_reason": INTERRUPTED,
        "duration_s": round(duration_s, 3),
        "dropped_chunks": None,  # nobody knows any more
    }
    folder.write_sidecar(name, _encoded(facts, ()))


def _facts(session: RecordedSession, started_at: datetime) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "attributes": dict(session.attributes),
        "client": session.client,
        "model": session.model,
        "language": session.language,
        "sample_rate_hz": SAMPLE_RATE,
        "started_at": f"{started_at.astimezone(UTC):{_TIME_FORMAT}}",
        "ended_at": None,
        "end_reason": None,
        "duration_s": None,
        "dropped_chunks": 0,
        "is_cut": False,
        "finals_left_out": 0,
    }


def _entry(final: FinalTranscript) -> dict[str, Any]:
    start_s = final.audio_start_s
    return {
        "start": round(start_s, 3),
        "end": round(max(start_s, final.speech_end_s), 3),
        "text": final.text,
        "language": final.language,
        "words": [
            {
                "word": word.text.strip(),
                "start": round(word.start_s, 3),
                "end": round(word.end_s, 3),
                "probability": round(word.probability, 4),
            }
            for word in final.words
        ],
    }


def _encoded(facts: dict[str, Any], transcript: Sequence[str]) -> bytes:
    # Escaped, because a client may have put half a surrogate pair into its names.
    head = json.dumps(facts, indent=2).removesuffix("\n}")
    entries = ",\n".join(f"    {entry}" for entry in transcript)
    listed = f"[\n{entries}\n  ]" if entries else "[]"
    return f'{head},\n  "transcript": {listed}\n}}\n'.encode()
