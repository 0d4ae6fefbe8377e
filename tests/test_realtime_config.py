"""A realtime session's configuration: partial updates in both shapes, and what a stream is asked for."""

from typing import Any

import pytest
from openai.types.beta.realtime import TranscriptionSession
from openai.types.realtime import RealtimeTranscriptionSessionCreateResponse

from tests.live_server import make_settings
from whisper_server.api.openai.realtime.config import LOGPROBS, WORDS, Dialect, RealtimeConfig
from whisper_server.api.openai.realtime.options import config_defaults, stream_options
from whisper_server.api.openai.realtime.updates import updated
from whisper_server.config import Settings
from whisper_server.core.errors import InvalidRequestError
from whisper_server.core.stream_events import Eagerness, Endpointing, StreamOptions
from whisper_server.services.pcm_input import PcmFormat

Json = dict[str, Any]


def fresh(settings: Settings | None = None, model: str = "") -> RealtimeConfig:
    return RealtimeConfig.new(config_defaults(settings or make_settings()), model)


def ga(**sections: Any) -> Json:
    return {"type": "transcription", "audio": {"input": sections}}


def after(*sessions: Json, settings: Settings | None = None) -> RealtimeConfig:
    config = fresh(settings)
    for session in sessions:
        config = updated(config, session)
    return config


def read(config: RealtimeConfig) -> Json:
    """The audio input of the GA shape."""
    section: Json = config.in_shape(Dialect.GA)["audio"]["input"]
    return section


def options(config: RealtimeConfig, settings: Settings | None = None) -> StreamOptions:
    return stream_options(config, settings or make_settings(), has_live_deltas=True)


def refusal(session: Any) -> tuple[str | None, str | None]:
    with pytest.raises(InvalidRequestError) as caught:
        after(session)
    return caught.value.param, caught.value.code


# What clients read


def test_a_fresh_session_has_the_settings_as_its_defaults() -> None:
    settings = make_settings(vad={"threshold": 0.4, "min_silence_ms": 650})
    assert fresh(settings).in_shape(Dialect.GA) == {
        "type": "transcription",
        "include": [],
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24000},
                "transcription": {"model": "demo", "language": None, "prompt": ""},
                "noise_reduction": None,
                "turn_detection": {
                    "type": "server_vad",
                    "threshold": 0.4,
                    "prefix_padding_ms": 300,
                    "silence_duration_ms": 650,
                    "idle_timeout_ms": None,
                },
            }
        },
    }


def test_both_shapes_are_the_sdk_s() -> None:
    config = after(ga(noise_reduction={"type": "near_field"}, transcription={"language": "de"}))
    known = {"id": "sess_1", "object": "realtime.transcription_session"}
    whole = RealtimeTranscriptionSessionCreateResponse.model_validate(known | config.in_shape(Dialect.GA))
    assert whole.audio is not None
    assert whole.audio.input is not None
    assert whole.audio.input.transcription is not None
    assert whole.audio.input.transcription.language == "de"
    flat = config.in_shape(Dialect.BETA)
    secret = {"client_secret": {"value": "ek_1", "expires_at": 1}}
    flat["input_audio_transcription"]["model"] = "whisper-1"  # the beta types know OpenAI's models only
    beta = TranscriptionSession.model_validate(flat | secret)
    assert beta.input_audio_format == "pcm16"
    assert beta.turn_detection is not None
    assert beta.turn_detection.silence_duration_ms == 500


# Updates


def test_what_an_update_leaves_out_stays_and_null_clears() -> None:
    config = after(ga(transcription={"language": "de", "prompt": "Names", "keywords": ["Rust"]}))
    config = updated(config, ga(transcription={"prompt": "Other"}, turn_detection={"threshold": 0.7}))
    config = updated(config, {"include": [LOGPROBS]})
    assert read(config)["transcription"] == {
        "model": "demo",
        "language": "de",
        "prompt": "Other",
        "keywords": ["Rust"],
    }
    assert read(config)["turn_detection"]["threshold"] == 0.7
    config = updated(
        config,
        ga(transcription={"language": None, "keywords": None}, turn_detection=None) | {"include": None},
    )
    assert read(config)["transcription"] == {"model": "demo", "language": None, "prompt": "Other"}
    assert read(config)["turn_detection"] is None
    assert config.include == ()
    config = updated(config, ga(transcription=None, turn_detection={}, format=None))
    assert read(config) == read(fresh())


