"""Whisper's multilingual tokenizer as files, from the vocabulary that openai-whisper ships."""

import base64
import json
from itertools import pairwise
from pathlib import Path

import whisper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from whisper.tokenizer import get_tokenizer

LANGUAGE_COUNT = 99

PREPROCESSOR = {
    "chunk_length": 30,
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "sampling_rate": 16000,
    "nb_max_frames": 3000,
    "n_samples": 480000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
}

PROBE = " Hello, world! Olá às três. Fünf Äpfel."


def token_bytes() -> list[bytes]:
    """Return the bytes of each text token, by number."""
    lines = (Path(whisper.__file__).parent / "assets" / "multilingual.tiktoken").read_text().splitlines()
    ranks = {int(rank): base64.b64decode(token) for token, rank in (line.split() for line in lines)}
    return [ranks[number] for number in range(len(ranks))]


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` and `preprocessor_config.json`.

    Raises RuntimeError when the written tokenizer would number tokens unlike openai-whisper's.
    """
    tokenizer = _text_tokenizer(token_bytes())
    _add_special_tokens(tokenizer)
    _check(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), encoding="utf-8")


def _text_tokenizer(tokens: list[bytes]) -> Tokenizer:
    """Make a byte-level BPE. Its merges are the pairs that each longer token falls into."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    letters = _byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        parts = _merged_parts(token, ranks, below=rank)
        if len(parts) == 2:
            merges.append((spelled(parts[0]), spelled(parts[1])))
    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """Give each byte the printable letter that stands for it in a byte-level BPE (GPT-2's table)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = sorted(set(range(256)) - printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _merged_parts(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Split `token` into bytes and apply all merges of a rank lower than `below`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        joined = [left + right for left, right in pairwise(parts)]
        rank, at = min((ranks.get(pair, below), at) for at, pair in enumerate(joined))
        if rank >= below:
            break
        parts[at : at + 2] = [joined[at]]
    return parts


def _special_tokens() -> list[str]:
    reference = get_tokenizer(True, num_languages=LANGUAGE_COUNT)
    return sorted(reference.special_tokens, key=reference.special_tokens.__getitem__)


def _add_special_tokens(tokenizer: Tokenizer) -> None:
    """Add the control tokens as special, and the timestamps as ordinary text, as Whisper's own files do."""
    controls = [name for name in _special_tokens() if not _is_timestamp(name)]
    timestamps = [name for name in _special_tokens() if _is_timestamp(name)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in controls])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in timestamps])


def _is_timestamp(name: str) -> bool:
    return name.removeprefix("<|")[0].isdigit()


def _check(tokenizer: Tokenizer) -> None:
    reference = get_tokenizer(True, num_languages=LANGUAGE_COUNT)
    moved = [
        name for name, number in reference.special_tokens.items() if tokenizer.token_to_id(name) != number
    ]
    if moved or tokenizer.encode(PROBE).ids != reference.encode(PROBE):
        raise RuntimeError(f"The tokenizer differs from openai-whisper's. Moved special tokens: {moved}")
