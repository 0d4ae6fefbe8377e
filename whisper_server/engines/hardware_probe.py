"""Gathers the facts that `core/hardware.py` decides on.

Nothing here raises: what cannot be read is unknown. Blocking; meant for start-up and for `doctor`.
"""

import ctypes
import importlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from whisper_server.core.hardware import FASTER_WHISPER, TRANSFORMERS, GpuFacts, HardwareFacts

_Number = TypeVar("_Number", int, float)

_PACKAGES_OF_ENGINE = {
    FASTER_WHISPER: ("ctranslate2", "faster_whisper"),
    TRANSFORMERS: ("torch", "transformers"),
}

_ARCHITECTURES = {"aarch64": "arm64", "amd64": "x86_64"}

_CPUINFO_FLAGS = {
    "sse4_1": "SSE4_1",
    "avx": "AVX",
    "avx2": "AVX2",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512F",
    "avx512_vnni": "AVX512_VNNI",
    "amx_int8": "AMX_INT8",
    "neon": "NEON",
    "asimd": "NEON",
    "asimddp": "DOTPROD",
    "i8mm": "I8MM",
    "sve": "SVE",
}
"""Names in /proc/cpuinfo, under `flags` (x86) or `Features` (ARM)."""

_SYSCTL_FLAGS = {
    "hw.optional.sse4_1": "SSE4_1",
    "hw.optional.avx1_0": "AVX",
    "hw.optional.avx2_0": "AVX2",
    "hw.optional.avx512f": "AVX512F",
    "hw.optional.neon": "NEON",
    "hw.optional.AdvSIMD": "NEON",
    "hw.optional.arm.FEAT_DotProd": "DOTPROD",
    "hw.optional.arm.FEAT_I8MM": "I8MM",
}
"""Names `sysctl` gives the value 1 on macOS."""

_SYSCTL_VALUES = ("hw.physicalcpu", "hw.logicalcpu", "hw.memsize", "machdep.cpu.brand_string")

_SYSCTL_TIMEOUT_S = 5.0

_UNLIMITED_BYTES = 1 << 60
"""Cgroup v1 writes "no limit" as a number near 2**63."""

_KERNEL_INTEGERS = 1 << 64
"""The kernel writes no number this large: such a file is malformed."""

_CUBLAS = "libcublas.so.12"
"""CTranslate2's CUDA wheels open it on the first inference, not when they are imported."""


@dataclass(frozen=True, slots=True)
class _Cpu:
    """What the system says about its processors."""

    instruction_sets: frozenset[str]
    core_of_cpu: Mapping[int, tuple[str, str]]
    """(package, core) of each logical CPU; empty where the system does not say."""
    physical_cores: int
    logical_cores: int
    memory_bytes: int | None
    name: str


