"""Options, events and transcripts as messages of stt.v1, and back."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from google.protobuf.message import Message

from whisper_server.clients.grpc.events import (
    DecodeTiming,
    Ended,
    EndReason,
    Event,
    Failure,
    Final,
    Partial,
    Replacement,
    SpeechStarted,
    SpeechStopped,
    Word,
)
from whisper_server.clients.grpc.options import (
    AudioFormat,
    Eagerness,
    Encoding,
    RecognitionOptions,
    Session,
    SessionOptions,
    Task,
    VadMode,
    VadOptions,
)
from whisper_server.clients.grpc.transcript import Segment, Transcript
from whisper_server.stt_v1 import stt_pb2 as pb

_Value = TypeVar("_Value")

_TASKS: Mapping[Task | None, pb.Task.ValueType] = {
    None: pb.TASK_UNSPECIFIED,
    Task.TRANSCRIBE: pb.TASK_TRANSCRIBE,
    Task.TRANSLATE: pb.TASK_TRANSLATE,
}
_MODES: Mapping[VadMode, pb.VadMode.ValueType] = {
    VadMode.CONTINUE: pb.VAD_MODE_CONTINUE,
    VadMode.AUTO: pb.VAD_MODE_AUTO_END,
    VadMode.MANUAL: pb.VAD_MODE_MANUAL,
}
_EAGERNESS: Mapping[Eagerness | None, pb.Eagerness.ValueType] = {
    None: pb.EAGERNESS_UNSPECIFIED,
    Eagerness.LOW: pb.EAGERNESS_LOW,
    Eagerness.MEDIUM: pb.EAGERNESS_MEDIUM,
    Eagerness.HIGH: pb.EAGERNESS_HIGH,
}
_ENCODINGS: Mapping[Encoding, pb.AudioEncoding.ValueType] = {
    Encoding.LINEAR16: pb.AUDIO_ENCODING_LINEAR16,
    Encoding.MULAW: pb.AUDIO_ENCODING_MULAW,
    Encoding.ALAW: pb.AUDIO_ENCODING_ALAW,
}
_TASK_OF = {value: task for task, value in _TASKS.items()}
_MODE_OF = {value: mode for mode, value in _MODES.items()}
_EAGERNESS_OF = {value: eagerness for eagerness, value in _EAGERNESS.items()}
_ENCODING_OF = {value: encoding for encoding, value in _ENCODINGS.items()}
_REASON_OF = {
    pb.SessionEnded.REASON_COMPLETED: EndReason.COMPLETED,
    pb.SessionEnded.REASON_CANCELLED: EndReason.CANCELLED,
    pb.SessionEnded.REASON_ERROR: EndReason.ERROR,
    pb.SessionEnded.REASON_TIMEOUT: EndReason.TIMEOUT,
}


def create_request(options: SessionOptions, session_id: str) -> pb.CreateSessionRequest:
    """The request that opens a session."""
    return pb.CreateSessionRequest(
        session_id=session_id,
        attributes=options.attributes,
        config=recognition_config(options.recognition),
        vad=_vad_config(options.vad),
        audio=audio_format(options.audio),
        partials=options.partials,
        partial_interval_ms=options.partial_interval_ms,
        require_token=options.require_token,
    )


def recognition_config(options: RecognitionOptions) -> pb.RecognitionConfig:
    """What is asked of the model."""
    return pb.RecognitionConfig(
        model=options.model,
        language=options.language,
        task=_TASKS[options.task],
        decode_profile=options.decode_profile,
        decode_options=options.decode_options,
        prompt=options.prompt,
        hotwords=options.hotwords,
        word_timestamps=options.word_timestamps,
    )


def audio_format(audio: AudioFormat) -> pb.AudioFormat:
    """How raw audio is written."""
    return pb.AudioFormat(
        encoding=_ENCODINGS[audio.encoding], sample_rate_hz=audio.sample_rate_hz, channels=audio.channels
    )


def _vad_config(options: VadOptions) -> pb.VadConfig:
    return pb.VadConfig(
        mode=_MODES[options.mode],
        enabled=options.enabled,
        vad_threshold=options.threshold,
        vad_silence_ms=options.silence_ms,
        min_speech_ms=options.min_speech_ms,
        prefix_padding_ms=options.prefix_padding_ms,
        eagerness=_EAGERNESS[options.eagerness],
        max_utterance_s=options.max_utterance_s,
    )


def session_of(response: pb.CreateSessionResponse, options: SessionOptions, attempt: int) -> Session:
    """The session that a response opens."""
    config, vad = response.config, response.vad
    return Session(
        session_id=response.session_id,
        options=options,
        attempt=attempt,
        token=response.session_token,
        attributes=dict(response.attributes),
        recognition=RecognitionOptions(
            model=config.model,
            language=config.language,
            task=_TASK_OF.get(config.task),
            decode_profile=config.decode_profile,
            decode_options=config.decode_options,
            prompt=config.prompt,
            hotwords=tuple(config.hotwords),
            word_timestamps=_given(config, "word_timestamps", config.word_timestamps),
        ),
        vad=VadOptions(
            mode=_MODE_OF.get(vad.mode, VadMode.CONTINUE),
            enabled=_given(vad, "enabled", vad.enabled),
            threshold=_given(vad, "vad_threshold", vad.vad_threshold),
            silence_ms=_given(vad, "vad_silence_ms", vad.vad_silence_ms),
            min_speech_ms=_given(vad, "min_speech_ms", vad.min_speech_ms),
            prefix_padding_ms=_given(vad, "prefix_padding_ms", vad.prefix_padding_ms),
            eagerness=_EAGERNESS_OF.get(vad.eagerness),
            max_utterance_s=_given(vad, "max_utterance_s", vad.max_utterance_s),
        ),
        audio=AudioFormat(
            sample_rate_hz=response.audio.sample_rate_hz or options.audio.sample_rate_hz,
            channels=response.audio.channels or options.audio.channels,
            encoding=_ENCODING_OF.get(response.audio.encoding, options.audio.encoding),
        ),
        partials=response.partials,
        partial_interval_ms=response.partial_interval_ms,
        session_timeout_s=response.session_timeout_s,
        max_chunk_ms=response.max_chunk_ms,
        max_message_bytes=response.max_message_bytes,
    )


def event_of(response: pb.StreamingRecognizeResponse, base_s: float) -> Event | None:
    """The event of a response; None for one that this client does not know.

    Args:
        response: of the stream.
        base_s: where the session's audio begins on the stream's clock.
    """
    match response.WhichOneof("event"):
        case "speech_activity":
            return _activity(response.speech_activity, base_s)
        case "result":
            result = response.result
            return _final(result, base_s) if result.is_final else _partial(result)
        case "failure":
            failure = response.failure
            return Failure(failure.utterance_id, failure.code, failure.message)
        case "session_ended":
            ended = response.session_ended
            reason = _REASON_OF.get(ended.reason, EndReason.UNKNOWN)
            return Ended(reason, base_s + ended.audio_s, ended.utterances)
    return None


def transcript_of(response: pb.RecognizeResponse) -> Transcript:
    """The transcript of a recording."""
    segments = tuple(
        Segment(s.text, s.start_s, s.end_s, _words(s.words, 0.0), s.avg_logprob, s.no_speech_prob)
        for s in response.segments
    )
    return Transcript(
        response.text, segments, response.language, response.language_probability, response.duration_s
    )


def _activity(activity: pb.SpeechActivity, base_s: float) -> SpeechStarted | SpeechStopped | None:
    at_s = base_s + activity.at_s
    match activity.kind:
        case pb.SpeechActivity.KIND_SPEECH_STARTED:
            return SpeechStarted(activity.utterance_id, at_s)
        case pb.SpeechActivity.KIND_SPEECH_STOPPED:
            return SpeechStopped(activity.utterance_id, at_s)
    return None


def _partial(result: pb.StreamingResult) -> Partial:
    return Partial(
        utterance_id=result.utterance_id,
        text=result.text,
        stable_text=result.stable_text,
        unstable_text=result.unstable_text,
        confidence=result.confidence,
        language=result.language,
        timing=_timing(result.timing),
    )


def _final(result: pb.StreamingResult, base_s: float) -> Final:
    return Final(
        utterance_id=result.utterance_id,
        text=result.text,
        start_s=base_s + result.start_s,
        end_s=base_s + result.end_s,
        language=result.language,
        language_probability=result.language_probability,
        confidence=result.confidence,
        words=_words(result.words, base_s),
        replaced=tuple(Replacement(r.before, r.after) for r in result.replaced),
        timing=_timing(result.timing),
    )


def _words(words: Iterable[pb.Word], base_s: float) -> tuple[Word, ...]:
    return tuple(Word(w.text, base_s + w.start_s, base_s + w.end_s, w.probability) for w in words)


def _timing(timing: pb.DecodeTiming) -> DecodeTiming:
    return DecodeTiming(timing.buffer_wait_s, timing.queue_wait_s, timing.inference_s)


def _given(message: Message, name: str, value: _Value) -> _Value | None:
    """The value of an optional field; None where it is not set."""
    return value if message.HasField(name) else None
