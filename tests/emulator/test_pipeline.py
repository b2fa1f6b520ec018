"""A whole matrix kernel: copies in a ring, swizzled tiles, ldmatrix, mma, an epilogue.

It is clean as it stands. Each `BREAK_*` macro plants one bug that such kernels really have; the
last ones are right in every check, and only the numbers or the counters tell.
"""

from __future__ import annotations

import numpy as np
import pytest

from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import KernelFault, LaunchCounters, Module, device_array
from minibert.kernels.emulator import launch as launch_module

SOURCE = r"""
#include <cuda_fp16.h>
constexpr int kBlock = 64, kStepK = 32, kStages = 2;  // tiles of 64 x 32 halves: 4 chunks a row

#ifdef BREAK_SWIZZLE_BOTH
__device__ int chunk(int row, int c) { return row * 4 + c; }
#define READ_CHUNK chunk
#else
__device__ int chunk(int row, int c) { return row * 4 + (c ^ (row >> 1 & 3)); }
#ifdef BREAK_SWIZZLE_READ
__device__ int plain_chunk(int row, int c) { return row * 4 + c; }
#define READ_CHUNK plain_chunk
#else
#define READ_CHUNK chunk
#endif
#endif

__device__ void fetch(uint4* to, const half* from, int first, int rows, int k0, int k) {
  for (int i = threadIdx.x; i < kBlock * 4; i += 128) {
    const int row = i / 4, c = i % 4;
#ifdef BREAK_BOUND
    const int size = first + row <= rows ? 16 : 0;
#else
    const int size = first + row < rows ? 16 : 0;
#endif
    const unsigned at = __cvta_generic_to_shared(to + chunk(row, c));
    const half* source = from + (size_t)(first + row) * k + k0 + c * 8;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(source), "r"(size));
  }
}

__device__ void load4(unsigned (&r)[4], const uint4* at) {
  const unsigned address = __cvta_generic_to_shared(at);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}

extern "C" __global__ void __launch_bounds__(128)
gemm(half* out, const half* a, const half* b, int m, int n, int k) {
  __shared__ __align__(16) uint4 tiles[kStages][2][kBlock * 4];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int row0 = blockIdx.y * kBlock, column0 = blockIdx.x * kBlock;
  float d[8][4] = {};
  fetch(tiles[0][0], a, row0, m, 0, k);
  fetch(tiles[0][1], b, column0, n, 0, k);
  asm volatile("cp.async.commit_group;");
  for (int step = 0; step * kStepK < k; step++) {
    if ((step + 1) * kStepK < k) {
      fetch(tiles[(step + 1) & 1][0], a, row0, m, (step + 1) * kStepK, k);
      fetch(tiles[(step + 1) & 1][1], b, column0, n, (step + 1) * kStepK, k);
    }
    asm volatile("cp.async.commit_group;");
#ifdef BREAK_WAIT
    asm volatile("cp.async.wait_group 2;" ::: "memory");
#else
    asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
#ifndef BREAK_FIRST_BARRIER
    __syncthreads();
#endif
    const uint4* left = tiles[step & 1][0];
    const uint4* right = tiles[step & 1][1];
#pragma unroll
    for (int kk = 0; kk < 2; kk++) {
      unsigned x[4], y[4][4];
      load4(x, left + READ_CHUNK(warp * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int row = j * 16 + (lane & 7) + (lane >> 4) * 8;
        load4(y[j], right + READ_CHUNK(row, kk * 2 + (lane >> 3 & 1)));
      }
#pragma unroll
      for (int j = 0; j < 8; j++) {
#ifdef BREAK_OPERANDS
        const unsigned b0 = y[j / 2][j % 2 * 2 + 1], b1 = y[j / 2][j % 2 * 2];
#else
        const unsigned b0 = y[j / 2][j % 2 * 2], b1 = y[j / 2][j % 2 * 2 + 1];
#endif
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(b0), "r"(b1));
      }
    }
#ifndef BREAK_LAST_BARRIER
    __syncthreads();
#endif
  }
  for (int j = 0; j < 8; j++)
    for (int e = 0; e < 4; e++) {
      const int row = row0 + warp * 16 + (lane >> 2) + e / 2 * 8;
      const int column = column0 + j * 8 + (lane & 3) * 2 + e % 2;
      if (row < m && column < n) out[(size_t)row * n + column] = __float2half(d[j][e]);
    }
}
"""

M, N, K = 70, 130, 160


def operands() -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(3)
    a = source.standard_normal((M, K)).astype(np.float16)
    b = (source.standard_normal((N, K)) * 0.1).astype(np.float16)
    return a, b


def run(*macros: str, counters: bool = False) -> tuple[np.ndarray, LaunchCounters | None]:
    text = compile_ptx(SOURCE, name="gemm.cu", options=[f"-D{macro}" for macro in macros]).text
    a, b = operands()
    out = device_array((M, N), np.float16)
    kernel = Module(text, counters=counters).get_function("gemm")
    args = (out, a, b, np.int32(M), np.int32(N), np.int32(K))
    return out, kernel((3, 2), 128, args)


def error(out: np.ndarray) -> float:
    a, b = (x.astype(np.float64) for x in operands())
    return float(np.abs(out - a @ b.T).max())


def test_the_clean_kernel_is_right_and_raises_no_alarm() -> None:
    out, _ = run()
    half_ulp = float(np.spacing(np.float16(np.abs(out).max()))) / 2
    assert error(out) <= 1.01 * half_ulp


@pytest.mark.parametrize(
    ("macro", "kinds"),
    [
        ("BREAK_BOUND", {"out of bounds"}),
        ("BREAK_WAIT", {"copy in flight"}),
        ("BREAK_FIRST_BARRIER", {"race", "exchange inside a warp"}),
        ("BREAK_LAST_BARRIER", {"race", "exchange inside a warp"}),
    ],
)
def test_a_bug_of_the_pipeline_is_reported(macro: str, kinds: set[str]) -> None:
    with pytest.raises(KernelFault) as caught:
        run(macro)
    assert caught.value.kind in kinds
    assert "gemm.cu" in str(caught.value)


@pytest.mark.parametrize("macro", ["BREAK_OPERANDS", "BREAK_SWIZZLE_READ"])
def test_a_bug_of_the_layout_shows_in_the_numbers(macro: str) -> None:
    out, _ = run(macro)
    assert error(out) > 1.0


def test_a_missing_swizzle_shows_in_the_counters() -> None:
    swizzled_out, swizzled = run(counters=True)
    plain_out, plain = run("BREAK_SWIZZLE_BOTH", counters=True)
    np.testing.assert_array_equal(swizzled_out, plain_out)
    assert swizzled is not None and plain is not None
    assert swizzled.bank_conflicts == 0
    assert plain.shared_load.shared_wavefronts == 4 * plain.shared_load.shared_ideal
    assert swizzled.load_efficiency == 1.0
    steps = K // 32
    assert swizzled.tensor_flops == 6 * 4 * steps * 2 * 8 * 2 * 16 * 8 * 16


@pytest.mark.parametrize("name", ["fuse_runs", "share_registers"])
def test_shortcuts_change_no_byte(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_shortcut, _ = run()
    if name == "fuse_runs":
        monkeypatch.setattr(launch_module, name, lambda *_: None)
    else:
        monkeypatch.setattr(
            launch_module,
            name,
            lambda program: {register: (register, 0) for register in program.registers},
        )
    without, _ = run()
    np.testing.assert_array_equal(with_shortcut.view(np.uint16), without.view(np.uint16))
