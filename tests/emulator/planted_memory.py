"""Kernels with planted bugs of memory: bounds, alignment, uninitialised reads, races.

The line that must be named is marked `// BUG`, the other side of a race `// OTHER`. A repair turns
`BAD` off by a macro.
"""

from __future__ import annotations

from dataclasses import dataclass


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
]
