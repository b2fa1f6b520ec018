// attention_int16.h: attention.h with products of 16-bit integers, for int8 models: twice as many
// products to an instruction as in float32, and finer than the 8 bits around them.
//
// Queries and keys become whole steps of -4095..4095 of their largest value, values of -1023..1023
// of the largest in their column, exponentials of 0..8192: sums of head_dim and of kBlockKeys
// products are exact in int32. Scales are found for a block of keys and a group of queries of one
// sequence and head, so results do not depend on the batch. Blocks and groups are those of
// attention.h.
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
static_assert(kMostHeadDim * 4095 * 4095 < (int64_t{1} << 31), "scores are exact");
static_assert(kBlockKeys * 8192 * 1023 < (int64_t{1} << 31), "contexts are exact");

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
inline void quantize_words(int16_t* out, int64_t depth, const float* rows, int64_t stride,
                           int64_t count, int64_t size, float steps_per_unit) {
  const Vec::type steps = Vec::broadcast(steps_per_unit), bits = Vec::broadcast(kWhole);
  for (int64_t r = 0; r < count; ++r, rows += stride, out += depth)
    for (int64_t d = 0; d < depth; d += Vec::kLanes) {
      const int64_t n = min_of(Vec::kLanes, size - d);
      Words::store_low(out + d, n > 0 ? Vec::fma(load_up_to(rows + d, n), steps, bits) : bits);
    }
}

// Where exponentials stand and values are taken from: a pair is a key and the one kLanes after it
// while both vectors are whole, so that two vectors of exponentials make a vector of pairs; the last
// keys are paired as they come.
inline int64_t paired_keys(int64_t keys) { return keys / (2 * Vec::kLanes) * (2 * Vec::kLanes); }

// scores -> 2^(13 + scale * score - maximum), whole numbers in the lowest bits of floats. 2^f,
// |f| <= 1/2, by kPowerOfTwo. Lanes past the last key are zeros. An exponent that is not a number
// counts as 0; the sum has its `poison`.
template <int kCount>
inline __attribute__((always_inline)) void exponentiate_words(Vec::type (&p)[kCount],
                                                              const int32_t* scores, int64_t keys,
                                                              Vec::type scale, Vec::type offset) {
  const Vec::type lowest = Vec::broadcast(-2.0f);  // rounds to 0
  const Vec::type highest = Vec::broadcast((float)kProbabilityBits);
  const Vec::type bits = Vec::broadcast(kWhole);
  Vec::type x[kCount], n[kCount];
  MINIBERT_EACH x[i] = Vec::fma(Vec::load_int32(scores + i * Vec::kLanes), scale, offset);
  MINIBERT_EACH x[i] = Vec::min(Vec::max(x[i], lowest), highest);
  if (kCount == 1 && keys < Vec::kLanes) x[0] = Vec::keep_first(x[0], keys, lowest);
  MINIBERT_EACH n[i] = Vec::add(x[i], bits);
  MINIBERT_EACH x[i] = Vec::sub(x[i], Vec::sub(n[i], bits));
  polynomial(p, x, kPowerOfTwo);
  MINIBERT_EACH p[i] = Vec::add(Words::add_exponent(p[i], n[i]), bits);
}

