// reduce.cuh: reductions over the 32 lanes of a warp, and row quantization built on them.
//
// The butterfly adds lanes 16, 8, 4, 2, 1 apart: one fixed order, and every lane ends with the same
// bits. All 32 lanes must call.

#pragma once

#include "types.cuh"

constexpr uint32 kFullWarp = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    x += __shfl_xor_sync(kFullWarp, x, distance);
  }
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, distance));
  }
  return x;
}

__device__ __forceinline__ float max_abs4(float4 x) {
  return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
}

// The factor that takes the largest absolute value of a row to 127. A row of zeros stays zero.
__device__ __forceinline__ float quantize_factor(float row_max) {
  return row_max > 0.0f ? 127.0f / row_max : 0.0f;
}

// Four values times `factor`, rounded to nearest even, as four int8 in one register. |x * factor|
// is at most 127 times a rounding error, so nothing saturates.
__device__ __forceinline__ uint32 quantize4(float4 x, float factor) {
  const uint32 q0 = static_cast<uint32>(__float2int_rn(x.x * factor)) & 0xffu;
  const uint32 q1 = static_cast<uint32>(__float2int_rn(x.y * factor)) & 0xffu;
  const uint32 q2 = static_cast<uint32>(__float2int_rn(x.z * factor)) & 0xffu;
  const uint32 q3 = static_cast<uint32>(__float2int_rn(x.w * factor)) & 0xffu;
  return q0 | q1 << 8 | q2 << 16 | q3 << 24;
}
