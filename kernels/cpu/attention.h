// attention.h: softmax(softmax_scale * Q K^T) V of one head of one sequence, flash-style.
//
// qkv (num_tokens, 3 * num_heads * head_dim): query, key, value side by side; context
// (num_tokens, num_heads * head_dim). Keys are taken in blocks of kBlockKeys counted from the
// sequence's first token; a block's keys are transposed and its values copied into panels of
// kPanelCols, so that both products use the inner loop of the linear layers. Queries go through in
// groups whose scores stay in the first-level cache; kGroups of them share a block's packing.
// Maximum and sum are carried from block to block, and what was summed is rescaled when the maximum
// grows (Milakov and Gimelshein, 2018, arXiv 1805.02867; Dao et al., 2022, arXiv 2205.14135).
// The order of every sum depends on the sequence alone: batch invariant.
// Scratch is bounded by head_dim, whatever the length of the sequence.
// Sequences of at most kShortKeys tokens go another way, in float32 whatever the format: their scores
// are a vector a query, and laying out their few keys and values costs more than it saves.
// Requires: head_dim a positive multiple of 8, at most kMostHeadDim in other formats than float32;
// softmax_scale > 0.
#pragma once

#include "elementary.h"
#include "tile.h"

namespace {

using minibert::AttentionCall;
using minibert::kMostHeadDim;

constexpr int64_t kBlockKeys = 256;
constexpr int64_t kBlockQueries = 2 * Vec::kTileRows;
constexpr int64_t kGroups = 8;
static_assert(kBlockKeys % kPanelCols == 0, "key panels must fill a block");

inline int64_t padded_head_dim(int64_t head_dim) { return round_up(head_dim, kPanelCols); }

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
    for (int64_t c = 0; c < kPanelCols; c += Vec::kLanes)
      Vec::store(panel + c, load_within(value + j * stride, c, cols));
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

  // Adds a block's sum; `factor` makes maxima exponents of e. Returns the factor for what was summed
  // before.
  float add(float before, float factor, float block_sum) {
    float earlier[Vec::kLanes] = {};
    if (sum > 0.0f)
      Vec::store(earlier, exponential(Vec::broadcast((before - maximum) * factor)));
    sum = sum * earlier[0] + block_sum;
    return earlier[0];
  }
};

// out = exp(x), kCount vectors of both.
template <int kCount>
inline __attribute__((always_inline)) void store_exponentials(float* out, Vec::type* x) {
  Vec::type p[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) p[i] = x[i];
  exponential(p);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    x[i] = p[i];
    Vec::store(out + i * Vec::kLanes, p[i]);
  }
}

template <int kCount>
inline __attribute__((always_inline)) void exponentiate(float* scores, Vec::type offset,
                                                        Vec::type factor, Vec::type& sum) {
  Vec::type p[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i)
    p[i] = Vec::mul(Vec::sub(Vec::load(scores + i * Vec::kLanes), offset), factor);
  store_exponentials<kCount>(scores, p);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) sum = Vec::add(sum, p[i]);
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
  return state.add(before, scale, Vec::reduce_add(sum));
}

constexpr int64_t kShortKeys = 16;
// A score's sum is broken after so many terms, as kChain does; a larger part of the error of so few
// keys is the scores'.
constexpr int64_t kShortChain = 32;
constexpr int kShortRows = 6;  // queries together; each number of them is a function of its own

