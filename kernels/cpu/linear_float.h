// linear_float.h: linear layers whose products are float32 multiply-adds.
//
// Weights are packed once into panels [panel][in_features][kPanelCols], padded with zeros, as
// float32, bfloat16 or float16. The narrow ones are widened in registers where a job has few rows,
// one short text, which waits for the weights; else a panel's depth block at a time, into scratch
// that stays in the first-level cache. Activations are read where they are.
// Loops: depth block -> panel -> tile of rows. A panel's depth block (384 * 64 bytes with AVX2)
// is loaded into the first-level cache once and used by all rows of the job.
// Bound: multiply-adds. Traffic per job: its slice of `hidden` from L2, the panels from L3 once.
#pragma once

#include "bfloat16.h"
#include "epilogue.h"

namespace {

// Depth blocks are equal, multiples of 8, at most 384. One block suits a hidden size of 384;
// separate sums per block also keep the rounding error of a deep layer near that of a shallow one.
constexpr int64_t kBlockDepth = 384;

inline int64_t block_depth(int64_t in_features) {
  return round_up(ceil_div(in_features, ceil_div(in_features, kBlockDepth)), 8);
}

constexpr int64_t kFloatBlockRows = 96;
// Widening a panel takes as long as multiplying it by a few rows.
constexpr int64_t kNarrowBlockRows = 192;
// Tiles of a job that widen the weights each for itself.
constexpr int64_t kTilesInRegisters = 2;

struct Float32Weight : FloatPanel {
  static constexpr bool kNarrow = false;
  static Element narrow(float x) { return x; }
};

struct BFloat16Weight {
  using Element = uint16_t;
  static constexpr bool kNarrow = true;
  static Element narrow(float x) { return to_bfloat16(x); }
  static Vec::type load(const Element* p) { return Vec::load_bfloat16(p); }
};

struct Float16Weight {
  using Element = uint16_t;
  static constexpr bool kNarrow = true;
  static Element narrow(float x) { return to_float16(x); }
  static Vec::type load(const Element* p) { return Vec::load_float16(p); }
};

template <typename Weight>
size_t float_weight_bytes(const float*, int64_t out_features, int64_t in_features) {
  return sizeof(typename Weight::Element) *
         (size_t)(round_up(out_features, kPanelCols) * in_features);
}

template <typename Weight>
void float_pack(void* packed, const float* weight, int64_t out_features, int64_t in_features) {
  auto* out = (typename Weight::Element*)packed;
  for (int64_t col = 0; col < out_features; col += kPanelCols) {
    typename Weight::Element* panel = out + col * in_features;
    const int64_t cols = min_of(kPanelCols, out_features - col);
    float square[8 * kPanelCols];  // [8 inputs][kPanelCols]
    for (int64_t k = 0; k < in_features; k += 8) {
      const int64_t depth = min_of(8, in_features - k);
      const float* source = weight + col * in_features + k;
      __builtin_memset(square, 0, sizeof square);
      int64_t c = 0;
      for (; depth == 8 && c + 8 <= cols; c += 8)
        Vec::transpose(square + c, kPanelCols, source + c * in_features, in_features);
      for (; c < cols; ++c)
        for (int64_t i = 0; i < depth; ++i) square[i * kPanelCols + c] = source[c * in_features + i];
      for (int64_t i = 0; i < depth * kPanelCols; ++i)
        panel[k * kPanelCols + i] = Weight::narrow(square[i]);
    }
  }
}

template <typename Weight>
size_t float_scratch_bytes(int64_t in_features) {
  return Weight::kNarrow ? sizeof(float) * (size_t)(block_depth(in_features) * kPanelCols) : 0;
}

template <typename Weight>
void float_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                   int64_t row_end, int64_t panel_begin, int64_t panel_end, void* scratch) {
  const int64_t in_features = linear.in_features;
  const int64_t depth = block_depth(in_features);
  const auto* packed = (const typename Weight::Element*)linear.packed;
  const int64_t tiles = ceil_div(row_end - row_begin, Vec::kTileRows);
  const bool widen = Weight::kNarrow && tiles > kTilesInRegisters;
  alignas(64) float sums[Vec::kTileRows * kPanelCols];
  for (int64_t k = 0; k < in_features; k += depth) {
    const int64_t block = min_of(depth, in_features - k);
    const bool last = k + block == in_features;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t col = panel * kPanelCols;
      const auto* weights = packed + col * in_features + k * kPanelCols;
      auto* widened = (float*)scratch;
      if (widen)
        for (int64_t i = 0; i < block * kPanelCols; i += Vec::kLanes)
          Vec::store(widened + i, Weight::load(weights + i));
      const auto* next_panel = packed + (col + kPanelCols) * in_features + k * kPanelCols;
      const int64_t panel_bytes = block * kPanelCols * (int64_t)sizeof *packed;
      PanelPrefetch prefetch(next_panel, panel + 1 < call.prefetch_end ? panel_bytes : 0,
                             tiles);
      for_each_tile(row_begin, row_end, Vec::kTileRows, [&](int64_t row, int64_t rows) {
        const float* hidden = call.hidden + row * in_features + k;
        const Ahead ahead = prefetch.spread(block, linear, call, row, col);
        if (widen)
          multiply_for(rows)(sums, kPanelCols, hidden, in_features, widened, block, ahead);
        else
          multiply_for<Weight>(rows)(sums, kPanelCols, hidden, in_features, weights, block, ahead);
        const Tile tile = {row, rows, col, min_of(kPanelCols, linear.out_features - col)};
        const float* partial = k > 0 ? call.out + row * linear.out_features + col : nullptr;
        const FloatSums tile_sums = {sums, kPanelCols, partial, linear.out_features};
        if (last)
          finish_tile(linear, call, tile, tile_sums);
        else
          keep_partial(linear, call, tile, tile_sums);
      });
    }
  }
}

template <typename Weight>
constexpr minibert::LinearKernel float_kernel(const char* format) {
  return {format,
          kPanelCols,
          Weight::kNarrow ? kNarrowBlockRows : kFloatBlockRows,
          0,
          float_weight_bytes<Weight>,
          float_pack<Weight>,
          1,
          nullptr,
          nullptr,
          float_scratch_bytes<Weight>,
          float_compute<Weight>};
}

}  // namespace
