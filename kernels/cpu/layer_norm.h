// layer_norm.h: each row to mean 0 and variance 1, times weight, plus bias; and the sum of
// embedding rows that precedes it at the bottom of the encoder.
//
// (num_rows, hidden_size) -> the same, out may be hidden. Three passes over a row that stays in the
// first-level cache: sum, differences and their squares (no cancellation), result. Sums are held in
// the lanes of two vectors. Bound: reading and writing each row once.
#pragma once

#include "tile.h"

namespace {

using minibert::EmbedTable;
using minibert::Norm;

template <typename Function>
inline float sum_over_row(int64_t size, Function term) {
  Vec::type even = Vec::zero(), odd = Vec::zero();
  int64_t c = 0;
  for (; c + 2 * Vec::kLanes <= size; c += 2 * Vec::kLanes) {
    even = Vec::add(even, term(c, (int64_t)Vec::kLanes));
    odd = Vec::add(odd, term(c + Vec::kLanes, (int64_t)Vec::kLanes));
  }
  for (; c < size; c += Vec::kLanes)
    even = Vec::add(even, term(c, min_of(Vec::kLanes, size - c)));
  return Vec::reduce_add(Vec::add(even, odd));
}

// The mean in float32 is off by its own rounding, which matters where the mean is large against the
// deviation. The second pass also sums the differences: their mean is what the first pass missed.
// `next` is the row that is read after this one; the last pass, whose operands are near, fetches it.
inline void normalize_row(float* out, const float* row, const float* next, const Norm& norm,
                          int64_t size) {
  const float count = (float)size;
  const float rough_mean =
      sum_over_row(size, [&](int64_t c, int64_t n) { return load_up_to(row + c, n); }) / count;
  const Vec::type center = Vec::broadcast(rough_mean);
  Vec::type missed_sums = Vec::zero();
  const float squares = sum_over_row(size, [&](int64_t c, int64_t n) {
    // Lanes past the end count as the mean: they add nothing.
    Vec::type x = load_up_to(row + c, n);
    if (n < Vec::kLanes) x = Vec::keep_first(x, n, center);
    const Vec::type difference = Vec::sub(x, center);
    missed_sums = Vec::add(missed_sums, difference);
    return Vec::mul(difference, difference);
  });
  const float missed = Vec::reduce_add(missed_sums) / count;
  const float variance = squares / count - missed * missed;
  const Vec::type shift = Vec::broadcast(missed);
  const Vec::type scale =
      Vec::broadcast(1.0f / __builtin_sqrtf((variance > 0.0f ? variance : 0.0f) + norm.eps));
  for (int64_t c = 0; c < size; c += Vec::kLanes) {
    const int64_t n = min_of(Vec::kLanes, size - c);
    __builtin_prefetch(next + c, 0, 3);
    const Vec::type difference = Vec::sub(load_up_to(row + c, n), center);
    const Vec::type x = Vec::mul(Vec::sub(difference, shift), scale);
    const Vec::type bias = norm.bias ? load_up_to(norm.bias + c, n) : Vec::zero();
    store_up_to(out + c, Vec::fma(x, load_up_to(norm.weight + c, n), bias), n);
  }
}

void layer_norm_rows(float* out, const float* hidden, const Norm& norm, int64_t row_begin,
                     int64_t row_end, int64_t size) {
  for (int64_t row = row_begin; row < row_end; ++row)
    normalize_row(out + row * size, hidden + row * size, hidden + (row + 1) * size, norm, size);
}

void embed_rows(float* out, const EmbedTable* tables, int num_tables, const Norm& norm,
                int64_t row_begin, int64_t row_end, int64_t size) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* sum = out + row * size;
    for (int64_t c = 0; c < size; c += Vec::kLanes) {
      const int64_t n = min_of(Vec::kLanes, size - c);
      Vec::type x = load_up_to(tables[0].weight + tables[0].ids[row] * size + c, n);
      for (int t = 1; t < num_tables; ++t)
        if (tables[t].weight)
          x = Vec::add(x, load_up_to(tables[t].weight + tables[t].ids[row] * size + c, n));
      store_up_to(sum + c, x, n);
    }
    const int64_t next = tables[0].ids[row + 1 < row_end ? row + 1 : row];
    if (norm.weight) normalize_row(sum, sum, tables[0].weight + next * size, norm, size);
  }
}

}  // namespace