// keys (head_dim, kShortKeys), transposed; columns past the last key are numbers that do not matter,
// but none so small that the processor takes its time over them.
inline void transpose_short(float* keys, const float* key, int64_t stride, int64_t seqlen,
                            int64_t head_dim) {
  float few[8 * kMostHeadDim];
  if (seqlen < kShortKeys)
    for (int64_t i = 0; i < head_dim * kShortKeys; i += Vec::kLanes)
      Vec::store(keys + i, Vec::zero());
  if (seqlen < 8) {  // the rows behind are another sequence's, or nobody's
    for (int64_t j = 0; j < 8; ++j)
      __builtin_memcpy(few + j * head_dim, key + min_of(j, seqlen - 1) * stride,
                       sizeof(float) * (size_t)head_dim);
    key = few;
    stride = head_dim;
  }
  for (int64_t d = 0; d < head_dim; d += 8) {
    Vec::transpose(keys + d * kShortKeys, kShortKeys, key + d, stride);
    if (seqlen > 8)  // its last eight rows
      Vec::transpose(keys + d * kShortKeys + seqlen - 8, kShortKeys,
                     key + (seqlen - 8) * stride + d, stride);
  }
}

// Some queries of a short sequence.
template <int kRows>
__attribute__((noinline)) void attend_short_rows(float* context, int64_t out_stride,
                                                 const float* query, const float* value,
                                                 int64_t stride, const float* keys, int64_t seqlen,
                                                 int64_t head_dim, float softmax_scale) {
  constexpr int kVecs = kShortKeys / Vec::kLanes;
  constexpr int kAll = kRows * kVecs;
  Vec::type p[kAll];
#pragma GCC unroll 48
  for (int i = 0; i < kAll; ++i) p[i] = Vec::zero();
  for (int64_t begin = 0; begin < head_dim; begin += kShortChain) {
    Vec::type acc[kAll];
#pragma GCC unroll 48
    for (int i = 0; i < kAll; ++i) acc[i] = Vec::zero();
    for (int64_t d = begin; d < min_of(head_dim, begin + kShortChain); ++d) {
      Vec::type b[kVecs];
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) b[v] = Vec::load(keys + d * kShortKeys + v * Vec::kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Vec::type x = Vec::broadcast(query[r * stride + d]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) acc[r * kVecs + v] = Vec::fma(x, b[v], acc[r * kVecs + v]);
      }
    }
#pragma GCC unroll 48
    for (int i = 0; i < kAll; ++i) p[i] = Vec::add(p[i], acc[i]);
  }
  const Vec::type lowest = Vec::broadcast(-__builtin_inff());
  const Vec::type factor = Vec::broadcast(softmax_scale);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    Vec::type most = lowest;
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      Vec::type& x = p[r * kVecs + v];
      const int64_t there = seqlen - v * Vec::kLanes;
      if (there < Vec::kLanes) x = there > 0 ? Vec::keep_first(x, there, lowest) : lowest;
      most = Vec::max(most, x);
    }
    const Vec::type offset = Vec::broadcast(Vec::reduce_max(most));
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v)
      p[r * kVecs + v] = Vec::mul(Vec::sub(p[r * kVecs + v], offset), factor);
  }
  alignas(64) float probs[kRows * kShortKeys];  // times their sum
#pragma GCC unroll 12
  for (int i = 0; i < kAll; i += kTogether) {
    constexpr int kRest = kAll % kTogether;
    if (i + kTogether <= kAll) {
      store_exponentials<kTogether>(probs + i * Vec::kLanes, p + i);
    } else if constexpr (kRest > 0) {
      store_exponentials<kRest>(probs + i * Vec::kLanes, p + i);
    }
  }
  float inverse[kRows];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    Vec::type sum = Vec::zero();
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v)
      sum = Vec::add(sum, Vec::load(probs + r * kShortKeys + v * Vec::kLanes));
    inverse[r] = 1.0f / Vec::reduce_add(sum);
  }
  for (int64_t d = 0; d < head_dim; d += kPanelCols) {
    Vec::type out[kRows][Vec::kTileVecs];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < Vec::kTileVecs; ++c) out[r][c] = Vec::zero();
    for (int64_t j = 0; j < seqlen; ++j) {
      Vec::type b[Vec::kTileVecs];
#pragma GCC unroll 4
      for (int c = 0; c < Vec::kTileVecs; ++c)
        b[c] = load_within(value + j * stride + d, c * Vec::kLanes, head_dim - d);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const Vec::type x = Vec::broadcast(probs[r * kShortKeys + j]);
#pragma GCC unroll 4
        for (int c = 0; c < Vec::kTileVecs; ++c) out[r][c] = Vec::fma(x, b[c], out[r][c]);
      }
    }
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < Vec::kTileVecs; ++c) {
        const int64_t at = d + c * Vec::kLanes, n = min_of(Vec::kLanes, head_dim - at);
        if (n > 0)
          store_up_to(context + r * out_stride + at,
                      Vec::mul(out[r][c], Vec::broadcast(inverse[r])), n);
      }
  }
}

