"""A client of the gRPC service `stt.v1.SpeechToText`: live sessions that outlast a broken connection.

    async with SttClient("localhost:50051") as client:
        session = await client.create_session(SessionOptions(recognition=RecognitionOptions(language="en")))
        async with client.stream(session, chunks) as stream:
            async for event in stream:
                if isinstance(event, Final):
                    print(event.text)

docs/grpc-clients.md tells what it promises.
"""

from whisper_server.clients.grpc.client import SttClient
from whisper_server.clients.grpc.connection import ConnectionOptions, TlsOptions
from whisper_server.clients.grpc.errors import SttError
from whisper_server.clients.grpc.events import (
    AudioLost,
    DecodeTiming,
    DecodeTotals,
    Ended,
    EndReason,
    Event,
    Failure,
    Final,
    Partial,
    Reconnected,
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
from whisper_server.clients.grpc.replay_buffer import COMMIT, Commit
from whisper_server.clients.grpc.retry import RetryPolicy
from whisper_server.clients.grpc.stream import Chunks, SttStream
from whisper_server.clients.grpc.transcript import Segment, Transcript

__all__ = [
    "COMMIT",
    "AudioFormat",
    "AudioLost",
    "Chunks",
    "Commit",
    "ConnectionOptions",
    "DecodeTiming",
    "DecodeTotals",
    "Eagerness",
    "Encoding",
    "EndReason",
    "Ended",
    "Event",
    "Failure",
    "Final",
    "Partial",
    "RecognitionOptions",
    "Reconnected",
    "Replacement",
    "RetryPolicy",
    "Segment",
    "Session",
    "SessionOptions",
    "SpeechStarted",
    "SpeechStopped",
    "SttClient",
    "SttError",
    "SttStream",
    "Task",
    "TlsOptions",
    "Transcript",
    "VadMode",
    "VadOptions",
    "Word",
]
