"""The three calls of the service: each reads its message, calls a service, and answers."""

import io
import wave
from collections.abc import AsyncIterator

from anyio import to_thread

from whisper_server.api.grpc import telling
from whisper_server.api.grpc.asking import RawFormat, recognize_fields, session_wish, task_of
from whisper_server.api.grpc.calls import Call, Context, answering
from whisper_server.api.grpc.exchange import Exchange
from whisper_server.api.grpc.incoming import Incoming
from whisper_server.api.grpc.sessions import OpenSession, SessionBook, new_token
from whisper_server.api.openai.parsing import decode_file, parse_fields
from whisper_server.api.request_id import session_logging
from whisper_server.api.security import ApiKeys
from whisper_server.api.services import Services
from whisper_server.core.errors import InvalidRequestError, UnknownSessionError
from whisper_server.core.types import SAMPLE_RATE
from whisper_server.services.transcription import Transcription, collect
from whisper_server.stt_v1 import stt_pb2, stt_pb2_grpc

_UTTERANCE_PREFIX = "utt-"


class SpeechToTextServicer(stt_pb2_grpc.SpeechToTextServicer):
    """Translates between the wire and the services.

    Args:
        services: of the server.
        keys: one of them opens a call; where there are none, none is needed.
        sessions: those that were created.
    """

    def __init__(self, services: Services, keys: ApiKeys, sessions: SessionBook) -> None:
        self._services = services
        self._keys = keys
        self._sessions = sessions

    async def CreateSession(  # noqa: N802  # the name in the proto
        self, request: stt_pb2.CreateSessionRequest, context: Context
    ) -> stt_pb2.CreateSessionResponse:
        """Open a live session."""
        async with answering(context, "CreateSession", self._keys) as call:
            services = self._services
            wish = session_wish(request, services.settings)
            audio = wish.audio.converter()
            # A name may be a path, which is looked up on disk.
            model = await to_thread.run_sync(services.catalog.resolve, wish.model)
            with session_logging(wish.session_id):
                stream = await services.streams.open(
                    wish.options,
                    model,
                    caller=services.admission.caller(call.client),
                    session_id=wish.session_id,
                    attributes=wish.attributes,
                    utterance_prefix=_UTTERANCE_PREFIX,
                    # A client is slowed down by gRPC itself; sessions are limited by their number.
                    must_keep_up=False,
                )
            token = new_token() if request.require_token else ""
            self._sessions.add(OpenSession(stream, audio, call.key_name, token))
            return telling.created(wish, token, services.settings)
        raise AssertionError("the call was aborted")

    async def StreamingRecognize(  # type: ignore[override]  # noqa: N802  # it writes to the context
        self, request_iterator: AsyncIterator[stt_pb2.StreamingRecognizeRequest], context: Context
    ) -> None:
        """Take the audio of a session and tell what is heard."""
        incoming = Incoming(request_iterator)
        async with answering(context, "StreamingRecognize", self._keys, incoming) as call:
            first = await incoming.next()
            if first is None:
                raise UnknownSessionError("The first message must name a session: session_id.")
            session = self._sessions.claim(first.session_id, first.session_token, call.key_name)
            try:
                with session_logging(session.stream.id):
                    await Exchange(session, context).run(first, incoming)
            finally:
                self._sessions.release(session)

    async def Recognize(  # noqa: N802  # the name in the proto
        self, request: stt_pb2.RecognizeRequest, context: Context
    ) -> stt_pb2.RecognizeResponse:
        """Transcribe a whole recording."""
        async with answering(context, "Recognize", self._keys) as call:
            return telling.recognized(await self._transcribe(request, context, call))
        raise AssertionError("the call was aborted")

    async def _transcribe(
        self, request: stt_pb2.RecognizeRequest, context: Context, call: Call
    ) -> Transcription:
        services = self._services
        with services.requests.enter(
            call.request_id,
            "/stt.v1.SpeechToText/Recognize",
            key_name=call.key_name,
            address=call.address,
            timeout_s=context.time_remaining(),
        ) as running:
            fields = recognize_fields(request.config)
            parsed = await parse_fields(fields, services, running, task_of(request.config))
            file = io.BytesIO(request.audio)
            if request.HasField("raw"):
                file = await to_thread.run_sync(_wav, request.audio, RawFormat.of(request.raw))
            recording = await running.run(lambda: decode_file(file, parsed, services, running))
            steps = running.follow(
                services.transcriber.stream(recording, parsed.transcription),
                audio_s=recording.original_duration_s,
            )
            return await running.run(lambda: collect(steps, recording, parsed.transcription))


def _wav(audio: bytes, format: RawFormat) -> io.BytesIO:
    """Raw audio as a file, so that it goes the way of all files.

    Raises:
        InvalidRequestError: there are no whole samples, or rate or channels are out of range.
    """
    converter = format.converter()
    pcm = b"".join(part.astype("<i2").tobytes() for part in (converter.feed(audio), converter.flush()))
    if not pcm and audio:
        raise InvalidRequestError("'audio' has less than one sample.", param="audio", code="invalid_value")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(pcm)
    file.seek(0)
    return file
