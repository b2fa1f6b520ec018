// gemm_int8: one linear layer on the int8 tensor cores, dequantized as it is written.
//
//   acc = hidden_q weight_q^T                                          exact, int32
//   out = activation(acc * act_scale[row] * weight_scale[column] + bias) + residual
//
// out, residual (num_rows, out_features) T; hidden_q (num_rows, in_features) and weight_q
// (out_features, in_features) int8; act_scale (num_rows,), weight_scale and bias (out_features,)
// f32; residual may be null.
// Mapping: as gemm, with m16n8k32: a chunk of 16 bytes holds 16 numbers.
// Traffic: as gemm, half the bytes for hidden and weight.
// Requires: in_features a multiple of 16 (quantize_rows pads with zeros) and at most 133,144, so
// that 127 * 127 * in_features stays below 2^31; out_features a multiple of 8.

#include "activation.cuh"
#include "gemm_tile.cuh"

template <typename T, Activation kActivation, typename Tile>
__global__ void __launch_bounds__(Tile::kBlockSize, 2)
    gemm_int8_kernel(T* __restrict__ out, const int8* __restrict__ hidden_q,
                     const int8* __restrict__ weight_q, const float* __restrict__ act_scale,
                     const float* __restrict__ weight_scale, const float* __restrict__ bias,
                     const T* __restrict__ residual, int num_rows, int out_features,
                     int in_features) {
  extern __shared__ __align__(128) unsigned char smem[];
  int acc[Tile::kMmaM][Tile::kMmaN][4];
  gemm_tile<int8, Tile>(acc, reinterpret_cast<uint4*>(smem),
                        reinterpret_cast<const uint4*>(hidden_q),
                        reinterpret_cast<const uint4*>(weight_q), num_rows, out_features,
                        in_features / 16);
  for_each_row<Tile>(acc, reinterpret_cast<float*>(smem), [&](int row, int column, float4 x) {
    if (row >= num_rows || column >= out_features) return;
    const float scale = act_scale[row];
    const float4 s = load4(weight_scale + column), b = load4(bias + column);
    float4 y = activate4<kActivation>(make_float4(x.x * (scale * s.x) + b.x, x.y * (scale * s.y) + b.y,
                                      x.z * (scale * s.z) + b.z, x.w * (scale * s.w) + b.w));
    const int64 at = static_cast<int64>(row) * out_features + column;
    if (residual) {
      const float4 z = load4(residual + at);
      y = make_float4(y.x + z.x, y.y + z.y, y.z + z.z, y.w + z.w);
    }
    store4(out + at, y);
  });
}
