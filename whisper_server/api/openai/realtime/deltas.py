"""The text of one utterance as it is sent: pieces that are never taken back, then the whole."""

from whisper_server.core.stream_events import FinalTranscript


class SentText:
    """What a client has been told of an utterance. All deltas joined are the transcript."""

    def __init__(self) -> None:
        self._sent = ""

    def grow(self, stable_text: str) -> str:
        """The delta that tells stable text; empty where there is nothing new."""
        # White space at the end waits for what follows, since a transcript ends without it.
        grown = stable_text.rstrip()
        if not grown.startswith(self._sent):
            return ""
        delta, self._sent = grown[len(self._sent) :], grown
        return delta

    def finish(self, final: FinalTranscript) -> tuple[str, str]:
        """The last delta, and the transcript.

        That is the final's text unless it contradicts what was sent: then it is what was sent, with the
        final's continuation.
        """
        transcript = final.text
        if not transcript.startswith(self._sent):
            transcript = (final.stable_text + final.continuation).rstrip()
        if not transcript.startswith(self._sent):
            transcript = self._sent
        delta, self._sent = transcript[len(self._sent) :], transcript
        return delta, transcript