constexpr bool is_short(int64_t seqlen, int64_t head_dim) {
  return seqlen <= kShortKeys && head_dim <= kMostHeadDim;
}

// One head of one sequence of which that is true.
inline void attend_short(const AttentionCall& call, int64_t begin, int64_t seqlen, int64_t head) {
  const int64_t head_dim = call.head_dim;
  const int64_t out_stride = call.num_heads * head_dim, stride = 3 * out_stride;
  const float* query = call.qkv + begin * stride + head * head_dim;
  float* context = call.context + begin * out_stride + head * head_dim;
  alignas(64) float keys[kMostHeadDim * kShortKeys];
  transpose_short(keys, query + out_stride, stride, seqlen, head_dim);
  if (head + 1 < call.num_heads)
    for (int64_t r = 0; r < seqlen; ++r)
      prefetch_head(query + r * stride + head_dim, out_stride, head_dim);
  for_each_tile(0, seqlen, kShortRows, [&](int64_t row, int64_t rows) {
    for_rows<kShortRows>(rows, [](auto count) {
      return &attend_short_rows<decltype(count)::value>;
    })(context + row * out_stride, out_stride, query + row * stride, query + 2 * out_stride, stride,
       keys, seqlen, head_dim, call.softmax_scale);
  });
}

// One head of one sequence. A format has scratch for a block of keys and a group of kQueries queries:
//   pack(key, value, stride, keys)            a block
//   score(query, stride, queries, keys)       a group with the block
//   exponentiate(r, keys, softmax) -> float   of a query; the factor for what was summed before
//   weigh(queries, keys)                      the block's values by that
//   context(r, d) -> Vec::type                of a query
template <typename Format>
void attend(const AttentionCall& call, int64_t begin, int64_t end, int64_t head, Format& format) {
  const int64_t head_dim = call.head_dim;
  const int64_t out_stride = call.num_heads * head_dim, stride = 3 * out_stride;
  const float* query = call.qkv + begin * stride + head * head_dim;
  const float* key = query + out_stride;
  const float* value = key + out_stride;
  float* context = call.context + begin * out_stride + head * head_dim;
  const int64_t seqlen = end - begin;
  if (is_short(seqlen, head_dim)) return attend_short(call, begin, seqlen, head);
  const int64_t num_blocks = ceil_div(seqlen, kBlockKeys);

  for_each_tile(0, seqlen, kGroups * Format::kQueries, [&](int64_t shared_begin, int64_t sharing) {
    Softmax states[kGroups * Format::kQueries];
    for (int64_t r = 0; r < sharing; ++r) states[r] = {-__builtin_inff(), 0.0f};
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int64_t key_begin = block * kBlockKeys;
      const int64_t keys = min_of(kBlockKeys, seqlen - key_begin);
      const bool last = block + 1 == num_blocks;
      // A short sequence's only block is packed once, for its first queries.
      if (num_blocks > 1 || shared_begin == 0)
        format.pack(key + key_begin * stride, value + key_begin * stride, stride, keys);
      for_each_tile(shared_begin, shared_begin + sharing, Format::kQueries, [&](int64_t first,
                                                                             int64_t queries) {
        const float* first_query = query + first * stride;
        Softmax* state = states + (first - shared_begin);
        format.score(first_query, stride, queries, keys);
        float correction[Format::kQueries];
        for (int64_t r = 0; r < queries; ++r) {
          if (block == 0 && head + 1 < call.num_heads)
            prefetch_head(first_query + r * stride + head_dim, out_stride, head_dim);
          correction[r] = format.exponentiate(r, keys, state[r]);
        }
        format.weigh(queries, keys);
        for (int64_t r = 0; r < queries; ++r) {
          float* out = context + (first + r) * out_stride;
          const Vec::type earlier = Vec::broadcast(correction[r]);
          const Vec::type scale = Vec::broadcast(last ? 1.0f / state[r].sum : 1.0f);
          for (int64_t d = 0; d < head_dim; d += Vec::kLanes) {
            const int64_t n = min_of(Vec::kLanes, head_dim - d);
            Vec::type x = format.context(r, d);
            if (block > 0) x = Vec::fma(load_up_to(out + d, n), earlier, x);
            store_up_to(out + d, Vec::mul(x, scale), n);
          }
        }
      });
    }
  });
}

