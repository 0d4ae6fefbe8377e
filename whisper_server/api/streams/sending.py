"""Audio from a client's message to its stream."""

from whisper_server.core.errors import ChunkTooLongError
from whisper_server.services.pcm_input import AudioBytes
from whisper_server.services.raw_audio import RawAudio
from whisper_server.services.streaming import LiveStream

_PIECE_BYTES = 64 << 10
"""Audio converted at once: a message of megabytes must not hold up the others."""


async def send_message(stream: LiveStream, audio: RawAudio, data: AudioBytes) -> None:
    """Convert the audio of one message and bring it to a stream, as fast as that takes it.

    Raises:
        ChunkTooLongError: more than the stream's `max_chunk_ms`; nothing of it is taken.
        WhisperServerError: as `LiveStream.send`.
    """
    longest_ms = stream.options.max_chunk_ms
    if longest_ms is not None and audio.duration_s(len(data)) * 1000 > longest_ms:
        raise ChunkTooLongError(f"One message may bring {longest_ms} ms of audio. Send smaller ones.")
    for start in range(0, len(data), _PIECE_BYTES):
        await stream.send(audio.feed(data[start : start + _PIECE_BYTES]))
