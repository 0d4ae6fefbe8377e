"""The partial transcripts of one utterance: when to decode, which audio, and what comes of it."""

import math
from dataclasses import replace

from whisper_server.core.agreement import Agreement, reconcile, words_of
from whisper_server.core.sample_buffer import SampleBuffer
from whisper_server.core.stream_events import DecodeTiming, PartialTranscript, StreamOptions
from whisper_server.core.types import SAMPLE_RATE, Decoded, Timestamps, Window

LEAST_NEW_SAMPLES = SAMPLE_RATE // 5
"""Nothing is decoded for less new audio than 200 ms."""

_STRETCH = 1.5
"""How much of a worker's time partials leave to finals: a third."""

_SHORT_SAMPLES = 5 * SAMPLE_RATE
"""Nothing is left out of a window up to this: the encoder looks at about 5 s in any case."""

_ROOM_SAMPLES = SAMPLE_RATE
"""A window this close to the longest is cut within a sentence; before that, only between two."""

_SURE = 0.8
_PROMPT_WORDS = 40


def interval_s(options: StreamOptions, last_cost_s: float, sharing: float) -> float:
    """The least time between two partials of a stream.

    Args:
        options: with the configured interval.
        last_cost_s: inference of the last partial.
        sharing: streams per worker of the engine.
    """
    return max(options.partial_interval_ms / 1000, _STRETCH * last_cost_s * sharing)


class Partials:
    """The partials of one utterance. Positions are samples of the session.

    Args:
        utterance_id: of the utterance.
        start: where its audio starts.
        since: words before this belong to the utterance before.
        now_s: the driver's time.
        times_words: the engine can place words.
    """

    def __init__(self, utterance_id: str, start: int, *, since: int, now_s: float, times_words: bool) -> None:
        self._utterance_id = utterance_id
        self._start = self._asked_to = start
        self.wait_s = 0.0
        """How long the audio of the newest decode was gathered."""
        self._opened_s = now_s
        self._asked_s = -math.inf
        self._times_words = times_words
        self._agreement = Agreement(since / SAMPLE_RATE)
        self._language: str | None = None
        self._shown = ("", "")
        self.job: int | None = None
        """Of the decode that is being made."""

    @property
    def needed_from(self) -> int:
        """Where the audio starts that later windows need."""
        return self._start

    @property
    def stable_text(self) -> str:
        """What was shown as stable."""
        return self._shown[0]

    @property
    def text(self) -> str:
        """What was shown."""
        return "".join(self._shown)

    def is_due(self, end: int, last_speech: int, now_s: float, interval: float) -> bool:
        """Whether to decode now.

        Args:
            end: where the audio ends.
            last_speech: where the last speech ends.
            now_s: the driver's time.
            interval: seconds from one decode to the next.
        """
        return (
            self.job is None
            and end - self._asked_to >= LEAST_NEW_SAMPLES
            and last_speech > self._asked_to
            and now_s - self._asked_s >= interval
        )

    def window(
        self, buffer: SampleBuffer, options: StreamOptions, language: str | None, now_s: float
    ) -> Window:
        """What to decode now: the audio since the last stable words, with their text as prompt."""
        end = buffer.end
        self._start = max(self._start, buffer.start)
        self._trim(end, int(options.max_partial_window_s * SAMPLE_RATE))
        self._asked_to = end
        self.wait_s = now_s - max(self._asked_s, self._opened_s)
        self._asked_s = now_s
        tokens = self._agreement.prompt_tokens
        decode = replace(options.partial_decode, hotwords=options.hotwords or options.partial_decode.hotwords)
        return Window(
            samples=buffer.read(self._start, end),
            language=language or self._language,
            task=options.task,
            prompt=options.prompt if tokens else self._prompt(options.prompt),
            previous_tokens=tokens,
            timestamps=Timestamps.WORD_ONLY if self._times_words else Timestamps.NONE,
            audio_context=options.partial_audio_context,
            options=decode,
        )

    def take(self, decoded: Decoded, timing: DecodeTiming) -> PartialTranscript | None:
        """What the decode changed in the text; None where it changed nothing."""
        self.job = None
        if self._language is None and decoded.language_probability >= _SURE:
            self._language = decoded.language
        start_s, end_s = self._start / SAMPLE_RATE, self._asked_to / SAMPLE_RATE
        self._agreement.hear(words_of(decoded, start_s, end_s - start_s), end_s)
        unstable = self._agreement.unstable_text
        return self._show(unstable, self._agreement.confidence, decoded.language, timing)

    def take_final(
        self, text: str, confidence: float, language: str, timing: DecodeTiming
    ) -> PartialTranscript | None:
        """What a final that is not published yet makes of the unstable text."""
        rest, _ = reconcile(self._agreement.stable_text, text)
        return self._show(rest, confidence, language, timing)

    def _show(
        self, unstable: str, confidence: float, language: str, timing: DecodeTiming
    ) -> PartialTranscript | None:
        shown = (self._agreement.stable_text, unstable)
        if shown == self._shown:
            return None
        self._shown = shown
        timing = replace(timing, buffer_wait_s=self.wait_s)
        return PartialTranscript(self._utterance_id, *shown, confidence, language, timing)

    def _trim(self, end: int, longest: int) -> None:
        if end - self._start > min(_SHORT_SAMPLES, longest):
            self._begin_at(self._agreement.leave_out_sentences())
        if end - self._start > longest - _ROOM_SAMPLES:
            self._begin_at(self._agreement.leave_out_stable())
        if end - self._start > longest:
            self._agreement.leave_out_before((end - longest) / SAMPLE_RATE)
            self._start = end - longest

    def _begin_at(self, time_s: float) -> None:
        self._start = max(self._start, math.floor(time_s * SAMPLE_RATE))

    def _prompt(self, prompt: str) -> str:
        """The prompt where words have no tokens: the client's, and the text whose audio is left out."""
        if self._times_words:
            return prompt
        settled = self._agreement.left_out_text.split()
        return " ".join([prompt, *settled[-_PROMPT_WORDS:]]).strip()
