"""Kernels with planted bugs: global memory inside a block, and arrays of a thread.

Marks as in `planted_memory`.
"""

from __future__ import annotations

from tests.emulator.planted_memory import Planted

PLANTED = [
    Planted(
        "a warp reads global memory before another wrote it",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  out[threadIdx.x] = in[threadIdx.x];  // OTHER
  if (!BAD) __syncthreads();
  float x = out[63 - threadIdx.x];  // BUG
  out[64 + threadIdx.x] = x;
}""",
        other=True,
    ),
    Planted(
        "a warp overwrites global memory that another still reads",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  out[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  float x = out[63 - threadIdx.x];  // OTHER
  if (!BAD) __syncthreads();
  out[threadIdx.x] = x + 1.0f;  // BUG
}""",
        other=True,
    ),
    Planted(
        "a whole vector is read and one of it is written",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  out[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  float4 x = reinterpret_cast<float4*>(out)[(threadIdx.x + 8) % 16];  // OTHER
  if (!BAD) __syncthreads();
  out[threadIdx.x] = x.x + x.y + x.z + x.w;  // BUG
}""",
        other=True,
    ),
    Planted(
        "lanes exchange through global memory without syncwarp",
        "exchange inside a warp",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  out[threadIdx.x] = in[threadIdx.x];  // OTHER
  if (!BAD) __syncwarp();
  float x = out[threadIdx.x ^ 1];  // BUG
  out[64 + threadIdx.x] = x;
}""",
        block=32,
        other=True,
    ),
    Planted(
        "two warps write one place of global memory at once",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  out[BAD ? threadIdx.x % 32 : threadIdx.x] = in[threadIdx.x];  // BUG
}""",
    ),
    Planted(
        "two warps write one place of global memory one after the other",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  if (threadIdx.x < 32) out[threadIdx.x] = in[threadIdx.x];  // OTHER
  if (!BAD) __syncthreads();
  if (threadIdx.x >= 32) out[threadIdx.x - 32] = in[threadIdx.x];  // BUG
}""",
        other=True,
    ),
    Planted(
        "a sum by atomics is read before all have added",
        "race",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  out[threadIdx.x] = 0.0f;
  __syncthreads();
  atomicAdd(out + threadIdx.x % 4, in[threadIdx.x]);  // OTHER
  if (!BAD) __syncthreads();
  out[64 + threadIdx.x] = out[threadIdx.x % 4];  // BUG
}""",
        other=True,
    ),
    Planted(
        "a variable of the module is read before it is written",
        "race",
        """
__device__ float scratch[64];
extern "C" __global__ void k(float* out, const float* in, int n) {
  scratch[threadIdx.x] = in[threadIdx.x];  // OTHER
  if (!BAD) __syncthreads();
  out[threadIdx.x] = scratch[63 - threadIdx.x];  // BUG
}""",
        other=True,
    ),
    Planted(
        "one element of a thread's array is never written",
        "uninitialised read",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  float a[8];
  for (int i = 0; i < (BAD ? 7 : 8); i++) a[i] = in[threadIdx.x + i];
  out[threadIdx.x] = a[(n + threadIdx.x) & 7];  // BUG
}""",
    ),
    Planted(
        "a thread's array is read where the branch wrote nothing",
        "uninitialised read",
        """
extern "C" __global__ void k(float* out, const float* in, int n) {
  float a[16];
  for (int i = 0; i < 16; i++) {
    if (!BAD || i != int(threadIdx.x) % 16) a[(i * n + i) & 15] = in[i];
  }
  out[threadIdx.x] = a[(n + threadIdx.x) & 15];  // BUG
}""",
    ),
]
