// pool: one vector per sequence from the hidden states of its tokens.
//
//   cls, lasttoken             the first and the last          of the n tokens behind `skip`
//   mean, mean_sqrt_len_tokens sum / n, sum / sqrt(n)          over these tokens
//   max                        elementwise maximum             over these tokens
//   weightedmean               sum (i + 1) x_i / sum (i + 1)   i counted from the sequence's start
//
// out (num_seqs, hidden_size) f32; hidden (num_tokens, hidden_size) T; cu_seqlens (num_seqs + 1,),
// skip (num_seqs,) int32.
// Mapping: block (s, c) pools columns 128 c .. + 127 of sequence s; warp w takes tokens w, w + 8,
// ...; the eight partial results meet in shared memory in the order of the warps. The order depends
// on the sequence alone, never on its place in the batch.
// Traffic: every hidden state once: bound by memory.
// Requires: hidden_size a multiple of 4. A sequence without tokens gives zeros.

#include "types.cuh"

constexpr int kBlockSize = 256;
constexpr int kNumWarps = kBlockSize / 32;

enum PoolMode { kCls, kMean, kMax, kMeanSqrtLenTokens, kWeightedMean, kLastToken };

template <PoolMode kMode>
__device__ __forceinline__ float4 combine(float4 total, float4 x, float weight) {
  if (kMode == kMax) {
    return make_float4(fmaxf(total.x, x.x), fmaxf(total.y, x.y), fmaxf(total.z, x.z),
                       fmaxf(total.w, x.w));
  }
  return make_float4(total.x + weight * x.x, total.y + weight * x.y, total.z + weight * x.z,
                     total.w + weight * x.w);
}

template <typename T, PoolMode kMode>
__global__ void __launch_bounds__(kBlockSize)
    pool_kernel(float* __restrict__ out, const T* __restrict__ hidden,
                const int* __restrict__ cu_seqlens, const int* __restrict__ skip,
                int hidden_size) {
  __shared__ float4 partial[kNumWarps][32];
  const int seq = blockIdx.x;
  const int lane_id = threadIdx.x & 31, warp_id = threadIdx.x / 32;
  const int column = 128 * blockIdx.y + 4 * lane_id;
  const int first = cu_seqlens[seq], last = cu_seqlens[seq + 1];
  const bool single = kMode == kCls || kMode == kLastToken;

  int begin = first + skip[seq], end = last;
  if (kMode == kCls) end = min(begin + 1, last);
  if (kMode == kLastToken) begin = max(last - 1, begin);

  const float start = kMode == kMax ? __int_as_float(0xff800000) : 0.0f;
  float4 total = make_float4(start, start, start, start);
  if (column < hidden_size) {
    for (int token = begin + warp_id; token < end; token += kNumWarps) {
      const float weight = kMode == kWeightedMean ? static_cast<float>(token - first + 1) : 1.0f;
      const float4 x = load4(hidden + static_cast<int64>(token) * hidden_size + column);
      total = combine<kMode>(total, x, weight);
    }
  }
  partial[warp_id][lane_id] = total;
  // The first warp reads what the others wrote.
  __syncthreads();
  if (warp_id != 0 || column >= hidden_size) return;
#pragma unroll
  for (int w = 1; w < kNumWarps; ++w) total = combine<kMode>(total, partial[w][lane_id], 1.0f);

  const int count = max(end - begin, 0);
  float divisor = 1.0f;
  if (!single && kMode != kMax) {
    const float n = static_cast<float>(count);
    if (kMode == kMean) divisor = n;
    if (kMode == kMeanSqrtLenTokens) divisor = sqrtf(n);
    if (kMode == kWeightedMean) {
      // begin - first + 1 + ... + end - first
      divisor = 0.5f * n * static_cast<float>((begin - first + 1) + (end - first));
    }
  }
  const bool empty = count == 0;
  store4(out + static_cast<int64>(seq) * hidden_size + column,
         make_float4(empty ? 0.0f : total.x / divisor, empty ? 0.0f : total.y / divisor,
                     empty ? 0.0f : total.z / divisor, empty ? 0.0f : total.w / divisor));
}
