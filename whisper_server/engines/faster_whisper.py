"""The default engine: faster-whisper's tokenizer and model files, CTranslate2's encoder and decoder.

It decodes windows, not files: `core.longform` cuts the recording. Each window is encoded once, and that
encoding serves language detection, every temperature and the alignment of words.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_server.core.audio_context import encoder_frames
from whisper_server.core.decoding import TIMESTAMP_STEP_S, Attempt, best_attempt, split_by_timestamps
from whisper_server.core.engine import Capabilities, ComputeChoice
from whisper_server.core.errors import (
    EngineCrashedError,
    EngineError,
    EngineOutOfMemoryError,
    InvalidRequestError,
    ModelLoadError,
    UnsupportedByEngineError,
)
from whisper_server.core.scheduling import Priority
from whisper_server.core.types import (
    FRAME_SAMPLES,
    Decoded,
    LanguageProbabilities,
    Segment,
    Task,
    Window,
)
from whisper_server.engines.shared_cores import shared_cores
from whisper_server.engines.whisper_encoder import Encoder, Encodings
from whisper_server.engines.whisper_prompts import Prompts
from whisper_server.engines.word_alignment import with_alignment
from whisper_server.engines.worker_turns import WorkerTurns

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from faster_whisper.tokenizer import Tokenizer

NAME = "faster-whisper"

_MAX_BATCH = {"cpu": 8, "cuda": 16}
"""Windows of one call: beyond that a step of the decoder gains little, and all wait for the slowest."""

_SPARE_WORKERS = {"cpu": 2, "cuda": 0}
"""For calls more urgent than those that run: a short file beside a long one, and who speaks beside both.

