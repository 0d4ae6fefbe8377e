"""The probe on laid-out /proc and /sys trees, on a stand-in for the CUDA driver, and on this machine."""

import ctypes
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_server.core.hardware import GpuFacts, HardwareFacts, HardwareRequest, choose_compute
from whisper_server.engines.hardware_probe import gather_facts, gpu_facts

MIB = 1 << 20

CGROUP_V2 = {"proc/self/cgroup": "0::/system.slice/whisper.service\n"}
CGROUP_V1 = {
    "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"
}


def lay_out(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cpuinfo(cores: int, threads_per_core: int = 1, packages: int = 1, flags: str = "fpu sse4_1 avx2") -> str:
    """What Linux shows on x86: first all cores once, then their second hardware threads."""
    blocks = [
        f"processor\t: {{number}}\nphysical id\t: {package}\ncore id\t\t: {core}\nflags\t\t: {flags}\n"
        for _ in range(threads_per_core)
        for package in range(packages)
        for core in range(cores)
    ]
    return "\n".join(block.format(number=number) for number, block in enumerate(blocks))


def linux_facts(root: Path, files: Mapping[str, str], allowed_cpus: Collection[int] = ()) -> HardwareFacts:
    return gather_facts(lay_out(root, files), system="Linux", machine="x86_64", allowed_cpus=allowed_cpus)


@pytest.mark.parametrize(
    ("files", "cpu_limit", "memory_limit_bytes"),
    [
        pytest.param({}, None, None, id="no cgroup"),
        pytest.param(
            CGROUP_V2
            | {
                "sys/fs/cgroup/system.slice/whisper.service/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/system.slice/whisper.service/memory.max": "1073741824\n",
            },
            1.5,
            1024 * MIB,
            id="v2, own cgroup",
        ),
        pytest.param(
            CGROUP_V2
            | {
                "sys/fs/cgroup/system.slice/whisper.service/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/system.slice/whisper.service/memory.max": "1048576\n",
                "sys/fs/cgroup/system.slice/memory.max": "2097152\n",
            },
            3.0,
            1 * MIB,
            id="v2, the tightest of the nested ones",
        ),
        pytest.param(
            CGROUP_V2
            | {
                "sys/fs/cgroup/system.slice/whisper.service/cpu.max": "max 100000\n",
                "sys/fs/cgroup/system.slice/whisper.service/memory.max": "max\n",
                "sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
                "sys/fs/cgroup/system.slice/memory.max": "max\n",
            },
            None,
            None,
            id="v2 without limits",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/memory.max": "1048576\n",
            },
            0.5,
            1 * MIB,
            id="v2 in a container: the namespace's root",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/../../other\n",
                "sys/fs/cgroup/cpu.max": "200000 100000\n",
                "sys/fs/cpu.max": "100000 100000\n",
            },
            2.0,
            None,
            id="v2, a path outside the namespace",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/odd:name\n", "sys/fs/cgroup/odd:name/cpu.max": "200000 100000\n"},
            2.0,
            None,
            id="v2, a colon in the name",
        ),
        pytest.param(
            CGROUP_V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "536870912\n",
                "sys/fs/cgroup/memory/docker/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2.5,
            512 * MIB,
            id="v1 on the host",
        ),
        pytest.param(
            CGROUP_V1
            | {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
            },
            2.0,
            512 * MIB,
            id="v1 in a container: the path is the host's",
        ),
        pytest.param(
            CGROUP_V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "9223372036854771712\n",
            },
            None,
            None,
            id="v1 without limits",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "2:memory:/job\n0::/job\n",
                "sys/fs/cgroup/unified/job/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1048576\n",
            },
            1.0,
            1 * MIB,
            id="v1 and v2 side by side",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "nonsense\n0\n0:x\n:::\n0::/a\n",
                "sys/fs/cgroup/a/cpu.max": "many 100000\n",
                "sys/fs/cgroup/a/memory.max": "lots\n",
                "sys/fs/cgroup/cpu.max": "200000\n",
                "sys/fs/cgroup/memory.max": "-5\n",
            },
            None,
            None,
            id="malformed",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "100000 0\n"},
            None,
            None,
            id="a period of zero",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": f"{'9' * 400} 1\n"},
            None,
            None,
            id="a number beyond any float",
        ),
    ],
)
def test_the_tightest_cgroup_limits_the_process(
    tmp_path: Path, files: dict[str, str], cpu_limit: float | None, memory_limit_bytes: int | None
) -> None:
    facts = linux_facts(tmp_path, files)
    assert facts.cpu_limit == cpu_limit
    assert facts.memory_limit_bytes == memory_limit_bytes


