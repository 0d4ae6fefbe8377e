"""Where a model computes: facts about the machine and the operator's wishes in, one choice out.

Pure: `engines/hardware_probe.py` gathers the facts. The rules stand in docs/hardware.md.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from whisper_server.core.engine import ComputeChoice
from whisper_server.core.errors import ConfigurationError

AUTO = "auto"
"""The value of a setting that leaves the choice to the server."""

DEFAULT = "default"
"""The compute type that keeps the format of the model's files, or what CTranslate2 finds nearest to it."""

FASTER_WHISPER = "faster-whisper"
TRANSFORMERS = "transformers"

LARGE_GPU_BYTES = 8 * 1000**3
"""GPU memory from which weights stay in 16 bits.

Decimal on purpose: a card sold with 8 GB reports a little less than 8 GiB, for the driver keeps some.
"""

_DEVICES_OF_ENGINE = {
    FASTER_WHISPER: ("cpu", "cuda"),
    TRANSFORMERS: ("cpu", "cuda", "mps"),
}
"""Known engines, in the order the automatic choice prefers them, and the devices each computes on."""

_DEVICES = ("cpu", "cuda", "mps")

_TRANSFORMERS_TYPES = {
    "cpu": frozenset({"float32", "bfloat16"}),
    "cuda": frozenset({"float32", "float16", "bfloat16"}),
    "mps": frozenset({"float32", "float16"}),
}