def test_null_in_turn_detection_goes_back_to_the_setting() -> None:
    settings = make_settings(vad={"threshold": 0.4})
    config = after(ga(turn_detection={"threshold": 0.9, "idle_timeout_ms": 5000}), settings=settings)
    config = updated(config, ga(turn_detection={"threshold": None, "idle_timeout_ms": None}))
    assert read(config)["turn_detection"]["threshold"] == 0.4
    assert read(config)["turn_detection"]["idle_timeout_ms"] is None


def test_another_type_begins_anew() -> None:
    config = after(
        ga(
            turn_detection={"type": "semantic_vad", "eagerness": "high", "create_response": True},
            noise_reduction={"type": "far_field", "strength": 0.5},
            format={"type": "audio/pcm", "rate": 16000},
        )
    )
    assert read(config)["turn_detection"] == {"type": "semantic_vad", "eagerness": "high"}
    config = updated(config, ga(noise_reduction={"type": "far_field"}))
    assert read(config)["noise_reduction"] == {"type": "far_field", "strength": 0.5}
    config = updated(config, ga(format={"type": "audio/pcmu"}, turn_detection={"type": "server_vad"}))
    assert read(config)["format"] == {"type": "audio/pcmu"}
    assert read(config)["turn_detection"] == read(fresh())["turn_detection"]


def test_the_beta_shape_says_the_same_as_the_other() -> None:
    flat = after(
        {
            "input_audio_format": "g711_alaw",
            "input_audio_transcription": {"model": "whisper-1", "language": "pt"},
            "input_audio_noise_reduction": {"type": "near_field"},
            "turn_detection": {"silence_duration_ms": 700},
            "include": [LOGPROBS],
            "modalities": ["text"],
        }
    )
    nested = after(
        ga(
            format={"type": "audio/pcma"},
            transcription={"model": "whisper-1", "language": "pt"},
            noise_reduction={"type": "near_field"},
            turn_detection={"type": "server_vad", "silence_duration_ms": 700},
        )
        | {"include": [LOGPROBS]}
    )
    assert flat == nested
    shown = flat.in_shape(Dialect.BETA)
    assert shown["input_audio_format"] == "g711_alaw"
    assert after(shown).in_shape(Dialect.BETA) == shown


def test_an_object_left_null_by_a_serializer_changes_nothing() -> None:
    config = after(ga(transcription={"language": "de"}))
    assert updated(config, {"audio": None}) == config
    assert updated(config, {"audio": {"input": None}}) == config


def test_language_and_languages_take_each_other_s_place() -> None:
    config = after(ga(transcription={"language": "de"}), ga(transcription={"languages": ["en", "pt"]}))
    assert read(config)["transcription"]["language"] is None
    assert options(config).languages == ("en", "pt")
    config = updated(config, ga(transcription={"language": "en"}))
    assert "languages" not in read(config)["transcription"]
    assert (options(config).language, options(config).languages) == ("en", ())


def test_models_whose_clients_commit_have_no_turn_detection_unless_they_ask_for_it() -> None:
    config = after(ga(transcription={"model": "gpt-live-transcribe"}))
    assert config.turn_detection is None
    assert updated(config, ga(transcription={"model": "demo"})).turn_detection is not None
    assert updated(config, ga(turn_detection={"type": "server_vad"})).turn_detection is not None


def test_an_empty_model_is_the_default() -> None:
    assert read(after(ga(transcription={"model": ""})))["transcription"]["model"] == "demo"


@pytest.mark.parametrize(
    ("session", "param", "code"),
    [
        (None, "session", "invalid_value"),
        ([], "session", "invalid_value"),
        ({"type": "realtime", "instructions": "Talk"}, "session.type", "invalid_parameter"),
        ({"type": "other"}, "session.type", "unsupported_value"),
        ({"audio": 1}, "session.audio", "invalid_value"),
        ({"audio": {"input": "x"}}, "session.audio.input", "invalid_value"),
        (ga(format={"type": "audio/opus"}), "session.audio.input.format.type", "invalid_value"),
        (ga(format={"rate": 1}), "session.audio.input.format.rate", "invalid_value"),
        ({"input_audio_format": "mp3"}, "session.input_audio_format", "unsupported_value"),
        (
            ga(turn_detection={"threshold": 1.5}),
            "session.audio.input.turn_detection.threshold",
            "invalid_value",
        ),
        ({"turn_detection": {"type": "magic"}}, "session.turn_detection.type", "unsupported_value"),
        (
            ga(turn_detection={"type": "semantic_vad", "eagerness": "wild"}),
            "session.audio.input.turn_detection.eagerness",
            "invalid_value",
        ),
        (
            ga(transcription={"language": "klingon"}),
            "session.audio.input.transcription.language",
            "unsupported_language",
        ),
        (
            ga(transcription={"languages": ["en", "xx"]}),
            "session.audio.input.transcription.languages",
            "unsupported_language",
        ),
        (
            ga(transcription={"language": "en", "languages": ["de"]}),
            "session.audio.input.transcription.languages",
            "invalid_value",
        ),
        (
            ga(transcription={"prompt": "half \ud83d"}),
            "session.audio.input.transcription.prompt",
            "invalid_value",
        ),
        (
            ga(transcription={"prompt": "x" * 20_000}),
            "session.audio.input.transcription.prompt",
            "invalid_value",
        ),
        (
            {"input_audio_transcription": {"keywords": [1]}},
            "session.input_audio_transcription.keywords.0",
            "invalid_value",
        ),
        (ga(noise_reduction={}), "session.audio.input.noise_reduction.type", "invalid_value"),
        ({"include": "all"}, "session.include", "invalid_value"),
        ({"include": ["item.magic"]}, "session.include", "unsupported_value"),
    ],
)
def test_a_wrong_field_is_named(session: Any, param: str, code: str) -> None:
    assert refusal(session) == (param, code)


