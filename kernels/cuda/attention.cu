// attention: softmax(softmax_scale Q K^T) V per sequence and head, on the tensor cores.
//
// context (num_tokens, num_heads * head_dim) T; qkv (num_tokens, row_stride) T holds queries, keys
// and values side by side, each (num_heads, head_dim); cu_seqlens (num_seqs + 1,) int32; tiles
// (num_tiles,) int2: sequence and first query of each block's tile, sequence -1 for an idle block.
// T is half or bfloat16; sums and the softmax are float32.
// Mapping: block (tile, head) takes kBlockM = 64 queries, 16 per warp, and walks the sequence's
// keys in tiles of kBlockN, two in flight. Scores and probabilities stay in registers: the result
// layout of Q K^T is the operand layout of P V. Maximum and sum are kept online, so that nothing of
// size seqlen^2 exists. Only tokens of the sequence are read: there is no padding to skip.
// Order: key tiles from the sequence's start, whatever stands beside it in the batch.
// Traffic per block: 64 queries, all keys and values of the sequence (from L2 after the first
// tile), 64 results: bound by tensor cores, for head_dim 32 by exponentials.
// Requires: head_dim a multiple of 8 and at most kHeadDim, the next multiple of 16 (what lies
// between is read as zero); row_stride a multiple of 8.

#include "async_copy.cuh"
#include "exp2.cuh"
#include "mma.cuh"
#include "types.cuh"

constexpr int kBlockM = 64;
constexpr int kBlockSize = 128;
constexpr int kStages = 2;

// Maximum and sum over the four lanes that share a row of a result fragment.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// kRows rows of one head into a swizzled tile; rows from num_rows on and columns from head_dim on
// become zero.
template <int kRows, int kChunks, typename T>
__device__ __forceinline__ void load_head(uint4* tile, const T* from, int num_rows, int head_dim,
                                          int row_stride) {
#pragma unroll
  for (int i = 0; i < (kRows * kChunks + kBlockSize - 1) / kBlockSize; ++i) {
    const int index = i * kBlockSize + static_cast<int>(threadIdx.x);
    if (kRows * kChunks % kBlockSize == 0 || index < kRows * kChunks) {
      const int r = index / kChunks, c = index % kChunks;
      const bool valid = r < num_rows && 8 * c < head_dim;
      const T* at = from + (valid ? static_cast<int64>(r) * row_stride + 8 * c : 0);
      copy16(tile + r * kChunks + swizzle<kChunks>(r, c), at, valid);
    }
  }
}

template <typename T, int kHeadDim, int kBlockN>
__global__ void __launch_bounds__(kBlockSize, 2)
    attention_kernel(T* __restrict__ context, const T* __restrict__ qkv,
                     const int* __restrict__ cu_seqlens, const int2* __restrict__ tiles,
                     int num_heads, int head_dim, int row_stride, float softmax_scale) {
  static_assert(sizeof(T) == 2, "16-bit operands");
  static_assert(kHeadDim % 16 == 0 && kHeadDim <= 128, "a head is a row of mma steps");
  static_assert(kBlockN % 16 == 0, "keys come in pairs of n-tiles");
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kKeyTiles = kBlockN / 8, kDimTiles = kHeadDim / 8;
  extern __shared__ __align__(128) unsigned char smem[];
  uint4* tile_q = reinterpret_cast<uint4*>(smem);
  uint4* tile_k = tile_q + kBlockM * kChunks;
  uint4* tile_v = tile_k + kStages * kBlockN * kChunks;

  const int2 tile = tiles[blockIdx.x];
  if (tile.x < 0) return;
  const int first = cu_seqlens[tile.x], seqlen = cu_seqlens[tile.x + 1] - first;
  const int hidden_size = num_heads * head_dim;
  const T* queries = qkv + static_cast<int64>(first + tile.y) * row_stride + blockIdx.y * head_dim;
  const T* keys = qkv + static_cast<int64>(first) * row_stride + hidden_size +
                  blockIdx.y * head_dim;
  const T* values = keys + hidden_size;
  const int num_queries = min(seqlen - tile.y, kBlockM);
  const int num_steps = (seqlen + kBlockN - 1) / kBlockN;
  const int lane_id = threadIdx.x & 31, warp_id = threadIdx.x / 32;
  const int g = lane_id / 4, t = lane_id % 4;
  // A warp whose 16 queries lie behind the sequence copies and waits with the others, no more.
  const bool busy = 16 * warp_id < num_queries;

  auto load_step = [&](int step) {
    if (step < num_steps) {
      const int key = step * kBlockN;
      const int64 at = static_cast<int64>(key) * row_stride;
      const int stage = step % kStages * kBlockN * kChunks;
      load_head<kBlockN, kChunks>(tile_k + stage, keys + at, seqlen - key, head_dim, row_stride);
      load_head<kBlockN, kChunks>(tile_v + stage, values + at, seqlen - key, head_dim, row_stride);
    }
    commit_copies();
  };

  load_head<kBlockM, kChunks>(tile_q, queries, num_queries, head_dim, row_stride);
  load_step(0);

  // exp(scale (s - max)) = exp2(factor s - factor max): one multiply-add and one exp2 per score.
  const float factor = softmax_scale * 1.4426950408889634f;
  uint32 q[kHeadDim / 16][4];
  float out[kDimTiles][4];
  float row_max[2] = {__int_as_float(0xff800000), __int_as_float(0xff800000)};
  float row_sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int j = 0; j < kDimTiles; ++j) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0.0f;

  for (int step = 0; step < num_steps; ++step) {
    load_step(step + 1);
    wait_copies<1>();
    // This step's keys and values (and the queries) are visible to all warps.
    __syncthreads();
    if (busy) {
      const uint4* stage_k = tile_k + step % kStages * kBlockN * kChunks;
      const uint4* stage_v = tile_v + step % kStages * kBlockN * kChunks;
      if (step == 0) {
#pragma unroll
        for (int d = 0; d < kHeadDim / 16; ++d) {
          load_a<kChunks>(q[d], tile_q, 16 * warp_id, 2 * d);
        }
      }
      float scores[kKeyTiles][4];
#pragma unroll
      for (int j = 0; j < kKeyTiles; j += 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[j][i] = scores[j + 1][i] = 0.0f;
#pragma unroll
        for (int d = 0; d < kHeadDim / 16; ++d) {
          uint32 b[4];
          load_b<kChunks>(b, stage_k, 8 * j, 2 * d);
          mma<T>(scores[j], q[d], b[0], b[1]);
          mma<T>(scores[j + 1], q[d], b[2], b[3]);
        }
      }
      // Keys behind the sequence weigh nothing.
      const int keys_left = seqlen - step * kBlockN;
      if (keys_left < kBlockN) {
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (8 * j + 2 * t + (i & 1) >= keys_left) scores[j][i] = __int_as_float(0xff800000);
          }
        }
      }
