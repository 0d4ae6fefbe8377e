"""Export a checkpoint: `python -m tools.demo_model.export build/checkpoint.pt build/demo`.

Writes `hf/` (Hugging Face, float16), `ct2/` (CTranslate2, int8) and `ggml-demo.bin` (whisper.cpp, float16).
"""

import argparse
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from whisper.audio import mel_filters

from tools.demo_model.model import (
    AUDIO_POSITIONS,
    HEADS,
    LAYERS,
    MELS,
    TEXT_POSITIONS,
    WIDTH,
    DemoWhisper,
    load_checkpoint,
)
from tools.demo_model.tokenizer import token_bytes, write_tokenizer
from tools.demo_model.vocabulary import VOCABULARY_SIZE, Vocabulary, WhisperTokens

ALIGNMENT_HEADS = [[0, 0], [1, 0], [1, 2]]
"""Layer and head of the cross-attention that follows the words best, measured on the test set."""

SPACE_TOKEN = 220
MAX_INITIAL_TIMESTAMP_INDEX = 50

HUGGING_FACE_MODULES = {
    "blocks": "layers",
    "attn": "self_attn",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn": "encoder_attn",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "mlp_ln": "final_layer_norm",
    "ln": "layer_norm",
    "ln_post": "layer_norm",
    "token_embedding": "embed_tokens",
    "positional_embedding": "embed_positions.weight",
}
"""Hugging Face's name for each module openai-whisper names otherwise."""

GGML_MAGIC = 0x67676D6C
GGML_FLOAT32, GGML_FLOAT16 = 0, 1

Weights = dict[str, Tensor]


def full_weights(model: DemoWhisper, vocabulary: Vocabulary) -> Weights:
    """Return the weights by openai-whisper's names, for the whole vocabulary, rounded to float16 values."""
    weights = model.state_dict()
    learnt = weights.pop("decoder.learnt_embeddings")
    unknown = weights.pop("decoder.unknown_embedding")
    embeddings = unknown.repeat(VOCABULARY_SIZE, 1)
    embeddings[torch.tensor(vocabulary.tokens)] = learnt
    weights["decoder.token_embedding.weight"] = embeddings
    return {name: tensor.half().float() for name, tensor in weights.items()}


def hugging_face_name(name: str) -> str:
    """Translate the name of a weight from openai-whisper's."""
    name = name.replace("mlp.0", "fc1").replace("mlp.2", "fc2")
    return ".".join(["model", *(HUGGING_FACE_MODULES.get(part, part) for part in name.split("."))])


def write_hugging_face(weights: Weights, folder: Path) -> None:
    """Write the folder that transformers loads."""
    tokens = WhisperTokens().whisper
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=VOCABULARY_SIZE,
            d_model=WIDTH,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=4 * WIDTH,
            decoder_ffn_dim=4 * WIDTH,
            bos_token_id=tokens.eot,
            eos_token_id=tokens.eot,
            pad_token_id=tokens.eot,
            decoder_start_token_id=tokens.sot,
            dtype="float16",
        )
    )
    named = {hugging_face_name(name): tensor for name, tensor in weights.items()}
    named["proj_out.weight"] = named["model.decoder.embed_tokens.weight"]
    model.load_state_dict(named)
    model.generation_config = GenerationConfig(**generation_settings(tokens))
    model.half().save_pretrained(folder)
    write_tokenizer(folder)


def generation_settings(tokens: Any) -> dict[str, Any]:
    """Return what `generation_config.json` says, from openai-whisper's tokenizer."""
    language_tokens = set(tokens.all_language_tokens)
    return {
        "bos_token_id": tokens.eot,
        "eos_token_id": tokens.eot,
        "pad_token_id": tokens.eot,
        "decoder_start_token_id": tokens.sot,
        "is_multilingual": True,
        "lang_to_id": {name: n for name, n in tokens.special_tokens.items() if n in language_tokens},
        "task_to_id": {"transcribe": tokens.transcribe, "translate": tokens.translate},
        "no_timestamps_token_id": tokens.no_timestamps,
        "prev_sot_token_id": tokens.sot_prev,
        "max_initial_timestamp_index": MAX_INITIAL_TIMESTAMP_INDEX,
        "max_length": TEXT_POSITIONS,
        "alignment_heads": ALIGNMENT_HEADS,
        "suppress_tokens": [
            *tokens.non_speech_tokens,
            tokens.transcribe,
            tokens.translate,
            tokens.sot,
            tokens.sot_prev,
            tokens.sot_lm,
            tokens.no_speech,
        ],
        "begin_suppress_tokens": [SPACE_TOKEN, tokens.eot],
        "return_timestamps": False,
    }


def write_ctranslate2(hugging_face: Path, folder: Path) -> None:
    """Convert the Hugging Face folder for CTranslate2, in int8."""
    converter = TransformersConverter(
        str(hugging_face), copy_files=["tokenizer.json", "preprocessor_config.json"]
    )
    converter.convert(str(folder), quantization="int8")


def write_ggml(weights: Weights, path: Path) -> None:
    """Write whisper.cpp's file (layout: ggml-org/whisper.cpp, `models/convert-pt-to-ggml.py`)."""
    filters = mel_filters("cpu", MELS).numpy()
    with path.open("wb") as file:
        measures = (
            VOCABULARY_SIZE,
            AUDIO_POSITIONS,
            WIDTH,
            HEADS,
            LAYERS,
            TEXT_POSITIONS,
            WIDTH,
            HEADS,
            LAYERS,
        )
        file.write(struct.pack("<12i", GGML_MAGIC, *measures, MELS, GGML_FLOAT16))
        file.write(struct.pack("<2i", *filters.shape))
        file.write(filters.astype("<f4").tobytes())
        tokens = token_bytes()
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name, tensor in weights.items():
            _write_ggml_tensor(file, name, tensor.numpy())


def _write_ggml_tensor(file: BinaryIO, name: str, values: np.ndarray) -> None:
    """Write one tensor: matrices in float16, all else in float32, as whisper.cpp expects."""
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        values = values.reshape(-1, 1)
    is_matrix = values.ndim >= 2 and "bias" not in name and "positional" not in name
    kind, dtype = (GGML_FLOAT16, "<f2") if is_matrix else (GGML_FLOAT32, "<f4")
    encoded = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(encoded), kind))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(encoded)
    file.write(values.astype(dtype).tobytes())


def main() -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_model.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path, help="folder to make")
    options = parser.parse_args()
    options.target.mkdir(parents=True)
    weights = full_weights(*load_checkpoint(options.checkpoint))
    write_hugging_face(weights, options.target / "hf")
    write_ctranslate2(options.target / "hf", options.target / "ct2")
    write_ggml(weights, options.target / "ggml-demo.bin")


if __name__ == "__main__":
    main()
