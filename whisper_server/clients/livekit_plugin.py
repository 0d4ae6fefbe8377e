"""Speech-to-text for LiveKit agents, by this server.

    from whisper_server.clients.livekit_plugin import WhisperSTT

    session = AgentSession(stt=WhisperSTT("ws://whisper-stt:8000/ws/stt", language="pt"), ...)

It needs livekit-agents: pip install "whisper-server[livekit]".
"""

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Never, Self, TypedDict, Unpack
from urllib.parse import urlsplit, urlunsplit

try:
    import aiohttp
    from livekit import rtc
    from livekit.agents import (
        DEFAULT_API_CONNECT_OPTIONS,
        NOT_GIVEN,
        APIConnectOptions,
        APIError,
        LanguageCode,
        NotGivenOr,
        stt,
        utils,
    )
except ImportError as error:
    raise ImportError(
        'The LiveKit plugin needs livekit-agents. Install it with: pip install "whisper-server[livekit]"'
    ) from error

from whisper_server.clients.livekit_errors import api_errors, error_of_response
from whisper_server.clients.livekit_stream import WhisperStream, timed_words

DEFAULT_SERVICE_URL = "ws://localhost:8089/ws/stt"
SAMPLE_RATE_HZ = 16_000

_PATH = "/ws/stt"
_SCHEMES = {"ws": "http", "wss": "https", "http": "http", "https": "https"}
_RECOGNIZE_TIMEOUT_S = 120.0

_WIRE_NAMES = {"language": "lang_code", "interim_results": "partial_results"}
"""Options whose names differ in `config` of `start_session`."""

_FILE_OPTIONS = ("language", "model", "prompt", "decode_profile")
"""Options that `recognize` sends too, under their own names."""


class WhisperOptions(TypedDict, total=False):
    """What may be said of the recognition. What is absent or None is as the server's settings say.

    Attributes:
        language: a code such as `pt` or `pt-BR`, or a name; `auto` detects it for each utterance.
        model: name of the model.
        task: transcribe, or translate into English.
        prompt: text that went before, for style and vocabulary.
        hotwords: words to expect. The key terms of the agent session come on top.
        decode_profile: how finals are decoded.
        interim_results: tell transcripts while somebody speaks.
        word_timestamps: finals bring words with times and probabilities.
        vad_enabled: tell speech from silence; without it utterances end by flush or length.
        vad_threshold: speech starts at this probability, 0 to 1.
        min_speech_ms: shorter speech is none.
        min_silence_ms: silence that ends an utterance.
        prefix_padding_ms: audio before the speech that belongs to it.
        endpointing: `continue` ends utterances by silence, `manual` by flush alone.
        eagerness: wait longer for speakers whose text does not end a sentence: 8, 4 or 2 s.
        partial_interval_ms: least time between interim transcripts.
        max_utterance_s: a longer utterance is made final.
    """

    language: str | None
    model: str | None
    task: Literal["transcribe", "translate"] | None
    prompt: str | None
    hotwords: str | None
    decode_profile: str | None
    interim_results: bool | None
    word_timestamps: bool | None
    vad_enabled: bool | None
    vad_threshold: float | None
    min_speech_ms: int | None
    min_silence_ms: int | None
    prefix_padding_ms: int | None
    endpointing: Literal["continue", "manual"] | None
    eagerness: Literal["low", "medium", "high", "auto"] | None
    partial_interval_ms: int | None
    max_utterance_s: float | None