@pytest.mark.parametrize(
    ("text", "physical", "logical"),
    [
        (cpuinfo(4), 4, 4),
        (cpuinfo(4, threads_per_core=2), 4, 8),
        (cpuinfo(4, threads_per_core=2, packages=2), 8, 16),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd\n", 2, 2),
        (cpuinfo(2) + "\nprocessor\t: 2\nflags\t: avx2\n", 3, 3),
        (cpuinfo(2, threads_per_core=2) + "\nprocessor\t: 4\nflags\t: avx2\n", 5, 5),
        ("processor\t: zero\nphysical id\t: 0\ncore id\t: 0\n", 1, 1),
    ],
)
def test_hardware_threads_of_one_core_count_as_one_physical_core(
    tmp_path: Path, text: str, physical: int, logical: int
) -> None:
    facts = linux_facts(tmp_path, {"proc/cpuinfo": text})
    assert (facts.physical_cores, facts.logical_cores) == (physical, logical)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse4_1 avx avx2 avx512f avx512_vnni", {"SSE4_1", "AVX", "AVX2", "AVX512F", "AVX512_VNNI"}),
        ("fpu sse sse2", set()),
    ],
)
def test_instruction_sets_of_an_x86_cpu_come_from_its_flags(
    tmp_path: Path, flags: str, expected: set[str]
) -> None:
    assert linux_facts(tmp_path, {"proc/cpuinfo": cpuinfo(1, flags=flags)}).instruction_sets == expected


def test_an_arm_cpu_names_its_features_otherwise(tmp_path: Path) -> None:
    lay_out(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\n"})
    facts = gather_facts(tmp_path, system="Linux", machine="aarch64", allowed_cpus=())
    assert facts.architecture == "arm64"
    assert facts.instruction_sets == {"NEON", "DOTPROD", "I8MM", "SVE"}


@pytest.mark.parametrize(
    ("allowed_cpus", "cpu_limit"),
    [
        pytest.param({0, 1, 2, 3}, 4.0, id="one hardware thread of each core"),
        pytest.param({0, 4}, 1.0, id="both hardware threads of one core"),
        pytest.param({0, 1, 4}, 2.0, id="three hardware threads of two cores"),
        pytest.param({99}, 1.0, id="a CPU the system does not list"),
        pytest.param(set(range(8)), None, id="all"),
        pytest.param(set(), None, id="unknown"),
    ],
)
def test_affinity_limits_the_cores(tmp_path: Path, allowed_cpus: set[int], cpu_limit: float | None) -> None:
    facts = linux_facts(tmp_path, {"proc/cpuinfo": cpuinfo(4, threads_per_core=2)}, allowed_cpus)
    assert facts.cpu_limit == cpu_limit


@pytest.mark.parametrize(("allowed_cpus", "cpu_limit"), [({0}, 1.0), ({0, 1, 2}, 1.5)])
def test_the_tighter_of_affinity_and_quota_counts(
    tmp_path: Path, allowed_cpus: set[int], cpu_limit: float
) -> None:
    files = {
        "proc/cpuinfo": cpuinfo(4),
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "150000 100000",
    }
    assert linux_facts(tmp_path, files, allowed_cpus).cpu_limit == cpu_limit


@pytest.mark.parametrize(
    ("text", "memory_bytes"),
    [
        ("MemTotal:       16384 kB\nMemFree: 1 kB\n", 16 * MIB),
        ("MemTotal:       much kB\n", None),
        ("MemFree: 1 kB\n", None),
        ("", None),
    ],
)
def test_memory_is_what_the_kernel_says_or_unknown(
    tmp_path: Path, text: str, memory_bytes: int | None
) -> None:
    assert linux_facts(tmp_path, {"proc/meminfo": text}).memory_bytes == memory_bytes


def test_an_empty_tree_leaves_everything_unknown_and_still_allows_a_choice(tmp_path: Path) -> None:
    facts = linux_facts(tmp_path, {})
    assert facts.instruction_sets == frozenset()
    assert (facts.cpu_limit, facts.memory_bytes, facts.memory_limit_bytes) == (None, None, None)
    assert facts.physical_cores == facts.logical_cores == (os.cpu_count() or 1)
    assert choose_compute(facts, HardwareRequest(device="cpu")).choice.cpu_threads >= 1


def test_folders_in_the_place_of_files_are_unknown_facts(tmp_path: Path) -> None:
    for name in ("proc/cpuinfo", "proc/meminfo", "proc/self/cgroup", "sys/fs/cgroup/cpu.max"):
        (tmp_path / name).mkdir(parents=True)
    assert linux_facts(tmp_path, {}).memory_bytes is None


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_no_content_of_the_system_files_makes_the_probe_fail(tmp_path: Path, content: bytes) -> None:
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "1"})
    for name in (
        "proc/cpuinfo",
        "proc/meminfo",
        "sys/fs/cgroup/cpu.max",
        "sys/fs/cgroup/memory.max",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    ):
        (tmp_path / name).write_bytes(content)
    facts = linux_facts(tmp_path, {})
    (tmp_path / "proc/self/cgroup").write_bytes(content)
    assert linux_facts(tmp_path, {}).usable_cores >= 1
    assert facts.usable_cores >= 1


