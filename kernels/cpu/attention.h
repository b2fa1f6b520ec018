// attention.h: softmax(softmax_scale * Q K^T) V of one head of one sequence, flash-style.
//
// qkv (num_tokens, 3 * num_heads * head_dim): query, key, value side by side; context
// (num_tokens, num_heads * head_dim). Keys are taken in blocks of kBlockKeys counted from the
// sequence's first token; a block's keys are transposed and its values copied into panels of
// kPanelCols, so that both products use the inner loop of the linear layers. Queries go through in
// groups whose scores stay in the first-level cache. Maximum and sum are carried from block to
// block, and what was summed is rescaled when the maximum grows (Milakov and Gimelshein, 2018,
// arXiv 1805.02867; Dao et al., 2022, arXiv 2205.14135).
// The order of every sum depends on the sequence alone: batch invariant.
// Scratch is bounded by head_dim, whatever the length of the sequence.
// Requires: head_dim a positive multiple of 8, at most kMaxHeadDim; softmax_scale > 0.
#pragma once

#include "elementary.h"
#include "layer_norm.h"
#include "tile.h"

namespace {

using minibert::AttentionCall;

constexpr int64_t kBlockKeys = 256;
constexpr int64_t kBlockQueries = 2 * Vec::kTileRows;
static_assert(kBlockKeys % kPanelCols == 0, "key panels must fill a block");

inline int64_t padded_head_dim(int64_t head_dim) { return round_up(head_dim, kPanelCols); }

size_t attention_scratch_bytes(int64_t head_dim) {
  const int64_t wide = padded_head_dim(head_dim);
  return sizeof(float) * (size_t)(kBlockKeys * head_dim + kBlockKeys * wide +
                                  kBlockQueries * (kBlockKeys + wide));
}

// keys[k][c] for the panel's head_dim and keys; columns past the last key are zeros.
inline void pack_keys(float* panel, const float* key, int64_t stride, int64_t keys,
                      int64_t head_dim) {
  if (keys < kPanelCols) __builtin_memset(panel, 0, sizeof(float) * (size_t)(kPanelCols * head_dim));
  int64_t j = 0;
  for (; j + 8 <= keys; j += 8)
    for (int64_t d = 0; d < head_dim; d += 8)
      Vec::transpose(panel + d * kPanelCols + j, kPanelCols, key + j * stride + d, stride);
  for (; j < keys; ++j)
    for (int64_t d = 0; d < head_dim; ++d) panel[d * kPanelCols + j] = key[j * stride + d];
}

inline void pack_values(float* panel, const float* value, int64_t stride, int64_t keys,
                        int64_t cols) {
  for (int64_t j = 0; j < keys; ++j, panel += kPanelCols)
    for (int64_t c = 0; c < kPanelCols; c += Vec::kLanes) {
      const int64_t n = cols - c;
      const float* source = value + j * stride + c;
      Vec::store(panel + c, n >= Vec::kLanes ? Vec::load(source)
                            : n > 0          ? Vec::load_partial(source, n)
                                             : Vec::zero());
    }
}

constexpr int kTogether = 4;  // vectors whose exponentials are taken together

// Query, key and value of one token in the next head, which this thread most likely takes next:
// rows are pages apart, so the processor does not foresee them.
inline void prefetch_head(const float* query, int64_t out_stride, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; d += 16)
    for (int part = 0; part < 3; ++part) __builtin_prefetch(query + part * out_stride + d, 0, 2);
}

struct Softmax {
  float maximum;
  float sum;
};

template <int kCount>
inline __attribute__((always_inline)) void exponentiate(float* scores, Vec::type offset,
                                                        Vec::type factor, Vec::type& sum) {
  Vec::type p[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i)
    p[i] = Vec::mul(Vec::sub(Vec::load(scores + i * Vec::kLanes), offset), factor);
  exponential(p);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    Vec::store(scores + i * Vec::kLanes, p[i]);
    sum = Vec::add(sum, p[i]);
  }
}