struct FloatAttention {
  static constexpr int64_t kQueries = kBlockQueries;
  int64_t head_dim, wide;
  float softmax_scale;
  float* keys_packed;
  float* values_packed;
  float* scores;   // (kBlockQueries, kBlockKeys)
  float* product;  // (kBlockQueries, wide)
  size_t bytes;

  FloatAttention(void* memory, int64_t dim, float scale)
      : head_dim(dim), wide(padded_head_dim(dim)), softmax_scale(scale) {
    keys_packed = (float*)memory;
    values_packed = keys_packed + kBlockKeys * head_dim;
    scores = values_packed + kBlockKeys * wide;
    product = scores + kBlockQueries * kBlockKeys;
    bytes = (size_t)((char*)(product + kBlockQueries * wide) - (char*)memory);
  }
  Ahead nothing() const { return {(const char*)keys_packed, 0}; }  // all operands are near

  void pack(const float* key, const float* value, int64_t stride, int64_t keys) const {
    for (int64_t j = 0; j < keys; j += kPanelCols)
      pack_keys(keys_packed + j * head_dim, key + j * stride, stride, min_of(kPanelCols, keys - j),
                head_dim);
    for (int64_t d = 0; d < head_dim; d += kPanelCols)
      pack_values(values_packed + d * keys, value + d, stride, keys,
                  min_of(kPanelCols, head_dim - d));
  }
  void score(const float* query, int64_t stride, int64_t queries, int64_t keys) const {
    for_each_tile(0, queries, Vec::kTileRows, [&](int64_t row, int64_t rows) {
      const auto multiply = multiply_for(rows);
      for (int64_t j = 0; j < keys; j += kPanelCols)
        multiply(scores + row * kBlockKeys + j, kBlockKeys, query + row * stride, stride,
                 keys_packed + j * head_dim, head_dim, nothing());
    });
  }
  float exponentiate(int64_t r, int64_t keys, Softmax& state) const {
    return exponentiate_row(scores + r * kBlockKeys, keys, softmax_scale, state);
  }
  void weigh(int64_t queries, int64_t keys) const {
    for_each_tile(0, queries, Vec::kTileRows, [&](int64_t row, int64_t rows) {
      const auto multiply = multiply_for(rows);
      for (int64_t d = 0; d < wide; d += kPanelCols)
        multiply(product + row * wide + d, wide, scores + row * kBlockKeys, kBlockKeys,
                 values_packed + d * keys, keys, nothing());
    });
  }
  Vec::type context(int64_t r, int64_t d) const { return Vec::load(product + r * wide + d); }
};

size_t attention_scratch_bytes(int64_t head_dim) {
  return FloatAttention(nullptr, head_dim, 1.0f).bytes;
}

void attention_head(const AttentionCall& call, int64_t begin, int64_t end, int64_t head,
                    void* memory) {
  FloatAttention format(memory, call.head_dim, call.softmax_scale);
  attend(call, begin, end, head, format);
}

}  // namespace