def gather_facts(
    root: Path = Path("/"),
    *,
    system: str | None = None,
    machine: str | None = None,
    allowed_cpus: Collection[int] | None = None,
) -> HardwareFacts:
    """Look at the machine, and at what this process may use of it. Imports CTranslate2.

    Args:
        root: where /proc, /sys, /dev and /usr are found.
        system: as `platform.system()` gives it, which is the default.
        machine: as `platform.machine()` gives it, which is the default.
        allowed_cpus: logical CPUs the process may run on; the default is its affinity.
    """
    system = platform.system() if system is None else system
    machine = (platform.machine() if machine is None else machine).lower()
    architecture = _ARCHITECTURES.get(machine, machine)
    allowed_cpus = _affinity() if allowed_cpus is None else allowed_cpus
    cpu = _darwin_cpu(root) if system == "Darwin" else _linux_cpu(root)
    ctranslate2 = _import_ctranslate2()
    driver = _load_library("libcuda.so.1")
    gpus = gpu_facts(ctranslate2, driver)
    return HardwareFacts(
        system=system,
        architecture=architecture,
        instruction_sets=cpu.instruction_sets,
        physical_cores=cpu.physical_cores,
        logical_cores=cpu.logical_cores,
        cpu_limit=_least([_cpu_quota(root), _allowed_cores(cpu, allowed_cpus)]),
        memory_bytes=cpu.memory_bytes,
        memory_limit_bytes=_memory_limit_bytes(root),
        gpus=gpus,
        mps_available=_is_mps_available(system, architecture),
        cpu_compute_types=_compute_types(ctranslate2, "cpu"),
        installed_engines=frozenset(
            engine for engine, packages in _PACKAGES_OF_ENGINE.items() if all(map(_is_installed, packages))
        ),
        has_nvidia_driver=(root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidia0").exists(),
        missing_cuda_libraries=_missing_cuda_libraries(gpus, driver),
        cpu_name=cpu.name,
    )


def gpu_facts(ctranslate2: Any, driver: Any) -> tuple[GpuFacts, ...]:
    """The CUDA devices CTranslate2 counts, with the names and memory the CUDA driver gives them.

    The driver API is asked, not NVML: it numbers devices as CTranslate2 does, after `CUDA_VISIBLE_DEVICES`
    and `CUDA_DEVICE_ORDER`, where NVML numbers all of them by their place on the bus.

    Args:
        ctranslate2: the module, or None.
        driver: libcuda as `ctypes.CDLL` loads it, or None.
    """
    try:
        count = 0 if ctranslate2 is None else int(ctranslate2.get_cuda_device_count())
    except RuntimeError:
        count = 0
    described = _driver_devices(driver) if count > 0 and driver is not None else []
    described += [("", None)] * (count - len(described))
    return tuple(
        GpuFacts(index, name, vram_bytes, _compute_types(ctranslate2, "cuda", index))
        for index, (name, vram_bytes) in enumerate(described[:count])
    )


def _driver_devices(driver: Any) -> list[tuple[str, int | None]]:
    """Name and bytes of memory of each device the CUDA driver shows this process, in its order.

    Source: the CUDA driver API reference, "Device Management"; 0 is CUDA_SUCCESS.
    """
    count = ctypes.c_int()
    try:
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
        return [_driver_device(driver, ordinal) for ordinal in range(count.value)]
    except AttributeError:  # A library of that name without these functions.
        return []


def _driver_device(driver: Any, ordinal: int) -> tuple[str, int | None]:
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    memory_bytes = ctypes.c_size_t()
    if driver.cuDeviceGet(ctypes.byref(device), ordinal):
        return "", None
    if driver.cuDeviceGetName(name, len(name), device):
        name.value = b""
    has_memory = not driver.cuDeviceTotalMem_v2(ctypes.byref(memory_bytes), device)
    return name.value.decode(errors="replace"), memory_bytes.value if has_memory else None


def _missing_cuda_libraries(gpus: tuple[GpuFacts, ...], driver: Any) -> frozenset[str]:
    # Without libcuda the devices are AMD's: ROCm builds need other libraries.
    if not gpus or driver is None or _load_library(_CUBLAS) is not None:
        return frozenset()
    return frozenset({_CUBLAS})


def _load_library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _import_ctranslate2() -> Any:
    try:
        return importlib.import_module("ctranslate2")
    except (ImportError, OSError):
        return None


def _compute_types(ctranslate2: Any, device: str, index: int = 0) -> frozenset[str]:
    if ctranslate2 is None:
        return frozenset()
    try:
        return frozenset(ctranslate2.get_supported_compute_types(device, index))
    except (RuntimeError, ValueError):  # What CTranslate2 raises for a device its CUDA cannot use.
        return frozenset()


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _is_mps_available(system: str, architecture: str) -> bool:
    # PyTorch takes seconds and hundreds of megabytes to import: only where the answer can be yes.
    if (system, architecture) != ("Darwin", "arm64") or not _is_installed("torch"):
        return False
    try:
        return bool(importlib.import_module("torch").backends.mps.is_available())
    except (ImportError, OSError, AttributeError):
        return False


def _affinity() -> Collection[int]:
    """The logical CPUs this process may run on; empty where the system does not say, as on macOS."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()


def _allowed_cores(cpu: _Cpu, allowed_cpus: Collection[int]) -> float | None:
    """Cores the affinity leaves, hardware threads of one core counted once; None where it leaves all."""
    if not allowed_cpus or len(allowed_cpus) >= cpu.logical_cores:
        return None
    cores = {cpu.core_of_cpu.get(number, ("", str(number))) for number in allowed_cpus}
    return float(len(cores))


def _linux_cpu(root: Path) -> _Cpu:
    processors = list(_cpuinfo(root))
    core_of_cpu = {
        number: (processor["physical id"], processor["core id"])
        for processor in processors
        if (number := _integer(processor["processor"])) is not None
        and "physical id" in processor
        and "core id" in processor
    }
    logical_cores = len(processors) or os.cpu_count() or 1
    if len(core_of_cpu) != len(processors):
        core_of_cpu = {}
    names = " ".join(
        processor.get("flags", "") + " " + processor.get("Features", "") for processor in processors[:1]
    )
    return _Cpu(
        instruction_sets=frozenset(_CPUINFO_FLAGS[name] for name in names.split() if name in _CPUINFO_FLAGS),
        core_of_cpu=core_of_cpu,
        physical_cores=len(set(core_of_cpu.values())) or logical_cores,
        logical_cores=logical_cores,
        memory_bytes=_meminfo_bytes(root),
        name=_cpu_name(processors[0]) if processors else "",
    )


def _cpu_name(processor: Mapping[str, str]) -> str:
    """The model of the processor. Arm's kernels give numbers in place of a name."""
    numbers = [f"{name} {processor[name]}" for name in ("CPU implementer", "CPU part") if name in processor]
    return " ".join((processor.get("model name") or ", ".join(numbers)).split())


def _cpuinfo(root: Path) -> Iterator[dict[str, str]]:
    """The fields of each logical CPU in /proc/cpuinfo."""
    for block in _text(root / "proc/cpuinfo").split("\n\n"):
        fields = dict(_pair(line) for line in block.splitlines())
        if "processor" in fields:
            yield fields


def _meminfo_bytes(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, value = _pair(line)
        if name == "MemTotal":
            kib = _integer(value.removesuffix("kB"))
            return None if kib is None else kib * 1024
    return None


def _darwin_cpu(root: Path) -> _Cpu:
    values = _sysctl(root, [*_SYSCTL_VALUES, *_SYSCTL_FLAGS])
    logical_cores = _integer(values.get("hw.logicalcpu", "")) or os.cpu_count() or 1
    return _Cpu(
        instruction_sets=frozenset(_SYSCTL_FLAGS[name] for name in _SYSCTL_FLAGS if values.get(name) == "1"),
        core_of_cpu={},
        physical_cores=_integer(values.get("hw.physicalcpu", "")) or logical_cores,
        logical_cores=logical_cores,
        memory_bytes=_integer(values.get("hw.memsize", "")),
        name=values.get("machdep.cpu.brand_string", ""),
    )


def _sysctl(root: Path, names: list[str]) -> dict[str, str]:
    """The values `sysctl` knows; it complains about the other names on stderr and goes on."""
    try:
        run = subprocess.run(
            [root / "usr/sbin/sysctl", *names],
            capture_output=True,
            timeout=_SYSCTL_TIMEOUT_S,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(_pair(line) for line in run.stdout.splitlines())


def _cpu_quota(root: Path) -> float | None:
    """Cores the tightest cgroup around the process grants it, or None."""
    return _least(_folder_cpu_quota(folder) for folder in _cgroup_folders(root, "cpu"))


def _folder_cpu_quota(folder: Path) -> float | None:
    """One cgroup's quota divided by its period: `cpu.max` in v2, two files in v1."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) != 2:
        return None
    quota_us, period_us = map(_integer, words)
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return None
    return quota_us / period_us


def _memory_limit_bytes(root: Path) -> int | None:
    """Bytes of the tightest cgroup around the process, or None."""
    names = ("memory.max", "memory.limit_in_bytes")
    limits = [_integer(_text(folder / name)) for folder in _cgroup_folders(root, "memory") for name in names]
    return _least(limit for limit in limits if limit is not None and 0 < limit < _UNLIMITED_BYTES)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's own cgroup and of those around it, up to the root of each hierarchy.

    In a container the path may be the host's and not exist; the hierarchy's root then is the container's
    own cgroup. Source: cgroups(7), "/proc/[pid]/cgroup".
    """
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon:
            continue
        if not controllers:  # Version 2, alone or beside version 1.
            mounts = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            mounts = [mount / controllers, mount / controller]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for depth in range(len(parts), -1, -1):
            for folder in mounts:
                yield folder.joinpath(*parts[:depth])


def _text(path: Path) -> str:
    """What a file of the system holds; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # ValueError: a cgroup's path with a zero byte.
        return ""


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _integer(text: str) -> int | None:
    try:
        value = int(text)
    except ValueError:
        return None
    return value if abs(value) < _KERNEL_INTEGERS else None


def _least(values: Iterable[_Number | None]) -> _Number | None:
    return min((value for value in values if value is not None), default=None)
