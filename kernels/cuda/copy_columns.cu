// copy_columns: copy a matrix into columns of another one, converting the numbers.
//
//   out[r, c] = in[r, c] for c < num_columns, 0 for num_columns <= c < written_columns
//
// out has rows of out_stride elements of To, in rows of in_stride elements of From. `out` points at
// the first column to write. Serves concatenation and the step from float32 back to T.
// Mapping: grid-stride free, one element per thread, neighbours in neighbouring lanes.
// Traffic: num_rows * num_columns read and written: bound by memory.
// Requires: num_rows * written_columns below 2^31 (checked by the launcher).

#include "types.cuh"

constexpr int kBlockSize = 256;

template <typename To, typename From>
__global__ void __launch_bounds__(kBlockSize)
    copy_columns_kernel(To* __restrict__ out, const From* __restrict__ in, int num_rows,
                        int num_columns, int written_columns, int out_stride, int in_stride) {
  const int index = blockIdx.x * kBlockSize + threadIdx.x;
  if (index >= num_rows * written_columns) return;
  const int row = index / written_columns, column = index % written_columns;
  const float x =
      column < num_columns ? to_float(in[static_cast<int64>(row) * in_stride + column]) : 0.0f;
  out[static_cast<int64>(row) * out_stride + column] = from_float<To>(x);
}
