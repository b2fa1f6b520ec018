// linear_epilogue.cuh: what a float linear layer does to four neighbouring sums before it writes them.
//
//   out = activation(sum + bias) + residual, rounded once

#pragma once

#include "activation.cuh"
#include "types.cuh"

// Four columns from `column` on, a multiple of 4, of a row; what lies outside is left alone.
// out_features is a multiple of 4; residual may be null.
template <Activation kActivation, typename T>
__device__ __forceinline__ void write_linear(T* out, const float* bias, const T* residual, int row,
                                             int column, int num_rows, int out_features, float4 x) {
  if (row >= num_rows || column >= out_features) return;
  const float4 b = load4(bias + column);
  float4 y = activate4<kActivation>(make_float4(x.x + b.x, x.y + b.y, x.z + b.z, x.w + b.w));
  const int64 at = static_cast<int64>(row) * out_features + column;
  if (residual) {
    const float4 z = load4(residual + at);
    y = make_float4(y.x + z.x, y.y + z.y, y.z + z.z, y.w + z.w);
  }
  store4(out + at, y);
}