// scores -> exp(scale * (scores - new maximum)); returns the factor for what was summed before.
// Scores past the last key are -inf: they neither raise the maximum nor add to the sum.
inline float exponentiate_row(float* scores, int64_t keys, float scale, Softmax& state) {
  const Vec::type lowest = Vec::broadcast(-__builtin_inff());
  const int64_t whole = keys / Vec::kLanes * Vec::kLanes;
  if (whole < keys)
    Vec::store(scores + whole,
               Vec::keep_first(Vec::load(scores + whole), keys - whole, lowest));
  Vec::type maximum = lowest;
  for (int64_t j = 0; j < keys; j += Vec::kLanes)
    maximum = Vec::max(maximum, Vec::load(scores + j));
  const float largest = Vec::reduce_max(maximum);
  const float before = state.maximum;
  if (largest > before) state.maximum = largest;
  const Vec::type offset = Vec::broadcast(state.maximum);
  const Vec::type factor = Vec::broadcast(scale);
  Vec::type sum = Vec::zero();
  int64_t j = 0;
  for (; j + kTogether * Vec::kLanes <= keys; j += kTogether * Vec::kLanes)
    exponentiate<kTogether>(scores + j, offset, factor, sum);
  for (; j < keys; j += Vec::kLanes) exponentiate<1>(scores + j, offset, factor, sum);
  float correction[Vec::kLanes];
  Vec::store(correction,
             exponential(Vec::mul(Vec::sub(Vec::broadcast(before), offset), factor)));
  state.sum = state.sum * correction[0] + Vec::reduce_add(sum);
  return correction[0];
}

void attention_head(const AttentionCall& call, int64_t begin, int64_t end, int64_t head,
                    void* memory) {
  const int64_t head_dim = call.head_dim, wide = padded_head_dim(head_dim);
  const int64_t out_stride = call.num_heads * head_dim, stride = 3 * out_stride;
  float* keys_packed = (float*)memory;
  float* values_packed = keys_packed + kBlockKeys * head_dim;
  float* scores = values_packed + kBlockKeys * wide;
  float* product = scores + kBlockQueries * kBlockKeys;
  const float* query = call.qkv + begin * stride + head * head_dim;
  const float* key = query + out_stride;
  const float* value = key + out_stride;
  float* context = call.context + begin * out_stride + head * head_dim;
  const int64_t seqlen = end - begin;
  const int64_t num_blocks = ceil_div(seqlen, kBlockKeys);
  const Ahead nothing = {(const char*)memory, 0};  // all operands are near

  for_each_tile(0, seqlen, kBlockQueries, [&](int64_t first, int64_t queries) {
    Softmax state[kBlockQueries];
    for (int64_t r = 0; r < queries; ++r) state[r] = {-__builtin_inff(), 0.0f};
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int64_t key_begin = block * kBlockKeys;
      const int64_t keys = min_of(kBlockKeys, seqlen - key_begin);
      // A short sequence's only block is packed once, for its first group of queries.
      if (num_blocks > 1 || first == 0) {
        for (int64_t j = 0; j < keys; j += kPanelCols)
          pack_keys(keys_packed + j * head_dim, key + (key_begin + j) * stride, stride,
                    min_of(kPanelCols, keys - j), head_dim);
        for (int64_t d = 0; d < head_dim; d += kPanelCols)
          pack_values(values_packed + d * keys, value + key_begin * stride + d, stride, keys,
                      min_of(kPanelCols, head_dim - d));
      }
      for_each_tile(0, queries, Vec::kTileRows, [&](int64_t row, int64_t rows) {
        const MultiplyTile multiply = multiply_for(rows);
        float* tile_scores = scores + row * kBlockKeys;
        for (int64_t j = 0; j < keys; j += kPanelCols)
          multiply(tile_scores + j, kBlockKeys, query + (first + row) * stride, stride,
                   keys_packed + j * head_dim, head_dim, nothing);
      });
      float correction[kBlockQueries];
      for (int64_t r = 0; r < queries; ++r) {
        if (block == 0 && head + 1 < call.num_heads)
          prefetch_head(query + (first + r) * stride + head_dim, out_stride, head_dim);
        correction[r] =
            exponentiate_row(scores + r * kBlockKeys, keys, call.softmax_scale, state[r]);
      }
      for_each_tile(0, queries, Vec::kTileRows, [&](int64_t row, int64_t rows) {
        const MultiplyTile multiply = multiply_for(rows);
        for (int64_t d = 0; d < wide; d += kPanelCols)
          multiply(product + row * wide + d, wide, scores + row * kBlockKeys, kBlockKeys,
                   values_packed + d * keys, keys, nothing);
      });
      for (int64_t r = 0; r < queries; ++r) {
        float* out = context + (first + r) * out_stride;
        const Vec::type earlier = Vec::broadcast(correction[r]);
        const bool last = block + 1 == num_blocks;
        const Vec::type scale = Vec::broadcast(last ? 1.0f / state[r].sum : 1.0f);
        for (int64_t d = 0; d < head_dim; d += Vec::kLanes) {
          const int64_t n = min_of(Vec::kLanes, head_dim - d);
          Vec::type x = Vec::load(product + r * wide + d);
          if (block > 0) x = Vec::fma(load_up_to(out + d, n), earlier, x);
          store_up_to(out + d, Vec::mul(x, scale), n);
        }
      }
    }
  });
}

}  // namespace