@pytest.mark.parametrize("name", ["proc/driver/nvidia/version", "dev/nvidia0"])
def test_an_nvidia_driver_shows_in_the_tree(tmp_path: Path, name: str) -> None:
    assert not linux_facts(tmp_path, {}).has_nvidia_driver
    assert linux_facts(tmp_path, {name: ""}).has_nvidia_driver


SYSCTL = """#!/bin/sh
echo "hw.physicalcpu: 8"
echo "hw.logicalcpu: 8"
echo "hw.memsize: 17179869184"
echo "hw.optional.neon: 1"
echo "hw.optional.arm.FEAT_I8MM: 0"
echo "sysctl: unknown oid 'hw.optional.avx2_0'" >&2
exit 1
"""


def lay_out_mac(root: Path, script: str = SYSCTL) -> Path:
    lay_out(root, {"usr/sbin/sysctl": script})
    (root / "usr/sbin/sysctl").chmod(0o755)
    return root


def test_a_mac_is_asked_through_sysctl(tmp_path: Path) -> None:
    facts = gather_facts(lay_out_mac(tmp_path), system="Darwin", machine="arm64", allowed_cpus=())
    assert (facts.system, facts.architecture) == ("Darwin", "arm64")
    assert (facts.physical_cores, facts.logical_cores) == (8, 8)
    assert facts.memory_bytes == 16 * 1024 * MIB
    assert facts.instruction_sets == {"NEON"}
    assert facts.cpu_limit is None


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "not a program", ""])
def test_a_mac_without_a_working_sysctl_has_unknown_facts(tmp_path: Path, script: str) -> None:
    facts = gather_facts(lay_out_mac(tmp_path, script), system="Darwin", machine="arm64", allowed_cpus=())
    assert facts.memory_bytes is None
    assert facts.physical_cores == (os.cpu_count() or 1)


@pytest.fixture
def install_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put a package named torch with this source first on the import path."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def install(source: str) -> None:
        lay_out(tmp_path, {"site/torch/__init__.py": source})
        monkeypatch.syspath_prepend(tmp_path / "site")

    yield install
    sys.modules.pop("torch", None)


