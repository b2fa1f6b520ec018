// gemm_narrow: a linear layer for a handful of tokens: stream the weights, split K over the warps.
//
//   out = activation(hidden weight^T + bias) + residual, dequantized as by gemm_int8
//
// Operands In are half, bfloat16 or int8; out and residual T. act_scale (num_rows,),
// weight_scale and weight_sum (out_features,) belong to int8 and are null otherwise.
// Mapping: a block takes kBlockN = 16 columns and 16 * kRowTiles rows; its eight warps take one
// eighth of K each, straight from global memory into mma operands: lane (g, t) reads 16 bytes at
// place t of a 64-byte step, so that four lanes read 64 contiguous bytes. That permutes k inside a
// step, for hidden and weight alike, which a sum over k does not see.
// Order: the eight partial sums are added in the order of the warps. For int8 the sum is exact and
// the bytes are those of gemm_int8; for half and bfloat16 they differ from gemm's in the last
// place, so this kernel is opt-in there.
// Traffic: weight once, hidden out_features / 16 times from cache: bound by the weights.
// Requires: num_rows at most 16 * kRowTiles; rows of 16 bytes; out_features a multiple of 8.

#include "activation.cuh"
#include "mma.cuh"
#include "reduce.cuh"
#include "types.cuh"

constexpr int kBlockN = 16;
constexpr int kNumWarps = 8;
constexpr int kBlockSize = 32 * kNumWarps;
constexpr int kStepChunks = 4;

__device__ __forceinline__ uint4 load_chunk(const uint4* matrix, int row, int num_rows, int chunk,
                                            int num_chunks) {
  const bool valid = row < num_rows && chunk < num_chunks;
  return valid ? matrix[static_cast<int64>(row) * num_chunks + chunk] : make_uint4(0u, 0u, 0u, 0u);
}

template <typename T, typename In, Activation kActivation, int kRowTiles>
__global__ void __launch_bounds__(kBlockSize, 2)
    gemm_narrow_kernel(T* __restrict__ out, const In* __restrict__ hidden,
                       const In* __restrict__ weight, const RowScale* __restrict__ act_scale,
                       const float* __restrict__ weight_scale,
                       const int* __restrict__ weight_sum, const float* __restrict__ bias,
                       const T* __restrict__ residual, int num_rows, int out_features,
                       int in_features) {
  using Acc = typename Accumulator<In>::type;
  static_assert(kRowTiles == 1 || kRowTiles == 2, "16 or 32 rows");
  // 24 floats a row: the eight rows of a fragment start in different banks.
  constexpr int kStride = kBlockN + 8;
  __shared__ __align__(16) Acc partial[kNumWarps][16 * kRowTiles][kStride];
  const int lane_id = threadIdx.x & 31, warp_id = threadIdx.x / 32;
  const int g = lane_id / 4, t = lane_id % 4;
  const int first_column = blockIdx.x * kBlockN;
  const uint4* chunks_a = reinterpret_cast<const uint4*>(hidden);
  const uint4* chunks_b = reinterpret_cast<const uint4*>(weight);
  const int num_chunks = in_features * static_cast<int>(sizeof(In)) / 16;
  const int num_steps = (num_chunks + kStepChunks - 1) / kStepChunks;
  const int steps_per_warp = (num_steps + kNumWarps - 1) / kNumWarps;
  const int first_step = warp_id * steps_per_warp;
  const int last_step = min(first_step + steps_per_warp, num_steps);

  Acc acc[kRowTiles][2][4];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0;
  }
#pragma unroll 4
  for (int step = first_step; step < last_step; ++step) {
    const int chunk = step * kStepChunks + t;
    uint4 b[2], a[2 * kRowTiles];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      b[j] = load_chunk(chunks_b, first_column + 8 * j + g, out_features, chunk, num_chunks);
    }
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      a[i] = load_chunk(chunks_a, 8 * i + g, num_rows, chunk, num_chunks);
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      const uint4 top = a[2 * i], bottom = a[2 * i + 1];
      const uint32 first_half[4] = {top.x, bottom.x, top.y, bottom.y};
      const uint32 second_half[4] = {top.z, bottom.z, top.w, bottom.w};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        mma<In>(acc[i][j], first_half, b[j].x, b[j].y);
        mma<In>(acc[i][j], second_half, b[j].z, b[j].w);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Acc* at = &partial[warp_id][16 * i + 8 * r + g][8 * j + 2 * t];
        at[0] = acc[i][j][2 * r];
        at[1] = acc[i][j][2 * r + 1];
      }
    }
  }
  // Every thread adds up what all warps wrote.
  __syncthreads();
  for (int index = threadIdx.x; index < 16 * kRowTiles * kBlockN; index += kBlockSize) {
    // A warp reads two rows two apart: 48 floats, so their 16 columns lie in different banks.
    const int place = index / kBlockN;
    const int row = (place & ~3) | (place & 1) << 1 | (place >> 1 & 1);
    const int column = first_column + index % kBlockN;
    if (row >= num_rows || column >= out_features) continue;
    Acc total = 0;
#pragma unroll
    for (int w = 0; w < kNumWarps; ++w) total += partial[w][row][index % kBlockN];
    float x = static_cast<float>(total);
    if constexpr (sizeof(In) == 1) {
      x = dequantize(total, weight_sum[column], weight_scale[column], act_scale[row]);
    }
    float y = activate<kActivation>(x + bias[column]);
    const int64 at = static_cast<int64>(row) * out_features + column;
    if (residual) y += to_float(residual[at]);
    out[at] = from_float<T>(y);
  }
}