#pragma unroll
      for (int half_row = 0; half_row < 2; ++half_row) {
        float largest = row_max[half_row];
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) {
          largest = fmaxf(largest, fmaxf(scores[j][2 * half_row], scores[j][2 * half_row + 1]));
        }
        largest = quad_max(largest);
        // A negative scale would turn the maximum into a minimum: the launcher refuses it.
        const float shift = largest * factor;
        const float correction = exp2_approx(row_max[half_row] * factor - shift);
        row_max[half_row] = largest;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kKeyTiles; ++j) {
#pragma unroll
          for (int i = 2 * half_row; i < 2 * half_row + 2; ++i) {
            scores[j][i] = exp2_approx(fmaf(scores[j][i], factor, -shift));
            sum += scores[j][i];
          }
        }
        row_sum[half_row] = row_sum[half_row] * correction + sum;
#pragma unroll
        for (int j = 0; j < kDimTiles; ++j) {
          out[j][2 * half_row] *= correction;
          out[j][2 * half_row + 1] *= correction;
        }
      }
#pragma unroll
      for (int k = 0; k < kBlockN / 16; ++k) {
        const float(&low)[4] = scores[2 * k];
        const float(&high)[4] = scores[2 * k + 1];
        const uint32 p[4] = {pack2<T>(low[0], low[1]), pack2<T>(low[2], low[3]),
                             pack2<T>(high[0], high[1]), pack2<T>(high[2], high[3])};
#pragma unroll
        for (int j = 0; j < kDimTiles; j += 2) {
          uint32 b[4];
          load_b_trans<kChunks>(b, stage_v, 16 * k, j);
          mma<T>(out[j], p, b[0], b[1]);
          mma<T>(out[j + 1], p, b[2], b[3]);
        }
      }
    }
    // The next step's copies overwrite the stage that was read here.
    __syncthreads();
  }
  wait_copies<0>();
  if (!busy) return;

  // The warp's own 16 queries are in registers: their place stages the result, one n-tile a chunk.
#pragma unroll
  for (int half_row = 0; half_row < 2; ++half_row) {
    const float scale = 1.0f / quad_sum(row_sum[half_row]);
    const int r = 16 * warp_id + g + 8 * half_row;
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j) {
      uint32* chunk = reinterpret_cast<uint32*>(tile_q + r * kChunks + swizzle<kChunks>(r, j));
      chunk[t] = pack2<T>(out[j][2 * half_row] * scale, out[j][2 * half_row + 1] * scale);
    }
  }
  // Lanes read what other lanes of the warp wrote.
  __syncwarp();
  T* context_head =
      context + static_cast<int64>(first + tile.y) * hidden_size + blockIdx.y * head_dim;
#pragma unroll
  for (int i = 0; i < kChunks / 2; ++i) {
    const int index = 32 * i + lane_id;
    const int r = 16 * warp_id + index / kChunks, c = index % kChunks;
    if (r < num_queries && 8 * c < head_dim) {
      *reinterpret_cast<uint4*>(context_head + static_cast<int64>(r) * hidden_size + 8 * c) =
          tile_q[r * kChunks + swizzle<kChunks>(r, c)];
    }
  }
}
