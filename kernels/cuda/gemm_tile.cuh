// gemm_tile.cuh: the main loop that the tensor-core GEMMs share, in bytes and chunks of 16 bytes.
//
// A block computes a kBlockM x kBlockN tile of out = A W^T, both K-major. It walks K in steps of
// kChunks * 16 bytes through a ring of kStages tiles in shared memory, kStages - 1 of them in
// flight. Warps are arranged in rows of kWarpsN; each owns a kWarpM x kWarpN part of the tile in
// registers. The sum over k of one output is one chain in the order of k, 32 bytes a step: it does
// not depend on the tile shape, on the warp, or on the other rows of the batch.

#pragma once

#include "async_copy.cuh"
#include "mma.cuh"
#include "types.cuh"

template <int kBlockM_, int kBlockN_, int kChunks_, int kWarpM_, int kWarpN_, int kStages_>
struct Tile {
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kChunks = kChunks_;
  static constexpr int kWarpM = kWarpM_, kWarpN = kWarpN_, kStages = kStages_;
  static constexpr int kWarpsN = kBlockN / kWarpN;
  static constexpr int kNumWarps = (kBlockM / kWarpM) * kWarpsN;
  static constexpr int kBlockSize = 32 * kNumWarps;
  static constexpr int kMmaM = kWarpM / 16, kMmaN = kWarpN / 8;
  static constexpr int kStageChunks = (kBlockM + kBlockN) * kChunks;
  static_assert(kBlockM % kWarpM == 0 && kBlockN % kWarpN == 0, "warps tile the block");
  static_assert(kWarpM % 16 == 0, "an mma has 16 rows");
  static_assert(kWarpN == 32 || kWarpN == 64, "the epilogue reads whole rows with 8 or 16 lanes");
  static_assert(kChunks == 4 || kChunks == 8, "rows of 64 or 128 bytes");
  static_assert(kStages >= 2, "one stage is read while another is written");
};

// One operand's part of a stage: `rows` rows from `first_row` on, chunks from `first_chunk` on.
// What lies outside the matrix becomes zero, which adds nothing to any sum.
template <int kRows, int kChunks, int kBlockSize>
__device__ __forceinline__ void load_tile(uint4* tile, const uint4* matrix, int first_row,
                                          int num_rows, int first_chunk, int num_chunks) {
  constexpr int kCopies = kRows * kChunks;
#pragma unroll
  for (int i = 0; i < (kCopies + kBlockSize - 1) / kBlockSize; ++i) {
    const int index = i * kBlockSize + static_cast<int>(threadIdx.x);
    if (kCopies % kBlockSize == 0 || index < kCopies) {
      const int r = index / kChunks, c = index % kChunks;
      const bool valid = first_row + r < num_rows && first_chunk + c < num_chunks;
      const int64 offset = static_cast<int64>(first_row + r) * num_chunks + first_chunk + c;
      copy16(tile + r * kChunks + swizzle<kChunks>(r, c), matrix + (valid ? offset : 0), valid);
    }
  }
}

// The whole sum over K for this block's tile. On return no copy is in flight and every warp has
// finished reading shared memory.
template <typename T, typename Tile>
__device__ __forceinline__ void gemm_tile(
    typename Accumulator<T>::type (&acc)[Tile::kMmaM][Tile::kMmaN][4], uint4* smem,
    const uint4* hidden, const uint4* weight, int num_rows, int out_features, int num_chunks) {
  const int warp_id = threadIdx.x / 32;
  const int warp_row = warp_id / Tile::kWarpsN * Tile::kWarpM;
  const int warp_column = warp_id % Tile::kWarpsN * Tile::kWarpN;
  const int row = blockIdx.y * Tile::kBlockM, column = blockIdx.x * Tile::kBlockN;
  const int num_steps = (num_chunks + Tile::kChunks - 1) / Tile::kChunks;

  auto load_stage = [&](int step) {
    if (step < num_steps) {
      uint4* stage = smem + step % Tile::kStages * Tile::kStageChunks;
      load_tile<Tile::kBlockM, Tile::kChunks, Tile::kBlockSize>(
          stage, hidden, row, num_rows, step * Tile::kChunks, num_chunks);
      load_tile<Tile::kBlockN, Tile::kChunks, Tile::kBlockSize>(
          stage + Tile::kBlockM * Tile::kChunks, weight, column, out_features,
          step * Tile::kChunks, num_chunks);
    }
    commit_copies();
  };

#pragma unroll
  for (int i = 0; i < Tile::kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kMmaN; ++j) {
      acc[i][j][0] = acc[i][j][1] = acc[i][j][2] = acc[i][j][3] = 0;
    }
  }
