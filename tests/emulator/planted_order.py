"""Kernels with planted bugs of order: warps, barriers, copies in flight, loops, blocks.

Marks as in `planted_memory`.
"""

from __future__ import annotations

from tests.emulator.planted_memory import Planted

PLANTED = [
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
  const float* from = in + 4 * threadIdx.x;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));  // OTHER
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
  const float* from = in + 4 * threadIdx.x;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));  // OTHER
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
  const float* from = in + 4 * threadIdx.x;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));  // BUG
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
  assert(!BAD || in[threadIdx.x] < -1000.0f);  // BUG
  out[threadIdx.x] = 1.0f;
}""",
    ),
    Planted(
        "trap",
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
