// gemm_float32: one linear layer in exact float32 on the ordinary units.
//
//   out = activation(hidden weight^T + bias) + residual
//
// out, residual (num_rows, out_features); hidden (num_rows, in_features); weight (out_features,
// in_features); bias (out_features,); all f32; residual may be null.
// Mapping: grid (out_features / kBlockN, num_rows / kBlockM), 16 x 16 threads; a thread holds
// kThreadM x kThreadN sums in registers, rows ty + 16 i and columns tx + 16 j, so that neighbouring
// lanes write neighbouring columns. Tiles of kBlockK = 16 wait in shared memory, K-major and
// swizzled, kStages deep by cp.async; reads are 16 bytes, eight rows apart in the banks.
// Traffic: hidden out_features / kBlockN times, weight num_rows / kBlockM times: bound by FMA.
// Order: fused multiply-adds in the order of k, kSumSteps * 16 of them to a partial sum, partial
// sums in their order: the rounding of a long sum stays that of a blocked one, and every tile shape
// gives the same bytes.
// Requires: in_features a multiple of 4.

#include "activation.cuh"
#include "async_copy.cuh"
#include "gemm_tile.cuh"
#include "types.cuh"

constexpr int kBlockSize = 256;
constexpr int kSumSteps = 8;

template <Activation kActivation, int kThreadM, int kThreadN, int kStages>
__global__ void __launch_bounds__(kBlockSize, 2)
    gemm_float32_kernel(float* __restrict__ out, const float* __restrict__ hidden,
                        const float* __restrict__ weight, const float* __restrict__ bias,
                        const float* __restrict__ residual, int num_rows, int out_features,
                        int in_features) {
  constexpr int kBlockM = 16 * kThreadM, kBlockN = 16 * kThreadN;
  constexpr int kChunks = 4;  // of four floats: kBlockK = 16
  constexpr int kStageChunks = (kBlockM + kBlockN) * kChunks;
  static_assert(kStages >= 2, "one stage is read while another is written");
  extern __shared__ __align__(128) unsigned char smem_bytes[];
  uint4* smem = reinterpret_cast<uint4*>(smem_bytes);
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int row = blockIdx.y * kBlockM, column = blockIdx.x * kBlockN;
  const int num_chunks = in_features / 4;
  const int num_steps = (num_chunks + kChunks - 1) / kChunks;

  auto load_stage = [&](int step) {
    if (step < num_steps) {
      uint4* stage = smem + step % kStages * kStageChunks;
      load_tile<kBlockM, kChunks, kBlockSize>(stage, reinterpret_cast<const uint4*>(hidden), row,
                                              num_rows, step * kChunks, num_chunks);
      load_tile<kBlockN, kChunks, kBlockSize>(stage + kBlockM * kChunks,
                                              reinterpret_cast<const uint4*>(weight), column,
                                              out_features, step * kChunks, num_chunks);
    }
    commit_copies();
  };

  float acc[kThreadM][kThreadN], total[kThreadM][kThreadN];
#pragma unroll
  for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
    for (int j = 0; j < kThreadN; ++j) acc[i][j] = total[i][j] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) load_stage(step);

  for (int step = 0; step < num_steps; ++step) {
    wait_copies<kStages - 2>();
    // Makes this step's tile visible to all threads, and frees the tile of the step before.
    __syncthreads();
    load_stage(step + kStages - 1);

    const float4* tile_a =
        reinterpret_cast<const float4*>(smem + step % kStages * kStageChunks);
    const float4* tile_b = tile_a + kBlockM * kChunks;
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      float4 a[kThreadM];
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) {
        const int r = ty + 16 * i;
        a[i] = tile_a[r * kChunks + swizzle<kChunks>(r, chunk)];
      }
#pragma unroll
      for (int j = 0; j < kThreadN; ++j) {
        const int r = tx + 16 * j;
        const float4 b = tile_b[r * kChunks + swizzle<kChunks>(r, chunk)];
#pragma unroll
        for (int i = 0; i < kThreadM; ++i) {
          acc[i][j] = fmaf(a[i].x, b.x, acc[i][j]);
          acc[i][j] = fmaf(a[i].y, b.y, acc[i][j]);
          acc[i][j] = fmaf(a[i].z, b.z, acc[i][j]);
          acc[i][j] = fmaf(a[i].w, b.w, acc[i][j]);
        }
      }
    }
    if (step % kSumSteps == kSumSteps - 1 || step == num_steps - 1) {
#pragma unroll
      for (int i = 0; i < kThreadM; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadN; ++j) {
          total[i][j] += acc[i][j];
          acc[i][j] = 0.0f;
        }
      }
    }
  }
  wait_copies<0>();

#pragma unroll
  for (int i = 0; i < kThreadM; ++i) {
    const int r = row + ty + 16 * i;
#pragma unroll
    for (int j = 0; j < kThreadN; ++j) {
      const int c = column + tx + 16 * j;
      if (r < num_rows && c < out_features) {
        const int64 at = static_cast<int64>(r) * out_features + c;
        float y = activate<kActivation>(total[i][j] + bias[c]);
        if (residual) y += residual[at];
        out[at] = y;
      }
    }
  }
}
