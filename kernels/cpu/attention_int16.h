// attention_int16.h: attention.h with products of 16-bit integers, for int8 models: twice as many
// products to an instruction as in float32, and finer than the 8 bits around them.
//
// Queries and keys become whole steps of -4095..4095 of their largest value, values of -1023..1023
// of the largest in their column, exponentials of 0..8192: sums of head_dim and of kBlockKeys
// products are exact in int32. Scales are found for a block of keys and a group of queries of one
// sequence and head, so results do not depend on the batch. Blocks and groups are those of
// attention.h; kGroups of queries share the packing of a block.
// A group of queries, or a block of keys and values, with a value that is not finite has no
// context: it is NaN.
// Requires: as attention.h. Scratch is bounded by head_dim, whatever the length of the sequence.
#pragma once

#include "attention.h"

namespace {

constexpr float kScoreSteps = 4095.0f;
constexpr float kValueSteps = 1023.0f;
constexpr int kProbabilityBits = 13;
constexpr float kOne = 1 << kProbabilityBits;  // the largest exponential
constexpr int64_t kMaxHeadDim = 128;
static_assert(kMaxHeadDim * 4095 * 4095 < (int64_t{1} << 31), "scores are exact");
static_assert(kBlockKeys * 8192 * 1023 < (int64_t{1} << 31), "contexts are exact");
constexpr int64_t kGroups = 8;
constexpr int64_t kGroupedQueries = kGroups * kBlockQueries;

// 1.5 * 2^23: added to |x| < 2^15, it rounds to a whole number, whose bits are the sum's lowest.
inline Vec::type whole_bits() { return Vec::broadcast(12582912.0f); }

inline int64_t padded_depth(int64_t head_dim) { return round_up(head_dim, 16); }

struct Int16Scratch {
  float* value_scale;      // (wide,)
  int32_t* scores;         // (kBlockQueries, kBlockKeys)
  int32_t* product;        // (kBlockQueries, wide)
  int16_t* keys;           // panels of [depth / 2][kPanelCols][2]
  int16_t* values;         // panels of [kBlockKeys / 2][kPanelCols][2]
  int16_t* queries;        // (kBlockQueries, depth)
  int16_t* probabilities;  // (kBlockQueries, kBlockKeys)
  int16_t* rows;           // (kPanelCols, depth)
  size_t bytes;

