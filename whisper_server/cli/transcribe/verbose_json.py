"""A server's `verbose_json` read back to a transcript, to write it down in other formats."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from whisper_server.core.errors import WhisperServerError
from whisper_server.core.languages import language_code
from whisper_server.core.types import Segment, Task, Word
from whisper_server.services.transcription import Transcription


class NotVerboseJsonError(WhisperServerError):
    """The answer is something else."""


def transcription_from(body: Mapping[str, Any]) -> Transcription:
    """The transcript. Fields that only some servers send may be missing.

    The list of words has no white space and stands beside the segments; each word is found again in the text
    of its segment.

    Raises:
        NotVerboseJsonError: a field is missing or of another type.
    """
    try:
        words = [_word(item) for item in body.get("words") or ()]
        segments = tuple(_segments(body["segments"], words))
        duration_s = float(body.get("duration", segments[-1].end_s if segments else 0.0))
        code = language_code(str(body.get("language", "")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotVerboseJsonError("The server's answer is not a verbose_json transcript.") from error
    task = Task.TRANSLATE if body.get("task") == Task.TRANSLATE else Task.TRANSCRIBE
    return Transcription(segments, code, 1.0, duration_s, task)


def _segments(items: Iterable[Mapping[str, Any]], words: list[Word]) -> Iterator[Segment]:
    rest = words
    for item in items:
        text = str(item["text"])
        own, rest = _split(text, rest)
        yield Segment(
            start_s=float(item["start"]),
            end_s=float(item["end"]),
            text=text,
            tokens=(),
            avg_logprob=float(item.get("avg_logprob", 0.0)),
            compression_ratio=float(item.get("compression_ratio", 1.0)),
            no_speech_prob=float(item.get("no_speech_prob", 0.0)),
            temperature=float(item.get("temperature", 0.0)),
            words=tuple(own),
        )


def _split(text: str, words: list[Word]) -> tuple[list[Word], list[Word]]:
    """The words of a segment's text with the white space and marks around them, and the words after it."""
    starts = []
    position = 0
    for word in words:
        found = text.find(word.text, position)
        if found < 0:
            break
        before = text[position:found]
        starts.append(found - (len(before) - len(before.rstrip())))
        position = found + len(word.text)
    if starts:
        starts[0] = 0
    own = [
        Word(text[start:stop], word.start_s, word.end_s, word.probability)
        for word, (start, stop) in zip(words, pairwise([*starts, len(text)]), strict=False)
    ]
    return own, words[len(starts) :]


def _word(item: Mapping[str, Any]) -> Word:
    text = str(item["word"]).strip()
    return Word(text, float(item["start"]), float(item["end"]), float(item.get("probability", 1.0)))
