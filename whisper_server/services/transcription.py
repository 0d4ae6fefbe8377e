"""One recording to its transcript: voice detection, long form, decoding."""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from anyio import CapacityLimiter, to_thread

from whisper_server.core import mel, voice_activity
from whisper_server.core.engine import Engine, VoiceDetectorFactory
from whisper_server.core.errors import InvalidRequestError, UnsupportedByEngineError
from whisper_server.core.longform import LongFormOptions, Steps, batched, sequential
from whisper_server.core.recording import Recording
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.types import (
    MAX_WINDOW_S,
    SAMPLE_RATE,
    Decoded,
    LanguageProbabilities,
    Samples,
    Segment,
    Task,
    Timestamps,
    Window,
)
from whisper_server.core.voice_activity import VadOptions
from whisper_server.services.model_catalog import ModelReference
from whisper_server.services.model_manager import ModelManager
from whisper_server.services.scheduler import Scheduler

logger = logging.getLogger(__name__)

LongForm = Literal["sequential", "batched"]

_WINDOW_SAMPLES = MAX_WINDOW_S * SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """What a client asks for, whatever the wire.

    Attributes:
        model: which model.
        caller: for whom.
        options: how the recording is decoded.
        long_form: how a recording longer than a window is cut.
        batch_size: windows decoded at once when batched.
        vad: leave silence out before decoding; None decodes everything. Clips are never filtered.
        timestamps_are_optional: leave timestamps out where the recording fits one window.
        candidate_languages: ISO 639-1 codes, one of which the recording is in; empty allows all.
        language_detection_segments: windows listened to before the language is decided, while none is sure.
        language_detection_threshold: probability at which a language is sure.
    """

    model: ModelReference
    caller: Caller = field(default_factory=Caller)
    options: LongFormOptions = field(default_factory=LongFormOptions)
    long_form: LongForm = "sequential"
    batch_size: int = 8
    vad: VadOptions | None = field(default_factory=VadOptions)
    timestamps_are_optional: bool = False
    candidate_languages: tuple[str, ...] = ()
    language_detection_segments: int = 1
    language_detection_threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step has finished.

    Attributes:
        segments: new segments, on the original recording's clock.
        language: of the recording; None until something was decoded.
        language_probability: how sure that is; 1.0 where the client gave the language.
        position_s: how far into the original the text reaches.
    """

    segments: tuple[Segment, ...]
    language: str | None
    language_probability: float
    position_s: float


@dataclass(frozen=True, slots=True)
class Transcription:
    """A whole transcript.

    Attributes:
        segments: on the original recording's clock.
        language: ISO 639-1 code; None where there was no speech to tell it from.
        language_probability: how sure that is.
        duration_s: of the original recording.
        task: transcribe or translate.
    """

    segments: tuple[Segment, ...]
    language: str | None
    language_probability: float
    duration_s: float
    task: Task

    @property
    def text(self) -> str:
        """The text of all segments."""
        return "".join(segment.text for segment in self.segments).strip()


class Transcriber:
    """Transcribes recordings. For one event loop.

    Args:
        manager: has the models.
        scheduler: runs their engines.
        new_voice_detector: makes the detector of one recording. Blocking.
        max_parallel: worker threads for voice detection and spectrograms.
        short_file_s: recordings up to this length, seconds, go before longer ones.
    """

    def __init__(
        self,
        manager: ModelManager,
        scheduler: Scheduler,
        new_voice_detector: VoiceDetectorFactory,
        *,
        max_parallel: int,
        short_file_s: float = 60.0,
    ) -> None:
        self._manager = manager
        self._scheduler = scheduler
        self._new_voice_detector = new_voice_detector
        self._limiter = CapacityLimiter(max_parallel)
        self._short_file_s = short_file_s

    async def stream(
        self, recording: Recording, request: TranscriptionRequest
    ) -> AsyncGenerator[Progress, None]:
        """The transcript as it grows. Closing the generator stops the work after the running window.

        Raises:
            UnsupportedByEngineError: the model cannot do what is asked.
            ModelNotFoundError, ModelUnavailableError: the model cannot be had.
            EngineError: inference failed.
        """
        async with self._manager.acquire(request.model) as engine:
            started_s = time.perf_counter()
            check_request(engine, request, recording)
            priority = self._priority(recording)
            recording = await self._spoken(recording, request)
            options = request.options
            if request.timestamps_are_optional and recording.duration_s <= options.window_s:
                options = replace(options, timestamps=_without_tokens(options.timestamps))
            language, probability = options.language, 1.0
            is_apart = request.language_detection_segments > 1 or bool(request.candidate_languages)
            if language is None and is_apart and len(recording):
                language, probability = await self._detect_language(engine, recording, request, priority)
                options = replace(options, language=language)
            steps = await self._steps(engine, recording, replace(request, options=options))
            results: Sequence[Decoded] | None = None
            while True:
                # The generator computes little, reads at most a batch of windows.
                step = steps.send(results) if results is not None else next(steps)
                if language is None and results:
                    language, probability = results[0].language, results[0].language_probability
                segments = tuple(_within(s, recording.original_duration_s) for s in step.segments)
                yield Progress(segments, language, probability, step.position_s)
                if not step.windows:
                    break
                results = await self._scheduler.decode(
                    engine, step.windows, priority=priority, caller=request.caller
                )
            duration_s, took_s = recording.original_duration_s, time.perf_counter() - started_s
            logger.info(
                "Transcribed %.1f s of audio (%.1f s after voice detection) in %.2f s with %s",
                duration_s,
                recording.duration_s,
                took_s,
                request.model.id,
            )

    async def rank_languages(
        self, recording: Recording, request: TranscriptionRequest
    ) -> LanguageProbabilities:
        """Rank all languages for the first 30 s of speech; empty where there is no speech."""
        async with self._manager.acquire(request.model) as engine:
            recording = await self._spoken(recording, request)
            if not len(recording):
                return []
            window = Window(recording.read(0, _WINDOW_SAMPLES))
            (ranking,) = await self._scheduler.detect_language(
                engine, [window], priority=Priority.SHORT_FILE, caller=request.caller
            )
            return ranking

    def _priority(self, recording: Recording) -> Priority:
        is_short = recording.original_duration_s <= self._short_file_s
        return Priority.SHORT_FILE if is_short else Priority.LONG_FILE

    async def _spoken(self, recording: Recording, request: TranscriptionRequest) -> Recording:
        """The recording without its silence, where that is asked for."""
        if request.vad is None or request.options.has_clips:
            return recording
        vad = request.vad
        if request.long_form == "batched":
            vad = voice_activity.for_batches(vad, request.options.window_s)
        detector = await to_thread.run_sync(self._new_voice_detector, limiter=self._limiter)
        parts: list[Samples] = []
        for start, stop in voice_activity.pieces(recording):
            parts.append(
                await to_thread.run_sync(
                    voice_activity.piece_probabilities,
                    recording,
                    detector,
                    start,
                    stop,
                    limiter=self._limiter,
                )
            )
        spans = await to_thread.run_sync(
            voice_activity.find_speech, np.concatenate(parts), vad, len(recording), limiter=self._limiter
        )
        return recording.select(spans)

    async def _steps(self, engine: Engine, recording: Recording, request: TranscriptionRequest) -> Steps:
        if request.long_form == "batched":
            return batched(recording, request.options, batch_size=request.batch_size)
        mel_bins = engine.capabilities.mel_bins
        mel_peak = None
        if mel_bins is not None and len(recording):
            mel_peak = await to_thread.run_sync(mel.peak, recording, mel_bins, limiter=self._limiter)
        return sequential(recording, request.options, mel_peak=mel_peak)

    async def _detect_language(
        self, engine: Engine, recording: Recording, request: TranscriptionRequest, priority: Priority
    ) -> tuple[str, float]:
        """The language of the first windows: the first that is sure, else the one most of them vote for.

        Source of the rule: `faster_whisper.WhisperModel.detect_language`.
        """
        votes: dict[str, list[float]] = {}
        end = min(len(recording), request.language_detection_segments * _WINDOW_SAMPLES)
        for start in range(0, end, _WINDOW_SAMPLES):
            window = Window(recording.read(start, start + _WINDOW_SAMPLES))
            (ranking,) = await self._scheduler.detect_language(
                engine, [window], priority=priority, caller=request.caller
            )
            allowed = request.candidate_languages
            language, probability = next(
                (entry for entry in ranking if not allowed or entry[0] in allowed), ranking[0]
            )
            if probability > request.language_detection_threshold:
                return language, probability
            votes.setdefault(language, []).append(probability)
        winner = max(votes, key=lambda language: len(votes[language]))
        return winner, max(votes[winner])


async def collect(
    steps: AsyncGenerator[Progress, None], recording: Recording, request: TranscriptionRequest
) -> Transcription:
    """The whole transcript of a recording, from `Transcriber.stream`; errors as that."""
    segments: list[Segment] = []
    language, probability = request.options.language, 1.0
    async with aclosing(steps):
        async for progress in steps:
            segments += progress.segments
            language, probability = progress.language, progress.language_probability
    return Transcription(
        tuple(segments), language, probability, recording.original_duration_s, request.options.task
    )


def check_request(engine: Engine, request: TranscriptionRequest, recording: Recording) -> None:
    """Refuse what the model or the recording cannot give, before any work is done.

    Raises:
        UnsupportedByEngineError: the model cannot do it.
        InvalidRequestError: the options do not fit the recording.
    """
    can, options = engine.capabilities, request.options
    name = request.model.requested
    wanted = request.candidate_languages or (() if options.language is None else (options.language,))
    for language in wanted:
        if language not in can.languages:
            raise UnsupportedByEngineError(
                f"The model '{name}' cannot transcribe the language '{language}'.",
                param="languages" if request.candidate_languages else "language",
                code="unsupported_language",
            )
    if options.task is Task.TRANSLATE and not can.translation:
        raise UnsupportedByEngineError(
            f"The model '{name}' cannot translate.", param="model", code="unsupported_task"
        )
    if options.timestamps.has_words and not can.word_timestamps:
        raise UnsupportedByEngineError(
            f"The engine '{can.engine}' gives no word timestamps.",
            param="timestamp_granularities",
            code="unsupported_value",
        )
    if options.decode.hotwords and not can.hotwords:
        raise UnsupportedByEngineError(
            f"The engine '{can.engine}' takes no hotwords.", param="hotwords", code="unsupported_value"
        )
    if request.long_form == "batched" and options.has_clips:
        raise InvalidRequestError(
            "Batched transcription cuts at silences, not at clips: 'clip_timestamps' needs 'long_form' "
            "sequential.",
            param="clip_timestamps",
            code="unsupported_value",
        )
    if request.long_form == "batched" and request.vad is None and recording.duration_s > options.window_s:
        raise InvalidRequestError(
            "Batched transcription cuts at silences: recordings longer than a window need vad_filter.",
            param="vad_filter",
            code="unsupported_value",
        )


def _without_tokens(timestamps: Timestamps) -> Timestamps:
    return Timestamps.WORD_ONLY if timestamps.has_words else Timestamps.NONE


def _within(segment: Segment, duration_s: float) -> Segment:
    """The segment with no time beyond the recording's end: models write such timestamps."""
    if segment.end_s <= duration_s:
        return segment
    words = tuple(
        replace(word, start_s=min(word.start_s, duration_s), end_s=min(word.end_s, duration_s))
        for word in segment.words
    )
    return replace(segment, start_s=min(segment.start_s, duration_s), end_s=duration_s, words=words)
