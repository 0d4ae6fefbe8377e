"""Replays a live session: audio in pieces of any size, commands at their places, results when asked for."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from tests.live_speech import hear, probabilities
from whisper_server.core.errors import WhisperServerError
from whisper_server.core.session import Session
from whisper_server.core.session_states import (
    AudioReceived,
    CancelDecode,
    DecodeDone,
    DecodeFailed,
    Effect,
    Emit,
    SessionEvent,
    SpeechJudged,
    StartDecode,
    State,
)
from whisper_server.core.stream_events import (
    DecodeTiming,
    FinalTranscript,
    PartialTranscript,
    SessionEnded,
    StreamEvent,
    StreamOptions,
)
from whisper_server.core.types import SAMPLE_RATE, Decoded, Pcm16, Samples, Window
from whisper_server.core.voice_activity import BLOCK_SAMPLES

_Event = TypeVar("_Event")


class Replay:
    """Drives a session as the real driver does, without time. `now_s` follows the audio.

    Args:
        options: of the session.
        engine: what a window says.
        judge: the voice detector.
        is_prompt: results come right after the decode was asked for; else when a test calls `answer`.
        cost_s: inference of every decode.
    """

    def __init__(
        self,
        options: StreamOptions | None = None,
        *,
        engine: Callable[[Window], Decoded] = hear,
        judge: Callable[[Pcm16], Samples] = probabilities,
        is_prompt: bool = True,
        cost_s: float = 0.01,
        times_words: bool = True,
        sharing: float = 1.0,
        is_congested: bool = False,
    ) -> None:
        ids = (f"u{number}" for number in itertools.count(1))
        self.session = Session(
            options or StreamOptions(),
            new_utterance_id=lambda: next(ids),
            now_s=0.0,
            times_words=times_words,
        )
        self._engine = engine
        self._judge = judge
        self._is_prompt = is_prompt
        self._cost_s = cost_s
        self._sharing = sharing
        self._is_congested = is_congested
        self._unjudged: Pcm16 = np.empty(0, dtype=np.int16)
        self.events: list[StreamEvent] = []
        self.decodes: list[StartDecode] = []
        self.waiting: dict[int, StartDecode] = {}
        self.cancelled: list[int] = []

    @property
    def now_s(self) -> float:
        return self.session.received / SAMPLE_RATE

    def feed(self, pcm: Pcm16, sizes: Iterable[int] = ()) -> "Replay":
        """Audio in pieces of these sizes, repeated; in one piece without any."""
        pieces = itertools.cycle(tuple(sizes) or (max(1, len(pcm)),))
        start = 0
        while start < len(pcm) and self.is_open:
            size = next(pieces)
            self._hear(pcm[start : start + size])
            start += size
        return self

    @property
    def is_open(self) -> bool:
        return self.session.state not in (State.DRAINING, State.ENDED)

    def do(self, event: SessionEvent, now_s: float | None = None) -> Sequence[Effect]:
        effects = self.session.handle(event, self.now_s if now_s is None else now_s)
        for effect in effects:
            if isinstance(effect, Emit):
                self.events.append(effect.event)
            elif isinstance(effect, StartDecode):
                self.decodes.append(effect)
                self.waiting[effect.job] = effect
            elif isinstance(effect, CancelDecode):
                self.cancelled.append(effect.job)
                self.waiting.pop(effect.job, None)
        if self._is_prompt:
            self.answer()
        return effects

    def answer(self, error: WhisperServerError | None = None, *, most: int | None = None) -> None:
        """Bring the results of what waits, the oldest first."""
        for job in list(self.waiting)[:most]:
            decode = self.waiting.pop(job, None)
            if decode is None:
                continue
            if error is not None:
                self.do(DecodeFailed(job, error))
            else:
                timing = DecodeTiming(inference_s=self._cost_s)
                self.do(DecodeDone(job, self._engine(decode.window), timing))

    def of(self, kind: type[_Event]) -> list[_Event]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def texts(self) -> list[str]:
        return [final.text for final in self.of(FinalTranscript)]

    @property
    def lasting(self) -> list[StreamEvent]:
        """Everything but partials and what depends on them or on time."""
        return [
            replace(event, timing=DecodeTiming(), stable_text="", continuation="", replaced=())
            if isinstance(event, FinalTranscript)
            else replace(event, total_audio_s=0.0)  # a session that ends by itself may have got more
            if isinstance(event, SessionEnded)
            else event
            for event in self.events
            if not isinstance(event, PartialTranscript)
        ]

    def _hear(self, pcm: Pcm16) -> None:
        self.do(AudioReceived(pcm))
        audio = np.concatenate([self._unjudged, pcm])
        whole = len(audio) // BLOCK_SAMPLES * BLOCK_SAMPLES
        self._unjudged = audio[whole:]
        if whole and self.is_open:
            self.do(SpeechJudged(self._judge(audio[:whole]), self._sharing, self._is_congested))
