// quantize_rows_fixed: quantize_rows with a range of the layer's inputs fixed beforehand.
//
//   scale = (high - low) / 255, zero_point = round(-low / scale) - 128
//   out_q[t] = min(127, max(-128, round(hidden[t] / scale) + zero_point))
//
// hidden (num_tokens, size) T with rows of row_stride elements; out_q (num_tokens, quantized_size)
// int8, zero from size on, where it meets zero weights; act_scale (num_tokens,) RowScale: the same
// for every row, but a scale of NaN for rows that are not finite: what lies beyond the range
// saturates, and infinity and NaN must not become a number by that.
// Mapping: one row per warp, four rows per block; one pass over the row.
// Traffic per row: size read, size bytes written: bound by memory.
// Requires: row_stride, size and quantized_size multiples of 4; low <= 0 <= high, low < high.

#include "reduce.cuh"
#include "types.cuh"

constexpr int kBlockSize = 128;

template <typename T>
__global__ void __launch_bounds__(kBlockSize)
    quantize_rows_fixed_kernel(int8* __restrict__ out_q, RowScale* __restrict__ act_scale,
                               const T* __restrict__ hidden, int num_tokens, int size,
                               int row_stride, int quantized_size, float low, float high) {
  const int token = blockIdx.x * (kBlockSize / 32) + threadIdx.x / 32;
  if (token >= num_tokens) return;
  const int lane_column = 4 * static_cast<int>(threadIdx.x & 31);
  const T* row = hidden + static_cast<int64>(token) * row_stride;
  int8* row_q = out_q + static_cast<int64>(token) * quantized_size;

  const Quantizer quantizer = range_quantizer(low, high);
  float poison = 0.0f;  // becomes NaN where a value is NaN or infinite
  for (int column = lane_column; column < quantized_size; column += 128) {
    uint32 packed = 0u;
    if (column < size) {
      const float4 x = load4(row + column);
      poison += x.x * 0.0f + x.y * 0.0f + x.z * 0.0f + x.w * 0.0f;
      packed = quantize4(x, quantizer);
    }
    *reinterpret_cast<uint32*>(row_q + column) = packed;
  }
  poison = warp_sum(poison);
  if (lane_column == 0) {
    act_scale[token] = {quantizer.stored.scale + poison, quantizer.stored.zero_point};
  }
}
