// norm_row.cuh: one row in the registers of one warp: normalise it, write it, quantize it.
//
// Lane l holds columns 4 * (32 * v + l) .. + 3 for v = 0 .. kVectors - 1: each step of v is one
// contiguous access of the warp. Shared by embed_layer_norm.cu and layer_norm.cu.

#pragma once

#include "reduce.cuh"
#include "types.cuh"

template <int kVectors>
struct Row {
  float4 x[kVectors];
};

__device__ __forceinline__ int row_column(int vector) {
  return 4 * (32 * vector + static_cast<int>(threadIdx.x & 31));
}

// Mean 0 and variance 1 (biased, plus eps), times weight, plus bias. Two passes over registers: the
// variance is a sum of squared differences, so no cancellation for rows with a large mean.
template <int kVectors>
__device__ __forceinline__ void normalize_row(Row<kVectors>& row, const float* weight,
                                              const float* bias, int hidden_size, float eps) {
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    sum += (row.x[v].x + row.x[v].y) + (row.x[v].z + row.x[v].w);
  }
  const float mean = warp_sum(sum) / static_cast<float>(hidden_size);
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (row_column(v) < hidden_size) {
      const float dx = row.x[v].x - mean, dy = row.x[v].y - mean;
      const float dz = row.x[v].z - mean, dw = row.x[v].w - mean;
      squares += (dx * dx + dy * dy) + (dz * dz + dw * dw);
    }
  }
  const float variance = warp_sum(squares) / static_cast<float>(hidden_size);
  const float scale = 1.0f / sqrtf(variance + eps);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int column = row_column(v);
    if (column < hidden_size) {
      const float4 w = load4(weight + column), b = load4(bias + column);
      row.x[v].x = (row.x[v].x - mean) * scale * w.x + b.x;
      row.x[v].y = (row.x[v].y - mean) * scale * w.y + b.y;
      row.x[v].z = (row.x[v].z - mean) * scale * w.z + b.z;
      row.x[v].w = (row.x[v].w - mean) * scale * w.w + b.w;
    }
  }
}

// Write the row as T and, where out_q is given, as int8 with its scale. The int8 row is quantized
// from the rounded T, so it has the bytes that quantize_rows would give; its columns from
// hidden_size to quantized_size are zero, because the s8 tiles read 16 bytes at a time.
template <typename T, int kVectors>
__device__ __forceinline__ void store_row(const Row<kVectors>& row, T* out, int8* out_q,
                                          RowScale* act_scale, int64 token, int hidden_size,
                                          int quantized_size) {
  Range range;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int column = row_column(v);
    if (column < hidden_size) {
      store4(out + token * hidden_size + column, row.x[v]);
      range.add(rounded4<T>(row.x[v]));
    }
  }
  if (out_q == nullptr) return;
  const Quantizer quantizer = row_quantizer(range);
#pragma unroll
  for (int v = 0; v <= kVectors; ++v) {
    const int column = row_column(v);
    if (column < quantized_size) {
      uint32 packed = 0;
      if (v < kVectors && column < hidden_size) {
        packed = quantize4(rounded4<T>(row.x[v < kVectors ? v : 0]), quantizer);
      }
      *reinterpret_cast<uint32*>(out_q + token * quantized_size + column) = packed;
    }
  }
  if ((threadIdx.x & 31) == 0) act_scale[token] = quantizer.stored;
}
