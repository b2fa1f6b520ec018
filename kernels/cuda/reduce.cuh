// reduce.cuh: reductions over the 32 lanes of a warp, and row quantization built on them.
//
// A quantized row is x = scale * (q - zero_point), q in -128..127: int8 as the tensor cores take it.
// The zero point is a whole number, so 0 stays 0 and what it adds to a product is an exact integer.
// All 256 steps cover the row's own range, which after GELU is far from symmetric.
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

__device__ __forceinline__ float warp_min(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    x = fminf(x, __shfl_xor_sync(kFullWarp, x, distance));
  }
  return x;
}

// The range of a row, 0 included.
struct Range {
  float low = 0.0f, high = 0.0f;

  __device__ __forceinline__ void add(float4 x) {
    low = fminf(low, fminf(fminf(x.x, x.y), fminf(x.z, x.w)));
    high = fmaxf(high, fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)));
  }
};

// What is stored of a row's quantization; 8 bytes, read as one.
struct __align__(8) RowScale {
  float scale;
  int zero_point;
};

// How a row is quantized: the same in all lanes. A row of zeros has scale 0.
struct Quantizer {
  float steps_per_unit, shift;
  RowScale stored;
};

__device__ __forceinline__ Quantizer range_quantizer(float low, float high) {
  const float width = high - low;
  Quantizer row;
  row.steps_per_unit = width > 0.0f ? 255.0f / width : 0.0f;
  // -low is at most the width, so this lies in -128..127.
  row.shift = rintf(-low * row.steps_per_unit) - 128.0f;
  row.stored.scale = width / 255.0f;
  row.stored.zero_point = __float2int_rn(row.shift);
  return row;
}

__device__ __forceinline__ Quantizer row_quantizer(Range range) {
  return range_quantizer(warp_min(range.low), warp_max(range.high));
}

__device__ __forceinline__ uint32 quantize(float x, const Quantizer& row) {
  // Rounding the step and the zero point apart can pass the end by one.
  const float q = rintf(x * row.steps_per_unit) + row.shift;
  return static_cast<uint32>(__float2int_rn(fminf(fmaxf(q, -128.0f), 127.0f))) & 0xffu;
}

// Four values, rounded to nearest even, as four int8 in one register.
__device__ __forceinline__ uint32 quantize4(float4 x, const Quantizer& row) {
  return quantize(x.x, row) | quantize(x.y, row) << 8 | quantize(x.z, row) << 16 |
         quantize(x.w, row) << 24;
}

// A sum of products of a quantized row and a quantized weight row, as it would be without either;
// the correction for the zero point is exact.
__device__ __forceinline__ float dequantize(int acc, int weight_sum, float weight_scale,
                                            RowScale row) {
  return static_cast<float>(acc - row.zero_point * weight_sum) * (row.scale * weight_scale);
}
