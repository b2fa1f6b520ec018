// products_int8.h: the int8 inner loop of instructions that add four products to an int32 each:
// every group of inputs goes straight to the sums. products_int8_chunks.h is the other one.
#pragma once

#include "quantize.h"

namespace {

struct Products {
  static constexpr int64_t kCols = 2 * Dot::kLanes;

  // A panel: [depth / kGroup][kCols][kGroup] int8, nothing behind.
  static size_t order_bytes(int64_t) { return 0; }
  static void find_order(int8_t*, int64_t) {}

  // out (rows, kCols) = a (rows, depth) times the panel, without the zero points. rows: at most
  // kTileRows.
  static void multiply(int64_t rows, int32_t* out, const uint8_t* a, const int8_t* panel,
                       int64_t depth, const ZeroPoints& zero_points, const Ahead& ahead) {
    for_rows<Dot::kTileRows>(rows, [](auto count) {
      return &multiply_rows<decltype(count)::value>;
    })(out, a, panel, depth, zero_points, ahead);
  }
  static int64_t steps(int64_t depth) { return depth / kGroup; }

 private:
  // Not inlined: one copy per path, with the registers to itself.
  template <int kRows>
  __attribute__((noinline)) static void multiply_rows(int32_t* out, const uint8_t* a,
                                                      const int8_t* panel, int64_t depth,
                                                      const ZeroPoints& zero_points,
                                                      const Ahead& asked) {
    Ahead ahead = asked;
    Dot::type acc[kRows][2];
    begin_sums<Dot>(acc, zero_points);
    steps_with_lines<kRows, kGroup>(0, depth, ahead, [&](int64_t k) MINIBERT_INLINE {
      const auto first = Dot::load(panel), second = Dot::load(panel + Dot::kLanes * kGroup);
      panel += kCols * kGroup;
      __builtin_prefetch(ahead.address, 0, 2);
      ahead.address += ahead.step;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const auto x = Dot::broadcast(a + r * depth + k);
        Dot::multiply_add(acc[r][0], x, first);
        Dot::multiply_add(acc[r][1], x, second);
      }
    });
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      for (int vec = 0; vec < 2; ++vec)
        Dot::store(out + r * kCols + vec * Dot::kLanes, acc[r][vec]);
  }
};

}  // namespace