TORCH_WITH_MPS = """
from types import SimpleNamespace
backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: True))
"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(TORCH_WITH_MPS, True, id="MPS"),
        pytest.param(TORCH_WITH_MPS.replace("True", "False"), False, id="no MPS"),
        pytest.param("backends = None", False, id="a PyTorch that knows no MPS"),
        pytest.param("raise ImportError('libtorch is missing')", False, id="broken"),
    ],
)
def test_pytorch_is_asked_for_mps_on_apple_silicon(
    tmp_path: Path, install_torch: Callable[[str], None], source: str, expected: bool
) -> None:
    install_torch(source)
    facts = gather_facts(lay_out_mac(tmp_path), system="Darwin", machine="arm64", allowed_cpus=())
    assert facts.mps_available is expected


@pytest.mark.parametrize(
    ("system", "machine"), [("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "x86_64")]
)
def test_pytorch_is_never_imported_elsewhere(
    tmp_path: Path, install_torch: Callable[[str], None], system: str, machine: str
) -> None:
    install_torch(TORCH_WITH_MPS)
    facts = gather_facts(lay_out_mac(tmp_path), system=system, machine=machine, allowed_cpus=())
    assert not facts.mps_available
    assert "torch" not in sys.modules


def test_an_engine_is_installed_when_all_its_packages_are(
    tmp_path: Path, install_torch: Callable[[str], None]
) -> None:
    install_torch(TORCH_WITH_MPS)
    assert linux_facts(tmp_path, {}).installed_engines >= {"faster-whisper"}
    lay_out(tmp_path, {"site/transformers/__init__.py": ""})
    importlib.invalidate_caches()
    assert linux_facts(tmp_path, {}).installed_engines == {"faster-whisper", "transformers"}


class StandInDriver:
    """The CUDA driver's functions with their C types, over a list of (name, bytes or None)."""

    def __init__(self, devices: list[tuple[bytes, int | None]], init_status: int = 0) -> None:
        c_int, c_char, c_size_t = ctypes.c_int, ctypes.c_char, ctypes.c_size_t
        function, pointer = ctypes.CFUNCTYPE, ctypes.POINTER

        def initialize(flags: int) -> int:
            return init_status

        def count(out: Any) -> int:
            out[0] = len(devices)
            return 0

        def get(out: Any, ordinal: int) -> int:
            out[0] = 100 + ordinal
            return 0 if devices[ordinal][0] != b"lost" else 46

        def get_name(out: Any, size: int, device: int) -> int:
            name = devices[device - 100][0]
            for position, byte in enumerate(name[: size - 1] + b"\0"):
                out[position] = byte
            return 0 if name != b"nameless" else 1

        def total_memory(out: Any, device: int) -> int:
            memory_bytes = devices[device - 100][1]
            out[0] = memory_bytes or 0
            return 0 if memory_bytes is not None else 1

        self.cuInit = function(c_int, ctypes.c_uint)(initialize)
        self.cuDeviceGetCount = function(c_int, pointer(c_int))(count)
        self.cuDeviceGet = function(c_int, pointer(c_int), c_int)(get)
        self.cuDeviceGetName = function(c_int, pointer(c_char), c_int, c_int)(get_name)
        self.cuDeviceTotalMem_v2 = function(c_int, pointer(c_size_t), c_int)(total_memory)


def stand_in_ctranslate2(types_of_gpus: list[set[str] | Exception]) -> ModuleType:
    """A CTranslate2 that counts these GPUs."""

    def get_supported_compute_types(device: str, index: int = 0) -> set[str]:
        types: set[str] | Exception = {"int8", "float32"} if device == "cpu" else types_of_gpus[index]
        if isinstance(types, Exception):
            raise types
        return types

    module = ModuleType("ctranslate2")
    module.__spec__ = ModuleSpec("ctranslate2", None)
    vars(module).update(
        get_cuda_device_count=lambda: len(types_of_gpus),
        get_supported_compute_types=get_supported_compute_types,
    )
    return module


