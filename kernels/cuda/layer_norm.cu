// layer_norm: bring each row to mean 0 and variance 1, then to weight and bias.
//
//   out = (x - mean) / sqrt(var + eps) * weight + bias              (x = hidden, var biased)
//
// out, hidden (num_tokens, hidden_size) T; weight, bias (hidden_size,) f32. Where out_q is given the
// row is also written as int8 (num_tokens, quantized_size) with act_scale (num_tokens,) RowScale:
// the quantization of the next linear layer costs no extra pass.
// Mapping: one row per warp, four rows per block; lane l holds 4 columns of every 128; mean and
// variance by warp shuffles, one fixed order.
// Traffic per row: hidden_size read, hidden_size written: bound by memory.
// Requires: hidden_size a multiple of 4 and at most 128 * kVectors.

#include "norm_row.cuh"
#include "types.cuh"

constexpr int kBlockSize = 128;

template <typename T, int kVectors>
__global__ void __launch_bounds__(kBlockSize, kVectors <= 8 ? 4 : 3)
    layer_norm_kernel(T* __restrict__ out, int8* __restrict__ out_q,
                      RowScale* __restrict__ act_scale,
                      const T* __restrict__ hidden, const float* __restrict__ weight,
                      const float* __restrict__ bias, int num_tokens, int hidden_size, int quantized_size, float eps) {
  static_assert(kVectors >= 1 && kVectors <= 16, "the row must fit the registers of a warp");
  const int token = blockIdx.x * (kBlockSize / 32) + threadIdx.x / 32;
  if (token >= num_tokens) return;

  const int64 begin = static_cast<int64>(token) * hidden_size;
  Row<kVectors> row;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int column = row_column(v);
    row.x[v] = column < hidden_size ? load4(hidden + begin + column)
                                    : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  normalize_row(row, weight, bias, hidden_size, eps);
  store_row(row, out, out_q, act_scale, token, hidden_size, quantized_size);
}
