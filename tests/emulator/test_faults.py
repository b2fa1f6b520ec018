"""Each planted bug is reported, with its kind and its source line; the repaired kernel is clean.

The line that must be named is marked `// BUG`. A repair turns `BAD` off by a macro.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import KernelFault, Module, device_array


@dataclass(frozen=True)
class Planted:
    """A kernel with a bug that `BAD` turns on."""

    name: str
    kind: str
    source: str
    block: int = 64
    grid: int = 1
    shared_mem: int = 0
    size: int = 256
    step_limit: int = 20_000
    other: bool = False  # the report names a second line, marked // OTHER


PLANTED = [
    Planted(
        "consumers read before the producers arrive",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  for (int i = 0; i < 3; i++) {
    if (threadIdx.x < 64) {
      s[threadIdx.x] = in[threadIdx.x + i];  // OTHER
      asm volatile("bar.arrive 1, 128;" ::: "memory");
      asm volatile("bar.sync 2, 128;" ::: "memory");
    } else {
      if (!BAD) asm volatile("bar.sync 1, 128;" ::: "memory");
      float x = s[127 - threadIdx.x];  // BUG
      if (BAD) asm volatile("bar.sync 1, 128;" ::: "memory");
      asm volatile("bar.arrive 2, 128;" ::: "memory");
      out[threadIdx.x] = x;
    }
  }
}""",
        block=128,
        other=True,
    ),
    Planted(
        "producers overwrite what consumers still read",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  for (int i = 0; i < 3; i++) {
    if (threadIdx.x < 64) {
      s[threadIdx.x] = in[threadIdx.x + i];  // BUG
      asm volatile("bar.arrive 1, 128;" ::: "memory");
      if (!BAD) asm volatile("bar.sync 2, 128;" ::: "memory");
    } else {
      asm volatile("bar.sync 1, 128;" ::: "memory");
      float x = s[127 - threadIdx.x];
      if (!BAD) asm volatile("bar.arrive 2, 128;" ::: "memory");
      out[threadIdx.x] = x;
    }
  }
}""",
        block=128,
    ),
    Planted(
        "one row too many",
        "out of bounds",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (BAD ? i > n : i >= n) return;
  float x = in[i];  // BUG
  out[i] = x;
}""",
        grid=5,
    ),
    Planted(
        "negative index",
        "out of bounds",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  int i = threadIdx.x;
  out[i] = in[i - BAD];  // BUG
}""",
    ),
    Planted(
        "null pointer",
        "out of bounds",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  const float* p = BAD ? reinterpret_cast<const float*>(size_t(n - 256)) : in;
  out[threadIdx.x] = p[threadIdx.x];  // BUG
}""",
    ),
    Planted(
        "past dynamic shared memory",
        "out of bounds",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  extern __shared__ float s[];
  s[threadIdx.x + BAD] = in[threadIdx.x];  // BUG
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x + BAD];
}""",
        shared_mem=256,
    ),
    Planted(
        "past one static array into the next",
        "out of bounds",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float a[64];
  __shared__ float b[64];
  b[threadIdx.x] = 0.0f;
  __syncthreads();
  a[threadIdx.x + BAD] = in[threadIdx.x];  // BUG
  __syncthreads();
  out[threadIdx.x] = a[63 - threadIdx.x + BAD] + b[63 - threadIdx.x];
}""",
    ),
    Planted(
        "past a local array",
        "out of bounds",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  float a[8];
  for (int i = 0; i < 8; i++) a[i] = in[i + threadIdx.x];
  int at = int(in[255]) & 7;
  out[threadIdx.x] = a[at + n * BAD];  // BUG
}""",
    ),
    Planted(
        "misaligned float4",
        "misaligned",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  float4 x = *reinterpret_cast<const float4*>(in + threadIdx.x * (4 - BAD));  // BUG
  out[threadIdx.x] = x.x + x.y + x.z + x.w;
}""",
        block=32,
    ),
    Planted(
        "misaligned in shared memory",
        "misaligned",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ __align__(16) float s[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) s[i] = in[i];
  __syncthreads();
  float2 x = *reinterpret_cast<float2*>(s + threadIdx.x * 2 + BAD);  // BUG
  out[threadIdx.x] = x.x + x.y;
}""",
        block=32,
    ),
    Planted(
        "shared memory never written",
        "uninitialised read",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  if (!BAD || threadIdx.x < 60) s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];  // BUG
}""",
    ),
    Planted(
        "output read before it is written",
        "uninitialised read",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  if (!BAD) out[threadIdx.x] = 0.0f;
  float x = out[threadIdx.x];  // BUG
  out[threadIdx.x] = x + in[threadIdx.x];
}""",
    ),
    Planted(
        "no barrier between write and read",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];  // OTHER
  if (!BAD) __syncthreads();
  out[threadIdx.x] = s[63 - threadIdx.x];  // BUG
}""",
        other=True,
    ),
    Planted(
        "no barrier before the next write",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  float sum = 0.0f;
  for (int i = 0; i < 3; i++) {
    s[threadIdx.x] = in[threadIdx.x + i];  // BUG
    __syncthreads();
    sum += s[63 - threadIdx.x];  // OTHER
    if (!BAD) __syncthreads();
  }
  out[threadIdx.x] = sum;
}""",
        other=True,
    ),
    Planted(
        "two threads write one place at once",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[BAD ? threadIdx.x / 2 : threadIdx.x] = in[threadIdx.x];  // BUG
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x % 32];
}""",
    ),
    Planted(
        "plain read beside atomics",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);  // OTHER
  if (!BAD) __syncthreads();
  out[threadIdx.x] = float(count);  // BUG
}""",
        other=True,
    ),
    Planted(
        "lanes exchange without syncwarp",
        "exchange inside a warp",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];  // OTHER
  if (!BAD) __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 1];  // BUG
}""",
        other=True,
    ),
    Planted(
        "a lane overwrites what its warp still reads",
        "exchange inside a warp",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  float x = s[threadIdx.x ^ 1];  // OTHER
  if (!BAD) __syncwarp();
  s[threadIdx.x] = x * 2.0f;  // BUG
  out[threadIdx.x] = s[threadIdx.x];
}""",
        other=True,
    ),
    Planted(
        "barrier in a branch",
        "divergent barrier",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  if (!BAD || threadIdx.x < 32) {
    __syncthreads();  // OTHER
    s[threadIdx.x] += 1.0f;
  }
  __syncthreads();  // BUG
  out[threadIdx.x] = s[63 - threadIdx.x];
}""",
        other=True,
    ),
    Planted(
        "barrier in half a warp",
        "divergent barrier",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[64];
  s[threadIdx.x] = in[threadIdx.x];
  if (!BAD || threadIdx.x % 32 < 16) {
    __syncthreads();  // OTHER
    s[threadIdx.x] += 1.0f;
  }
  __syncthreads();  // BUG
  out[threadIdx.x] = s[63 - threadIdx.x];
}""",
        other=True,
    ),
    Planted(
        "a barrier that one warp never reaches",
        "divergent barrier",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  int id = BAD && threadIdx.x >= 32 ? 2 : 1;
  if (id == 1) asm volatile("bar.sync 1, 64;" ::: "memory");  // BUG
  else asm volatile("bar.sync 2, 64;" ::: "memory");
  out[threadIdx.x] = in[threadIdx.x];
}""",
    ),
    Planted(
        "shuffle by part of a warp",
        "incomplete warp",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  float x = in[threadIdx.x];
  if (!BAD || threadIdx.x % 32 < 16) {
    x += __shfl_xor_sync(0xffffffff, x, 1);  // BUG
    out[threadIdx.x] = x;
  } else {
    x *= 3.0f;
    __syncwarp();
    out[threadIdx.x] = x;
  }
}""",
    ),
    Planted(
        "lane outside of its own mask",
        "incomplete warp",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  float x = in[threadIdx.x];
  unsigned mask = BAD ? 0x0000ffffu : 0xffffffffu;
  out[threadIdx.x] = x + __shfl_xor_sync(mask, x, 1);  // BUG
}""",
    ),
    Planted(
        "shuffle from a lane that has gone",
        "incomplete warp",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  if (BAD && threadIdx.x >= 40) return;
  float x = in[threadIdx.x];
  out[threadIdx.x] = x + __shfl_xor_sync(0xffffffff, x, 16);  // BUG
}""",
    ),
    Planted(
        "mma by part of a warp",
        "incomplete warp",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  unsigned a = threadIdx.x, b = 1;
  if (!BAD || threadIdx.x < 24)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4}, {%5}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "r"(a), "r"(b));  // BUG
  out[threadIdx.x] = d0 + d1 + d2 + d3;
}""",
        block=32,
    ),
    Planted(
        "no barrier after a copy",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ __align__(16) float s[256];
  unsigned to = __cvta_generic_to_shared(s + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(in + 4 * threadIdx.x));  // OTHER
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (!BAD) __syncthreads();
  out[threadIdx.x] = s[255 - 4 * threadIdx.x];  // BUG
}""",
        other=True,
    ),
    Planted(
        "wait for one group too few",
        "copy in flight",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ __align__(16) float s[256];
  unsigned to = __cvta_generic_to_shared(s + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(in + 4 * threadIdx.x));  // OTHER
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (BAD) asm volatile("cp.async.wait_group 1;" ::: "memory");
  else asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  out[threadIdx.x] = s[255 - 4 * threadIdx.x];  // BUG
}""",
        other=True,
    ),
    Planted(
        "a copy onto what is still read",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ __align__(16) float s[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) s[i] = in[i];
  __syncthreads();
  float x = s[255 - 4 * threadIdx.x];  // OTHER
  if (!BAD) __syncthreads();
  unsigned to = __cvta_generic_to_shared(s + 4 * threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(in + 4 * threadIdx.x));  // BUG
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  out[threadIdx.x] = x + s[255 - 4 * threadIdx.x];
}""",
        other=True,
    ),
    Planted(
        "endless loop",
        "step limit",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  volatile float* v = out;
  v[threadIdx.x] = 1.0f;
  while (BAD && v[threadIdx.x] > 0.0f) {}  // BUG
}""",
    ),
    Planted(
        "two blocks write one place",
        "two blocks write one place",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  int i = BAD ? threadIdx.x : blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i] + blockIdx.x;  // BUG
}""",
        grid=4,
    ),
    Planted(
        "assertion",
        "trap",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  if (BAD && in[threadIdx.x] > -1000.0f) __trap();  // BUG
  out[threadIdx.x] = 1.0f;
}""",
    ),
    Planted(
        "inside an inlined function",
        "out of bounds",
        """
__device__ __forceinline__ float read(const float* p, int i) {
  return p[i];
}
extern "C" __global__ void k(float* out, const float* in, int n) {
  out[threadIdx.x] = read(in, threadIdx.x + 1000 * BAD);  // BUG
}""",
    ),
    Planted(
        "inside a called function",
        "out of bounds",
        """
__device__ __noinline__ float read(const float* p, int i) {
  float s = 0.0f;
  for (int j = 0; j <= i % 3; j++) s += p[i + j];  // BUG
  return s;
}
extern "C" __global__ void k(float* out, const float* in, int n) {
  out[threadIdx.x] = read(in, threadIdx.x + 1000 * BAD);
}""",
    ),
]


