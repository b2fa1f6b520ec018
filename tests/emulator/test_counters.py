"""Counts on access patterns whose cost is known."""

from __future__ import annotations

import numpy as np
import pytest

from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import LaunchCounters, Module

COPY = """
extern "C" __global__ void k(float* out, const float* in, int stride) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i * stride];
}"""


def count(source: str, args: list[object], grid: int = 1, block: int = 32) -> LaunchCounters:
    module = Module(compile_ptx(source, name="k.cu").text, counters=True)
    counters = module.get_function("k")(grid, block, args)
    assert counters is not None
    assert module.last_counters is counters
    return counters


@pytest.mark.parametrize(
    ("stride", "sectors"), [(1, 4), (2, 8), (4, 16), (8, 32), (16, 32), (0, 1)]
)
def test_sectors_of_strided_loads(stride: int, sectors: int) -> None:
    source, out = np.ones(1024, np.float32), np.zeros(64, np.float32)
    counters = count(COPY, [out, source, np.int32(stride)], grid=2)
    assert counters.load.global_sectors == 2 * sectors
    assert counters.load.global_ideal == (8 if stride else 2)
    assert counters.load_efficiency == pytest.approx((8 if stride else 2) / (2 * sectors))
    assert counters.store.global_sectors == counters.store.global_ideal == 8
    assert counters.store_efficiency == 1.0
    assert counters.bytes_loaded == 64 * sectors
    assert counters.bytes_stored == 256


def test_vector_loads_are_ideal() -> None:
    source = """
extern "C" __global__ void k(float4* out, const float4* in) {
  out[threadIdx.x] = in[threadIdx.x];
}"""
    a = np.ones(128, np.float32)
    counters = count(source, [np.zeros_like(a), a])
    assert counters.load.global_sectors == counters.load.global_ideal == 16
    assert counters.load.global_bytes == 512


def shared_kernel(word: str, index: str) -> str:
    return f"""
extern "C" __global__ void k({word}* out, int n) {{
  __shared__ {word} s[1024];
  for (int i = threadIdx.x; i < 1024; i += 32) s[i] = {word}();
  __syncthreads();
  out[threadIdx.x] = s[{index}];
}}"""


@pytest.mark.parametrize(
    ("word", "index", "wavefronts", "ideal"),
    [
        ("float", "threadIdx.x", 1, 1),
        ("float", "threadIdx.x * n", 2, 1),  # n = 2
        ("float", "threadIdx.x * 4 * n", 8, 1),
        ("float", "threadIdx.x * 16 * n", 32, 1),
        ("float", "threadIdx.x * 33 / 33 + n", 1, 1),
        ("float", "n", 1, 1),  # one word for all
        ("float2", "threadIdx.x", 2, 2),
        ("float4", "threadIdx.x", 4, 4),
        ("float4", "threadIdx.x * n", 8, 4),
    ],
)
def test_wavefronts_of_shared_loads(word: str, index: str, wavefronts: int, ideal: int) -> None:
    size = {"float": 1, "float2": 2, "float4": 4}[word]
    counters = count(shared_kernel(word, index), [np.zeros(32 * size, np.float32), np.int32(2)])
    assert counters.shared_load.shared_wavefronts == wavefronts
    assert counters.shared_load.shared_ideal == ideal
    assert counters.bank_conflicts == wavefronts - ideal  # the stores have none


@pytest.mark.parametrize(("pad", "wavefronts"), [(0, 16), (8, 4)])
def test_wavefronts_of_ldmatrix(pad: int, wavefronts: int) -> None:
    """Unpadded rows of 64 bytes begin in two banks only: four rows of a matrix meet in each."""
    source = f"""
extern "C" __global__ void k(unsigned* out) {{
  __shared__ __align__(16) unsigned short s[16 * (32 + {pad})];
  for (int i = threadIdx.x; i < 16 * (32 + {pad}); i += 32) s[i] = i;
  __syncthreads();
  unsigned a = __cvta_generic_to_shared(
      s + (threadIdx.x & 15) * (32 + {pad}) + (threadIdx.x >> 4) * 8);
  unsigned r0, r1, r2, r3;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%0,%1,%2,%3}}, [%4];"
               : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(a));
  out[threadIdx.x] = r0 + r1 + r2 + r3;
}}"""
    counters = count(source, [np.zeros(32, np.uint32)])
    assert counters.shared_load.shared_wavefronts == wavefronts
    assert counters.shared_load.shared_ideal == 4


def test_flops_and_kinds() -> None:
    source = """
extern "C" __global__ void k(float* out, const float* a, const float* b) {
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  unsigned r = threadIdx.x;
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
               "{%4,%4,%4,%4}, {%4,%4}, {%0,%1,%2,%3};"
               : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "r"(r));
  out[threadIdx.x] = __fmaf_rn(a[threadIdx.x], b[threadIdx.x], d0);
}"""
    a = np.ones(64, np.float32)
    counters = count(source, [np.zeros_like(a), a, a], block=64)
    assert counters.tensor_flops == 2 * 2 * 16 * 8 * 16
    assert counters.flops == counters.tensor_flops + 64 * 2
    assert counters.instructions["tensor"] == 2
    assert counters.instructions["float"] == 2
    assert counters.instructions["store"] == 2
    assert "tensor instructions" in counters.table()


def test_only_active_warps_count() -> None:
    source = """
extern "C" __global__ void k(float* out, const float* in) {
  if (threadIdx.x < 32) out[threadIdx.x] = in[threadIdx.x];
}"""
    a = np.ones(32, np.float32)
    counters = count(source, [np.zeros_like(a), a], block=128)
    assert counters.instructions["store"] == 1
    assert counters.store.thread_instructions == 32


def test_copies_count_as_load_and_store() -> None:
    source = """
extern "C" __global__ void k(float* out, const float* in) {
  __shared__ __align__(16) float s[128];
  unsigned to = __cvta_generic_to_shared(s + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(in + 4 * threadIdx.x));
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}"""
    a = np.arange(128, dtype=np.float32)
    out = np.zeros(32, np.float32)
    counters = count(source, [out, a])
    np.testing.assert_array_equal(out, a[:32])
    assert counters.load.global_sectors == counters.load.global_ideal == 16
    assert counters.shared_store.shared_wavefronts == 4


def test_lines_add_up() -> None:
    source, out = np.ones(1024, np.float32), np.zeros(64, np.float32)
    counters = count(COPY, [out, source, np.int32(2)], grid=2)
    total = sum(line.warp_instructions for line in counters.lines.values())
    assert total == counters.warp_instructions
    line = next(c for place, c in counters.lines.items() if place.line == 4)
    assert line.global_sectors == counters.load.global_sectors + counters.store.global_sectors
