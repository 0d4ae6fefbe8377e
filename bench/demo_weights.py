"""The demo model at the compute cost of whisper-tiny, -base or -small: the same transcripts, realistic speed.

Widening keeps the function and raises the cost (after Net2Net, arXiv:1511.05641). Every vector becomes
`copies` copies of itself, so a layer norm sees the same mean and variance. A weight matrix becomes
copies × copies blocks of itself divided by `copies`, so its product is again copies of the old one. Heads
keep their 32 dimensions and are repeated. Layers added behind the real ones are identities.

Sums over copies round a little differently: of the 200 test clips, decoded greedily in int8, the tiny model
writes 199 like the demo model.

The result is a CTranslate2 model folder, written with numpy alone from the float16 weights in
`bench/assets/demo_model_hf`. Run `python -m bench.demo_weights tiny models/demo-tiny`.
"""

import argparse
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Size = Literal["demo", "tiny", "base", "small"]
Weights: TypeAlias = dict[str, NDArray[Any]]
"""Tensors by their Hugging Face names, float16 or float32."""

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "bench" / "assets" / "demo_model_hf"
SHIPPED = REPOSITORY / "whisper_server" / "demo" / "model"

COPIED_FILES = ("tokenizer.json", "preprocessor_config.json")
MODEL_FILES = ("model.bin", "config.json", "vocabulary.json", *COPIED_FILES)

HEAD_WIDTH = 32
"""Numbers per attention head, at every size; OpenAI's models have 64."""

_SAFETENSORS_DTYPES: Mapping[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}

_VANISHING = np.float32(1e-20)
"""Added to a number of a residual stream, a product of this size changes no bit of its float32."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The measures of a Whisper that set its cost: vector width, and layers in each half."""

    width: int
    layers: int


SHAPES: Mapping[str, Shape] = {
    "demo": Shape(width=128, layers=2),
    "tiny": Shape(width=384, layers=4),
    "base": Shape(width=512, layers=6),
    "small": Shape(width=768, layers=12),
}


def widened_model(size: Size, target: Path, quantization: str = "int8") -> Path:
    """Write the demo model at the cost of `size` into `target`, unless a model is there already.

    `size` is "demo" for the bundled model itself, else the Whisper of that name. `target` is absent, empty or
    a complete model folder; it appears whole or not at all. A model that is there is not looked into, so give
    each size and quantization a folder of its own. `quantization` is how weights are stored, in CTranslate2's
    terms. Returns `target`. Threads and processes may race for one folder: the first wins.

    Raises ValueError for an unknown size or quantization, and FileExistsError when the folder holds something
    else than a model.
    """
    if size not in SHAPES:
        raise ValueError(f"Unknown size {size!r}. Choose one of: {', '.join(SHAPES)}.")
    if _is_complete(target):
        return target
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not a model folder and not empty. Choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        draft = Path(temporary) / "model"
        draft.mkdir()
        _write_model(SHAPES[size], draft, quantization)
        _publish(draft, target)
    return target


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in MODEL_FILES)


def _publish(draft: Path, target: Path) -> None:
    """Rename `draft` to `target`, unless another process was faster."""
    try:
        os.replace(draft, target)
    except OSError:
        if not _is_complete(target):
            raise


def _write_model(shape: Shape, folder: Path, quantization: str) -> None:
    spec = _specification(shape)
    generation = json.loads((SOURCE / "generation_config.json").read_text(encoding="utf-8"))
    spec.config.suppress_ids = generation["suppress_tokens"]
    spec.config.suppress_ids_begin = generation["begin_suppress_tokens"]
    spec.config.alignment_heads = generation["alignment_heads"]
    spec.config.lang_ids = sorted(generation["lang_to_id"].values())
    spec.register_vocabulary(json.loads((SHIPPED / "vocabulary.json").read_text(encoding="utf-8")))
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))
    for name in COPIED_FILES:
        shutil.copyfile(SHIPPED / name, folder / name)


def _specification(shape: Shape) -> Any:
    """CTranslate2's `WhisperSpec`, filled with the widened weights."""
    from ctranslate2.specs import WhisperSpec

    weights = widened_weights(SOURCE, shape)
    heads = shape.width // HEAD_WIDTH
    spec = WhisperSpec(shape.layers, heads, shape.layers, heads)
    _fill_encoder(spec.encoder, weights)
    _fill_decoder(spec.decoder, weights)
    return spec


def widened_weights(source: Path, shape: Shape) -> Weights:
    """Widen the demo model of the Hugging Face folder `source` to `shape`, a multiple of its own."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    copies = shape.width // config["d_model"]
    narrow = read_safetensors(source / "model.safetensors")
    wide = {name: _widened(name, tensor, copies) for name, tensor in narrow.items()}
    return wide | _added_layers(wide, config["encoder_layers"], shape.layers)


def read_safetensors(path: Path) -> Weights:
    """Read the tensors of a safetensors file with float16 or float32 data.

    Format (huggingface/safetensors): the header's length in 8 little-endian bytes, the header in JSON with
    each tensor's dtype, shape and byte range, then the data.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors: Weights = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = np.frombuffer(content[start + first : start + last], _SAFETENSORS_DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def _widened(name: str, tensor: NDArray[Any], copies: int) -> NDArray[Any]:
    """One tensor of the wide model."""
    if "embed_" in name:
        return np.tile(tensor, (1, copies))
    if name.endswith("conv1.weight"):  # its input is the mel spectrogram, which keeps its width
        return np.tile(tensor, (copies, 1, 1))
    if name.endswith("conv2.weight"):
        return _divided(np.tile(tensor, (copies, copies, 1)), copies)
    if tensor.ndim == 2:
        return _divided(np.tile(tensor, (copies, copies)), copies)
    wide = np.tile(tensor, copies)
    # The output projection is the embedding and sums over all copies: the norm before it makes up for that.
    return _divided(wide, copies) if ".decoder.layer_norm." in name else wide