// As exponentiate_row; maxima are exponents of 2. `poison` is added to the sum: 0, or NaN.
inline float exponentiate_row_int16(int16_t* out, const int32_t* scores, int64_t keys, float scale,
                                    float poison, Softmax& state) {
  constexpr int64_t kLanes = Vec::kLanes;
  Vec::type most = Vec::broadcast(-__builtin_inff());
  int64_t j = 0;
  for (; j + kLanes <= keys; j += kLanes) most = Vec::max(most, Vec::load_int32(scores + j));
  if (j < keys)
    most = Vec::max(most, Vec::keep_first(Vec::load_int32(scores + j), keys - j, most));
  const float largest = Vec::reduce_max(most) * scale;
  const float before = state.maximum;
  if (largest > before) state.maximum = largest;
  const Vec::type factor = Vec::broadcast(scale);
  const Vec::type offset = Vec::broadcast((float)kProbabilityBits - state.maximum);
  const auto ones = Words::ones();
  const int64_t paired = paired_keys(keys);
  Words::type sums = Words::zero();
  // Sums of whole numbers below 2^24, so no order of them rounds.
  const auto take_pairs = [&](auto count) MINIBERT_INLINE {
    constexpr int kCount = decltype(count)::value;
    Vec::type p[kCount];
    exponentiate_words(p, scores + j, keys - j, factor, offset);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; i += 2) {
      const auto pairs = Words::low_pairs(p[i], p[i + 1]);
      Words::store_pairs(out + j + i * kLanes, pairs);
      Words::multiply_add(sums, pairs, ones);
    }
    j += kCount * kLanes;
  };
  for (j = 0; j + 4 * kLanes <= paired;) take_pairs(Count<4>());
  if (j < paired) take_pairs(Count<2>());
  Vec::type rest = Vec::zero();
  for (; j < keys; j += kLanes) {
    Vec::type p[1];
    exponentiate_words(p, scores + j, keys - j, factor, offset);
    Words::store_low(out + j, p[0]);
    rest = Vec::add(rest, Vec::sub(p[0], Vec::broadcast(kWhole)));
  }
  const float sum = Vec::reduce_add(Vec::add(rest, Words::to_float(sums)));
  return state.add(before, kLn2, sum / kOne + poison);
}

struct Int16Attention {
  static constexpr int64_t kQueries = kBlockQueries;
  int64_t head_dim, wide, depth;  // depth: head_dim, in whole squares of pairs
  float log2_scale;
  float* value_scale;      // (wide,)
  int32_t* scores;         // (kBlockQueries, kBlockKeys)
  int32_t* product;        // (kBlockQueries, wide)
  int16_t* keys_packed;    // panels of [depth / 2][kPanelCols][2]
  int16_t* values_packed;  // panels of [kBlockKeys / 2][kPanelCols][2]
  int16_t* queries_packed;  // (kBlockQueries, depth)
  int16_t* probs;  // (kBlockQueries, kBlockKeys)
  int16_t* rows_packed;    // (kPanelCols, depth)
  size_t bytes;
  float largest_key = 0.0f, block_poison = 0.0f;  // of the block
  float scale = 0.0f, poison = 0.0f;              // of the group with it

  Int16Attention(void* memory, int64_t dim, float softmax_scale)
      : head_dim(dim), wide(padded_head_dim(dim)), depth(round_up(dim, 16)) {
    log2_scale = softmax_scale * kLog2E / (kScoreSteps * kScoreSteps);
    value_scale = (float*)memory;
    scores = (int32_t*)(value_scale + wide);
    product = scores + kBlockQueries * kBlockKeys;
    keys_packed = (int16_t*)(product + kBlockQueries * wide);
    values_packed = keys_packed + kBlockKeys * depth;
    queries_packed = values_packed + kBlockKeys * wide;
    probs = queries_packed + kBlockQueries * depth;
    rows_packed = probs + kBlockQueries * kBlockKeys;
    bytes = (size_t)((char*)(rows_packed + kPanelCols * depth) - (char*)memory);
  }

  void pack(const float* key, const float* value, int64_t stride, int64_t keys) {
    const Extent extent(key, stride, keys, head_dim);
    pack_keys(key, stride, keys, extent.steps_per_unit(kScoreSteps));
    largest_key = extent.largest;
    block_poison = extent.poison + pack_values(value, stride, keys);
  }
  void score(const float* query, int64_t stride, int64_t queries, int64_t keys) {
    const Extent extent(query, stride, queries, head_dim);
    quantize_words(queries_packed, depth, query, stride, queries, head_dim,
                   extent.steps_per_unit(kScoreSteps));
    scale = log2_scale * extent.largest * largest_key;
    poison = extent.poison + block_poison;
    for_each_tile(0, queries, Vec::kTileRows, [&](int64_t row, int64_t rows) {
      const auto multiply = multiply_words_for(rows);
      for (int64_t j = 0; j < keys; j += kPanelCols)
        multiply(scores + row * kBlockKeys + j, kBlockKeys, queries_packed + row * depth, depth,
                 keys_packed + j * depth, depth / 2);
    });
  }
  float exponentiate(int64_t r, int64_t keys, Softmax& state) const {
    return exponentiate_row_int16(probs + r * kBlockKeys, scores + r * kBlockKeys, keys,
                                  scale, poison, state);
  }
  void weigh(int64_t queries, int64_t keys) const {
    const int64_t pairs = ceil_div(keys, 2);
    for_each_tile(0, queries, Vec::kTileRows, [&](int64_t row, int64_t rows) {
      const auto multiply = multiply_words_for(rows);
      for (int64_t d = 0; d < wide; d += kPanelCols)
        multiply(product + row * wide + d, wide, probs + row * kBlockKeys, kBlockKeys,
                 values_packed + 2 * d * pairs, pairs);
    });
  }
  Vec::type context(int64_t r, int64_t d) const {
    return Vec::mul(Vec::load_int32(product + r * wide + d), Vec::load(value_scale + d));
  }

