"""What this machine is, read from the system: processor, BLAS, GPU libraries.

Every function returns None, or an empty value, where the system does not tell; none of them raises.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

FEATURES = {
    "SSE4.2": ("sse4_2",),
    "AVX2": ("avx2",),
    "FMA": ("fma",),
    "F16C": ("f16c",),
    "AVX-512": ("avx512f", "avx512bw", "avx512vl"),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX-VNNI": ("avx_vnni",),
    "AVX-512 BF16": ("avx512_bf16",),
    "AMX": ("amx_tile", "amx_bf16"),
    "NEON": ("asimd",),
    "NEON dot product": ("asimddp",),
    "SVE": ("sve",),
    "BF16": ("bf16",),
    "I8MM": ("i8mm",),
}


@dataclass(frozen=True, slots=True)
class Blas:
    """The library behind NumPy's matrix products.

    Attributes:
        name: with its version.
        kernel: the processor generation that OpenBLAS runs for, where it tells.
        threads: that it uses, where it tells.
    """

    name: str
    kernel: str | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as the driver describes it.

    Attributes:
        name: for people.
        compute_capability: 75, 80, ... 120.
        num_sms: streaming multiprocessors.
        smem_bytes: shared memory that one block may take.
    """

    name: str
    compute_capability: int
    num_sms: int
    smem_bytes: int


@dataclass(frozen=True, slots=True)
class CudaDriver:
    """The NVIDIA driver.

    Attributes:
        version: of CUDA, at most: (12, 4).
        devices: the GPUs, in the order of their numbers.
        problem: why the driver cannot be used, or None.
    """

    version: tuple[int, int] | None
    devices: tuple[Gpu, ...]
    problem: str | None = None


def cpu_model(cpuinfo: str | None = None) -> str:
    """Return the processor's name as the system calls it."""
    text = _read("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text or "", re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine() or "unknown"


def cpu_features(cpuinfo: str | None = None) -> list[str] | None:
    """Return the instruction sets that matter here, or None where the system does not list them."""
    text = _read("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text or "", re.MULTILINE)
    if match is None:
        return None
    flags = set(match[1].split())
    return [name for name, needed in FEATURES.items() if flags.issuperset(needed)]


def blas() -> Blas | None:
    """Return the BLAS that NumPy is linked with."""
    import numpy as np

    config: Mapping[str, Any] = {}
    with suppress(Exception):  # the shape of NumPy's report is not promised
        report = cast(Mapping[str, Any], np.show_config(mode="dicts"))
        config = report["Build Dependencies"]["blas"]
    if not config.get("name"):
        return None
    name = f"{config['name']} {config.get('version', '')}".strip()
    return Blas(name, *_openblas_state())


def _openblas_state() -> tuple[str | None, int | None]:
    """Ask the OpenBLAS that is loaded in this process; its symbols carry various affixes."""
    maps = _read("/proc/self/maps") or ""
    for path in sorted(set(re.findall(r"(/\S*openblas\S*\.so\S*)", maps))):
        with suppress(OSError):
            library = ctypes.CDLL(path)
            for prefix, suffix in [(p, s) for p in ("scipy_", "") for s in ("64_", "")]:
                core = getattr(library, f"{prefix}openblas_get_corename{suffix}", None)
                count = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
                if core is not None and count is not None:
                    core.restype = ctypes.c_char_p
                    return core().decode("ascii", "replace"), int(count())
    return None, None


def cuda_driver(library_name: str = "libcuda.so.1") -> CudaDriver | None:
    """Ask the NVIDIA driver for its version and its GPUs; None where no driver is installed."""
    try:
        library = ctypes.CDLL(library_name)
    except OSError:
        return None
    number = ctypes.c_int()
    version = None
    if library.cuDriverGetVersion(ctypes.byref(number)) == 0:
        version = (number.value // 1000, number.value % 1000 // 10)
    status = library.cuInit(0)
    if status != 0:
        return CudaDriver(version, (), f"cuInit failed with CUDA error {status}")
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    found = []
    for index in range(count.value):
        device, text = ctypes.c_int(), ctypes.create_string_buffer(256)
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetName(text, len(text), device)
        major, minor, num_sms, smem_bytes = (
            _attribute(library, device, number) for number in (75, 76, 16, 97)
        )
        name = text.value.decode("utf-8", "replace")
        found.append(Gpu(name, 10 * major + minor, num_sms, smem_bytes))
    return CudaDriver(version, tuple(found), None if found else "the driver lists no GPU")


def _attribute(library: ctypes.CDLL, device: ctypes.c_int, number: int) -> int:
    """One of `CUdevice_attribute`, 0 where the driver does not know it."""
    value = ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    return value.value


def nvrtc() -> str | None:
    """Return the file of NVIDIA's run-time compiler, from a package or from the system."""
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        with suppress(importlib.metadata.PackageNotFoundError):
            for file in importlib.metadata.files(name) or ():
                if re.fullmatch(r"libnvrtc\.so\.\d+", file.name):
                    return str(file.locate())
    return ctypes.util.find_library("nvrtc")


def version_of(*distributions: str) -> str | None:
    """Return `name version` of the first of these distributions that is installed."""
    for name in distributions:
        with suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
