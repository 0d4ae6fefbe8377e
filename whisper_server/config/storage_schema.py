"""The settings of recorded live streams."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from whisper_server.config.fields import NoneFromText, Section, UserPath


def _none_from_negative(value: object) -> object:
    """None for a negative number, also as text; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return None if float(value) < 0 else value
    except ValueError:
        return value


_NoLimit = BeforeValidator(_none_from_negative)


class StorageSettings(Section):
    """What is kept of live streams."""

    persist_audio: Annotated[
        bool, Field(description="Record every live stream: a WAV, and a JSON file with its transcript.")
    ] = False
    directory: Annotated[
        UserPath,
        Field(description="Folder of the recordings, from the working directory where it is relative."),
    ] = Path("data/audio")
    queue_max_chunks: Annotated[
        int,
        Field(
            ge=1,
            le=65_536,
            description="Pieces of one stream's audio that may wait to be written; beyond that the oldest is "
            "dropped and silence recorded in its place.",
        ),
    ] = 256
    max_bytes: Annotated[
        Annotated[int, Field(gt=0)] | None,
        NoneFromText,
        _NoLimit,
        Field(
            description="Bytes of all recordings; the oldest are deleted. `none` or a negative number sets "
            "no limit."
        ),
    ] = None
    max_files: Annotated[
        Annotated[int, Field(gt=0)] | None,
        NoneFromText,
        _NoLimit,
        Field(description="The same for the number of recordings."),
    ] = None
    max_age_days: Annotated[
        Annotated[float, Field(gt=0, le=1_000_000)] | None,
        NoneFromText,
        _NoLimit,
        Field(
            description="Recordings begun more days ago are deleted. `none` or a negative number sets no "
            "limit."
        ),
    ] = None
