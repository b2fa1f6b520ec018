// gemm_sparse: a linear layer whose weights are 2:4 sparse, on the sparse tensor cores.
//
//   out = activation(hidden weight^T + bias) + residual, rounded once
//
// out, residual (num_rows, out_features) T; hidden (num_rows, in_features) T; bias (out_features,)
// f32; residual may be null. Of every 4 consecutive inputs each output keeps 2:
// kept (out_features, 32 num_steps) T the values in order, with num_steps = ceil(in_features / 64);
// places (ceil(out_features / 128) * 8, num_steps, 32) uint32 where they belong: for 16 outputs by 64
// inputs the word of each lane, as mma_sparse takes it, selector 0 for the first 32 inputs.
// Mapping: the sparse operand of mma.sp is the left one, so a block computes the transposed tile
// weight hidden^T: grid (out_features / kBlockM, num_rows / kBlockN); warps of kWarpM outputs x
// kWarpN tokens; m16n8k32 fed by ldmatrix from a swizzled ring of kStages tiles filled by cp.async.
// Traffic: as gemm with 9 / 16 of the weight's bytes and half the multiply-adds: bound by the tensor
// cores for many rows, by the weights for few.
// Requires: sm_80; in_features and out_features multiples of 8. Every tile shape gives the same
// bytes: a sum is one chain in the order of k, 32 inputs a step.

#include "gemm_tile.cuh"
#include "linear_epilogue.cuh"

template <int kBlockM_, int kBlockN_, int kWarpM_, int kWarpN_, int kStages_>
struct SparseTile {
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_;
  static constexpr int kWarpM = kWarpM_, kWarpN = kWarpN_, kStages = kStages_;
  static constexpr int kWarpsN = kBlockN / kWarpN;
  static constexpr int kNumWarps = (kBlockM / kWarpM) * kWarpsN;
  static constexpr int kBlockSize = 32 * kNumWarps;
  static constexpr int kMmaM = kWarpM / 16, kMmaN = kWarpN / 8;
  // Chunks of 16 bytes of 64 inputs: of a row of kept values, of a token, of 16 rows' places.
  static constexpr int kChunksA = 4, kChunksB = 8, kChunksPlaces = 8;
  static constexpr int kPlacesChunks = kBlockM / 16 * kChunksPlaces;
  static constexpr int kStageChunks = kBlockM * kChunksA + kBlockN * kChunksB + kPlacesChunks;
  static_assert(kBlockM % kWarpM == 0 && kBlockN % kWarpN == 0, "warps tile the block");
  static_assert(kWarpM == 32 || kWarpM == 64, "the epilogue reads a token with 8 or 16 lanes");
  static_assert(128 % kBlockM == 0, "places are laid out for 128 rows at a time");
  static_assert(kWarpN % 8 == 0, "an mma has 8 columns");
  static_assert(kStages >= 2, "one stage is read while another is written");
};

// Half a step: 32 inputs.
template <typename T, typename Tile, int kHalf>
__device__ __forceinline__ void multiply(float (&acc)[Tile::kMmaM][Tile::kMmaN][4],
                                         const uint4* tile_a, const uint4* tile_b,
                                         const uint32 (&kept)[Tile::kMmaM], int warp_row,
                                         int warp_column) {
#if __CUDA_ARCH__ >= 800
  uint32 a[Tile::kMmaM][4];
#pragma unroll
  for (int i = 0; i < Tile::kMmaM; ++i) {
    load_a<Tile::kChunksA>(a[i], tile_a, warp_row + 16 * i, 2 * kHalf);
  }
#pragma unroll
  for (int j = 0; j < Tile::kMmaN; ++j) {
    uint32 b[4];
    load_b_wide<Tile::kChunksB>(b, tile_b, warp_column + 8 * j, 4 * kHalf);
#pragma unroll
    for (int i = 0; i < Tile::kMmaM; ++i) mma_sparse<T, kHalf>(acc[i][j], a[i], b, kept[i]);
  }
#endif
}