def launch(planted: Planted, *, bad: bool) -> None:
    ptx = compile_ptx(planted.source, name="k.cu", options=(f"-DBAD={int(bad)}",))
    module = Module(ptx.text, step_limit=planted.step_limit)
    source = np.random.default_rng(1).standard_normal(planted.size).astype(np.float32)
    out = device_array(planted.size, np.float32)
    module.get_function("k")(
        planted.grid,
        planted.block,
        (out, source, np.int32(planted.size)),
        shared_mem=planted.shared_mem,
    )


def line_of(source: str, mark: str) -> int:
    return next(i for i, line in enumerate(source.splitlines(), 1) if mark in line)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: p.name)
def test_planted_bug_is_reported(planted: Planted) -> None:
    with pytest.raises(KernelFault) as caught:
        launch(planted, bad=True)
    fault = caught.value
    assert fault.kind == planted.kind, fault
    assert fault.location.outermost.line == line_of(planted.source, "// BUG"), fault
    assert fault.location.outermost.file.endswith("k.cu")
    assert "k.cu:" in str(fault) and fault.kernel == "k" and fault.thread is not None
    if planted.other:
        assert fault.other is not None
        assert fault.other.outermost.line == line_of(planted.source, "// OTHER"), fault


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: p.name)
def test_repaired_kernel_raises_no_alarm(planted: Planted) -> None:
    launch(planted, bad=False)


def test_inlined_code_names_both_lines() -> None:
    planted = next(p for p in PLANTED if p.name == "inside an inlined function")
    with pytest.raises(KernelFault, match=r"at k\.cu:3 inlined at k\.cu:6, block \(0, 0, 0\)"):
        launch(planted, bad=True)


def test_without_checks_races_pass() -> None:
    planted = next(p for p in PLANTED if p.name == "no barrier between write and read")
    ptx = compile_ptx(planted.source, name="k.cu", options=("-DBAD=1",))
    out = np.zeros(256, np.float32)
    source = np.ones(256, np.float32)
    Module(ptx.text, checks=False).get_function("k")(1, 64, (out, source, np.int32(256)))
    np.testing.assert_array_equal(out[:64], 1.0)