_CPU_ORDER = ("int8", "int8_float32", "float32")
_LARGE_GPU_ORDER = ("float16", "bfloat16", "float32")
_SMALL_GPU_ORDER = ("int8_float16", "int8_bfloat16", "int8_float32", "float16", "bfloat16", "float32")
_TRANSFORMERS_ORDERS = {
    "cpu": ("float32",),
    "cuda": _LARGE_GPU_ORDER,
    "mps": ("float16", "float32"),
}


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One CUDA device, as CTranslate2 counts it.

    Attributes:
        index: its number, after `CUDA_VISIBLE_DEVICES`.
        name: as the driver gives it; empty where unknown.
        vram_bytes: its memory, or None where unknown.
        supported_compute_types: what CTranslate2 computes well on it; empty where it cannot be asked.
    """

    index: int
    name: str
    vram_bytes: int | None
    supported_compute_types: frozenset[str]


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    """What is known of the machine and of what the process may use of it.

    Attributes:
        system: `Linux`, `Darwin` or another name `platform.system()` gives.
        architecture: `x86_64`, `arm64` or another.
        instruction_sets: vector instructions that matter here, such as `AVX2`, `AVX512F`, `NEON`; empty
            where unknown.
        physical_cores: cores of the machine; the logical ones where the difference is unknown.
        logical_cores: hardware threads of the machine.
        cpu_limit: cores the process may keep busy, from its cgroup's quota and its affinity; None
            where nothing limits it.
        memory_bytes: memory of the machine, or None where unknown.
        memory_limit_bytes: the cgroup's limit, or None.
        gpus: CUDA devices.
        mps_available: this is a Mac with Apple Silicon, and PyTorch can compute on its GPU.
        cpu_compute_types: what CTranslate2 computes well on the CPU.
        installed_engines: engines whose packages are installed.
        has_nvidia_driver: the kernel has an NVIDIA driver, whatever CTranslate2 counts.
        missing_cuda_libraries: libraries CTranslate2's wheels open on the first inference on a GPU
            and the loader does not find; looked for only where there is a GPU.
        cpu_name: model of the processor; empty where unknown.
    """

    system: str
    architecture: str
    instruction_sets: frozenset[str]
    physical_cores: int
    logical_cores: int
    cpu_limit: float | None
    memory_bytes: int | None
    memory_limit_bytes: int | None
    gpus: tuple[GpuFacts, ...]
    mps_available: bool
    cpu_compute_types: frozenset[str]
    installed_engines: frozenset[str]
    has_nvidia_driver: bool = False
    missing_cuda_libraries: frozenset[str] = frozenset()
    cpu_name: str = ""

    @property
    def usable_cores(self) -> int:
        """Whole cores the process can keep busy, at least 1."""
        limit = math.inf if self.cpu_limit is None else self.cpu_limit
        return max(1, math.floor(min(self.physical_cores, limit)))


@dataclass(frozen=True, slots=True)
class HardwareRequest:
    """What the operator set. `auto` and 0 leave the choice to the server.

    Attributes:
        engine: `faster-whisper`, `transformers` or `auto`.
        device: `cpu`, `cuda`, `mps` or `auto`.
        device_index: which GPU.
        compute_type: CTranslate2's name of a number format, `default` or `auto`.
        cpu_threads: threads of one worker, or 0.
        workers: calls that run in parallel, or 0.
    """

    engine: str = FASTER_WHISPER
    device: str = AUTO
    device_index: int = 0
    compute_type: str = AUTO
    cpu_threads: int = 0
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """The choice, and why.

    Attributes:
        choice: where and how the model computes.
        reasons: a sentence for each part of the choice.
        warnings: sentences about what works but is likely not what the operator wants.
        is_workers_set: the operator gave the number of workers; nothing may change it.
        is_cpu_threads_set: the operator gave the number of threads; nothing may change it.
    """

    choice: ComputeChoice
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    is_workers_set: bool = False
    is_cpu_threads_set: bool = False


@dataclass(slots=True)
class _Notes:
    """The sentences of a decision in the making."""

    reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def choose_compute(facts: HardwareFacts, request: HardwareRequest) -> Decision:
    """Choose engine, device, number format, threads and workers.

    Raises:
        ConfigurationError: what was set cannot work here; the message names the setting to change.
    """
    _refuse_unknown_values(request)
    notes = _Notes()
    engine = _choose_engine(facts, request, notes)
    device = _choose_device(facts, request, engine, notes)
    _refuse_wrong_index(facts, request, device)
    compute_type = _choose_compute_type(facts, request, engine, device, notes)
    workers = request.workers or 1
    cpu_threads = _choose_threads(facts, request, workers, notes)
    if device == "cpu":
        _warn_about_cpu(facts, cpu_threads * workers, notes)
    choice = ComputeChoice(
        engine=engine,
        device=device,
        compute_type=compute_type,
        cpu_threads=cpu_threads,
        workers=workers,
        device_index=request.device_index,
        cores=facts.usable_cores,
    )
    return Decision(
        choice,
        tuple(notes.reasons),
        tuple(notes.warnings),
        is_workers_set=request.workers > 0,
        is_cpu_threads_set=request.cpu_threads > 0,
    )


def supported_compute_types(
    facts: HardwareFacts, engine: str, device: str, device_index: int = 0
) -> frozenset[str]:
    """The number formats an engine computes well with on a device; empty for a device that is not there."""
    if engine == TRANSFORMERS:
        return _TRANSFORMERS_TYPES[device]
    if device == "cpu":
        return facts.cpu_compute_types
    gpu = _gpu(facts, device_index)
    return frozenset() if gpu is None else gpu.supported_compute_types


def _refuse_unknown_values(request: HardwareRequest) -> None:
    if request.engine not in (AUTO, *_DEVICES_OF_ENGINE):
        raise ConfigurationError(
            f"There is no engine {request.engine!r}. "
            f"Set WHISPER_MODEL_ENGINE to {_either((AUTO, *_DEVICES_OF_ENGINE))}."
        )
    if request.device not in (AUTO, *_DEVICES):
        raise ConfigurationError(
            f"There is no device {request.device!r}. "
            f"Set WHISPER_MODEL_DEVICE to {_either((AUTO, *_DEVICES))}; "
            "AMD GPUs go by the name cuda too, with CTranslate2's ROCm wheels."
        )
    for name in ("device_index", "cpu_threads", "workers"):
        if getattr(request, name) < 0:
            raise ConfigurationError(f"WHISPER_MODEL_{name.upper()} is negative. Set it to 0 or more.")


def _choose_engine(facts: HardwareFacts, request: HardwareRequest, notes: _Notes) -> str:
    engine = request.engine
    if engine != AUTO:
        _refuse_missing_engine(facts, engine)
        notes.reasons.append(f"The engine is {engine}, as the settings say.")
        return engine
    if request.device == "mps":
        _refuse_missing_engine(facts, TRANSFORMERS)
        notes.reasons.append("The engine is transformers: it is the one that computes on MPS.")
        return TRANSFORMERS
    if _can_prefer_mps(facts, request):
        notes.reasons.append("The engine is transformers: it is installed and computes on this Mac's GPU.")
        return TRANSFORMERS
    for engine in _DEVICES_OF_ENGINE:
        if engine in facts.installed_engines:
            notes.reasons.append(f"The engine is {engine}, the first installed of those the server knows.")
            return engine
    raise ConfigurationError("No engine is installed. Install the package faster-whisper.")


def _can_prefer_mps(facts: HardwareFacts, request: HardwareRequest) -> bool:
    """Whether a fully automatic choice may leave faster-whisper for Apple's GPU."""
    return (
        request.device == AUTO
        and request.compute_type in (AUTO, *_TRANSFORMERS_TYPES["mps"])
        and facts.mps_available
        and TRANSFORMERS in facts.installed_engines
    )


