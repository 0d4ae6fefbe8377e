"""One live stream: drives a session with a voice detector, a scheduler and a clock."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from whisper_server.core.engine import Engine
from whisper_server.core.errors import (
    ChunkTooLongError,
    EngineTimeoutError,
    SessionEndedError,
    SlowReaderError,
    WhisperServerError,
)
from whisper_server.core.scheduling import Caller, Priority
from whisper_server.core.session import Session
from whisper_server.core.session_states import (
    AudioReceived,
    CancelAsked,
    CancelDecode,
    ClearAsked,
    CommitAsked,
    Effect,
    Emit,
    EndAsked,
    OptionsChanged,
    SessionEvent,
    SessionFailed,
    SpeechJudged,
    StartDecode,
    State,
    TimePassed,
)
from whisper_server.core.stream_events import (
    FinalTranscript,
    PartialTranscript,
    SessionEnded,
    StreamEvent,
    StreamOptions,
    UtteranceCommitted,
)
from whisper_server.core.types import SAMPLE_RATE, Pcm16, Samples
from whisper_server.core.voice_activity import BLOCK_SAMPLES
from whisper_server.services.decode_jobs import DecodeJobs, DecodeTotals
from whisper_server.services.recorder import NO_RECORDER, Recorder
from whisper_server.services.session_registry import SessionEntry
from whisper_server.services.stream_limits import StreamTools, check_options
from whisper_server.services.stream_queues import Command, Inbox, Outgoing
from whisper_server.services.voice_detectors import ReusableVoiceDetector

logger = logging.getLogger(__name__)

AudioInput: TypeAlias = bytes | bytearray | memoryview | Pcm16 | Samples

_SAMPLE_BYTES = 2
_BYTES_PER_S = SAMPLE_RATE * _SAMPLE_BYTES
_BLOCK_BYTES = BLOCK_SAMPLES * _SAMPLE_BYTES
_MOST_BLOCKS = 64
_MOST_BLOCKS_AT_ONCE = 8
"""A block takes the detector 0.06 ms. More of them it hears in a thread; for so few, changing threads costs
more than listening does, and 50 quiet streams would change 200 times a second."""
_MANY_FINALS = 4
"""Waiting for one worker: they share calls, so fewer are no reason to begin another one later."""
_SLICE_BYTES = _BYTES_PER_S // 2
_FULL_SCALE = 32768.0
_OPEN_STATES = (State.LISTENING, State.SPEAKING, State.PAUSED)
_LEAST_TICK_S = 0.05


class LiveStream:
    """One session. `send`, `commit`, `clear`, `update` and `end` are for one task, events for another.

    Commands take their place among the audio: a commit covers what was sent before it and nothing else. All
    of them but `end` and `cancel` raise `SessionEndedError` once the session is over or `end` was called;
    where the session ended with an error, they raise that.

    It is an async context manager: leaving it cancels what is not ended, and waits until nothing of it runs.
    `StreamService.open` makes one.
    """

    def __init__(
        self,
        session: Session,
        entry: SessionEntry,
        tools: StreamTools,
        resources: AsyncExitStack,
        *,
        detector: ReusableVoiceDetector,
        engine: Engine,
        partial_engine: Engine,
        caller: Caller,
        recorder: Recorder = NO_RECORDER,
    ) -> None:
        self._session = session
        self._recorder = recorder
        self._entry = entry
        self._tools = tools
        self._resources = resources
        self._detector = detector
        self._engines = (engine, partial_engine)
        self._jobs = DecodeJobs(tools, *self._engines, caller=caller, tell=self._take_result, name=entry.id)
        self._workers = max(1, partial_engine.capabilities.parallel_calls - 1)
        self._inbox = Inbox()
        self._outgoing = Outgoing(tools.limits.max_unread_events)
        self._sent_bytes = 0
        self._session_bytes = 0
        self._half_sample = b""
        self._unjudged: Pcm16 = np.empty(0, dtype=np.int16)
        self._progress = asyncio.Event()
        self._is_ending = False
        self._error: WhisperServerError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._run(), name=f"stream-{entry.id}")

    @property
    def id(self) -> str:
        """The session id."""
        return self._entry.id

    @property
    def options(self) -> StreamOptions:
        """The options in effect."""
        return self._session.options

    @property
    def decode_totals(self) -> DecodeTotals:
        """Where the time of its decodes went so far."""
        return self._jobs.totals

    @property
    def missing_s(self) -> float:
        """Seconds of audio that have to come before it listens: a sender may gather so much."""
        return self._inbox.missing_bytes / _BYTES_PER_S

    @property
    def received_s(self) -> float:
        """Seconds of audio sent so far."""
        return self._sent_bytes / _BYTES_PER_S

    async def send(self, pcm: AudioInput) -> None:
        """Audio, 16 kHz mono: bytes of signed 16-bit little-endian samples cut anywhere, int16 or float32.

        Waits while the stream is behind, so a client that sends faster than real time is slowed down and
        loses nothing.

        Raises:
            ChunkTooLongError: more than `max_chunk_ms` at once; nothing of it is taken.
            AudioMemoryFullError: all streams together hold too much, and that did not change in time.
            SessionEndedError: the session takes no more.
        """
        self._check_open()
        audio = self._whole_samples(_as_bytes(pcm))
        for start in range(0, len(audio), _SLICE_BYTES):
            await self._wait_for_room()
            piece = audio[start : start + _SLICE_BYTES]
            self._inbox.put_audio(piece)
            self._recorder.hear(piece)
            self._sent_bytes += len(piece)
        self._note()

    async def commit(self) -> str:
        """End the utterance here and have it transcribed, whatever the endpointing.

        Where nobody spoke, the final is empty and nothing is decoded.

        Returns:
            The id of the committed utterance.

        Raises:
            EmptyCommitError: less than 100 ms of audio since the last commit or clear.
            SessionEndedError: the session takes no more.
        """
        utterance_id = await self._ask(CommitAsked())
        if utterance_id is None:
            raise AssertionError("A commit was taken and named no utterance.")
        return utterance_id

    async def clear(self) -> None:
        """Drop the audio that is not committed; the event BufferCleared says when that is done.

        Raises:
            SessionEndedError: the session takes no more.
        """
        self._half_sample = b""
        await self._ask(ClearAsked())

    async def update(self, options: StreamOptions) -> None:
        """Take new options for the audio that follows.

        Raises:
            UnsupportedByEngineError: the model cannot do it; the old options stay.
            SessionEndedError: the session takes no more.
        """
        for engine in self._engines:
            check_options(engine, options)
        await self._ask(OptionsChanged(options))
        self._set_timer()

    async def end(self) -> None:
        """Take no more audio, and transcribe what has been sent. SessionEnded follows the last final.

        Calling it again does nothing.
        """
        if not self._is_open:
            return
        self._is_ending = True
        command = Command(EndAsked())
        self._inbox.put_command(command)
        await command.answer

    async def cancel(self) -> None:
        """Drop everything at once; of the events not read yet, and SessionEnded, nothing is dropped.

        Harmless at any time.
        """
        self._handle(CancelAsked())

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """The events, up to and including SessionEnded. A partial that was not read gives way to the next."""
        return self.events()

    async def __aenter__(self) -> Self:
        """The stream itself; it has been running since it was opened."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what is not ended, and wait until nothing of it runs."""
        await self.cancel()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        """Wait until the session has ended and nothing of it runs."""
        await asyncio.shield(self._task)

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """The same as a generator, which can be closed."""
        while (event := await self._outgoing.get()) is not None:
            yield event

    # What the client sends.

    @property
    def _is_open(self) -> bool:
        return not self._is_ending and self._session.state in _OPEN_STATES

    def _check_open(self) -> None:
        if not self._is_open:
            raise self._error or SessionEndedError(
                f"The session is {self._session.state.value} and takes no more."
            )

    def _whole_samples(self, audio: memoryview) -> memoryview:
        """The audio as whole samples: half a sample waits for its other half."""
        longest_ms = self.options.max_chunk_ms
        if longest_ms is not None and len(audio) > longest_ms * _BYTES_PER_S // 1000:
            raise ChunkTooLongError(
                f"One message may bring {longest_ms} ms of audio; this one has "
                f"{1000 * len(audio) // _BYTES_PER_S} ms. Send smaller ones.",
                param="audio",
            )
        if self._half_sample:
            audio = memoryview(self._half_sample + bytes(audio))
        whole = len(audio) - len(audio) % _SAMPLE_BYTES
        self._half_sample = bytes(audio[whole:])
        return audio[:whole]

    async def _wait_for_room(self) -> None:
        while self._inbox.held_bytes >= self._tools.limits.buffer_bytes:
            await self._inbox.wait_for_room()
            self._check_open()
        if self._tools.registry.is_full:
            await self._tools.registry.wait_for_memory(self._tools.limits.memory_timeout_s)
            self._check_open()

    async def _ask(self, event: SessionEvent) -> str | None:
        self._check_open()
        command = Command(event)
        self._inbox.put_command(command)
        return await command.answer

    # The task of the stream.

    async def _run(self) -> None:
        self._set_timer()
        try:
            await self._listen()
        except WhisperServerError as error:
            self._handle(SessionFailed(error))
        except Exception as error:  # the boundary: one stream fails, the others go on
            self._fail(error)
        finally:
            self._handle(CancelAsked())  # nothing, where the session has ended
            await self._close()

    async def _listen(self) -> None:
        """Bring audio and commands to the session until it has ended."""
        while self._session.state is not State.ENDED:
            if self._session.state is State.DRAINING:
                self._refuse_commands()
                await self._wait_for_finals()
            elif self._session.pending_finals >= self._tools.limits.max_pending_finals:
                await self._wait_for_progress()
            else:
                wanted = self._session.patience * _BLOCK_BYTES - self._unjudged.nbytes
                await self._inbox.wait(wanted)
                await self._take_next()

    async def _wait_for_progress(self) -> None:
        self._progress.clear()
        await self._progress.wait()

    async def _wait_for_finals(self) -> None:
        """Wait for one more of the decodes that the end waits for.

        Raises:
            EngineTimeoutError: none came in time.
        """
        try:
            async with asyncio.timeout(self._tools.limits.decode_timeout_s):
                await self._wait_for_progress()
        except TimeoutError:
            raise EngineTimeoutError("The model did not finish the last transcripts in time.") from None

    async def _take_next(self) -> None:
        if self._session.state not in _OPEN_STATES:
            return
        item = self._inbox.take(_MOST_BLOCKS * _BLOCK_BYTES)
        if isinstance(item, Command):
            self._answer(item)
        elif item is not None:
            await self._hear(np.frombuffer(item, dtype="<i2").astype(np.int16, copy=False))

    def _answer(self, command: Command) -> None:
        try:
            effects = self._handle(command.event)
        except WhisperServerError as error:
            command.refuse(error)
            return
        events = [effect.event for effect in effects if isinstance(effect, Emit)]
        ids = [event.utterance_id for event in events if isinstance(event, UtteranceCommitted)]
        if not command.answer.done():
            command.answer.set_result(ids[0] if ids else None)

    async def _hear(self, pcm: Pcm16) -> None:
        self._handle(AudioReceived(pcm))
        audio = np.concatenate([self._unjudged, pcm]) if len(self._unjudged) else pcm
        whole = len(audio) // BLOCK_SAMPLES * BLOCK_SAMPLES
        self._unjudged = audio[whole:]
        if not whole:
            return
        probabilities = await self._judged(audio[:whole])
        if self._session.state in _OPEN_STATES:
            sharing = max(1.0, self._tools.registry.speaking / self._workers)
            self._handle(SpeechJudged(probabilities, sharing, self._is_congested))

    async def _judged(self, blocks: Pcm16) -> Samples:
        """The probability of speech in each of some blocks."""
        if not self.options.voice.enabled:
            return np.ones(len(blocks) // BLOCK_SAMPLES, dtype=np.float32)
        samples = blocks.astype(np.float32) / np.float32(_FULL_SCALE)
        if len(blocks) <= _MOST_BLOCKS_AT_ONCE * BLOCK_SAMPLES:
            return self._detector.probabilities(samples)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tools.listeners, self._detector.probabilities, samples)

    @property
    def _is_congested(self) -> bool:
        """Whether many finals wait for a worker; of interest only while somebody speaks."""
        if not self._session.is_speaking:
            return False
        waiting = self._tools.scheduler.backlog().waiting
        return waiting.get(Priority.LIVE_FINAL, 0) >= _MANY_FINALS * self._workers

    # What the session wants.

    def _handle(self, event: SessionEvent) -> Sequence[Effect]:
        """Bring an event to the session and do what it wants.

        Raises:
            WhisperServerError: the session refuses the event.
        """
        clock = self._tools.clock
        began_s = clock()
        effects = self._session.handle(event, began_s)
        if effects:
            took_s = clock() - began_s
            for effect in effects:
                self._follow(effect, took_s)
        self._session_bytes = self._session.held_bytes
        self._note()
        if self._session.state not in _OPEN_STATES:
            self._inbox.wake()
        self._progress.set()
        return effects

    def _take_result(self, event: SessionEvent) -> None:
        try:
            self._handle(event)
        except Exception as error:  # the boundary: one stream fails, the others go on
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        logger.error("Session %s failed", self.id, exc_info=error)
        failure = WhisperServerError("The server failed on this session.")
        failure.__cause__ = error
        self._handle(SessionFailed(failure))

    def _follow(self, effect: Effect, took_s: float) -> None:
        if isinstance(effect, StartDecode):
            self._jobs.start(effect, took_s)
        elif isinstance(effect, CancelDecode):
            self._jobs.cancel(effect.job)
        else:
            self._tell(_timed(effect.event, took_s))

    def _tell(self, event: StreamEvent) -> None:
        self._recorder.tell(event)
        if isinstance(event, FinalTranscript):
            self._entry.utterances += 1
        if isinstance(event, SessionEnded):
            self._error = event.error
            logger.info(
                "Session %s ended: %s, %.1f s of audio, %d utterances",
                *(self.id, event.reason.value, event.total_audio_s, event.utterances),
            )
        if not self._outgoing.put(event):
            # The session may not be told while it tells: it is told next.
            asyncio.get_running_loop().call_soon(
                self._handle, SessionFailed(SlowReaderError("The client does not read its transcripts."))
            )

    def _note(self) -> None:
        held = self._inbox.held_bytes + self._session_bytes
        self._entry.received_s = self.received_s
        self._tools.registry.note(self._entry, is_speaking=self._session.is_speaking, held_bytes=held)

    # Time, and the end.

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_s = self._session.idle_deadline_s
        if deadline_s is not None and self._session.state in _OPEN_STATES:
            delay_s = max(_LEAST_TICK_S, deadline_s - self._tools.clock())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        # Audio that waits for the session is audio that came.
        if self._inbox.is_empty or self._session.state not in _OPEN_STATES:
            self._handle(TimePassed())
        self._set_timer()

    def _refuse_commands(self) -> None:
        for command in self._inbox.clear():
            if isinstance(command.event, EndAsked) and not command.answer.done():
                command.answer.set_result(None)
            else:
                command.refuse(SessionEndedError(f"The session is {self._session.state.value}."))

    async def _close(self) -> None:
        """Give back what the stream holds, once nothing of it runs."""
        self._refuse_commands()
        if self._timer is not None:
            self._timer.cancel()
        await self._jobs.close()
        self._tools.registry.leave(self._entry)
        await self._resources.aclose()


def _as_bytes(pcm: AudioInput) -> memoryview:
    if not isinstance(pcm, np.ndarray):
        return memoryview(pcm).cast("B")
    if pcm.dtype == np.int16:
        return memoryview(pcm.astype("<i2", copy=False).tobytes())
    loud = np.clip(np.rint(pcm * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
    return memoryview(loud.astype("<i2").tobytes())


def _timed(event: StreamEvent, took_s: float) -> StreamEvent:
    if isinstance(event, PartialTranscript | FinalTranscript):
        return replace(event, timing=replace(event.timing, postprocess_s=took_s))
    return event
