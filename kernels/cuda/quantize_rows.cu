// quantize_rows: per-token int8 with a zero point, computed from the values at hand.
//
//   low = min(0, hidden[t]), high = max(0, hidden[t]), scale = (high - low) / 255
//   zero_point = round(-low / scale) - 128,  out_q[t] = round(hidden[t] / scale) + zero_point
//
// hidden (num_tokens, size) T with rows of row_stride elements; out_q (num_tokens, quantized_size)
// int8, zero from size on, where it meets zero weights; act_scale (num_tokens,) RowScale.
// Mapping: one row per warp, four rows per block; two passes over the row, the second from cache.
// Traffic per row: size read, size bytes written: bound by memory.
// Requires: row_stride, size and quantized_size multiples of 4.

#include "reduce.cuh"
#include "types.cuh"

constexpr int kBlockSize = 128;

template <typename T>
__global__ void __launch_bounds__(kBlockSize)
    quantize_rows_kernel(int8* __restrict__ out_q, RowScale* __restrict__ act_scale,
                         const T* __restrict__ hidden, int num_tokens, int size, int row_stride,
                         int quantized_size) {
  const int token = blockIdx.x * (kBlockSize / 32) + threadIdx.x / 32;
  if (token >= num_tokens) return;
  const int lane_column = 4 * static_cast<int>(threadIdx.x & 31);
  const T* row = hidden + static_cast<int64>(token) * row_stride;
  int8* row_q = out_q + static_cast<int64>(token) * quantized_size;

  Range range;
  for (int column = lane_column; column < size; column += 128) range.add(load4(row + column));
  const Quantizer quantizer = row_quantizer(range);
  for (int column = lane_column; column < quantized_size; column += 128) {
    const uint32 packed = column < size ? quantize4(load4(row + column), quantizer) : 0u;
    *reinterpret_cast<uint32*>(row_q + column) = packed;
  }
  if (lane_column == 0) act_scale[token] = quantizer.stored;
}
