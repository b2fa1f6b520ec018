// gemm_int8: one linear layer on the int8 tensor cores, dequantized as it is written.
//
//   acc = hidden_q weight_q^T - zero_point[row] * weight_sum[column]      exact, int32
//   out = activation(acc * scale[row] * weight_scale[column] + bias) + residual
//
// out, residual (num_rows, out_features) T; hidden_q (num_rows, in_features) and weight_q
// (out_features, in_features) int8; act_scale (num_rows,) RowScale: scale and zero_point;
// weight_scale and bias (out_features,) f32, weight_sum (out_features,) int32, the sums of
// weight_q's rows; residual may be null.
// Mapping: as gemm, with m16n8k32: a chunk of 16 bytes holds 16 numbers.
// Traffic: as gemm, half the bytes for hidden and weight.
// Requires: in_features a multiple of 16 (quantize_rows pads with zeros) and at most 66,311, so
// that 255 * 127 * in_features stays below 2^31; out_features a multiple of 8.

#include "activation.cuh"
#include "gemm_tile.cuh"
#include "reduce.cuh"

template <typename T, Activation kActivation, typename Tile>
__global__ void __launch_bounds__(Tile::kBlockSize, 2)
    gemm_int8_kernel(T* __restrict__ out, const int8* __restrict__ hidden_q,
                     const int8* __restrict__ weight_q, const RowScale* __restrict__ act_scale,
                     const float* __restrict__ weight_scale, const int* __restrict__ weight_sum,
                     const float* __restrict__ bias, const T* __restrict__ residual, int num_rows,
                     int out_features, int in_features) {
  extern __shared__ __align__(128) unsigned char smem[];
  int acc[Tile::kMmaM][Tile::kMmaN][4];
  gemm_tile<int8, Tile>(acc, reinterpret_cast<uint4*>(smem),
                        reinterpret_cast<const uint4*>(hidden_q),
                        reinterpret_cast<const uint4*>(weight_q), num_rows, out_features,
                        in_features / 16);
  for_each_row<Tile>(acc, reinterpret_cast<int*>(smem), [&](int row, int column, int4 x) {
    if (row >= num_rows || column >= out_features) return;
    const RowScale r = act_scale[row];
    const float4 s = load4(weight_scale + column), b = load4(bias + column);
    const int4 w = *reinterpret_cast<const int4*>(weight_sum + column);
    float4 y = activate4<kActivation>(
        make_float4(dequantize(x.x, w.x, s.x, r) + b.x, dequantize(x.y, w.y, s.y, r) + b.y,
                    dequantize(x.z, w.z, s.z, r) + b.z, dequantize(x.w, w.w, s.w, r) + b.w));
    const int64 at = static_cast<int64>(row) * out_features + column;
    if (residual) {
      const float4 z = load4(residual + at);
      y = make_float4(y.x + z.x, y.y + z.y, y.z + z.z, y.w + z.w);
    }
    store4(out + at, y);
  });
}