 private:
  // To panels in which each pair of a key's values is a lane; zeros behind the last key.
  void pack_keys(const float* key, int64_t stride, int64_t keys, float steps_per_unit) const {
    for (int64_t j = 0; j < keys; j += kPanelCols) {
      const int64_t n = min_of(kPanelCols, keys - j);
      quantize_words(rows_packed, depth, key + j * stride, stride, n, head_dim, steps_per_unit);
      __builtin_memset(rows_packed + n * depth, 0,
                       sizeof(int16_t) * (size_t)((kPanelCols - n) * depth));
      int16_t* panel = keys_packed + j * depth;
      for (int64_t i = 0; i < kPanelCols; i += 8)
        for (int64_t pair = 0; pair < depth / 2; pair += 8)
          Words::transpose_pairs(panel + 2 * (pair * kPanelCols + i), kPanelCols,
                                 rows_packed + i * depth + 2 * pair, depth / 2);
    }
  }

  // To panels of pairs of keys, each column with its own scale; returns 0, or NaN where a value is
  // not finite.
  float pack_values(const float* value, int64_t stride, int64_t keys) const {
    const int64_t pairs = ceil_div(keys, 2);
    const Vec::type tiny = Vec::broadcast(1e-30f), bits = Vec::broadcast(kWhole);
    Vec::type not_finite = Vec::zero();
    for (int64_t c = 0; c < wide; c += Vec::kLanes) {
      const int64_t n = min_of(Vec::kLanes, head_dim - c);
      int16_t* panel =
          values_packed + c / kPanelCols * (2 * pairs * kPanelCols) + 2 * (c % kPanelCols);
      const auto load = [&](int64_t j) {
        return n > 0 ? load_up_to(value + j * stride + c, n) : Vec::zero();
      };
      Vec::type most = tiny;
      for (int64_t j = 0; j < keys; ++j) {
        const Vec::type x = load(j);
        most = Vec::max(most, Vec::abs(x));
        not_finite = Vec::fma(x, Vec::zero(), not_finite);
      }
      Vec::store(value_scale + c, Vec::mul(most, Vec::broadcast(1.0f / (kValueSteps * kOne))));
      const Vec::type steps = Vec::div(Vec::broadcast(kValueSteps), most);
      const auto store = [&](int64_t first, int64_t second) {
        Words::store_pairs(panel, Words::low_pairs(Vec::fma(load(first), steps, bits),
                                                   second < keys
                                                       ? Vec::fma(load(second), steps, bits)
                                                       : bits));
        panel += 2 * kPanelCols;
      };
      int64_t j = 0;
      for (; j < paired_keys(keys); j += 2 * Vec::kLanes)
        for (int64_t i = 0; i < Vec::kLanes; ++i) store(j + i, j + i + Vec::kLanes);
      for (; j < keys; j += 2) store(j, j + 1);
    }
    return Vec::reduce_add(not_finite);
  }
};

size_t attention_int16_scratch_bytes(int64_t head_dim) {
  return Int16Attention(nullptr, head_dim, 1.0f).bytes;
}

void attention_head_int16(const AttentionCall& call, int64_t begin, int64_t end, int64_t head,
                          void* memory) {
  Int16Attention format(memory, call.head_dim, call.softmax_scale);
  attend(call, begin, end, head, format);
}

constexpr minibert::AttentionKernel kAttentionInt16 = {attention_int16_scratch_bytes,
                                                       attention_head_int16};

}  // namespace
