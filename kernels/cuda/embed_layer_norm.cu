// embed_layer_norm: gather and add the embedding tables, then layer_norm.
//
//   x[t]   = word[input_ids[t]] + position[position_ids[t]] + token_type[token_type_ids[t]]
//   out[t] = (x[t] - mean) / sqrt(var + eps) * weight + bias        (x[t] itself without a norm)
//
// out (num_tokens, hidden_size) T; tables (rows, hidden_size) T; weight, bias (hidden_size,) f32.
// position, token_type, weight and bias may be null; out_q (num_tokens, quantized_size) int8 and
// act_scale (num_tokens,) RowScale are written where out_q is given.
// Mapping: one token per warp, four tokens per block; lane l holds 4 columns of every 128.
// Traffic per token: 3 * hidden_size read (scattered rows, each contiguous), hidden_size written:
// bound by memory.
// Requires: hidden_size a multiple of 4 and at most 128 * kVectors; ids below the tables' rows.

#include "norm_row.cuh"
#include "types.cuh"

constexpr int kBlockSize = 128;

template <typename T, int kVectors>
__global__ void __launch_bounds__(kBlockSize, kVectors <= 8 ? 4 : 3)
    embed_layer_norm_kernel(T* __restrict__ out, int8* __restrict__ out_q,
                            RowScale* __restrict__ act_scale, const int* __restrict__ input_ids,
                            const int* __restrict__ position_ids,
                            const int* __restrict__ token_type_ids, const T* __restrict__ word,
                            const T* __restrict__ position, const T* __restrict__ token_type,
                            const float* __restrict__ weight, const float* __restrict__ bias,
                            int num_tokens, int hidden_size, int quantized_size, float eps) {
  static_assert(kVectors >= 1 && kVectors <= 16, "the row must fit the registers of a warp");
  const int token = blockIdx.x * (kBlockSize / 32) + threadIdx.x / 32;
  if (token >= num_tokens) return;

  const T* word_row = word + static_cast<int64>(input_ids[token]) * hidden_size;
  const T* position_row =
      position ? position + static_cast<int64>(position_ids[token]) * hidden_size : nullptr;
  const T* type_row =
      token_type ? token_type + static_cast<int64>(token_type_ids[token]) * hidden_size : nullptr;

  Row<kVectors> row;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int column = row_column(v);
    row.x[v] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (column < hidden_size) {
      float4 x = load4(word_row + column);
      if (type_row) {
        const float4 y = load4(type_row + column);
        x = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
      }
      if (position_row) {
        const float4 y = load4(position_row + column);
        x = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
      }
      row.x[v] = x;
    }
  }
  if (weight) normalize_row(row, weight, bias, hidden_size, eps);
  store_row(row, out, out_q, act_scale, token, hidden_size, quantized_size);
}
