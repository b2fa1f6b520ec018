// softmax: masked softmax of rows of unequal length, one warp per row.
//
//   probs[r, c] = exp(s[r, c] - max_c s[r, c]) / sum_c exp(...),  s = softmax_scale * scores,
//   over c < row_lengths[r]; 0 for the columns behind.
//
// probs, scores (num_rows, num_columns) T; row_lengths (num_rows,) int32, 1 .. num_columns.
// Mapping: one row per warp, four rows per block; maximum and sum by warp shuffles.
// Traffic per row: num_columns read (twice more from cache), num_columns written: bound by memory.
// The attention kernels do this inside, on tiles; this one serves scores that are in memory.
// Requires: num_columns a multiple of 4.

#include "reduce.cuh"
#include "types.cuh"

constexpr int kBlockSize = 128;

// Columns at or behind the row's length weigh nothing: -inf has the exponential 0.
template <typename T>
__device__ __forceinline__ float4 masked4(const T* row, int column, int length, float scale) {
  const float kMasked = __int_as_float(0xff800000);
  const float4 x = load4(row + column);
  return make_float4(column + 0 < length ? x.x * scale : kMasked,
                     column + 1 < length ? x.y * scale : kMasked,
                     column + 2 < length ? x.z * scale : kMasked,
                     column + 3 < length ? x.w * scale : kMasked);
}

template <typename T>
__global__ void __launch_bounds__(kBlockSize)
    softmax_kernel(T* __restrict__ probs, const T* __restrict__ scores,
                   const int* __restrict__ row_lengths, int num_rows, int num_columns,
                   float softmax_scale) {
  const int row_index = blockIdx.x * (kBlockSize / 32) + threadIdx.x / 32;
  if (row_index >= num_rows) return;
  const int lane_column = 4 * static_cast<int>(threadIdx.x & 31);
  const T* row = scores + static_cast<int64>(row_index) * num_columns;
  T* out = probs + static_cast<int64>(row_index) * num_columns;
  const int length = row_lengths[row_index];

  float largest = __int_as_float(0xff800000);
  for (int column = lane_column; column < length; column += 128) {
    const float4 x = masked4(row, column, length, softmax_scale);
    largest = fmaxf(largest, fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)));
  }
  largest = warp_max(largest);
  float sum = 0.0f;
  for (int column = lane_column; column < length; column += 128) {
    const float4 x = masked4(row, column, length, softmax_scale);
    sum += (expf(x.x - largest) + expf(x.y - largest)) +
           (expf(x.z - largest) + expf(x.w - largest));
  }
  const float factor = 1.0f / warp_sum(sum);
  for (int column = lane_column; column < num_columns; column += 128) {
    const float4 x = masked4(row, column, length, softmax_scale);
    store4(out + column,
           make_float4(expf(x.x - largest) * factor, expf(x.y - largest) * factor,
                       expf(x.z - largest) * factor, expf(x.w - largest) * factor));
  }
}
