"""The default engine: faster-whisper's tokenizer and model files, CTranslate2's encoder and decoder.

It decodes windows, not files: `core.longform` cuts the recording. Each window is encoded once, and that
encoding serves language detection, every temperature and the alignment of words.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whisper_server.core.decoding import TIMESTAMP_STEP_S, Attempt, best_attempt, split_by_timestamps
from whisper_server.core.engine import Capabilities, ComputeChoice
from whisper_server.core.errors import (
    EngineError,
    InvalidRequestError,
    ModelLoadError,
    UnsupportedByEngineError,
)
from whisper_server.core.mel import padded, window_log_mel
from whisper_server.core.types import (
    FRAME_SAMPLES,
    Decoded,
    DecodeOptions,
    LanguageProbabilities,
    Segment,
    Task,
    Window,
)
from whisper_server.engines.word_alignment import aligned_words, token_logprobs

if TYPE_CHECKING:
    from ctranslate2 import StorageView
    from faster_whisper import WhisperModel
    from faster_whisper.tokenizer import Tokenizer

NAME = "faster-whisper"

_LEAST_NEW_TOKENS = 64
"""Room that prompts leave for the text of a window."""

_MAX_BATCH = {"cpu": 8, "cuda": 16}
"""Windows of one call: beyond that a step of the decoder gains little, and all wait for the slowest."""

_CONTROL_TOKEN = re.compile(r"<\|[^|<>]*\|>")


def load(folder: Path, compute: ComputeChoice) -> "FasterWhisperEngine":
    """Load the CTranslate2 Whisper in `folder`. Blocking: seconds for large models.

    Raises:
        ModelLoadError: the files do not make a model, or the device cannot hold it.
    """
    from faster_whisper import WhisperModel

    try:
        model = WhisperModel(
            str(folder),
            device=compute.device,
            device_index=compute.device_index,
            compute_type=compute.compute_type,
            cpu_threads=compute.cpu_threads,
            num_workers=compute.workers,
            local_files_only=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        if "out of memory" in str(error).lower():
            raise ModelLoadError(
                "There is not enough memory on the device for this model. Unload another one, or choose a "
                "smaller model or compute type."
            ) from error
        raise ModelLoadError("The model's files could not be loaded.") from error
    return FasterWhisperEngine(model, compute, weights_bytes=(folder / "model.bin").stat().st_size)


@dataclass(slots=True)
class _Row:
    """A window on its way through the model."""

    index: int
    window: Window
    language: str
    language_probability: float
    tokenizer: "Tokenizer"
    prompt: list[int]


class FasterWhisperEngine:
    """A loaded CTranslate2 Whisper behind `core.engine.Engine`. Thread-safe.

    Args:
        model: the loaded model.
        compute: how it was loaded.
        weights_bytes: size of its weights.
    """

    def __init__(self, model: "WhisperModel", compute: ComputeChoice, *, weights_bytes: int) -> None:
        self._model = model
        self._whisper = model.model
        self._max_length: int = model.max_length
        self._vocabulary_size: int = model.hf_tokenizer.get_vocab_size()
        self._tokenizer = cache(self._make_tokenizer)
        self._suppressed = cache(self._suppressed_tokens)
        languages = model.supported_languages
        token_id = model.hf_tokenizer.token_to_id
        self._capabilities = Capabilities(
            engine=NAME,
            device=compute.device,
            compute_type=self._whisper.compute_type,
            languages=frozenset(code for code in languages if token_id(f"<|{code}|>") is not None)
            or frozenset(["en"]),
            translation=self._whisper.is_multilingual,
            word_timestamps=True,
            hotwords=True,
            mel_bins=self._whisper.n_mels,
            # One call more than workers: while one prepares its input, CTranslate2 has another to compute.
            parallel_calls=compute.workers + 1,
            max_batch=_MAX_BATCH[compute.device],
            weights_bytes=weights_bytes,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._capabilities

    def abort(self) -> bool:
        """A call to CTranslate2 cannot be given up: the engine is lost."""
        return False

    def close(self) -> None:
        """Free the weights."""
        self._whisper.unload_model()

    def detect_language(self, windows: Sequence[Window]) -> list[LanguageProbabilities]:
        """The probability of each language for each window, most likely first."""
        if not self._capabilities.is_multilingual:
            return [[("en", 1.0)] for _ in windows]
        with _named_faults():
            return self._detect(self._encode(windows))

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode each window. Windows that agree in all the model asks for go through it together.

        Each item of one call to the model needs the same options, timestamps on or off, and prompt length;
        language, task and prompt may differ.
        """
        for window in windows:
            self._check(window)
        results: dict[int, Decoded] = {}
        with _named_faults():
            encoded = self._encode(windows)
            rows = self._rows(windows, encoded)
            for batch in _grouped(rows, lambda r: (r.window.options, r.window.timestamps, len(r.prompt))):
                results |= self._decode_batch(batch, encoded)
        return [results[index] for index in range(len(windows))]

    def _check(self, window: Window) -> None:
        if any(token >= self._vocabulary_size for token in window.options.suppress_tokens):
            # CTranslate2 would write outside its memory.
            raise InvalidRequestError(
                f"'suppress_tokens' must be less than {self._vocabulary_size} for this model.",
                param="suppress_tokens",
                code="invalid_value",
            )
        if window.language is not None and window.language not in self._capabilities.languages:
            raise UnsupportedByEngineError(
                f"This model cannot transcribe the language '{window.language}'.",
                param="language",
                code="unsupported_language",
            )
        if window.task is Task.TRANSLATE and not self._capabilities.translation:
            raise UnsupportedByEngineError(
                "This model knows only English and cannot translate.", param="model", code="unsupported_task"
            )

    def _encode(self, windows: Sequence[Window]) -> "StorageView":
        from ctranslate2 import StorageView

        mel_bins = self._whisper.n_mels
        features = np.stack([padded(window_log_mel(window, mel_bins)) for window in windows])
        # Several GPUs: the next call may land on another one, so the encoding waits in host memory.
        to_cpu = self._whisper.device == "cuda" and len(self._whisper.device_index) > 1
        return self._whisper.encode(StorageView.from_array(features), to_cpu=to_cpu)

    def _detect(self, encoded: "StorageView") -> list[LanguageProbabilities]:
        return [
            [(token[2:-2], probability) for token, probability in row]
            for row in self._whisper.detect_language(encoded)
        ]

    def _rows(self, windows: Sequence[Window], encoded: "StorageView") -> list[_Row]:
        detected: list[LanguageProbabilities] | None = None
        if self._capabilities.is_multilingual and any(window.language is None for window in windows):
            detected = self._detect(encoded)
        rows = []
        for index, window in enumerate(windows):
            language, probability = window.language or "en", 1.0
            if window.language is None and detected is not None:
                language, probability = detected[index][0]
            tokenizer = self._tokenizer(language, window.task)
            prompt = self._prompt(window, tokenizer)
            rows.append(_Row(index, window, language, probability, tokenizer, prompt))
        return rows

    def _make_tokenizer(self, language: str, task: Task) -> "Tokenizer":
        from faster_whisper.tokenizer import Tokenizer

        multilingual = self._whisper.is_multilingual
        return Tokenizer(self._model.hf_tokenizer, multilingual, task=task.value, language=language)

    def _suppressed_tokens(self, asked: tuple[int, ...]) -> list[int]:
        from faster_whisper.transcribe import get_suppressed_tokens

        if not asked:
            return []
        tokenizer = self._tokenizer("en", Task.TRANSCRIBE)
        return list(get_suppressed_tokens(tokenizer, list(asked)))

    def _prompt(self, window: Window, tokenizer: "Tokenizer") -> list[int]:
        """The tokens the model is started with: hotwords, earlier text, what to do, a forced beginning."""
        longest = self._max_length // 2 - 1
        start = list(tokenizer.sot_sequence)
        if not window.timestamps.has_tokens:
            start.append(tokenizer.no_timestamps)
        if window.prefix:
            if window.timestamps.has_tokens:
                start.append(tokenizer.timestamp_begin)
            start += _text_tokens(tokenizer, window.prefix)[:longest]
        hotwords: list[int] = []
        if window.options.hotwords and not window.prefix:
            hotwords = _text_tokens(tokenizer, window.options.hotwords)[:longest]
        previous = _text_tokens(tokenizer, window.prompt) + list(window.previous_tokens)
        # The text before gives way: long hotwords or a long prefix would leave nothing to write into.
        room = self._max_length - _LEAST_NEW_TOKENS - len(start) - len(hotwords) - 1
        previous = previous[-min(longest, room) :] if room > 0 else []
        if not previous and not hotwords:
            return start
        return [tokenizer.sot_prev, *hotwords, *previous, *start]

    def _decode_batch(self, rows: list[_Row], encoded: "StorageView") -> dict[int, Decoded]:
        """Decode rows that share a batch key; failed rows go on together to the next temperature."""
        options = rows[0].window.options
        attempts: dict[int, list[Attempt]] = {row.index: [] for row in rows}
        accepted: dict[int, Attempt] = {}
        pending = rows
        for temperature in options.temperatures:
            for row, attempt in zip(pending, self._generate(pending, encoded, temperature), strict=True):
                attempts[row.index].append(attempt)
                if not attempt.needs_fallback(options):
                    accepted[row.index] = attempt
            pending = [row for row in pending if row.index not in accepted]
            if not pending:
                break
        for row in pending:
            accepted[row.index] = best_attempt(attempts[row.index], options)
        decoded = {row.index: self._decoded(row, accepted[row.index]) for row in rows}
        aligned = [row for row in rows if row.window.timestamps.has_words or row.window.token_logprobs]
        return decoded | self._aligned(aligned, decoded, encoded)

    def _generate(self, rows: list[_Row], encoded: "StorageView", temperature: float) -> list[Attempt]:
        options = rows[0].window.options
        if temperature > 0:
            search: dict[str, Any] = {
                "beam_size": 1,
                "num_hypotheses": options.best_of,
                "sampling_topk": 0,
                "sampling_temperature": temperature,
            }
        else:
            search = {"beam_size": options.beam_size, "patience": options.patience}
        results = self._whisper.generate(
            _take_rows(encoded, [row.index for row in rows]),
            [row.prompt for row in rows],
            length_penalty=options.length_penalty,
            repetition_penalty=options.repetition_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            max_length=self._length_limit(rows[0].prompt, options),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=options.suppress_blank,
            suppress_tokens=self._suppressed(options.suppress_tokens),
            max_initial_timestamp_index=round(options.max_initial_timestamp_s / TIMESTAMP_STEP_S),
            **search,
        )
        return [self._attempt(row, result, temperature) for row, result in zip(rows, results, strict=True)]

    def _length_limit(self, prompt: list[int], options: DecodeOptions) -> int:
        if options.max_new_tokens is None:
            return self._max_length
        limit = len(prompt) + options.max_new_tokens
        if limit > self._max_length:
            raise InvalidRequestError(
                f"The prompt takes {len(prompt)} tokens and max_new_tokens is {options.max_new_tokens}: "
                f"together more than the model's {self._max_length}. Shorten one of them.",
                param="max_new_tokens",
                code="context_length_exceeded",
            )
        return limit

    def _attempt(self, row: _Row, result: Any, temperature: float) -> Attempt:
        tokens = tuple(result.sequences_ids[0])
        # The score is the mean log-probability under the length penalty; undo that.
        total_logprob = result.scores[0] * len(tokens) ** row.window.options.length_penalty
        return Attempt(
            tokens=tokens,
            text=row.tokenizer.decode(list(tokens)),
            avg_logprob=total_logprob / (len(tokens) + 1),
            no_speech_prob=result.no_speech_prob,
            temperature=temperature,
        )

    def _decoded(self, row: _Row, attempt: Attempt) -> Decoded:
        duration_s = row.window.duration_s
        tokenizer = row.tokenizer
        split = split_by_timestamps(attempt.tokens, tokenizer.timestamp_begin, duration_s)
        is_silence = attempt.is_silence(row.window.options)
        segments = tuple(
            Segment(
                start_s=part.start_s,
                end_s=part.end_s,
                text=tokenizer.decode(list(part.tokens)),
                tokens=part.tokens,
                avg_logprob=attempt.avg_logprob,
                compression_ratio=attempt.compression_ratio,
                no_speech_prob=attempt.no_speech_prob,
                temperature=attempt.temperature,
                text_token_count=sum(token < tokenizer.eot for token in part.tokens),
            )
            for part in split.segments
        )
        return Decoded(
            segments=() if is_silence else segments,
            language=row.language,
            language_probability=row.language_probability,
            consumed_s=duration_s if is_silence else split.consumed_s,
            is_complete=is_silence or split.is_complete,
            temperature=attempt.temperature,
        )

    def _aligned(
        self, rows: list[_Row], decoded: dict[int, Decoded], encoded: "StorageView"
    ) -> dict[int, Decoded]:
        """Place words and judge tokens. One call takes rows of one language and task."""
        texts = {
            row.index: [t for s in decoded[row.index].segments for t in s.tokens if t < row.tokenizer.eot]
            for row in rows
        }
        spoken = [row for row in rows if texts[row.index]]
        finished = {}
        for same in _grouped(spoken, lambda row: tuple(row.tokenizer.sot_sequence)):
            results = self._whisper.align(
                _take_rows(encoded, [row.index for row in same]),
                same[0].tokenizer.sot_sequence,
                [texts[row.index] for row in same],
                [len(row.window.audio) // FRAME_SAMPLES for row in same],
            )
            for row, result in zip(same, results, strict=True):
                finished[row.index] = _with_alignment(row, decoded[row.index], texts[row.index], result)
        return finished


def _with_alignment(row: _Row, decoded: Decoded, text_tokens: list[int], result: Any) -> Decoded:
    segments = decoded.segments
    if row.window.token_logprobs:
        logprobs = token_logprobs(row.tokenizer, text_tokens, result)
        segments = tuple(
            replace(s, token_logprobs=tuple(islice(logprobs, s.text_token_count))) for s in segments
        )
    has_words = row.window.timestamps.has_words
    words = tuple(aligned_words(row.tokenizer, text_tokens, result)) if has_words else ()
    return replace(decoded, segments=segments, alignment=words)


def _text_tokens(tokenizer: "Tokenizer", text: str) -> list[int]:
    """The tokens of a client's text. What looks like a control token is left out: it would act as one."""
    text = _CONTROL_TOKEN.sub("", text).strip()
    return list(tokenizer.encode(" " + text)) if text else []


@contextmanager
def _named_faults() -> Iterator[None]:
    """CTranslate2's own errors as one of ours."""
    try:
        yield
    except RuntimeError as error:
        raise EngineError("The model failed on this audio.") from error


def _grouped(rows: Iterable[_Row], key: Callable[[_Row], Hashable]) -> Iterable[list[_Row]]:
    groups: dict[Hashable, list[_Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups.values()


def _take_rows(encoded: "StorageView", rows: list[int]) -> "StorageView":
    """Some rows of an encoded batch, in host memory unless they are all of it."""
    from ctranslate2 import Device, StorageView

    if rows == list(range(encoded.shape[0])):
        return encoded
    on_host = encoded if encoded.device == "cpu" else encoded.to_device(Device.cpu)
    return StorageView.from_array(np.ascontiguousarray(np.asarray(on_host)[rows]))
