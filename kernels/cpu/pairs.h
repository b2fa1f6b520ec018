// pairs.h: the inner loop on matrix instructions that multiply two rows by two columns (mmla_neon.h).
//
// Weights and activations lie in pairs, 16 bytes to an operand, in the order of use:
//   weights      [panel of 8 outputs][step of inputs][part][4 pairs][2 outputs][inputs]
//   activations  [pair of rows][step of inputs][part][2 rows][inputs]
// both padded with zeros: a row's sums do not depend on whether it has a partner. Sums of 2 x 2, 16
// at most, stay in registers: 4 + 4 loads to 16 products where there is one part.
#pragma once

#include "epilogue.h"

namespace {

constexpr int64_t kOperandBytes = 16;
constexpr int64_t kPairsCols = 8;       // outputs of a panel
constexpr int64_t kColPairs = kPairsCols / 2;
constexpr int64_t kRowPairs = 4;        // pairs of rows at once
constexpr int64_t kPairsBlockRows = 96;
static_assert(kPairsCols % Vec::kLanes == 0, "the epilogue takes whole vectors");
static_assert(kPairsBlockRows % 2 == 0, "a job begins with a pair");

// Sums of kPairs pairs of rows with one panel, (2 * kPairs, kPairsCols), broken every `chain` steps.
template <typename Product, int kParts, int kPairs>
__attribute__((noinline)) void multiply_pairs(typename Product::Value* out, const char* rows,
                                              int64_t pair_bytes, const char* cols, int64_t steps,
                                              int64_t chain, const Ahead& asked) {
  Ahead ahead = asked;
  for (int64_t begin = 0; begin < steps; begin += chain) {
    typename Product::type acc[kPairs][kColPairs];
#pragma GCC unroll 4
    for (int r = 0; r < kPairs; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < kColPairs; ++c) acc[r][c] = Product::zero();
    const int64_t end = min_of(begin + chain, steps);
    for (int64_t step = begin; step < end; ++step) {
      Mmla::Operand b[kParts][kColPairs];
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 4
        for (int c = 0; c < kColPairs; ++c, cols += kOperandBytes)
          b[part][c] = Mmla::load(cols);
        __builtin_prefetch(ahead.address, 0, 2);
        ahead.address += ahead.step;
      }
      const char* x = rows + step * kParts * kOperandBytes;
#pragma GCC unroll 4
      for (int r = 0; r < kPairs; ++r) {
        const Mmla::Operand first = Mmla::load(x + r * pair_bytes);
        if constexpr (kParts == 2) {
          const Mmla::Operand second = Mmla::load(x + r * pair_bytes + kOperandBytes);
#pragma GCC unroll 4
          for (int c = 0; c < kColPairs; ++c)
            acc[r][c] = Product::multiply(acc[r][c], first, b[1][c]);
#pragma GCC unroll 4
          for (int c = 0; c < kColPairs; ++c)
            acc[r][c] = Product::multiply(acc[r][c], second, b[0][c]);
        }
#pragma GCC unroll 4
        for (int c = 0; c < kColPairs; ++c)
          acc[r][c] = Product::multiply(acc[r][c], first, b[0][c]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kPairs; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < kColPairs; c += 2) {
        typename Product::Value* upper = out + 2 * r * kPairsCols + 2 * c;
        typename Product::Value* lower = upper + kPairsCols;
        if (begin == 0) {
          Product::store(upper, Product::upper(acc[r][c], acc[r][c + 1]));
          Product::store(lower, Product::lower(acc[r][c], acc[r][c + 1]));
        } else {
          Product::add_to(upper, Product::upper(acc[r][c], acc[r][c + 1]));
          Product::add_to(lower, Product::lower(acc[r][c], acc[r][c + 1]));
        }
      }
  }
}

// The template above for a number of pairs known at run time.
template <typename Product, int kParts, int kPairs = kRowPairs>
inline void pairs_tile(int64_t pairs, typename Product::Value* out, const char* rows,
                       int64_t pair_bytes, const char* cols, int64_t steps, int64_t chain,
                       const Ahead& ahead) {
  if (pairs == kPairs)
    return multiply_pairs<Product, kParts, kPairs>(out, rows, pair_bytes, cols, steps, chain,
                                                   ahead);
  if constexpr (kPairs > 1)
    pairs_tile<Product, kParts, kPairs - 1>(pairs, out, rows, pair_bytes, cols, steps, chain,
                                            ahead);
}

// Rows begin..end in tiles of at most kRowPairs pairs: function(first row, rows, pairs).
template <typename Function>
inline void for_each_pairs_tile(int64_t begin, int64_t end, Function function) {
  for_each_tile(begin / 2, ceil_div(end, 2), kRowPairs, [&](int64_t pair, int64_t pairs) {
    function(2 * pair, min_of(2 * pairs, end - 2 * pair), pairs);
  });
}

size_t pairs_scratch_bytes(int64_t) { return 0; }

}  // namespace