def _divided(tensor: NDArray[Any], copies: int) -> NDArray[Any]:
    """`tensor` over `copies`, in float32: a third of a float16 is seldom a float16."""
    return tensor if copies == 1 else tensor.astype(np.float32) / np.float32(copies)


def _added_layers(weights: Weights, present: int, wanted: int) -> Weights:
    """Layers `present` to `wanted`, which leave the residual stream as it is.

    Their output projections vanish. All other weights are noise, because CTranslate2 stores equal tensors
    once: layers of zeros would share their memory, stay in the cache and flatter the speed.
    """
    noise = np.random.default_rng(seed=0)
    template = {name: tensor for name, tensor in weights.items() if ".layers.0." in name}
    added: Weights = {}
    for layer in range(present, wanted):
        for name, tensor in template.items():
            added[name.replace(".layers.0.", f".layers.{layer}.")] = _idle_tensor(name, tensor.shape, noise)
    return added


def _idle_tensor(name: str, shape: tuple[int, ...], noise: np.random.Generator) -> NDArray[np.float32]:
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if "layer_norm" in name:
        return np.ones(shape, np.float32)
    values = noise.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)
    return values * _VANISHING if re.search(r"out_proj|fc2", name) else values


def _fill_encoder(spec: Any, weights: Weights) -> None:
    for convolution, name in ((spec.conv1, "conv1"), (spec.conv2, "conv2")):
        _fill_linear(convolution, [name], "model.encoder", weights)
    _fill_stack(spec, "model.encoder", weights)


def _fill_decoder(spec: Any, weights: Weights) -> None:
    spec.scale_embeddings = False
    spec.embeddings.weight = weights["model.decoder.embed_tokens.weight"]
    spec.projection.weight = spec.embeddings.weight
    _fill_stack(spec, "model.decoder", weights)
    for layer, prefix in _layers(spec, "model.decoder"):
        _fill_linear(layer.attention.linear[0], ["q_proj"], f"{prefix}.encoder_attn", weights)
        _fill_linear(layer.attention.linear[1], ["k_proj", "v_proj"], f"{prefix}.encoder_attn", weights)
        _fill_linear(layer.attention.linear[2], ["out_proj"], f"{prefix}.encoder_attn", weights)
        _fill_norm(layer.attention.layer_norm, f"{prefix}.encoder_attn_layer_norm", weights)


def _fill_stack(spec: Any, prefix: str, weights: Weights) -> None:
    """Fill what the encoder and the decoder have alike."""
    spec.position_encodings.encodings = weights[f"{prefix}.embed_positions.weight"]
    _fill_norm(spec.layer_norm, f"{prefix}.layer_norm", weights)
    for layer, name in _layers(spec, prefix):
        attention = layer.self_attention
        _fill_linear(attention.linear[0], ["q_proj", "k_proj", "v_proj"], f"{name}.self_attn", weights)
        _fill_linear(attention.linear[1], ["out_proj"], f"{name}.self_attn", weights)
        _fill_norm(attention.layer_norm, f"{name}.self_attn_layer_norm", weights)
        _fill_linear(layer.ffn.linear_0, ["fc1"], name, weights)
        _fill_linear(layer.ffn.linear_1, ["fc2"], name, weights)
        _fill_norm(layer.ffn.layer_norm, f"{name}.final_layer_norm", weights)


def _layers(spec: Any, prefix: str) -> Iterator[tuple[Any, str]]:
    return ((layer, f"{prefix}.layers.{number}") for number, layer in enumerate(spec.layer))


def _fill_linear(spec: Any, parts: Sequence[str], prefix: str, weights: Weights) -> None:
    """Fill a projection or convolution with its parts, one below the other. Keys have no bias: zeros."""
    matrices = [weights[f"{prefix}.{part}.weight"] for part in parts]
    zeros = [np.zeros(len(matrix), np.float16) for matrix in matrices]
    names = [f"{prefix}.{part}.bias" for part in parts]
    spec.weight = np.concatenate(matrices)
    spec.bias = np.concatenate([weights.get(name, zero) for name, zero in zip(names, zeros, strict=True)])


def _fill_norm(spec: Any, name: str, weights: Weights) -> None:
    spec.gamma = weights[f"{name}.weight"]
    spec.beta = weights[f"{name}.bias"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a model folder from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo_weights", description=__doc__.split("\n")[0])
    parser.add_argument("size", choices=get_args(Size))
    parser.add_argument("target", type=Path, help="the model folder to write")
    parser.add_argument("--quantization", default="int8", help="default: %(default)s")
    options = parser.parse_args(arguments)
    print(widened_model(options.size, options.target, options.quantization))


if __name__ == "__main__":
    main()