#pragma unroll
  for (int step = 0; step < Tile::kStages - 1; ++step) load_stage(step);

  for (int step = 0; step < num_steps; ++step) {
    wait_copies<Tile::kStages - 2>();
    // Makes this step's tile visible to all warps, and frees the tile of the step before.
    __syncthreads();
    load_stage(step + Tile::kStages - 1);

    const uint4* tile_a = smem + step % Tile::kStages * Tile::kStageChunks;
    const uint4* tile_b = tile_a + Tile::kBlockM * Tile::kChunks;
#pragma unroll
    for (int chunk = 0; chunk < Tile::kChunks; chunk += 2) {
      uint32 a[Tile::kMmaM][4], b[Tile::kMmaN / 2][4];
#pragma unroll
      for (int i = 0; i < Tile::kMmaM; ++i) {
        load_a<Tile::kChunks>(a[i], tile_a, warp_row + 16 * i, chunk);
      }
#pragma unroll
      for (int j = 0; j < Tile::kMmaN / 2; ++j) {
        load_b<Tile::kChunks>(b[j], tile_b, warp_column + 16 * j, chunk);
      }
#pragma unroll
      for (int i = 0; i < Tile::kMmaM; ++i) {
#pragma unroll
        for (int j = 0; j < Tile::kMmaN; ++j) {
          mma<T>(acc[i][j], a[i], b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1]);
        }
      }
    }
  }
  wait_copies<0>();
  // The epilogue reuses the tiles' memory.
  __syncthreads();
}

// Four neighbouring sums, and two, of a type.
template <typename Acc>
struct Neighbours;
template <>
struct Neighbours<float> {
  using two = float2;
  using four = float4;
};
template <>
struct Neighbours<int> {
  using two = int2;
  using four = int4;
};

// Bring the warp's accumulators into rows of four columns per lane, 16 rows at a time, and hand
// each to `write(row, column, float4 or int4)`; row and column count within the whole output. Staged
// through 16 x (kWarpN + 8) numbers per warp, so that global accesses are whole sectors: a fragment
// alone would use half of each. The 8 extra numbers keep the fragment's stores free of bank
// conflicts.
template <typename Tile, typename Acc, typename Write>
__device__ __forceinline__ void for_each_row(const Acc (&acc)[Tile::kMmaM][Tile::kMmaN][4],
                                             Acc* smem, Write write) {
  using Two = typename Neighbours<Acc>::two;
  using Four = typename Neighbours<Acc>::four;
  constexpr int kStride = Tile::kWarpN + 8;
  constexpr int kLanes = Tile::kWarpN / 4, kRowsAtOnce = 32 / kLanes;
  static_assert(Tile::kNumWarps * 16 * kStride * 4 <= Tile::kStages * Tile::kStageChunks * 16,
                "the staging rows fit the tiles' memory");
  const int lane_id = threadIdx.x & 31, warp_id = threadIdx.x / 32;
  const int g = lane_id / 4, t = lane_id % 4;
  Acc* rows = smem + warp_id * 16 * kStride;
  const int first_row = blockIdx.y * Tile::kBlockM + warp_id / Tile::kWarpsN * Tile::kWarpM;
  const int first_column = blockIdx.x * Tile::kBlockN + warp_id % Tile::kWarpsN * Tile::kWarpN;
#pragma unroll
  for (int i = 0; i < Tile::kMmaM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kMmaN; ++j) {
      Acc* at = rows + g * kStride + 8 * j + 2 * t;
      *reinterpret_cast<Two*>(at) = Two{acc[i][j][0], acc[i][j][1]};
      *reinterpret_cast<Two*>(at + 8 * kStride) = Two{acc[i][j][2], acc[i][j][3]};
    }
    // Lanes read what other lanes of the warp wrote.
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 16; r += kRowsAtOnce) {
      const int row = r + lane_id / kLanes, column = lane_id % kLanes * 4;
      write(first_row + 16 * i + row, first_column + column,
            *reinterpret_cast<const Four*>(rows + row * kStride + column));
    }
    // The next 16 rows overwrite these.
    __syncwarp();
  }
}