template <typename T, Activation kActivation, typename Tile>
__global__ void __launch_bounds__(Tile::kBlockSize, 2)
    gemm_sparse_kernel(T* __restrict__ out, const T* __restrict__ hidden,
                       const T* __restrict__ kept, const uint32* __restrict__ places,
                       const float* __restrict__ bias, const T* __restrict__ residual,
                       int num_rows, int out_features, int in_features) {
  static_assert(sizeof(T) == 2, "16-bit operands");
  extern __shared__ __align__(128) unsigned char smem[];
  uint4* ring = reinterpret_cast<uint4*>(smem);
  const int lane_id = threadIdx.x & 31, warp_id = threadIdx.x / 32;
  const int warp_row = warp_id / Tile::kWarpsN * Tile::kWarpM;
  const int warp_column = warp_id % Tile::kWarpsN * Tile::kWarpN;
  const int row = blockIdx.x * Tile::kBlockM, column = blockIdx.y * Tile::kBlockN;
  const int num_chunks = in_features / 8;
  const int num_steps = (num_chunks + Tile::kChunksB - 1) / Tile::kChunksB;

  auto load_stage = [&](int step) {
    if (step < num_steps) {
      uint4* stage = ring + step % Tile::kStages * Tile::kStageChunks;
      load_tile<Tile::kBlockM, Tile::kChunksA, Tile::kBlockSize>(
          stage, reinterpret_cast<const uint4*>(kept), row, out_features, step * Tile::kChunksA,
          num_steps * Tile::kChunksA);
      stage += Tile::kBlockM * Tile::kChunksA;
      load_tile<Tile::kBlockN, Tile::kChunksB, Tile::kBlockSize>(
          stage, reinterpret_cast<const uint4*>(hidden), column, num_rows, step * Tile::kChunksB,
          num_chunks);
      stage += Tile::kBlockN * Tile::kChunksB;
      for (int i = threadIdx.x; i < Tile::kPlacesChunks; i += Tile::kBlockSize) {
        const int64 block = row / 16 + i / Tile::kChunksPlaces;
        const int64 offset =
            (block * num_steps + step) * Tile::kChunksPlaces + i % Tile::kChunksPlaces;
        copy16(stage + i, reinterpret_cast<const uint4*>(places) + offset, true);
      }
    }
    commit_copies();
  };

  float acc[Tile::kMmaM][Tile::kMmaN][4];
#pragma unroll
  for (int i = 0; i < Tile::kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kMmaN; ++j) {
      acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) load_stage(step);

  for (int step = 0; step < num_steps; ++step) {
    wait_copies<Tile::kStages - 2>();
    // Makes this step's tile visible to all warps, and frees the tile of the step before.
    __syncthreads();
    load_stage(step + Tile::kStages - 1);

    const uint4* tile_a = ring + step % Tile::kStages * Tile::kStageChunks;
    const uint4* tile_b = tile_a + Tile::kBlockM * Tile::kChunksA;
    const uint32* tile_places =
        reinterpret_cast<const uint32*>(tile_b + Tile::kBlockN * Tile::kChunksB);
    uint32 words[Tile::kMmaM];
#pragma unroll
    for (int i = 0; i < Tile::kMmaM; ++i) {
      words[i] = tile_places[(warp_row / 16 + i) * 32 + lane_id];
    }
    multiply<T, Tile, 0>(acc, tile_a, tile_b, words, warp_row, warp_column);
    multiply<T, Tile, 1>(acc, tile_a, tile_b, words, warp_row, warp_column);
  }
  wait_copies<0>();
  // The epilogue reuses the tiles' memory.
  __syncthreads();

  // Eight tokens at a time are turned around through kWarpM + 4 floats each, so that a lane has four
  // neighbouring outputs of a token. The 4 extra floats put the four tokens that a store of a
  // fragment touches 8 banks apart.
  constexpr int kStride = Tile::kWarpM + 4;
  constexpr int kLanes = Tile::kWarpM / 4, kTokensAtOnce = 32 / kLanes;
  static_assert(Tile::kNumWarps * 8 * kStride * 4 <= Tile::kStages * Tile::kStageChunks * 16,
                "the staging rows fit the tiles' memory");
  float* rows = reinterpret_cast<float*>(smem) + warp_id * 8 * kStride;
  const int g = lane_id / 4, t = lane_id % 4;
#pragma unroll
  for (int j = 0; j < Tile::kMmaN; ++j) {
#pragma unroll
    for (int i = 0; i < Tile::kMmaM; ++i) {
      float* at = rows + 2 * t * kStride + 16 * i + g;
      at[0] = acc[i][j][0];
      at[kStride] = acc[i][j][1];
      at[8] = acc[i][j][2];
      at[kStride + 8] = acc[i][j][3];
    }
    // Lanes read what other lanes of the warp wrote.
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 8; r += kTokensAtOnce) {
      const int token = r + lane_id / kLanes, output = lane_id % kLanes * 4;
      write_linear<kActivation>(
          out, bias, residual, column + warp_column + 8 * j + token, row + warp_row + output,
          num_rows, out_features,
          *reinterpret_cast<const float4*>(rows + token * kStride + output));
    }
    // The next eight tokens overwrite these.
    __syncwarp();
  }
}