All workers share the weights.
"""

_LOST_DEVICE = (
    "illegal memory access",
    "unspecified launch failure",
    "device-side assert",
    "misaligned address",
    "launch timed out",
)
"""CUDA errors after which every call of the process fails."""

_OUT_OF_MEMORY = ("out of memory", "alloc_failed")
"""What CUDA and cuBLAS say, in lower case."""


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
            num_workers=compute.workers + _SPARE_WORKERS[compute.device],
            local_files_only=True,
        )
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
        if _is_out_of_memory(error):
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
        spare = _SPARE_WORKERS[compute.device]
        if compute.device == "cpu":
            computing = shared_cores(compute.cores).computing
            turns = WorkerTurns(compute.workers, spare=spare, computing=computing)
        else:
            # A GPU is to find its next step in CTranslate2's own queue.
            turns = WorkerTurns(compute.workers + 1, spare=spare)
        self._encoder = Encoder(self._whisper, turns, in_batches=compute.device == "cuda")
        self._prompts = Prompts(model)
        self._vocabulary_size: int = model.hf_tokenizer.get_vocab_size()
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
            # One call more than workers: while one prepares its input, the others have something to compute.
            parallel_calls=compute.workers + 1,
            overtaking_calls=spare,
            max_batch=_MAX_BATCH[compute.device],
            weights_bytes=weights_bytes,
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._capabilities

    def wait_until_ready(self) -> None:
        """It always is."""

    def abort(self) -> bool:
        """A call to CTranslate2 cannot be given up: the engine is lost."""
        return False

    def close(self) -> None:
        """Free the weights."""
        self._whisper.unload_model()

    def detect_language(
        self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE
    ) -> list[LanguageProbabilities]:
        """The probability of each language for each window, most likely first."""
        if not self._capabilities.is_multilingual:
            return [[("en", 1.0)] for _ in windows]
        with _named_faults():
            detected = self._detected(self._encoder.encode(windows, priority), range(len(windows)))
        return [detected[index] for index in range(len(windows))]

    def decode(self, windows: Sequence[Window], priority: Priority = Priority.LONG_FILE) -> list[Decoded]:
        """Decode each window. Windows that agree in all the model asks for go through it together.

        Each row of one call to the decoder needs the same options, timestamps on or off, length of the
        encoding and of the prompt; language, task and the prompt's tokens may differ.
        """
        for window in windows:
            self._check(window)
        results: dict[int, Decoded] = {}
        with _named_faults():
            encodings = self._encoder.encode(windows, priority)
            for batch in _grouped(self._rows(windows, encodings), _row_key):
                results |= self._decode_batch(batch, encodings)
        return [results[index] for index in range(len(windows))]

    def _check(self, window: Window) -> None:
        """Refuse what the model cannot do before anything is computed."""
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
        if window.options.max_new_tokens is not None:
            tokenizer = self._prompts.tokenizer(window.language or "en", window.task)
            self._prompts.length_limit(len(self._prompts.tokens(window, tokenizer)), window.options)

    def _detected(self, encodings: Encodings, rows: Iterable[int]) -> dict[int, LanguageProbabilities]:
        detected: dict[int, LanguageProbabilities] = {}
        for group in encodings.as_encoded(list(rows)):
            for row, ranking in zip(group, encodings.detect_language(group), strict=True):
                detected[row] = [(token[2:-2], probability) for token, probability in ranking]
        return detected

    def _rows(self, windows: Sequence[Window], encodings: Encodings) -> list[_Row]:
        detected: dict[int, LanguageProbabilities] = {}
        if self._capabilities.is_multilingual:
            unknown = [index for index, window in enumerate(windows) if window.language is None]
            detected = self._detected(encodings, unknown)
        rows = []
        for index, window in enumerate(windows):
            ranking = detected.get(index) or [(window.language or "en", 1.0)]
            language, probability = ranking[0]
            tokenizer = self._prompts.tokenizer(language, window.task)
            prompt = self._prompts.tokens(window, tokenizer)
            rows.append(_Row(index, window, language, probability, tokenizer, prompt))
        return rows

    def _decode_batch(self, rows: list[_Row], encodings: Encodings) -> dict[int, Decoded]:
        """Decode rows that share a batch key; failed rows go on together to the next temperature."""
        options = rows[0].window.options
        attempts: dict[int, list[Attempt]] = {row.index: [] for row in rows}
        accepted: dict[int, Attempt] = {}
        pending = rows
        for temperature in options.temperatures:
            for row, attempt in zip(pending, self._generate(pending, encodings, temperature), strict=True):
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
        return decoded | self._aligned(aligned, decoded, encodings)

    def _generate(self, rows: list[_Row], encodings: Encodings, temperature: float) -> list[Attempt]:
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
        results = encodings.generate(
            [row.index for row in rows],
            [row.prompt for row in rows],
            length_penalty=options.length_penalty,
            repetition_penalty=options.repetition_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            max_length=self._prompts.length_limit(len(rows[0].prompt), options),
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=options.suppress_blank,
            suppress_tokens=self._prompts.suppressed(options.suppress_tokens),
            max_initial_timestamp_index=round(options.max_initial_timestamp_s / TIMESTAMP_STEP_S),
            **search,
        )
        return [self._attempt(row, result, temperature) for row, result in zip(rows, results, strict=True)]

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
        compression_ratio = attempt.compression_ratio
        segments = tuple(
            Segment(
                start_s=part.start_s,
                end_s=part.end_s,
                text=tokenizer.decode(list(part.tokens)),
                tokens=part.tokens,
                avg_logprob=attempt.avg_logprob,
                compression_ratio=compression_ratio,
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
        self, rows: list[_Row], decoded: dict[int, Decoded], encodings: Encodings
    ) -> dict[int, Decoded]:
        """Place words and judge tokens. One call takes rows of one language and task."""
        texts = {
            row.index: [t for s in decoded[row.index].segments for t in s.tokens if t < row.tokenizer.eot]
            for row in rows
        }
        spoken = [row for row in rows if texts[row.index]]
        finished = {}
        for same in _grouped(spoken, lambda row: tuple(row.tokenizer.sot_sequence)):
            by_index = {row.index: row for row in same}
            for group in encodings.as_encoded(list(by_index)):
                results = encodings.align(
                    group,
                    same[0].tokenizer.sot_sequence,
                    [texts[index] for index in group],
                    [len(by_index[index].window.audio) // FRAME_SAMPLES for index in group],
                )
                for index, result in zip(group, results, strict=True):
                    row = by_index[index]
                    finished[index] = with_alignment(
                        row.window, decoded[index], row.tokenizer, texts[index], result
                    )
        return finished


@contextmanager
def _named_faults() -> Iterator[None]:
    """CTranslate2's own errors as one of ours."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            raise EngineOutOfMemoryError(
                "There is not enough memory on the device to decode this now. Try again in a moment."
            ) from error
        if any(words in str(error).lower() for words in _LOST_DEVICE):
            raise EngineCrashedError(
                "The device has failed and the model must be loaded anew. Try again."
            ) from error
        raise EngineError("The model failed on this audio.") from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _row_key(row: _Row) -> Hashable:
    """What the rows of one call to the decoder have in common."""
    window = row.window
    return window.options, window.timestamps.has_tokens, encoder_frames(window), len(row.prompt)


def _grouped(rows: Iterable[_Row], key: Callable[[_Row], Hashable]) -> Iterable[list[_Row]]:
    groups: dict[Hashable, list[_Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups.values()
