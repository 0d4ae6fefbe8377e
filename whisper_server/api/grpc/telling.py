"""From what the services tell to the messages for a client."""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import TypeVar

from whisper_server.api.grpc.asking import EAGERNESS, ENCODINGS, MODES, TASKS, SessionWish
from whisper_server.api.grpc.status import code_of
from whisper_server.config import Settings
from whisper_server.core.stream_events import (
    DecodeTiming,
    EndReason,
    FinalTranscript,
    PartialTranscript,
    SessionEnded,
    SpeechStarted,
    SpeechStopped,
    StreamEvent,
    TranscriptFailed,
)
from whisper_server.core.types import DecodeOptions, Word
from whisper_server.services.transcription import Transcription
from whisper_server.stt_v1 import stt_pb2

_Number = TypeVar("_Number", bound=int)
_Value = TypeVar("_Value", bound=Enum)

_REASONS: "Mapping[EndReason, stt_pb2.SessionEnded.Reason.ValueType]" = MappingProxyType(
    {
        EndReason.COMPLETED: stt_pb2.SessionEnded.REASON_COMPLETED,
        EndReason.CANCELLED: stt_pb2.SessionEnded.REASON_CANCELLED,
        EndReason.ERROR: stt_pb2.SessionEnded.REASON_ERROR,
        EndReason.TIMEOUT: stt_pb2.SessionEnded.REASON_TIMEOUT,
    }
)


def created(wish: SessionWish, token: str, settings: Settings) -> stt_pb2.CreateSessionResponse:
    """What is in effect for a session."""
    options, voice = wish.options, wish.options.voice
    return stt_pb2.CreateSessionResponse(
        session_id=wish.session_id,
        session_token=token,
        attributes=wish.attributes,
        config=stt_pb2.RecognitionConfig(
            model=wish.model,
            language=options.language or "auto",
            task=_number(TASKS, options.task),
            decode_profile=wish.decode_profile,
            decode_options=_decode_options(options.final_decode),
            prompt=options.prompt,
            hotwords=[options.hotwords] if options.hotwords else [],
            word_timestamps=options.word_timestamps,
        ),
        vad=stt_pb2.VadConfig(
            mode=_number(MODES, options.endpointing),
            enabled=voice.enabled,
            vad_threshold=voice.threshold,
            vad_silence_ms=voice.min_silence_ms,
            min_speech_ms=voice.min_speech_ms,
            prefix_padding_ms=voice.prefix_padding_ms,
            eagerness=_number(EAGERNESS, options.eagerness)
            if options.eagerness
            else stt_pb2.EAGERNESS_UNSPECIFIED,
            max_utterance_s=options.max_utterance_s,
        ),
        audio=stt_pb2.AudioFormat(
            encoding=_number(ENCODINGS, wish.audio.encoding),
            sample_rate_hz=wish.audio.rate_hz,
            channels=wish.audio.channels,
        ),
        partials=options.partials,
        partial_interval_ms=options.partial_interval_ms,
        session_timeout_s=options.idle_timeout_s or 0.0,
        max_chunk_ms=options.max_chunk_ms or 0,
        max_message_bytes=settings.grpc.max_receive_message_bytes,
    )


def told(session_id: str, event: StreamEvent) -> stt_pb2.StreamingRecognizeResponse | None:
    """What a client is told of an event; None where it is told nothing."""
    message = stt_pb2.StreamingRecognizeResponse(session_id=session_id)
    match event:
        case SpeechStarted() | SpeechStopped():
            kinds = stt_pb2.SpeechActivity
            is_start = isinstance(event, SpeechStarted)
            kind = kinds.KIND_SPEECH_STARTED if is_start else kinds.KIND_SPEECH_STOPPED
            activity = stt_pb2.SpeechActivity(kind=kind, utterance_id=event.utterance_id, at_s=event.at_s)
            message.speech_activity.CopyFrom(activity)
        case PartialTranscript():
            message.result.CopyFrom(_partial(event))
        case FinalTranscript():
            message.result.CopyFrom(_final(event))
        case TranscriptFailed():
            code = code_of(event.error, "StreamingRecognize")
            failure = stt_pb2.UtteranceFailure(
                utterance_id=event.utterance_id, code=code, message=event.error.message
            )
            message.failure.CopyFrom(failure)
        case SessionEnded():
            message.session_ended.CopyFrom(
                stt_pb2.SessionEnded(
                    reason=_REASONS[event.reason], audio_s=event.total_audio_s, utterances=event.utterances
                )
            )
        case _:
            return None
    return message


def recognized(transcription: Transcription) -> stt_pb2.RecognizeResponse:
    """A whole transcript."""
    return stt_pb2.RecognizeResponse(
        text=transcription.text,
        segments=[
            stt_pb2.Segment(
                text=segment.text.strip(),
                start_s=segment.start_s,
                end_s=segment.end_s,
                words=[_word(word) for word in segment.words],
                avg_logprob=segment.avg_logprob,
                no_speech_prob=segment.no_speech_prob,
            )
            for segment in transcription.segments
        ],
        language=transcription.language or "",
        language_probability=transcription.language_probability,
        duration_s=transcription.duration_s,
    )


def _partial(event: PartialTranscript) -> stt_pb2.StreamingResult:
    return stt_pb2.StreamingResult(
        utterance_id=event.utterance_id,
        text=event.text.strip(),
        stable_text=event.stable_text.strip(),
        unstable_text=event.unstable_text.strip(),
        confidence=event.confidence,
        language=event.language,
        timing=_timing(event.timing),
    )


def _final(event: FinalTranscript) -> stt_pb2.StreamingResult:
    return stt_pb2.StreamingResult(
        utterance_id=event.utterance_id,
        is_final=True,
        text=event.text,
        confidence=event.confidence,
        language=event.language or "",
        language_probability=event.language_probability,
        start_s=event.audio_start_s,
        end_s=max(event.audio_start_s, event.speech_end_s),
        words=[_word(word) for word in event.words],
        replaced=[stt_pb2.Replacement(before=each.before, after=each.after) for each in event.replaced],
        timing=_timing(event.timing),
    )


def _timing(timing: DecodeTiming) -> stt_pb2.DecodeTiming:
    return stt_pb2.DecodeTiming(
        buffer_wait_s=timing.buffer_wait_s,
        queue_wait_s=timing.queue_wait_s,
        inference_s=timing.inference_s,
    )


def _word(word: Word) -> stt_pb2.Word:
    return stt_pb2.Word(
        text=word.text.strip(), start_s=word.start_s, end_s=word.end_s, probability=word.probability
    )


def _decode_options(options: DecodeOptions) -> stt_pb2.DecodeOptions:
    return stt_pb2.DecodeOptions(
        beam_size=options.beam_size,
        best_of=options.best_of,
        patience=options.patience,
        length_penalty=options.length_penalty,
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        temperatures=options.temperatures,
        compression_ratio_threshold=options.compression_ratio_threshold,
        log_prob_threshold=options.log_prob_threshold,
        no_speech_threshold=options.no_speech_threshold,
        suppress_blank=options.suppress_blank,
        suppress_tokens=options.suppress_tokens,
        max_new_tokens=options.max_new_tokens,
    )


def _number(names: Mapping[_Number, _Value], value: _Value) -> _Number:
    """The number of an enum's value on the wire."""
    return next(number for number, own in names.items() if own is value)
