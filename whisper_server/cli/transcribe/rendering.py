"""A transcript in each output format, the same whoever made it."""

from whisper_server.api.openai.responses import dump, json_transcript, verbose_transcript
from whisper_server.api.openai.transcription_request import Granularity
from whisper_server.cli.transcribe.planning import OutputFormat
from whisper_server.cli.transcribe.requesting import Wish, json_text
from whisper_server.core import formats
from whisper_server.services.transcription import Transcription


def render(
    transcription: Transcription, kind: OutputFormat, wish: Wish, *, has_logprobs: bool = False
) -> str:
    """The transcript in one format, ending with a newline.

    Args:
        transcription: with words where `wish` needs them.
        kind: the format.
        wish: how it is written down.
        has_logprobs: `json` lists the log-probability of each token.
    """
    match kind:
        case OutputFormat.TEXT:
            return transcription.text + "\n"
        case OutputFormat.JSON:
            body = json_transcript(transcription, has_logprobs=has_logprobs)
            return json_text(dump(body), wish.json_indent)
        case OutputFormat.VERBOSE_JSON:
            granularities = frozenset(Granularity if wish.has_words else [Granularity.SEGMENT])
            return json_text(dump(verbose_transcript(transcription, granularities)), wish.json_indent)
        case OutputFormat.SRT:
            return formats.srt(transcription.segments, wish.subtitles)
        case OutputFormat.VTT:
            return formats.vtt(transcription.segments, wish.subtitles)
        case OutputFormat.TSV:
            return formats.tsv(transcription.segments)
