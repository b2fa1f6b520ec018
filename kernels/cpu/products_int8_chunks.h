// products_int8_chunks.h: the int8 inner loop where widening is what costs: vpmaddubsw gives int16
// sums of two products, and to widen them to int32 takes a multiplier as long as to make them.
//
// An int16 holds more than two products when their weights allow it: activations are 0..127, so
// sums lie within 127 times the sum of the positive weights and 127 times that of the negative
// ones. Weights are known when they are packed. Groups of inputs are therefore put together in
// chunks of kChunk whose sums fit for every column of the panel, added in int16, and widened once.
// A group for which no partners are found is widened by itself. The sums are exact integers either
// way, so the order does not show.
// Multiplications for three groups: 3 + 1 instead of 3 + 3.
#pragma once

#include "quantize.h"

namespace {

struct Products {
  static constexpr int kChunk = Dot::kChunk;
  static constexpr int64_t kCols = 2 * Dot::kLanes;

  static constexpr int kMost = 32767 / Dot::kSteps;
  static constexpr int kSums = 4;  // weights of each sign, of two vectors, in every int16

  // A panel: [depth / kGroup][kCols][kGroup] int8, and behind them the order in which its groups
  // are taken.
  struct Order {
    uint16_t chunks, singles;
    uint16_t inputs[1];  // first input of each group: those of the chunks, then the single ones
  };
  static size_t order_bytes(int64_t depth) {
    return (size_t)round_up((2 + depth / kGroup) * (int64_t)sizeof(uint16_t), 64);
  }

  // First fit: a group joins the oldest open chunk that has room for it.
  static void find_order(int8_t* panel, int64_t depth) {
    struct Open {
      Dot::type sums[kSums];
      uint16_t inputs[kChunk];
      int count;
    };
    constexpr int kOpen = 8;
    Open open[kOpen];
    int num_open = 0;
    auto* order = (Order*)(panel + depth * kCols);
    uint16_t* chunk = order->inputs;
    uint16_t* single = order->inputs + depth / kGroup;  // filled from the end
    const auto close_oldest = [&] {
      for (int i = 0; i < open[0].count; ++i) *--single = open[0].inputs[i];
      for (int i = 1; i < num_open; ++i) open[i - 1] = open[i];
      --num_open;
    };
    for (int64_t k = 0; k < depth; k += kGroup) {
      Dot::type sums[kSums];
      for (int vec = 0; vec < 2; ++vec) {
        const auto weights = Dot::load(panel + k * kCols + vec * Dot::kLanes * kGroup);
        sums[2 * vec] = Dot::positive_pairs(weights);
        sums[2 * vec + 1] = Dot::negative_pairs(weights);
      }
      int i = 0;
      for (; i < num_open; ++i) {
        Dot::type more[kSums];
        bool fits = true;
        for (int s = 0; s < kSums; ++s) {
          more[s] = Dot::add_pairs(open[i].sums[s], sums[s]);
          fits = fits && Dot::none_above(more[s], kMost);
        }
        if (!fits) continue;
        for (int s = 0; s < kSums; ++s) open[i].sums[s] = more[s];
        open[i].inputs[open[i].count++] = (uint16_t)k;
        break;
      }
      if (i == num_open) {
        if (num_open == kOpen) close_oldest();
        Open& fresh = open[num_open++];
        for (int s = 0; s < kSums; ++s) fresh.sums[s] = sums[s];
        fresh.inputs[0] = (uint16_t)k;
        fresh.count = 1;
      } else if (open[i].count == kChunk) {
        for (int j = 0; j < kChunk; ++j) *chunk++ = open[i].inputs[j];
        for (int j = i + 1; j < num_open; ++j) open[j - 1] = open[j];
        --num_open;
      }
    }
    while (num_open > 0) close_oldest();
    order->chunks = (uint16_t)((chunk - order->inputs) / kChunk);
    order->singles = (uint16_t)(order->inputs + depth / kGroup - single);
  }

  // out (rows, kCols) = a (rows, depth) times the panel, without the zero points. rows: at most
  // kTileRows.
  static void multiply(int64_t rows, int32_t* out, const uint8_t* a, const int8_t* panel,
                       int64_t depth, const ZeroPoints& zero_points, const Ahead& ahead) {
    for_rows<Dot::kTileRows>(rows, [](auto count) {
      return &multiply_rows<decltype(count)::value>;
    })(out, a, panel, depth, zero_points, ahead);
  }
  static int64_t steps(int64_t depth) { return depth / kGroup / kChunk + 1; }

 private:
  // kTogether groups, added in int16, then widened.
  template <int kRows, int kTogether>
  __attribute__((always_inline)) static inline void add_groups(Dot::type (*acc)[2],
                                                               const uint8_t* a,
                                                               const int8_t* panel, int64_t depth,
                                                               const uint16_t* inputs) {
    const int8_t* weights[kTogether];
    const uint8_t* activations[kTogether];
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) {
      const int64_t k = inputs[j];
      weights[j] = panel + k * kCols;
      activations[j] = a + k;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      Dot::type x[kTogether];
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) x[j] = Dot::broadcast(activations[j] + r * depth);
#pragma GCC unroll 2
      for (int vec = 0; vec < 2; ++vec) {
        const int64_t at = vec * Dot::kLanes * kGroup;
        Dot::type sum = Dot::pairs(x[0], Dot::load(weights[0] + at));
#pragma GCC unroll 4
        for (int j = 1; j < kTogether; ++j)
          sum = Dot::add_pairs(sum, Dot::pairs(x[j], Dot::load(weights[j] + at)));
        Dot::widen_add(acc[r][vec], sum);
      }
    }
  }

  // Not inlined: one copy per path, with the registers to itself.
  template <int kRows>
  __attribute__((noinline)) static void multiply_rows(int32_t* out, const uint8_t* a,
                                                      const int8_t* panel, int64_t depth,
                                                      const ZeroPoints& zero_points,
                                                      const Ahead& asked) {
    Ahead ahead = asked;
    const auto* order = (const Order*)(panel + depth * kCols);
    const uint16_t* inputs = order->inputs;
    Dot::type acc[kRows][2];
    begin_sums<Dot>(acc, zero_points);
    steps_with_lines<kRows, 1>(0, order->chunks, ahead, [&](int64_t) MINIBERT_INLINE {
      __builtin_prefetch(ahead.address, 0, 2);
      ahead.address += ahead.step;
      add_groups<kRows, kChunk>(acc, a, panel, depth, inputs);
      inputs += kChunk;
    });
    for (int64_t single = order->singles; single > 0; --single, ++inputs)
      add_groups<kRows, 1>(acc, a, panel, depth, inputs);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      for (int vec = 0; vec < 2; ++vec)
        Dot::store(out + r * kCols + vec * Dot::kLanes, acc[r][vec]);
  }
};

}  // namespace
