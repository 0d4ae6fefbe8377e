"""Where utterances begin and end in a live stream, from the voice detector's probabilities.

The rules are those of `voice_activity.find_speech`, told as the audio comes: with no longest speech they find
the same spans. Source: the Silero project's `get_speech_timestamps`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from whisper_server.core.stream_events import Eagerness, StreamOptions, VoiceOptions
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.core.voice_activity import BLOCK_SAMPLES

EARLY_SILENCE_SAMPLES = SAMPLE_RATE // 5
"""Silence after which a final may begin, to be published if the silence holds: 200 ms."""

_BLOCKS_IN_SPEECH = 2
_MOST_BLOCKS_WHEN_QUIET = 8

_SENTENCE_END_MARKS = (".", "。", "!", "！", "?", "？", "।", "؟", "։")
_UNFINISHED_MARKS = ("...", "…")
_CLOSING_MARKS = "\"'”’»)]} \t\n"


class VoiceSign(Enum):
    """What a block of audio means for an utterance.

    BEGUN: there was speech for long enough; it began at the mark's sample. PAUSED: there have been 200 ms of
    silence since the mark's sample. RESUMED: speech goes on after that. ENDED: there was enough silence.
    """

    BEGUN = auto()
    PAUSED = auto()
    RESUMED = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class VoiceMark:
    """A sign and its place.

    Attributes:
        sign: what happened.
        at: the sample it happened at: where speech or silence starts.
        heard: samples listened to when it was found.
    """

    sign: VoiceSign
    at: int
    heard: int


class Endpointer:
    """Follows one stream, a block at a time. Positions are samples from the stream's start.

    Args:
        voice: thresholds and lengths.
        eagerness: how long to wait for more speech; None waits `voice.min_silence_ms`.
    """

    def __init__(self, voice: VoiceOptions, eagerness: Eagerness | None = None) -> None:
        self._voice = voice
        self._eagerness = eagerness
        self._heard = 0
        self._start: int | None = None
        self._silence: int | None = None
        self._is_begun = False
        self._is_paused = False
        self._ends_sentence = False
        self.last_speech = 0
        """Where the last block of speech ends, samples."""

    @property
    def heard(self) -> int:
        """Samples listened to."""
        return self._heard

    @property
    def candidate(self) -> int | None:
        """Where speech starts that is too short so far to be an utterance; None where there is none."""
        return None if self._is_begun else self._start

    @property
    def silence_start(self) -> int | None:
        """Where the silence within an utterance starts; None while somebody speaks."""
        return self._silence

    def configure(self, options: StreamOptions) -> None:
        """Take new options for the blocks that follow."""
        self._voice, self._eagerness = options.voice, options.eagerness

    @property
    def is_begun(self) -> bool:
        """Whether there is speech, or a pause in it, that will be told to end."""
        return self._is_begun

    @property
    def patience(self) -> int:
        """How many blocks may be gathered before they are listened to, so that no sign comes late for it.

        Where nobody speaks, speech is told only when there is enough of it; in a silence the next sign has
        its time.
        """
        if self._start is None:
            shortest = int(_samples(self._voice.min_speech_ms)) // BLOCK_SAMPLES
            return min(max(shortest, _BLOCKS_IN_SPEECH), _MOST_BLOCKS_WHEN_QUIET)
        if self._silence is None:
            return _BLOCKS_IN_SPEECH
        silence = self._heard - self._silence
        if self._is_begun and not self._is_paused:
            missing: float = EARLY_SILENCE_SAMPLES - silence
        else:
            missing = _samples(self._voice.min_silence_ms) + BLOCK_SAMPLES - silence
        return min(max(math.ceil(missing / BLOCK_SAMPLES), 1), _BLOCKS_IN_SPEECH)

    def judge_text(self, text: str) -> None:
        """Tell what the utterance says so far, up to a silence."""
        self._ends_sentence = not text.strip() or ends_sentence(text)

    def forget(self) -> None:
        """The utterance is over for another reason: speech that goes on begins anew."""
        self._start = self._silence = None
        self._is_begun = self._is_paused = self._ends_sentence = False

    def restart(self, at: int) -> None:
        """The utterance ended at a sample because the client said so; speech that goes on begins there."""
        speaks = self._start is not None and self._silence is None
        self.forget()
        if speaks:
            self._start = at

    def cut(self, at: int) -> None:
        """The utterance was cut in running speech; the next one has begun there."""
        self._start = at

    def feed(self, probability: float) -> Iterator[VoiceMark]:
        """Listen to the next block."""
        position = self._heard
        self._heard += BLOCK_SAMPLES
        if probability >= self._voice.threshold:
            yield from self._hear_speech(position)
        elif self._start is not None:
            yield from self._hear_less(position, probability < self._voice.silence_threshold)

    def _hear_speech(self, position: int) -> Iterator[VoiceMark]:
        was_paused = self._is_paused
        self._silence, self._is_paused, self._ends_sentence = None, False, False
        self.last_speech = self._heard
        if self._start is None:
            self._start = position
        if was_paused:
            yield self._mark(VoiceSign.RESUMED, position)
        yield from self._begin()

    def _hear_less(self, position: int, is_silence: bool) -> Iterator[VoiceMark]:
        """A block below the threshold: silence, or doubtful, which counts as what went before."""
        if self._silence is None and not is_silence:
            self.last_speech = self._heard
            yield from self._begin()
            return
        if self._silence is None:
            self._silence = position
        silence = self._heard - self._silence
        if self._is_begun and not self._is_paused and silence >= EARLY_SILENCE_SAMPLES:
            self._is_paused = True
            yield self._mark(VoiceSign.PAUSED, self._silence)
        if is_silence and self._is_long_enough(position - self._silence):
            ended, self_silence = self._is_begun, self._silence
            self.forget()
            if ended:
                yield self._mark(VoiceSign.ENDED, self_silence)

    def _begin(self) -> Iterator[VoiceMark]:
        start = self._start
        if self._is_begun or start is None:
            return
        if self._heard - start > _samples(self._voice.min_speech_ms):
            self._is_begun = True
            yield self._mark(VoiceSign.BEGUN, start)

    def _is_long_enough(self, silence: int) -> bool:
        shortest_ms = self._voice.min_silence_ms
        if self._is_begun and self._eagerness is not None and not self._ends_sentence:
            shortest_ms = max(shortest_ms, self._eagerness.max_wait_ms)
        return silence >= _samples(shortest_ms)

    def _mark(self, sign: VoiceSign, at: int) -> VoiceMark:
        return VoiceMark(sign, at, self._heard)


def ends_sentence(text: str) -> bool:
    """Whether a text ends as a sentence does: with a full stop or a mark like it, but no ellipsis."""
    text = text.rstrip(_CLOSING_MARKS)
    return text.endswith(_SENTENCE_END_MARKS) and not text.endswith(_UNFINISHED_MARKS)


def _samples(milliseconds: float) -> float:
    return SAMPLE_RATE * milliseconds / 1000