def test_gpus_have_the_names_and_memory_the_driver_gives_them() -> None:
    driver = StandInDriver([(b"NVIDIA H200", 150_000 * MIB), (b"NVIDIA T4", 15_000 * MIB)])
    assert gpu_facts(stand_in_ctranslate2([{"float16"}, {"int8"}]), driver) == (
        GpuFacts(0, "NVIDIA H200", 150_000 * MIB, frozenset({"float16"})),
        GpuFacts(1, "NVIDIA T4", 15_000 * MIB, frozenset({"int8"})),
    )


@pytest.mark.parametrize(
    "driver",
    [
        pytest.param(None, id="no driver library, as with ROCm"),
        pytest.param(StandInDriver([(b"GPU", 1)], init_status=999), id="a driver that does not start"),
        pytest.param(StandInDriver([]), id="a driver that shows fewer devices"),
        pytest.param(StandInDriver([(b"lost", 1)]), id="a device that is lost"),
        pytest.param(StandInDriver([(b"nameless", None)]), id="a device that does not answer"),
        pytest.param(SimpleNamespace(), id="a library without the functions"),
    ],
)
def test_a_gpu_the_driver_does_not_describe_has_unknown_memory(driver: object) -> None:
    assert gpu_facts(stand_in_ctranslate2([{"float16"}]), driver) == (
        GpuFacts(0, "", None, frozenset({"float16"})),
    )


def test_devices_that_ctranslate2_does_not_count_are_left_out() -> None:
    driver = StandInDriver([(b"A", 1), (b"B", 2)])
    assert [gpu.name for gpu in gpu_facts(stand_in_ctranslate2([{"float16"}]), driver)] == ["A"]
    assert gpu_facts(stand_in_ctranslate2([]), driver) == ()
    assert gpu_facts(None, driver) == ()


def test_a_gpu_that_ctranslate2_cannot_use_supports_nothing() -> None:
    module = stand_in_ctranslate2([RuntimeError("CUDA failed"), ValueError("not compiled with CUDA")])
    assert [gpu.supported_compute_types for gpu in gpu_facts(module, None)] == [frozenset(), frozenset()]


def test_a_ctranslate2_that_cannot_count_has_no_gpus() -> None:
    def fail() -> int:
        raise RuntimeError("CUDA failed")

    assert gpu_facts(SimpleNamespace(get_cuda_device_count=fail), None) == ()


@pytest.mark.parametrize(
    ("libraries", "missing"),
    [
        ({"libcuda.so.1"}, {"libcublas.so.12"}),
        ({"libcuda.so.1", "libcublas.so.12"}, set()),
        pytest.param(set(), set(), id="ROCm"),
    ],
)
def test_cublas_is_looked_for_where_ctranslate2_counts_an_nvidia_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, libraries: set[str], missing: set[str]
) -> None:
    def load(name: str) -> StandInDriver:
        if name not in libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return StandInDriver([(b"NVIDIA T4", 15_000 * MIB)])

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setitem(sys.modules, "ctranslate2", stand_in_ctranslate2([{"float16"}]))
    facts = linux_facts(tmp_path, {})
    assert len(facts.gpus) == 1
    assert facts.missing_cuda_libraries == missing


def test_a_ctranslate2_that_cannot_be_imported_is_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    facts = linux_facts(tmp_path, {})
    assert facts.cpu_compute_types == frozenset()
    assert facts.installed_engines == frozenset()


def test_this_machine_gets_a_choice_its_ctranslate2_supports() -> None:
    import ctranslate2

    facts = gather_facts()
    choice = choose_compute(facts, HardwareRequest()).choice
    assert choice.compute_type in ctranslate2.get_supported_compute_types(choice.device)
    assert 1 <= choice.cpu_threads <= facts.usable_cores <= facts.physical_cores <= facts.logical_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_pinned_to_one_cpu_uses_one_core() -> None:
    program = (
        "import os; from whisper_server.engines.hardware_probe import gather_facts\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(gather_facts().usable_cores)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"
