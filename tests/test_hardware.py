"""The hardware decision, row by row of docs/hardware.md."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_server.core.errors import ConfigurationError
from whisper_server.core.hardware import (
    LARGE_GPU_BYTES,
    GpuFacts,
    HardwareFacts,
    HardwareRequest,
    choose_compute,
    supported_compute_types,
)

GB = 1000**3

AMPERE = frozenset(
    {"float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16"}
)
"""What CTranslate2 lists from compute capability 8.0 on."""

TURING = frozenset({"float32", "float16", "int8", "int8_float32", "int8_float16"})
PASCAL = frozenset({"float32", "int8", "int8_float32"})
MAXWELL = frozenset({"float32"})
BLACKWELL_WITHOUT_INT8 = frozenset({"float32", "float16", "bfloat16"})

LINUX = HardwareFacts(
    system="Linux",
    architecture="x86_64",
    instruction_sets=frozenset({"AVX", "AVX2", "AVX512F"}),
    physical_cores=8,
    logical_cores=16,
    cpu_limit=None,
    memory_bytes=32 * GB,
    memory_limit_bytes=None,
    gpus=(),
    mps_available=False,
    cpu_compute_types=frozenset({"float32", "int8", "int8_float32"}),
    installed_engines=frozenset({"faster-whisper"}),
)
LINUX_WITH_BOTH = replace(LINUX, installed_engines=frozenset({"faster-whisper", "transformers"}))
MAC = replace(
    LINUX,
    system="Darwin",
    architecture="arm64",
    instruction_sets=frozenset({"NEON"}),
    logical_cores=8,
)
MAC_WITH_MPS = replace(
    MAC, mps_available=True, installed_engines=frozenset({"faster-whisper", "transformers"})
)


def gpu(
    vram_bytes: int | None, types: frozenset[str] = AMPERE, index: int = 0, name: str = "Test GPU"
) -> GpuFacts:
    return GpuFacts(index, name, vram_bytes, types)


def with_gpus(*gpus: GpuFacts, facts: HardwareFacts = LINUX) -> HardwareFacts:
    return replace(facts, gpus=gpus)


DECISIONS: dict[str, tuple[HardwareFacts, dict[str, Any], tuple[str, str, str]]] = {
    "no GPU: int8 on the CPU": (LINUX, {}, ("faster-whisper", "cpu", "int8")),
    "GPU with 24 GB": (with_gpus(gpu(24 * GB)), {}, ("faster-whisper", "cuda", "float16")),
    "GPU with exactly 8 GB": (with_gpus(gpu(LARGE_GPU_BYTES)), {}, ("faster-whisper", "cuda", "float16")),
    "GPU sold with 8 GB, 7.8 GiB reported": (
        with_gpus(gpu(int(7.8 * 1024**3))),
        {},
        ("faster-whisper", "cuda", "float16"),
    ),
    "GPU one byte short": (
        with_gpus(gpu(LARGE_GPU_BYTES - 1)),
        {},
        ("faster-whisper", "cuda", "int8_float16"),
    ),
    "GPU of unknown memory": (with_gpus(gpu(None)), {}, ("faster-whisper", "cuda", "int8_float16")),
    "small Turing": (with_gpus(gpu(6 * GB, TURING)), {}, ("faster-whisper", "cuda", "int8_float16")),
    "small Pascal has no float16": (
        with_gpus(gpu(6 * GB, PASCAL)),
        {},
        ("faster-whisper", "cuda", "int8_float32"),
    ),
    "large Pascal": (with_gpus(gpu(24 * GB, PASCAL)), {}, ("faster-whisper", "cuda", "float32")),
    "Maxwell": (with_gpus(gpu(4 * GB, MAXWELL)), {}, ("faster-whisper", "cuda", "float32")),
    "small Blackwell without int8": (
        with_gpus(gpu(7 * GB, BLACKWELL_WITHOUT_INT8)),
        {},
        ("faster-whisper", "cuda", "float16"),
    ),
    "small GPU with bfloat16 only": (
        with_gpus(gpu(7 * GB, frozenset({"bfloat16", "float32"}))),
        {},
        ("faster-whisper", "cuda", "bfloat16"),
    ),
    "GPU that lists nothing in the order": (
        with_gpus(gpu(24 * GB, frozenset({"int8"}))),
        {},
        ("faster-whisper", "cuda", "int8"),
    ),
    "GPU that CTranslate2 cannot ask": (
        with_gpus(gpu(24 * GB, frozenset())),
        {},
        ("faster-whisper", "cpu", "int8"),
    ),
    "the second GPU decides when it is set": (
        with_gpus(gpu(24 * GB), gpu(4 * GB, index=1)),
        {"device_index": 1},
        ("faster-whisper", "cuda", "int8_float16"),
    ),
    "cpu set beside a GPU": (
        with_gpus(gpu(24 * GB)),
        {"device": "cpu"},
        ("faster-whisper", "cpu", "int8"),
    ),
    "cuda set": (with_gpus(gpu(24 * GB)), {"device": "cuda"}, ("faster-whisper", "cuda", "float16")),
    "compute type set on a GPU": (
        with_gpus(gpu(24 * GB)),
        {"compute_type": "int8_bfloat16"},
        ("faster-whisper", "cuda", "int8_bfloat16"),
    ),
    "compute type set on a CPU": (LINUX, {"compute_type": "float32"}, ("faster-whisper", "cpu", "float32")),
    "the format of the model's files": (
        LINUX,
        {"compute_type": "default"},
        ("faster-whisper", "cpu", "default"),
    ),
    "CPU without int8": (
        replace(LINUX, cpu_compute_types=frozenset({"float32"})),
        {},
        ("faster-whisper", "cpu", "float32"),
    ),
    "Mac, default engine": (MAC, {}, ("faster-whisper", "cpu", "int8")),
    "Mac with MPS, default engine": (MAC_WITH_MPS, {}, ("faster-whisper", "cpu", "int8")),
    "Mac with MPS, engine auto": (MAC_WITH_MPS, {"engine": "auto"}, ("transformers", "mps", "float16")),
    "Mac with MPS, engine transformers": (
        MAC_WITH_MPS,
        {"engine": "transformers"},
        ("transformers", "mps", "float16"),
    ),
    "Mac with MPS, float32 set": (
        MAC_WITH_MPS,
        {"engine": "auto", "compute_type": "float32"},
        ("transformers", "mps", "float32"),
    ),
    "Mac with MPS, int8 set: only faster-whisper has it": (
        MAC_WITH_MPS,
        {"engine": "auto", "compute_type": "int8"},
        ("faster-whisper", "cpu", "int8"),
    ),
    "Mac with MPS, cpu set": (
        MAC_WITH_MPS,
        {"engine": "auto", "device": "cpu"},
        ("faster-whisper", "cpu", "int8"),
    ),
    "mps set, engine auto": (
        MAC_WITH_MPS,
        {"engine": "auto", "device": "mps"},
        ("transformers", "mps", "float16"),
    ),
    "mps set, engine transformers": (
        MAC_WITH_MPS,
        {"engine": "transformers", "device": "mps"},
        ("transformers", "mps", "float16"),
    ),
    "Mac without transformers, engine auto": (
        replace(MAC_WITH_MPS, installed_engines=frozenset({"faster-whisper"})),
        {"engine": "auto"},
        ("faster-whisper", "cpu", "int8"),
    ),
    "Mac whose PyTorch has no MPS, engine auto": (
        replace(MAC_WITH_MPS, mps_available=False),
        {"engine": "auto"},
        ("faster-whisper", "cpu", "int8"),
    ),
    "engine auto on Linux": (LINUX_WITH_BOTH, {"engine": "auto"}, ("faster-whisper", "cpu", "int8")),
    "engine auto, only transformers installed": (
        replace(LINUX, installed_engines=frozenset({"transformers"})),
        {"engine": "auto"},
        ("transformers", "cpu", "float32"),
    ),
    "transformers on a CPU": (
        LINUX_WITH_BOTH,
        {"engine": "transformers"},
        ("transformers", "cpu", "float32"),
    ),
    "transformers on a small GPU": (
        with_gpus(gpu(6 * GB), facts=LINUX_WITH_BOTH),
        {"engine": "transformers"},
        ("transformers", "cuda", "float16"),
    ),
}


@pytest.mark.parametrize("row", DECISIONS)
def test_the_decision_follows_the_table(row: str) -> None:
    facts, wishes, expected = DECISIONS[row]
    choice = choose_compute(facts, HardwareRequest(**wishes)).choice
    assert (choice.engine, choice.device, choice.compute_type) == expected


REFUSALS: dict[str, tuple[HardwareFacts, dict[str, Any], str]] = {
    "cuda without a device": (
        LINUX,
        {"device": "cuda"},
        "No CUDA device was found. Set WHISPER_MODEL_DEVICE=cpu or auto, or install the NVIDIA driver",
    ),
    "cuda without a device, with a driver": (
        replace(LINUX, has_nvidia_driver=True),
        {"device": "cuda"},
        "=cpu or auto. An NVIDIA driver is present, but CTranslate2 counts no CUDA device",
    ),
    "cuda on a Mac": (MAC, {"device": "cuda"}, "WHISPER_MODEL_DEVICE=cpu or auto: macOS has no CUDA."),
    "float16 on a CPU": (
        LINUX,
        {"compute_type": "float16"},
        "faster-whisper does not support the compute type float16 on cpu. "
        "Set WHISPER_MODEL_COMPUTE_TYPE to auto, default, float32, int8 or int8_float32.",
    ),
    "default with transformers": (
        LINUX_WITH_BOTH,
        {"engine": "transformers", "compute_type": "default"},
        "on cpu. Set WHISPER_MODEL_COMPUTE_TYPE to auto, bfloat16 or float32.",
    ),
    "int8 on a GPU that does not list it": (
        with_gpus(gpu(24 * GB, BLACKWELL_WITHOUT_INT8)),
        {"compute_type": "int8"},
        "int8 on CUDA device 0 (Test GPU). "
        "Set WHISPER_MODEL_COMPUTE_TYPE to auto, bfloat16, default, float16 or float32.",
    ),
    "int8 with transformers": (
        LINUX_WITH_BOTH,
        {"engine": "transformers", "compute_type": "int8"},
        "transformers does not support the compute type int8 on cpu",
    ),
    "a GPU index that is not there": (
        with_gpus(gpu(24 * GB), gpu(24 * GB, index=1)),
        {"device_index": 2},
        "There is no CUDA device 2. Set WHISPER_MODEL_DEVICE_INDEX to 0 or 1.",
    ),
    "a GPU index on a CPU": (
        LINUX,
        {"device_index": 1},
        "The device index 1 names a CUDA device, but the model computes on cpu. "
        "Set WHISPER_MODEL_DEVICE_INDEX=0.",
    ),
    "mps with faster-whisper": (
        MAC_WITH_MPS,
        {"device": "mps"},
        "faster-whisper does not compute on MPS. "
        "Set WHISPER_MODEL_DEVICE to cpu or auto, or WHISPER_MODEL_ENGINE=transformers.",
    ),
    "mps where there is none": (
        LINUX_WITH_BOTH,
        {"device": "mps", "engine": "transformers"},
        "MPS is not available: it takes a Mac with Apple Silicon",
    ),
    "mps with engine auto but without transformers": (
        MAC,
        {"device": "mps", "engine": "auto"},
        "The engine transformers is not installed. Install whisper-server[transformers], "
        "or set WHISPER_MODEL_ENGINE to faster-whisper.",
    ),
    "transformers not installed": (
        LINUX,
        {"engine": "transformers"},
        "The engine transformers is not installed. Install whisper-server[transformers]",
    ),
    "faster-whisper not installed": (
        replace(LINUX, installed_engines=frozenset()),
        {},
        "The engine faster-whisper is not installed. Install faster-whisper.",
    ),
    "no engine at all": (
        replace(LINUX, installed_engines=frozenset()),
        {"engine": "auto"},
        "No engine is installed. Install the package faster-whisper.",
    ),
    "an unknown engine": (
        LINUX,
        {"engine": "kaldi"},
        "There is no engine 'kaldi'. Set WHISPER_MODEL_ENGINE to auto, faster-whisper or transformers.",
    ),
    "an unknown device": (
        LINUX,
        {"device": "rocm"},
        "There is no device 'rocm'. Set WHISPER_MODEL_DEVICE to auto, cpu, cuda or mps; "
        "AMD GPUs go by the name cuda",
    ),
    "a negative index": (
        LINUX,
        {"device_index": -1},
        "WHISPER_MODEL_DEVICE_INDEX is negative. Set it to 0 or more.",
    ),
    "negative threads": (LINUX, {"cpu_threads": -1}, "WHISPER_MODEL_CPU_THREADS is negative."),
    "negative workers": (LINUX, {"workers": -2}, "WHISPER_MODEL_WORKERS is negative."),
    "CTranslate2 cannot be asked about the CPU": (
        replace(LINUX, cpu_compute_types=frozenset()),
        {},
        "CTranslate2 names no compute type for cpu. Reinstall the package ctranslate2.",
    ),
    "CTranslate2 cannot be asked about the GPU that was set": (
        with_gpus(gpu(24 * GB, frozenset(), name="")),
        {"device": "cuda"},
        "CTranslate2 names no compute type for CUDA device 0. Reinstall the package ctranslate2, "
        "check the GPU's driver, or set WHISPER_MODEL_DEVICE=cpu.",
    ),
}


@pytest.mark.parametrize("row", REFUSALS)
def test_what_cannot_work_is_refused_with_the_setting_to_change(row: str) -> None:
    facts, wishes, sentence = REFUSALS[row]
    with pytest.raises(ConfigurationError) as caught:
        choose_compute(facts, HardwareRequest(**wishes))
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("physical", "limit", "wishes", "expected"),
    [
        (1, None, {}, (1, 1)),
        (2, None, {}, (2, 1)),
        (3, None, {}, (2, 1)),
        (4, None, {}, (2, 1)),
        (6, None, {}, (3, 1)),
        (64, None, {}, (32, 1)),
        (64, 8.0, {}, (4, 1)),
        (64, 2.9, {}, (2, 1)),
        (64, 1.5, {}, (1, 1)),
        (64, 0.25, {}, (1, 1)),
        (4, 8.0, {}, (2, 1)),
        (8, None, {"cpu_threads": 7}, (7, 1)),
        (8, None, {"workers": 2}, (4, 2)),
        (8, None, {"workers": 4}, (2, 4)),
        (8, None, {"workers": 20}, (1, 20)),
        (8, None, {"cpu_threads": 3, "workers": 2}, (3, 2)),
    ],
)
def test_threads_and_workers_fit_the_cores_the_process_may_use(
    physical: int, limit: float | None, wishes: dict[str, Any], expected: tuple[int, int]
) -> None:
    facts = replace(LINUX, physical_cores=physical, logical_cores=2 * physical, cpu_limit=limit)
    choice = choose_compute(facts, HardwareRequest(**wishes)).choice
    assert (choice.cpu_threads, choice.workers) == expected


def test_more_threads_than_cores_on_a_cpu_are_warned_about() -> None:
    decision = choose_compute(LINUX, HardwareRequest(cpu_threads=3, workers=3))
    assert any("9 threads" in warning and "8 usable cores" in warning for warning in decision.warnings)


def test_more_threads_than_cores_beside_a_gpu_are_not_warned_about() -> None:
    decision = choose_compute(with_gpus(gpu(24 * GB)), HardwareRequest(cpu_threads=3, workers=3))
    assert decision.warnings == ()


def test_threads_that_just_fit_are_not_warned_about() -> None:
    assert choose_compute(LINUX, HardwareRequest(cpu_threads=4, workers=2)).warnings == ()


def test_a_format_the_gpu_does_not_list_is_named_in_the_reasons() -> None:
    facts = with_gpus(gpu(7 * GB, BLACKWELL_WITHOUT_INT8, name="RTX 5050"))
    reasons = choose_compute(facts, HardwareRequest()).reasons
    assert (
        "The compute type is float16: the GPU has 7.0 GB of memory, less than 8, which calls for "
        "int8_float16, but CTranslate2 does not list that as supported on CUDA device 0 (RTX 5050)."
    ) in reasons


def test_a_driver_whose_gpus_ctranslate2_does_not_count_is_warned_about() -> None:
    decision = choose_compute(replace(LINUX, has_nvidia_driver=True), HardwareRequest())
    assert decision.choice.device == "cpu"
    assert "libcublas.so.12" in decision.warnings[0]
    assert "CUDA_VISIBLE_DEVICES" in decision.warnings[0]


def test_a_gpu_left_aside_by_the_operator_is_not_warned_about() -> None:
    facts = replace(LINUX, has_nvidia_driver=True)
    assert choose_compute(facts, HardwareRequest(device="cpu")).warnings == ()


def test_a_gpu_that_cannot_be_used_is_warned_about_when_the_cpu_takes_over() -> None:
    decision = choose_compute(with_gpus(gpu(8 * GB, frozenset(), name="Old GPU")), HardwareRequest())
    assert decision.warnings == ("CUDA device 0 (Old GPU) is there but cannot be used. Check its driver.",)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_missing_cublas_is_warned_about_where_ctranslate2_computes_on_the_gpu(device: str) -> None:
    facts = replace(
        with_gpus(gpu(24 * GB), facts=LINUX_WITH_BOTH),
        missing_cuda_libraries=frozenset({"libcublas.so.12"}),
    )
    warnings = choose_compute(facts, HardwareRequest(device=device)).warnings
    assert any("libcublas.so.12" in warning and "LD_LIBRARY_PATH" in warning for warning in warnings)
    assert choose_compute(facts, HardwareRequest(device=device, engine="transformers")).warnings == ()
    assert choose_compute(facts, HardwareRequest(device="cpu")).warnings == ()


@pytest.mark.parametrize(
    ("instruction_sets", "is_warned"),
    [({"SSE4_1", "AVX"}, True), ({"AVX", "AVX2"}, False), ({"AVX512F"}, False), (set(), False)],
)
def test_an_x86_cpu_known_to_lack_avx2_is_warned_about(instruction_sets: set[str], is_warned: bool) -> None:
    decision = choose_compute(replace(LINUX, instruction_sets=frozenset(instruction_sets)), HardwareRequest())
    assert any("AVX2" in warning for warning in decision.warnings) == is_warned


def test_a_device_that_is_not_there_supports_nothing() -> None:
    assert supported_compute_types(LINUX, "faster-whisper", "cuda", 3) == frozenset()


COMPUTE_TYPES = (*sorted(AMPERE), "int16")


@st.composite
def any_facts(draw: st.DrawFn) -> HardwareFacts:
    """Facts of a machine with at least one engine and a CPU that CTranslate2 knows."""
    types = st.frozensets(st.sampled_from(COMPUTE_TYPES))
    count = draw(st.integers(0, 3))
    gpus = tuple(
        GpuFacts(index, "GPU", draw(st.none() | st.integers(0, 200 * GB)), draw(types))
        for index in range(count)
    )
    return HardwareFacts(
        system=draw(st.sampled_from(["Linux", "Darwin", "Windows"])),
        architecture=draw(st.sampled_from(["x86_64", "arm64", "riscv64"])),
        instruction_sets=draw(st.frozensets(st.sampled_from(["AVX", "AVX2", "NEON"]))),
        physical_cores=draw(st.integers(1, 256)),
        logical_cores=draw(st.integers(1, 512)),
        cpu_limit=draw(st.none() | st.floats(0.001, 512)),
        memory_bytes=draw(st.none() | st.integers(0, 1 << 50)),
        memory_limit_bytes=draw(st.none() | st.integers(0, 1 << 50)),
        gpus=gpus,
        mps_available=draw(st.booleans()),
        cpu_compute_types=draw(types.filter(bool)),
        installed_engines=draw(
            st.frozensets(st.sampled_from(["faster-whisper", "transformers"]), min_size=1)
        ),
        has_nvidia_driver=draw(st.booleans()),
        missing_cuda_libraries=draw(st.frozensets(st.just("libcublas.so.12"))),
    )


@given(facts=any_facts(), workers=st.integers(0, 8))
def test_an_automatic_request_always_gets_a_choice_that_can_work(facts: HardwareFacts, workers: int) -> None:
    decision = choose_compute(facts, HardwareRequest(engine="auto", workers=workers))
    choice = decision.choice
    supported = supported_compute_types(facts, choice.engine, choice.device, choice.device_index)
    assert choice.engine in facts.installed_engines
    assert choice.compute_type in supported
    assert choice.workers == (workers or 1)
    assert choice.cores == facts.usable_cores
    assert choice.cpu_threads >= 1
    assert choice.cpu_threads * choice.workers <= max(facts.usable_cores, choice.workers)
    assert choice.device != "mps" or (choice.engine == "transformers" and facts.mps_available)
    assert len(decision.reasons) == 4