class WhisperSTT(stt.STT[Never]):
    """Streams over `/ws/stt`; `recognize` posts the recording to `/v1/audio/transcriptions` of the same host.

    Belongs to one event loop. `aclose` ends its streams.

    Args:
        service_url: of `/ws/stt`, with the scheme ws or wss (http and https are understood). An address
            without a path gets `/ws/stt`.
        api_key: sent as `Authorization: Bearer`, where the server has keys.
        sample_rate: of the audio sent, Hz. Frames of other rates are resampled.
        http_session: used for all connections and not closed. Without it the session of the agent's job is
            used, and outside of a job one of its own.
        options: see `WhisperOptions`.

    Raises:
        ValueError: the URL cannot be used.
        TypeError: there is no such option.
    """

    def __init__(
        self,
        service_url: str = DEFAULT_SERVICE_URL,
        *,
        api_key: str | None = None,
        sample_rate: int = SAMPLE_RATE_HZ,
        http_session: aiohttp.ClientSession | None = None,
        **options: Unpack[WhisperOptions],
    ) -> None:
        _check_names(options)
        capabilities = stt.STTCapabilities(
            streaming=True,
            interim_results=options.get("interim_results") is not False,
            aligned_transcript="chunk" if options.get("word_timestamps") is False else "word",
            keyterms=True,
        )
        capabilities.manual_flush = True  # no argument: early 1.8 does not have it
        super().__init__(capabilities=capabilities)
        self._stream_url, self._file_urls = _urls(service_url)
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._rate_hz = sample_rate
        self._options: dict[str, Any] = dict(options)
        self._key_terms: tuple[str, ...] = ()
        self._http = http_session
        self._own_http: aiohttp.ClientSession | None = None
        self._streams: weakref.WeakKeyDictionary[WhisperStream, str | None] = weakref.WeakKeyDictionary()

    async def __aenter__(self) -> Self:
        return self

    @property
    def model(self) -> str:
        """Name of the model; `unknown` where the server chooses it."""
        return self._options.get("model") or "unknown"

    @property
    def provider(self) -> str:
        """For metrics."""
        return "whisper-server"

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> WhisperStream:
        """Begin a live stream.

        Args:
            language: of this stream.
            conn_options: `timeout` is for the connection and the start of the session.
        """
        own_language = language or None
        stream = WhisperStream(
            stt=self,
            conn_options=conn_options,
            sample_rate=self._rate_hz,
            connect=self._connect,
            config=self._config(own_language),
        )
        self._streams[stream] = own_language
        return stream

    def update_options(self, **options: Unpack[WhisperOptions]) -> None:
        """Change options, also of running streams: their current utterance is heard again with the new ones.

        A language that a stream was begun with stays.

        Raises:
            TypeError: there is no such option.
        """
        _check_names(options)
        self._options |= options
        self._capabilities.interim_results = self._options.get("interim_results") is not False
        self._update_streams()

    async def aclose(self) -> None:
        """End all streams at once and close the connections."""
        for stream in list(self._streams):
            await stream.aclose()
        if self._own_http is not None:
            await self._own_http.close()
            self._own_http = None

    def _update_session_keyterms(self, keyterms: list[str]) -> None:
        self._key_terms = tuple(keyterms)
        self._update_streams()

    def _update_streams(self) -> None:
        for stream, language in list(self._streams.items()):
            stream.set_config(self._config(language))

    def _config(self, language: str | None) -> dict[str, Any]:
        """`config` of `start_session`."""
        options = self._options | ({"language": language} if language else {})
        config = {_WIRE_NAMES.get(name, name): value for name, value in options.items()}
        config |= {"sample_rate": self._rate_hz, "hotwords": self._hotwords()}
        return {name: value for name, value in config.items() if value is not None}

    def _hotwords(self) -> str | None:
        own = self._options.get("hotwords")
        return ", ".join([*([own] if own else []), *self._key_terms]) or None

    def _session(self) -> aiohttp.ClientSession:
        if self._http is not None:
            return self._http
        if self._own_http is None:
            try:
                return utils.http_context.http_session()
            except RuntimeError:  # outside of an agent's job
                self._own_http = aiohttp.ClientSession()
        return self._own_http

    def _connect(self, **options: Any) -> Any:
        return self._session().ws_connect(self._stream_url, headers=self._headers, **options)

    # Recordings

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        form = self._form(rtc.combine_audio_frames(buffer).to_wav_bytes(), language or None)
        timeout = aiohttp.ClientTimeout(total=_RECOGNIZE_TIMEOUT_S, connect=conn_options.timeout)
        url = self._file_urls[self._options.get("task") or "transcribe"]
        with api_errors():
            async with self._session().post(
                url, data=form, headers=self._headers, timeout=timeout
            ) as response:
                if response.status != 200:
                    raise await error_of_response(response)
                return _recognized(await _json(response), response.headers.get("x-request-id", ""))

    def _form(self, wav: bytes, language: str | None) -> aiohttp.FormData:
        form = aiohttp.FormData()
        form.add_field("file", wav, filename="audio.wav", content_type="audio/wav")
        form.add_field("response_format", "verbose_json")
        form.add_field("timestamp_granularities[]", "segment")
        if self._options.get("word_timestamps") is not False:
            form.add_field("timestamp_granularities[]", "word")
        values = {name: self._options.get(name) for name in _FILE_OPTIONS}
        values["hotwords"] = self._hotwords()
        values["language"] = language or values["language"]
        for name, value in values.items():
            if value:
                form.add_field(name, value)
        return form


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        return dict(await response.json())
    except (ValueError, TypeError, aiohttp.ContentTypeError) as error:
        text = "The server did not answer with a transcript. Check service_url."
        raise APIError(text, retryable=False) from error


def _recognized(answer: Mapping[str, Any], request_id: str) -> stt.SpeechEvent:
    """A `verbose_json` transcript as an event."""
    segments, words = answer.get("segments") or [], timed_words(answer.get("words") or (), 0.0)
    data = stt.SpeechData(
        language=LanguageCode(answer.get("language") or ""),
        text=answer.get("text") or "",
        start_time=segments[0]["start"] if segments else 0.0,
        end_time=segments[-1]["end"] if segments else float(answer.get("duration") or 0.0),
        confidence=_confidence(segments),
        words=words or None,
    )
    return stt.SpeechEvent(stt.SpeechEventType.FINAL_TRANSCRIPT, request_id=request_id, alternatives=[data])


def _confidence(segments: Sequence[Mapping[str, Any]]) -> float:
    """What the model gives its tokens, on average; 0 where it heard nothing."""
    if not segments:
        return 0.0
    return min(1.0, math.exp(math.fsum(each["avg_logprob"] for each in segments) / len(segments)))


def _check_names(options: Mapping[str, Any]) -> None:
    unknown = sorted(options.keys() - WhisperOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"There is no option '{unknown[0]}'. See WhisperOptions.")


def _urls(service_url: str) -> tuple[str, Mapping[str, str]]:
    """The address of live streams, and those of recordings by task."""
    parts = urlsplit(service_url)
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise ValueError(f"service_url must be like {DEFAULT_SERVICE_URL}, not '{service_url}'.")
    path = parts.path if parts.path.strip("/") else _PATH
    scheme = _SCHEMES[parts.scheme]
    live = urlunsplit((scheme.replace("http", "ws"), parts.netloc, path, parts.query, ""))
    base = path.removesuffix("/").removesuffix(_PATH)
    files = {
        "transcribe": urlunsplit((scheme, parts.netloc, f"{base}/v1/audio/transcriptions", "", "")),
        "translate": urlunsplit((scheme, parts.netloc, f"{base}/v1/audio/translations", "", "")),
    }
    return live, files
