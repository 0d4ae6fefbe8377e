"""Widen a Hugging Face export for transformers: `python -m tools.demo_model.widen HF_FOLDER SIZE TARGET`.

The same function at the compute cost of a larger Whisper; `bench/demo_weights.py` says how, and writes
CTranslate2 models without torch.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from bench.demo_weights import COPIED_FILES, HEAD_WIDTH, SHAPES, Shape, widened_weights


def widen(source: Path, shape: Shape, target: Path) -> None:
    """Write the model of the folder `source` to `target`, at the width and depth of `shape`."""
    config = WhisperConfig.from_pretrained(source)
    config.update(
        {
            "d_model": shape.width,
            "encoder_layers": shape.layers,
            "decoder_layers": shape.layers,
            "encoder_attention_heads": shape.width // HEAD_WIDTH,
            "decoder_attention_heads": shape.width // HEAD_WIDTH,
            "encoder_ffn_dim": 4 * shape.width,
            "decoder_ffn_dim": 4 * shape.width,
        }
    )
    weights = {name: torch.from_numpy(tensor) for name, tensor in widened_weights(source, shape).items()}
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig.from_pretrained(source)
    model.half().save_pretrained(target)
    for name in COPIED_FILES:
        shutil.copyfile(source / name, target / name)


def main() -> None:
    """Widen from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo_model.widen", description=__doc__)
    parser.add_argument("source", type=Path, help="the hf folder of an export")
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("target", type=Path, help="folder to make")
    options = parser.parse_args()
    widen(options.source, SHAPES[options.size], options.target)


if __name__ == "__main__":
    main()
