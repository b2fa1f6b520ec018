// attention_float32: softmax(softmax_scale Q K^T) V per sequence and head, exact float32.
//
// context (num_tokens, num_heads * head_dim); qkv (num_tokens, row_stride) holds queries, keys and
// values side by side, each (num_heads, head_dim); cu_seqlens (num_seqs + 1,) int32; tiles
// (num_tiles,) int2: sequence and first query of each block's tile, sequence -1 for an idle block.
// Mapping: block (tile, head) takes kBlockM = 32 queries, eight per warp, and walks the sequence's
// keys 32 at a time. For the scores a lane is a key; for the result it is head_dim / 32 columns;
// probabilities cross over through shared memory. Maximum and sum by warp shuffles, kept online.
// Order: key tiles from the sequence's start, whatever stands beside it in the batch.
// Traffic per block: 32 queries, all keys and values of the sequence, 32 results: bound by FMA.
// Requires: head_dim a multiple of 8 and at most kHeadDim, the next multiple of 32 (what lies
// between is read as zero); row_stride a multiple of 4.

#include "async_copy.cuh"
#include "reduce.cuh"
#include "types.cuh"

constexpr int kBlockM = 32;
constexpr int kBlockN = 32;
constexpr int kBlockSize = 128;
constexpr int kRows = kBlockM / (kBlockSize / 32);

// 32 rows of one head into shared memory, swizzled or plain; what lies outside becomes zero.
template <int kChunks, bool kSwizzled>
__device__ __forceinline__ void load_head(uint4* tile, const float* from, int num_rows,
                                          int head_dim, int row_stride) {
  static_assert(32 * kChunks % kBlockSize == 0, "every thread copies as much");
#pragma unroll
  for (int i = 0; i < 32 * kChunks / kBlockSize; ++i) {
    const int index = i * kBlockSize + static_cast<int>(threadIdx.x);
    const int r = index / kChunks, c = index % kChunks;
    const bool valid = r < num_rows && 4 * c < head_dim;
    const float* at = from + (valid ? static_cast<int64>(r) * row_stride + 4 * c : 0);
    copy16(tile + r * kChunks + (kSwizzled ? swizzle<kChunks>(r, c) : c), at, valid);
  }
}

template <int kHeadDim>
__global__ void __launch_bounds__(kBlockSize, 2)
    attention_float32_kernel(float* __restrict__ context, const float* __restrict__ qkv,
                             const int* __restrict__ cu_seqlens, const int2* __restrict__ tiles,
                             int num_heads, int head_dim, int row_stride, float softmax_scale) {
  static_assert(kHeadDim % 32 == 0 && kHeadDim <= 128, "a lane holds kHeadDim / 32 columns");
  constexpr int kChunks = kHeadDim / 4, kColumns = kHeadDim / 32;
  extern __shared__ __align__(128) unsigned char smem[];
  uint4* tile_q = reinterpret_cast<uint4*>(smem);
  uint4* tile_k = tile_q + kBlockM * kChunks;
  uint4* tile_v = tile_k + kBlockN * kChunks;
  float* tile_p = reinterpret_cast<float*>(tile_v + kBlockN * kChunks);

  const int2 tile = tiles[blockIdx.x];
  if (tile.x < 0) return;
  const int first = cu_seqlens[tile.x], seqlen = cu_seqlens[tile.x + 1] - first;
  const int hidden_size = num_heads * head_dim;
  const float* queries =
      qkv + static_cast<int64>(first + tile.y) * row_stride + blockIdx.y * head_dim;
  const float* keys =
      qkv + static_cast<int64>(first) * row_stride + hidden_size + blockIdx.y * head_dim;
  const float* values = keys + hidden_size;
  const int num_queries = min(seqlen - tile.y, kBlockM);
  const int lane_id = threadIdx.x & 31, warp_id = threadIdx.x / 32;
  const int first_row = warp_id * kRows;
  const bool busy = first_row < num_queries;
  const float kMasked = __int_as_float(0xff800000);

  load_head<kChunks, false>(tile_q, queries, num_queries, head_dim, row_stride);

  float out[kRows][kColumns], row_max[kRows], row_sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    row_max[r] = kMasked;
    row_sum[r] = 0.0f;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) out[r][c] = 0.0f;
  }

  for (int key = 0; key < seqlen; key += kBlockN) {
    const int64 at = static_cast<int64>(key) * row_stride;
    load_head<kChunks, true>(tile_k, keys + at, seqlen - key, head_dim, row_stride);
    load_head<kChunks, false>(tile_v, values + at, seqlen - key, head_dim, row_stride);
    commit_copies();
    wait_copies<0>();
    // Keys, values (and the queries) are visible to all warps.
    __syncthreads();
    if (busy) {
      float scores[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) scores[r] = 0.0f;
#pragma unroll 4
      for (int c = 0; c < kChunks; ++c) {
        // Eight lanes read eight rows of one chunk: no bank conflict, thanks to the swizzle.
        const float4 k = reinterpret_cast<const float4*>(
            tile_k)[lane_id * kChunks + swizzle<kChunks>(lane_id, c)];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float4 q = reinterpret_cast<const float4*>(tile_q)[(first_row + r) * kChunks + c];
          // Four products first: a quarter as many roundings of the growing sum.
          scores[r] += fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, q.w * k.w)));
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float score = key + lane_id < seqlen ? scores[r] * softmax_scale : kMasked;
        const float largest = fmaxf(row_max[r], warp_max(score));
        const float correction = expf(row_max[r] - largest);
        const float prob = expf(score - largest);
        row_max[r] = largest;
        row_sum[r] = row_sum[r] * correction + warp_sum(prob);
        tile_p[(first_row + r) * kBlockN + lane_id] = prob;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) out[r][c] *= correction;
      }
      // Lanes read the probabilities of other lanes of the warp.
      __syncwarp();
#pragma unroll 2
      for (int k = 0; k < kBlockN; k += 4) {
        float4 p[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          p[r] = *reinterpret_cast<const float4*>(tile_p + (first_row + r) * kBlockN + k);
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const float* column = reinterpret_cast<const float*>(tile_v) + 32 * c + lane_id;
          const float v0 = column[(k + 0) * kHeadDim], v1 = column[(k + 1) * kHeadDim];
          const float v2 = column[(k + 2) * kHeadDim], v3 = column[(k + 3) * kHeadDim];
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            out[r][c] = fmaf(p[r].x, v0, out[r][c]);
            out[r][c] = fmaf(p[r].y, v1, out[r][c]);
            out[r][c] = fmaf(p[r].z, v2, out[r][c]);
            out[r][c] = fmaf(p[r].w, v3, out[r][c]);
          }
        }
      }
    }
    // The next tile overwrites keys, values and probabilities.
    __syncthreads();
  }
  if (!busy) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64 row = static_cast<int64>(first + tile.y + first_row + r);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = 32 * c + lane_id;
      if (first_row + r < num_queries && column < head_dim) {
        context[row * hidden_size + blockIdx.y * head_dim + column] = out[r][c] / row_sum[r];
      }
    }
  }
}
