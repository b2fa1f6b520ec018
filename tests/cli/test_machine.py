from __future__ import annotations

import ctypes

import pytest

from minibert.cli import machine

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni amx_bf16 amx_tile
"""
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimddp sve bf16 i8mm\nCPU implementer\t: 0x41\n"


def test_an_x86_processor_is_read() -> None:
    assert machine.cpu_model(XEON) == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert machine.cpu_features(XEON) == [
        "SSE4.2",
        "AVX2",
        "FMA",
        "F16C",
        "AVX-512",
        "AVX-512 VNNI",
        "AMX",
    ]


def test_an_arm_processor_is_read() -> None:
    assert machine.cpu_features(GRAVITON) == ["NEON", "NEON dot product", "SVE", "BF16", "I8MM"]


def test_a_system_that_does_not_tell_is_unknown() -> None:
    assert machine.cpu_model("")
    assert machine.cpu_features("") is None


def test_numpy_s_blas_is_named() -> None:
    blas = machine.blas()
    assert blas is not None
    assert blas.name
    assert blas.threads is None or blas.threads >= 1


def test_no_driver_is_none() -> None:
    assert machine.cuda_driver("libnone-such.so.1") is None


class FakeDriver:
    """Answers like libcuda, with `status` from cuInit and one GPU."""

    def __init__(self, status: int) -> None:
        self._status = status

    def cuDriverGetVersion(self, number: ctypes.c_int) -> int:
        number._obj.value = 13010
        return 0

    def cuInit(self, flags: int) -> int:
        return self._status

    def cuDeviceGetCount(self, count: ctypes.c_int) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: ctypes.c_int, index: int) -> int:
        return 0

    def cuDeviceGetName(self, text: ctypes.Array[ctypes.c_char], size: int, device: int) -> int:
        text.value = b"NVIDIA H100 80GB HBM3"
        return 0

    def cuDeviceGetAttribute(self, value: ctypes.c_int, number: int, device: int) -> int:
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR, _MULTIPROCESSOR_COUNT,
        # _MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        value._obj.value = {75: 9, 76: 0, 16: 132, 97: 232448}[number]
        return 0


def test_a_driver_tells_its_version_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(0))
    assert machine.cuda_driver() == machine.CudaDriver(
        (13, 1), (machine.Gpu("NVIDIA H100 80GB HBM3", 90, 132, 232448),)
    )


def test_a_driver_without_access_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeDriver(100))
    driver = machine.cuda_driver()
    assert driver is not None
    assert driver.problem == "cuInit failed with CUDA error 100"


def test_versions_are_those_of_the_first_distribution_found() -> None:
    assert (machine.version_of("no-such-thing", "click") or "").startswith("click ")
    assert machine.version_of("no-such-thing") is None
