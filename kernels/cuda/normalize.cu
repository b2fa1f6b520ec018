// normalize: each row divided by max(its L2 norm, 1e-12).
//
// out (num_rows, size) f32 with rows of out_stride elements, zero from size on; rows (num_rows,
// size) T with rows of row_stride elements.
// Mapping: one row per warp, four rows per block; the sum of squares by warp shuffles.
// Traffic per row: size read (once more from cache), size written: bound by memory.
// Requires: nothing of size; 4-byte accesses of neighbouring lanes.

#include "reduce.cuh"
#include "types.cuh"

constexpr int kBlockSize = 128;

template <typename T>
__global__ void __launch_bounds__(kBlockSize)
    normalize_kernel(float* __restrict__ out, const T* __restrict__ rows, int num_rows, int size,
                     int out_stride, int row_stride) {
  const int row_index = blockIdx.x * (kBlockSize / 32) + threadIdx.x / 32;
  if (row_index >= num_rows) return;
  const int lane_id = threadIdx.x & 31;
  const T* row = rows + static_cast<int64>(row_index) * row_stride;
  float squares = 0.0f;
  for (int column = lane_id; column < size; column += 32) {
    const float x = to_float(row[column]);
    squares += x * x;
  }
  const float norm = fmaxf(sqrtf(warp_sum(squares)), 1e-12f);
  for (int column = lane_id; column < out_stride; column += 32) {
    out[static_cast<int64>(row_index) * out_stride + column] =
        column < size ? to_float(row[column]) / norm : 0.0f;
  }
}
