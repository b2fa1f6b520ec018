// gemm: one linear layer on the tensor cores, float16 or bfloat16 operands, float32 sums.
//
//   out = activation(hidden weight^T + bias) + residual, rounded once
//
// out, residual (num_rows, out_features) T; hidden (num_rows, in_features) T; weight
// (out_features, in_features) T as in the checkpoint; bias (out_features,) f32; residual may be
// null.
// Mapping: grid (out_features / kBlockN, num_rows / kBlockM); warps of kWarpM x kWarpN in
// registers; m16n8k16 fed by ldmatrix from a swizzled ring of kStages tiles filled by cp.async.
// Traffic: hidden out_features / kBlockN times, weight num_rows / kBlockM times (mostly from L2),
// out once: bound by the tensor cores for many rows, by the weights for few.
// Requires: in_features and out_features multiples of 8. Every tile shape gives the same bytes.

#include "activation.cuh"
#include "gemm_tile.cuh"
#include "linear_epilogue.cuh"

template <typename T, Activation kActivation, typename Tile>
__global__ void __launch_bounds__(Tile::kBlockSize, 2)
    gemm_kernel(T* __restrict__ out, const T* __restrict__ hidden, const T* __restrict__ weight,
                const float* __restrict__ bias, const T* __restrict__ residual, int num_rows,
                int out_features, int in_features) {
  static_assert(sizeof(T) == 2, "16-bit operands");
  extern __shared__ __align__(128) unsigned char smem[];
  float acc[Tile::kMmaM][Tile::kMmaN][4];
  gemm_tile<T, Tile>(acc, reinterpret_cast<uint4*>(smem), reinterpret_cast<const uint4*>(hidden),
                     reinterpret_cast<const uint4*>(weight), num_rows, out_features,
                     in_features / 8);
  for_each_row<Tile>(acc, reinterpret_cast<float*>(smem), [&](int row, int column, float4 x) {
    write_linear<kActivation>(out, bias, residual, row, column, num_rows, out_features, x);
  });
}