# What a stream is asked for


def test_turn_detection_becomes_endpointing() -> None:
    assert options(fresh()).endpointing is Endpointing.CONTINUE
    assert options(fresh()).eagerness is None
    turns = {
        "threshold": 0.8,
        "prefix_padding_ms": 600,
        "silence_duration_ms": 350,
        "idle_timeout_ms": 6000,
    }
    asked = options(after(ga(turn_detection=turns)))
    assert (asked.voice.threshold, asked.voice.prefix_padding_ms, asked.voice.min_silence_ms) == (
        0.8,
        600,
        350,
    )
    assert asked.silence_timeout_s == 6.0
    manual = options(after(ga(turn_detection=None)))
    assert manual.endpointing is Endpointing.MANUAL
    semantic = options(after(ga(turn_detection={"type": "semantic_vad", "eagerness": "low"})))
    assert semantic.eagerness is Eagerness.LOW
    assert semantic.endpointing is Endpointing.CONTINUE


def test_without_voice_detection_in_the_settings_clients_commit_or_ask_for_it() -> None:
    settings = make_settings(vad={"enabled": False})
    assert options(fresh(settings), settings).endpointing is Endpointing.MANUAL
    assert not options(fresh(settings), settings).voice.enabled
    asked = options(after(ga(turn_detection={}), settings=settings), settings)
    assert asked.endpointing is Endpointing.CONTINUE
    assert asked.voice.enabled


def test_what_the_transcription_is_told_reaches_the_stream() -> None:
    config = after(
        ga(transcription={"language": "de-AT", "prompt": "Names", "keywords": ["Rust", "Zig"]})
        | {"include": [LOGPROBS, WORDS]}
    )
    asked = options(config)
    assert (asked.language, asked.prompt, asked.hotwords) == ("de", "Names", "Rust, Zig")
    assert asked.token_logprobs
    assert asked.word_timestamps
    plain = options(fresh())
    assert not plain.token_logprobs
    assert not plain.word_timestamps


def test_the_language_is_the_setting_s_unless_the_client_says_otherwise() -> None:
    settings = make_settings(model={"language": "pt"})
    assert options(fresh(settings), settings).language == "pt"
    held = make_settings(model={"languages": ("pt", "pt", "en")})
    assert options(fresh(held), held).languages == ("pt", "pt", "en")
    told = after(ga(transcription={"language": "de"}), settings=held)
    assert (options(told, held).language, options(told, held).languages) == ("de", ())
    detect = after(ga(transcription={"language": "auto"}), settings=settings)
    assert options(detect, settings).language is None
    one = after(ga(transcription={"languages": ["de"]}), settings=settings)
    assert options(one, settings).language == "de"


def test_the_decode_profile_is_the_one_for_live_streams() -> None:
    settings = make_settings(model={"default_decode_profile": "accurate"})
    assert options(fresh(settings), settings).final_decode.beam_size == 5
    assert options(fresh()).final_decode.beam_size == 1


def test_the_format_says_how_audio_is_read() -> None:
    assert fresh().format.rate_hz == 24000
    config = after(ga(format={"type": "audio/pcmu"}))
    assert (config.format.pcm, config.format.rate_hz) == (PcmFormat.PCMU, 8000)
    config = updated(config, ga(format={"type": "audio/pcm", "rate": 16000}))
    assert (config.format.pcm, config.format.rate_hz) == (PcmFormat.S16LE, 16000)