def _refuse_missing_engine(facts: HardwareFacts, engine: str) -> None:
    if engine in facts.installed_engines:
        return
    package = "whisper-server[transformers]" if engine == TRANSFORMERS else engine
    others = sorted(facts.installed_engines - {engine})
    instead = f", or set WHISPER_MODEL_ENGINE to {_either(others)}" if others else ""
    raise ConfigurationError(f"The engine {engine} is not installed. Install {package}{instead}.")


def _choose_device(facts: HardwareFacts, request: HardwareRequest, engine: str, notes: _Notes) -> str:
    if request.device == AUTO:
        return _automatic_device(facts, request, engine, notes)
    device = request.device
    if device not in _DEVICES_OF_ENGINE[engine]:
        raise ConfigurationError(
            f"{engine} does not compute on {device.upper()}. "
            f"Set WHISPER_MODEL_DEVICE to cpu or auto, or WHISPER_MODEL_ENGINE=transformers."
        )
    if device == "mps" and not facts.mps_available:
        raise ConfigurationError(
            "MPS is not available: it takes a Mac with Apple Silicon and a PyTorch built for it. "
            "Set WHISPER_MODEL_DEVICE=cpu or auto."
        )
    if device == "cuda" and not facts.gpus:
        raise ConfigurationError(_no_cuda_sentence(facts))
    notes.reasons.append(f"The device is {device}, as set.")
    _warn_about_cuda(facts, engine, device, notes)
    return device


def _automatic_device(facts: HardwareFacts, request: HardwareRequest, engine: str, notes: _Notes) -> str:
    if engine == TRANSFORMERS and facts.mps_available:
        notes.reasons.append("The device is mps: PyTorch can use this Mac's GPU.")
        return "mps"
    if not facts.gpus:
        notes.reasons.append("The device is cpu: CTranslate2 counts no CUDA device.")
        if facts.has_nvidia_driver:
            notes.warnings.append(_DRIVER_HINT)
        return "cpu"
    gpu = _gpu(facts, request.device_index)
    if gpu is not None and not supported_compute_types(facts, engine, "cuda", gpu.index):
        notes.reasons.append(f"The device is cpu: CTranslate2 names no compute type for {_title(gpu)}.")
        notes.warnings.append(f"{_title(gpu)} is there but cannot be used. Check its driver.")
        return "cpu"
    count = len(facts.gpus)
    notes.reasons.append(f"The device is cuda: CTranslate2 counts {count} CUDA device{'s' * (count > 1)}.")
    _warn_about_cuda(facts, engine, "cuda", notes)
    return "cuda"


_DRIVER_HINT = (
    "An NVIDIA driver is present, but CTranslate2 counts no CUDA device. Check that the driver is new enough "
    "for CUDA 12, that CUDA_VISIBLE_DEVICES is not empty, and that a container was started with its GPUs. "
    "CTranslate2's wheels also need the library libcublas.so.12."
)


def _no_cuda_sentence(facts: HardwareFacts) -> str:
    sentence = "No CUDA device was found. Set WHISPER_MODEL_DEVICE=cpu or auto"
    if facts.has_nvidia_driver:
        return f"{sentence}. {_DRIVER_HINT}"
    if facts.system == "Darwin":
        return f"{sentence}: macOS has no CUDA."
    return f"{sentence}, or install the NVIDIA driver for CUDA 12."


def _warn_about_cuda(facts: HardwareFacts, engine: str, device: str, notes: _Notes) -> None:
    if device == "cuda" and engine == FASTER_WHISPER and facts.missing_cuda_libraries:
        missing = " and ".join(sorted(facts.missing_cuda_libraries))
        notes.warnings.append(
            f"The loader does not find {missing}, which CTranslate2's wheels open on the first inference. "
            "Install CUDA 12's libraries or put their folder in LD_LIBRARY_PATH."
        )


def _refuse_wrong_index(facts: HardwareFacts, request: HardwareRequest, device: str) -> None:
    index = request.device_index
    if device == "cuda" and _gpu(facts, index) is None:
        known = _either(str(gpu.index) for gpu in facts.gpus)
        raise ConfigurationError(
            f"There is no CUDA device {index}. Set WHISPER_MODEL_DEVICE_INDEX to {known}."
        )
    if device != "cuda" and index != 0:
        raise ConfigurationError(
            f"The device index {index} names a CUDA device, but the model computes on {device}. "
            "Set WHISPER_MODEL_DEVICE_INDEX=0."
        )