  Int16Scratch(void* memory, int64_t head_dim) {
    const int64_t wide = padded_head_dim(head_dim), depth = padded_depth(head_dim);
    value_scale = (float*)memory;
    scores = (int32_t*)(value_scale + wide);
    product = scores + kBlockQueries * kBlockKeys;
    keys = (int16_t*)(product + kBlockQueries * wide);
    values = keys + kBlockKeys * depth;
    queries = values + kBlockKeys * wide;
    probabilities = queries + kBlockQueries * depth;
    rows = probabilities + kBlockQueries * kBlockKeys;
    bytes = (size_t)((char*)(rows + kPanelCols * depth) - (char*)memory);
  }
};

size_t attention_int16_scratch_bytes(int64_t head_dim) {
  return Int16Scratch(nullptr, head_dim).bytes;
}

// out (kRows, kPanelCols) = a (kRows, 2 * pairs) times a panel [pairs][kPanelCols][2].
template <int kRows>
__attribute__((noinline)) void multiply_words(int32_t* out, int64_t out_stride, const int16_t* a,
                                              int64_t a_stride, const int16_t* panel,
                                              int64_t pairs) {
  Words::type acc[kRows][Vec::kTileVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < Vec::kTileVecs; ++c) acc[r][c] = Words::zero();
  for (int64_t k = 0; k < pairs; ++k, a += 2, panel += 2 * kPanelCols) {
    decltype(Words::load(panel)) b[Vec::kTileVecs];
#pragma GCC unroll 4
    for (int c = 0; c < Vec::kTileVecs; ++c) b[c] = Words::load(panel + 2 * c * Vec::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto x = Words::broadcast(a + r * a_stride);
#pragma GCC unroll 4
      for (int c = 0; c < Vec::kTileVecs; ++c) Words::multiply_add(acc[r][c], x, b[c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < Vec::kTileVecs; ++c)
      Words::store(out + r * out_stride + c * Vec::kLanes, acc[r][c]);
}

inline auto multiply_words_for(int64_t rows) {
  return for_rows<Vec::kTileRows>(
      rows, [](auto count) { return &multiply_words<decltype(count)::value>; });
}

// The largest magnitude of some rows, and 0, or NaN where one of their values is not finite.
struct Extent {
  float largest;
  float poison;

  Extent(const float* rows, int64_t stride, int64_t count, int64_t size) {
    Vec::type most = Vec::zero(), not_finite = Vec::zero();
    for (int64_t r = 0; r < count; ++r, rows += stride)
      for (int64_t d = 0; d < size; d += Vec::kLanes) {
        const Vec::type x = load_up_to(rows + d, min_of(Vec::kLanes, size - d));
        most = Vec::max(most, Vec::abs(x));
        not_finite = Vec::fma(x, Vec::zero(), not_finite);
      }
    poison = Vec::reduce_add(not_finite);
    largest = poison == 0.0f ? Vec::reduce_max(most) : 0.0f;
  }
  float steps_per_unit(float steps) const { return largest > 1e-30f ? steps / largest : 0.0f; }
};

// Rows of `size` values to rows of `depth`, zeros behind.
inline void quantise_words(int16_t* out, int64_t depth, const float* rows, int64_t stride,
                           int64_t count, int64_t size, float steps_per_unit) {
  const Vec::type steps = Vec::broadcast(steps_per_unit), bits = whole_bits();
  for (int64_t r = 0; r < count; ++r, rows += stride, out += depth)
    for (int64_t d = 0; d < depth; d += Vec::kLanes) {
      const int64_t n = min_of(Vec::kLanes, size - d);
      Words::store_low(out + d, n > 0 ? Vec::fma(load_up_to(rows + d, n), steps, bits) : bits);
    }
}

// Keys to panels in which each pair of a key's values is a lane; zeros behind the last key.
inline void pack_keys_int16(const Int16Scratch& at, const float* key, int64_t stride, int64_t keys,
                            int64_t head_dim, float steps_per_unit) {
  const int64_t depth = padded_depth(head_dim);
  for (int64_t j = 0; j < keys; j += kPanelCols) {
    const int64_t n = min_of(kPanelCols, keys - j);
    quantise_words(at.rows, depth, key + j * stride, stride, n, head_dim, steps_per_unit);
    __builtin_memset(at.rows + n * depth, 0, sizeof(int16_t) * (size_t)((kPanelCols - n) * depth));
    int16_t* panel = at.keys + j * depth;
    for (int64_t i = 0; i < kPanelCols; i += 8)
      for (int64_t pair = 0; pair < depth / 2; pair += 8)
        Words::transpose_pairs(panel + 2 * (pair * kPanelCols + i), kPanelCols,
                               at.rows + i * depth + 2 * pair, depth / 2);
  }
}

// Values to panels of pairs of keys, each column with its own scale; returns 0, or NaN where a value
// is not finite.
inline float pack_values_int16(const Int16Scratch& at, const float* value, int64_t stride,
                               int64_t keys, int64_t head_dim) {
  const int64_t pairs = ceil_div(keys, 2);
  const Vec::type tiny = Vec::broadcast(1e-30f), bits = whole_bits();
  Vec::type not_finite = Vec::zero();
  for (int64_t c = 0; c < padded_head_dim(head_dim); c += Vec::kLanes) {
    const int64_t n = min_of(Vec::kLanes, head_dim - c);
    int16_t* panel = at.values + c / kPanelCols * (2 * pairs * kPanelCols) + 2 * (c % kPanelCols);
    const auto load = [&](int64_t j) {
      return n > 0 ? load_up_to(value + j * stride + c, n) : Vec::zero();
    };
    Vec::type most = tiny;
    for (int64_t j = 0; j < keys; ++j) {
      const Vec::type x = load(j);
      most = Vec::max(most, Vec::abs(x));
      not_finite = Vec::fma(x, Vec::zero(), not_finite);
    }
    Vec::store(at.value_scale + c, Vec::mul(most, Vec::broadcast(1.0f / (kValueSteps * kOne))));
    const Vec::type steps = Vec::div(Vec::broadcast(kValueSteps), most);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const bool whole = 2 * pair + 1 < keys;
      Words::store_low_pairs(panel + 2 * pair * kPanelCols, Vec::fma(load(2 * pair), steps, bits),
                             whole ? Vec::fma(load(2 * pair + 1), steps, bits) : bits);
    }
  }
  return Vec::reduce_add(not_finite);
}

// scores -> 2^(13 + scale * score - maximum) as whole numbers, zeros up to the next vector's end.
// 2^f, |f| <= 1/2, by a polynomial of degree 4, off by 2.6e-6.
template <int kCount>
inline __attribute__((always_inline)) void exponentiate_words(int16_t* out, const int32_t* scores,
                                                              int64_t keys, Vec::type scale,
                                                              Vec::type offset, Vec::type& sum) {
  const Vec::type lowest = Vec::broadcast(-2.0f);  // rounds to 0
  const Vec::type highest = Vec::broadcast((float)kProbabilityBits);
  const Vec::type bits = whole_bits();
  Vec::type x[kCount], n[kCount], p[kCount];
#define MINIBERT_EACH _Pragma("GCC unroll 8") for (int i = 0; i < kCount; ++i)
  MINIBERT_EACH x[i] = Vec::fma(Vec::load_int32(scores + i * Vec::kLanes), scale, offset);
  MINIBERT_EACH x[i] = Vec::min(Vec::max(x[i], lowest), highest);
  if (kCount == 1 && keys < Vec::kLanes) x[0] = Vec::keep_first(x[0], keys, lowest);
  MINIBERT_EACH n[i] = Vec::add(x[i], bits);
  MINIBERT_EACH x[i] = Vec::sub(x[i], Vec::sub(n[i], bits));
  MINIBERT_EACH p[i] = Vec::broadcast(0.009570102f);
  const auto then = [&](float coefficient) {
    MINIBERT_EACH p[i] = Vec::fma(p[i], x[i], Vec::broadcast(coefficient));
  };
  then(0.055917859f);
  then(0.24024744f);
  then(0.69312179f);
  then(0.99999928f);
  MINIBERT_EACH p[i] = Vec::add(Words::add_exponent(p[i], n[i]), bits);
  MINIBERT_EACH Words::store_low(out + i * Vec::kLanes, p[i]);
  MINIBERT_EACH sum = Vec::add(sum, Vec::sub(p[i], bits));
#undef MINIBERT_EACH
}

// As exponentiate_row; maxima are exponents of 2.
inline float exponentiate_row_int16(int16_t* out, const int32_t* scores, int64_t keys, float scale,
                                    Softmax& state) {
  Vec::type most = Vec::broadcast(-__builtin_inff());
  int64_t j = 0;
  for (; j + Vec::kLanes <= keys; j += Vec::kLanes)
    most = Vec::max(most, Vec::load_int32(scores + j));
  if (j < keys)
    most = Vec::max(most, Vec::keep_first(Vec::load_int32(scores + j), keys - j, most));
  const float largest = Vec::reduce_max(most) * scale;
  const float before = state.maximum;
  if (largest > before) state.maximum = largest;
  const Vec::type factor = Vec::broadcast(scale);
  const Vec::type offset = Vec::broadcast((float)kProbabilityBits - state.maximum);
  Vec::type sum = Vec::zero();
  for (j = 0; j + kTogether * Vec::kLanes <= keys; j += kTogether * Vec::kLanes)
    exponentiate_words<kTogether>(out + j, scores + j, keys - j, factor, offset, sum);
  for (; j < keys; j += Vec::kLanes)
    exponentiate_words<1>(out + j, scores + j, keys - j, factor, offset, sum);
  float correction[Vec::kLanes] = {};
  if (state.sum > 0.0f)
    Vec::store(correction,
               exponential(Vec::broadcast((before - state.maximum) * 0.693147181f)));
  state.sum = state.sum * correction[0] + Vec::reduce_add(sum);
  return correction[0];
}

void attention_head_int16(const AttentionCall& call, int64_t begin, int64_t end, int64_t head,
                          void* memory) {
  const int64_t head_dim = call.head_dim;
  const int64_t wide = padded_head_dim(head_dim), depth = padded_depth(head_dim);
  const int64_t out_stride = call.num_heads * head_dim, stride = 3 * out_stride;
  const Int16Scratch at(memory, head_dim);
  const float* query = call.qkv + begin * stride + head * head_dim;
  const float* key = query + out_stride;
  const float* value = key + out_stride;
  float* context = call.context + begin * out_stride + head * head_dim;
  const int64_t seqlen = end - begin;
  const int64_t num_blocks = ceil_div(seqlen, kBlockKeys);
  const float log2_scale = call.softmax_scale * 1.44269504f / (kScoreSteps * kScoreSteps);
  Extent keys_extent(key, stride, 0, head_dim);
  float block_poison = 0.0f;

  for_each_tile(0, seqlen, kGroupedQueries, [&](int64_t group_begin, int64_t group_queries) {
    Softmax state[kGroupedQueries];
    float poison[kGroupedQueries];
    for (int64_t r = 0; r < group_queries; ++r) state[r] = {-__builtin_inff(), 0.0f};
    for (int64_t r = 0; r < group_queries; ++r) poison[r] = 0.0f;
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int64_t key_begin = block * kBlockKeys;
      const int64_t keys = min_of(kBlockKeys, seqlen - key_begin);
      const bool last = block + 1 == num_blocks;
      // A short sequence's only block is packed once, for its first queries.
      if (num_blocks > 1 || group_begin == 0) {
        const float* first_key = key + key_begin * stride;
        keys_extent = Extent(first_key, stride, keys, head_dim);
        pack_keys_int16(at, first_key, stride, keys, head_dim,
                        keys_extent.steps_per_unit(kScoreSteps));
        block_poison = keys_extent.poison +
                       pack_values_int16(at, value + key_begin * stride, stride, keys, head_dim);
      }
      for_each_tile(0, group_queries, kBlockQueries, [&](int64_t group_row, int64_t queries) {
        const float* first_query = query + (group_begin + group_row) * stride;
        const Extent extent(first_query, stride, queries, head_dim);
        quantise_words(at.queries, depth, first_query, stride, queries, head_dim,
                       extent.steps_per_unit(kScoreSteps));
        for_each_tile(0, queries, Vec::kTileRows, [&](int64_t row, int64_t rows) {
          const auto multiply = multiply_words_for(rows);
          for (int64_t j = 0; j < keys; j += kPanelCols)
            multiply(at.scores + row * kBlockKeys + j, kBlockKeys, at.queries + row * depth, depth,
                     at.keys + j * depth, depth / 2);
        });
        const float scale = log2_scale * extent.largest * keys_extent.largest;
        float correction[kBlockQueries];
        for (int64_t r = 0; r < queries; ++r) {
          if (block == 0 && head + 1 < call.num_heads)
            prefetch_head(first_query + r * stride + head_dim, out_stride, head_dim);
          poison[group_row + r] += extent.poison + block_poison;
          correction[r] =
              exponentiate_row_int16(at.probabilities + r * kBlockKeys, at.scores + r * kBlockKeys,
                                     keys, scale, state[group_row + r]);
        }
        const int64_t pairs = ceil_div(keys, 2);
        for_each_tile(0, queries, Vec::kTileRows, [&](int64_t row, int64_t rows) {
          const auto multiply = multiply_words_for(rows);
          for (int64_t d = 0; d < wide; d += kPanelCols)
            multiply(at.product + row * wide + d, wide, at.probabilities + row * kBlockKeys,
                     kBlockKeys, at.values + 2 * d * pairs, pairs);
        });
        for (int64_t r = 0; r < queries; ++r) {
          float* out = context + (group_begin + group_row + r) * out_stride;
          const float sum = state[group_row + r].sum;
          const Vec::type earlier = Vec::broadcast(correction[r]);
          const Vec::type factor =
              Vec::broadcast(last ? kOne / sum + poison[group_row + r] : 1.0f);
          for (int64_t d = 0; d < head_dim; d += Vec::kLanes) {
            const int64_t n = min_of(Vec::kLanes, head_dim - d);
            Vec::type x = Vec::mul(Vec::load_int32(at.product + r * wide + d),
                                   Vec::load(at.value_scale + d));
            if (block > 0) x = Vec::fma(load_up_to(out + d, n), earlier, x);
            store_up_to(out + d, Vec::mul(x, factor), n);
          }
        }
      });
    }
  });
}

constexpr minibert::AttentionKernel kAttentionInt16 = {attention_int16_scratch_bytes,
                                                       attention_head_int16};

}  // namespace
