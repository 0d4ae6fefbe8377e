"""The benchmark models: the bundled demo model rebuilt, and the same function at a larger model's cost."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.demo_weights import MODEL_FILES, SHAPES, SHIPPED, Size, main, widened_model

CLIPS = Path(__file__).parent / "assets" / "demo_test_set"
CLIP_COUNT = 10
TIME_TOLERANCE_S = 0.1  # five steps of Whisper's clock: sums over copies round a little differently
CTRANSLATE2_DTYPES = ("float32", "int8", "int16", "int32", "float16")


class Transcript(NamedTuple):
    text: str
    word_starts_s: list[float]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Size, Path]:
    """Build the demo and the tiny model once for the module."""
    folder = tmp_path_factory.mktemp("models")
    sizes: tuple[Size, Size] = ("demo", "tiny")
    return {size: widened_model(size, folder / size) for size in sizes}


@pytest.fixture(scope="module")
def shipped_transcripts() -> list[Transcript]:
    return list(transcripts(SHIPPED))


def transcripts(model_folder: Path) -> Iterator[Transcript]:
    """Yield what faster-whisper hears in each of the first clips."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(model_folder), device="cpu", compute_type="int8", cpu_threads=1)
    for clip in json.loads((CLIPS / "clips.json").read_text(encoding="utf-8"))[:CLIP_COUNT]:
        heard, _ = model.transcribe(
            str(CLIPS / clip["file"]), clip["language"], beam_size=1, temperature=0, word_timestamps=True
        )
        segments = list(heard)
        starts = [word.start for segment in segments for word in segment.words]
        yield Transcript("".join(segment.text for segment in segments), starts)


def tensors(model_bin: Path) -> dict[str, NDArray[Any]]:
    """Read the weights of a CTranslate2 model file; switches, which are scalars, are left out."""
    content = model_bin.read_bytes()
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        value: int = struct.unpack_from("<" + kind, content, at)[0]
        at += struct.calcsize(kind)
        return value

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return content[at - length : at - 1].decode()

    number("I"), text(), number("I")  # format version, specification and its revision
    found: dict[str, NDArray[Any]] = {}
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        dtype, size = CTRANSLATE2_DTYPES[number("B")], number("I")
        if shape:
            found[name] = np.frombuffer(content[at : at + size], dtype).reshape(shape)
        at += size
    return found


def test_the_rebuilt_demo_model_has_the_shipped_weights(models: dict[Size, Path]) -> None:
    rebuilt, shipped = tensors(models["demo"] / "model.bin"), tensors(SHIPPED / "model.bin")
    assert rebuilt.keys() == shipped.keys()
    assert len(shipped) > 50
    assert [name for name in shipped if not np.array_equal(rebuilt[name], shipped[name])] == []


@pytest.mark.parametrize("size", ["demo", "tiny"])
def test_a_widened_model_hears_what_the_shipped_one_hears(
    size: Size, models: dict[Size, Path], shipped_transcripts: list[Transcript]
) -> None:
    assert all(transcript.text for transcript in shipped_transcripts)
    for got, expected in zip(transcripts(models[size]), shipped_transcripts, strict=True):
        assert got.text == expected.text
        assert got.word_starts_s == pytest.approx(expected.word_starts_s, abs=TIME_TOLERANCE_S)


def test_the_tiny_model_has_the_measures_of_whisper_tiny(models: dict[Size, Path]) -> None:
    weights = tensors(models["tiny"] / "model.bin")
    assert weights["decoder/embeddings/weight"].shape == (51865, 384)
    assert weights["encoder/layer_3/ffn/linear_0/weight"].shape == (1536, 384)
    assert "encoder/layer_4/ffn/linear_0/weight" not in weights


def test_no_two_layers_share_their_matrices(models: dict[Size, Path]) -> None:
    weights = tensors(models["tiny"] / "model.bin")
    matrices = [name for name in weights if name.endswith("weight")]
    encoder_matrices, decoder_matrices = 2 + 4 * 4, 1 + 4 * 7
    assert len(matrices) == encoder_matrices + decoder_matrices


@pytest.mark.parametrize("size", ["demo", "tiny"])
def test_the_folder_holds_all_that_faster_whisper_needs(size: Size, models: dict[Size, Path]) -> None:
    written, shipped = models[size], SHIPPED
    assert {path.name for path in written.iterdir()} == set(MODEL_FILES)
    for name in ("config.json", "vocabulary.json", "tokenizer.json", "preprocessor_config.json"):
        assert json.loads((written / name).read_text()) == json.loads((shipped / name).read_text())


def test_a_complete_folder_is_left_alone(tmp_path: Path) -> None:
    for name in MODEL_FILES:
        (tmp_path / name).write_text("made before")
    assert widened_model("tiny", tmp_path) == tmp_path
    assert {path.read_text() for path in tmp_path.iterdir()} == {"made before"}


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a model folder"):
        widened_model("demo", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    size: Any = "huge"
    with pytest.raises(ValueError, match="Choose one of: demo, tiny, base, small"):
        widened_model(size, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a valid quantization type"):
        widened_model("demo", tmp_path / "model", quantization="int3")
    assert list(tmp_path.iterdir()) == []


def test_every_size_has_a_shape() -> None:
    assert set(get_args(Size)) == set(SHAPES)


def test_the_command_line_writes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "demo"
    main(["demo", str(target), "--quantization", "float16"])
    assert capsys.readouterr().out.strip() == str(target)
    assert tensors(target / "model.bin")["decoder/embeddings/weight"].dtype == np.float16