def _choose_compute_type(
    facts: HardwareFacts, request: HardwareRequest, engine: str, device: str, notes: _Notes
) -> str:
    supported = supported_compute_types(facts, engine, device, request.device_index)
    place = _place(facts, device, request.device_index)
    if not supported:
        raise ConfigurationError(
            f"CTranslate2 names no compute type for {place}. Reinstall the package ctranslate2"
            + (", check the GPU's driver, or set WHISPER_MODEL_DEVICE=cpu." if device == "cuda" else ".")
        )
    if request.compute_type == AUTO:
        return _automatic_compute_type(facts, request, engine, device, notes)
    possible = sorted(supported | {DEFAULT} if engine == FASTER_WHISPER else supported)
    if request.compute_type not in possible:
        raise ConfigurationError(
            f"{engine} does not support the compute type {request.compute_type} on {place}. "
            f"Set WHISPER_MODEL_COMPUTE_TYPE to {_either((AUTO, *possible))}."
        )
    notes.reasons.append(f"The compute type is {request.compute_type}, as set.")
    return request.compute_type


def _automatic_compute_type(
    facts: HardwareFacts, request: HardwareRequest, engine: str, device: str, notes: _Notes
) -> str:
    order, because = _compute_type_order(facts, engine, device, request.device_index)
    supported = supported_compute_types(facts, engine, device, request.device_index)
    chosen = next((name for name in order if name in supported), None) or min(supported)
    if chosen == order[0]:
        notes.reasons.append(f"The compute type is {chosen}: {because}.")
    else:
        place = _place(facts, device, request.device_index)
        notes.reasons.append(
            f"The compute type is {chosen}: {because}, which calls for {order[0]}, "
            f"but CTranslate2 does not list that as supported on {place}."
        )
    return chosen


def _compute_type_order(
    facts: HardwareFacts, engine: str, device: str, device_index: int
) -> tuple[tuple[str, ...], str]:
    """The formats to try, best first, and why the first one is best."""
    if engine == TRANSFORMERS:
        return _TRANSFORMERS_ORDERS[device], f"transformers computes in it on {device}"
    if device == "cpu":
        return _CPU_ORDER, "8-bit weights are the fastest on a CPU"
    gpu = _gpu(facts, device_index)
    vram_bytes = None if gpu is None else gpu.vram_bytes
    if vram_bytes is None:
        return _SMALL_GPU_ORDER, "the GPU's memory is unknown, so the weights are kept small"
    memory = f"the GPU has {vram_bytes / 1000**3:.1f} GB of memory"
    if vram_bytes >= LARGE_GPU_BYTES:
        return _LARGE_GPU_ORDER, f"{memory}, at least 8"
    return _SMALL_GPU_ORDER, f"{memory}, less than 8"


def _choose_threads(facts: HardwareFacts, request: HardwareRequest, workers: int, notes: _Notes) -> int:
    if request.cpu_threads:
        notes.reasons.append(f"{_count(request.cpu_threads, 'CPU thread')} per worker, as set.")
        return request.cpu_threads
    usable = facts.usable_cores
    # Two threads on two cores were measured faster than one: half would leave a core idle there.
    wanted = max(usable // 2, 2)
    threads = max(1, min(wanted, usable // workers))
    cores = _count(usable, "usable core")
    why = f"for {cores}" if workers == 1 else f"for {workers} workers on {cores}"
    notes.reasons.append(f"{_count(threads, 'CPU thread')} per worker, {why}.")
    return threads


def _warn_about_cpu(facts: HardwareFacts, threads: int, notes: _Notes) -> None:
    if threads > facts.usable_cores:
        cores = _count(facts.usable_cores, "usable core")
        notes.warnings.append(
            f"{threads} threads over all workers are more than {cores}: they slow each other down. "
            "Lower WHISPER_MODEL_WORKERS or WHISPER_MODEL_CPU_THREADS."
        )
    known = facts.instruction_sets
    if facts.architecture == "x86_64" and known and known.isdisjoint({"AVX2", "AVX512F"}):
        notes.warnings.append("This CPU has neither AVX2 nor AVX-512: expect slow inference.")


def _gpu(facts: HardwareFacts, index: int) -> GpuFacts | None:
    return next((gpu for gpu in facts.gpus if gpu.index == index), None)


def _title(gpu: GpuFacts) -> str:
    return f"CUDA device {gpu.index} ({gpu.name})" if gpu.name else f"CUDA device {gpu.index}"


def _place(facts: HardwareFacts, device: str, device_index: int) -> str:
    """The device as a reader knows it."""
    gpu = _gpu(facts, device_index) if device == "cuda" else None
    return device if gpu is None else _title(gpu)


def _either(names: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
