// linear_pairs.h: linear layers on the matrix instruction bfmmla of aarch64: bfloat16 products summed
// in float32. linear_pairs_int8.h has the int8 ones.
//
// kParts says how operands are represented: one bfloat16 each and one product ("bfloat16x1"), or
// the sum of two and three products ("bfloat16x3"). Six products would be as exact as float32, but
// are more instructions than multiply-adds: 6 / 16 of one a product against 1 / 4.
// Layout: pairs.h, with 4 inputs to a step. Loops: panel -> up to 4 pairs of rows -> inputs.
// Error of a sum of n products: one unit in the last place for each of n / 2 + 2 additions, rounded
// to odd; half of that where FPCR.EBF (FEAT_EBF16) rounds to nearest. Sums are broken every kChain
// inputs, as in tile.h.
#pragma once

#include "bfloat16.h"
#include "pairs.h"

namespace {

constexpr int64_t kPairsDepth = 4;  // inputs of a step

template <int kParts>
inline int64_t pair_bytes_of(int64_t in_features) {
  return ceil_div(in_features, kPairsDepth) * kParts * kOperandBytes;
}

template <int kParts>
size_t pairs_weight_bytes(const float*, int64_t out_features, int64_t in_features) {
  return (size_t)(ceil_div(out_features, kPairsCols) * kColPairs *
                  pair_bytes_of<kParts>(in_features));
}

// Parts of one step of one row, or of one column, to places kStride numbers apart.
template <int kParts, int64_t kStride>
inline void split_step(uint16_t* out, const float* source, int64_t count) {
  uint16_t parts[kPairsDepth][kParts] = {};
  if (count >= kPairsDepth) {
    for (int i = 0; i < kPairsDepth; ++i) split_bfloat16<kParts>(source[i], parts[i]);
  } else {
    for (int i = 0; i < count; ++i) split_bfloat16<kParts>(source[i], parts[i]);
  }
  for (int part = 0; part < kParts; ++part)
    for (int i = 0; i < kPairsDepth; ++i) out[part * kStride + i] = parts[i][part];
}

template <int kParts>
void pairs_pack(void* packed, const float* weight, int64_t out_features, int64_t in_features) {
  constexpr int64_t kPart = kPairsCols * kPairsDepth;  // numbers of a panel's step and part
  __builtin_memset(packed, 0, pairs_weight_bytes<kParts>(weight, out_features, in_features));
  const int64_t steps = ceil_div(in_features, kPairsDepth);
  for (int64_t col = 0; col < out_features; ++col)
    for (int64_t step = 0; step < steps; ++step)
      split_step<kParts, kPart>(
          (uint16_t*)packed + (col / kPairsCols * steps + step) * kParts * kPart +
              col % kPairsCols * kPairsDepth,
          weight + col * in_features + step * kPairsDepth, in_features - step * kPairsDepth);
}

template <int kParts>
size_t pairs_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return (size_t)(ceil_div(num_rows, 2) * pair_bytes_of<kParts>(in_features));
}

template <int kParts>
void pairs_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                   int64_t, const Linear& linear) {
  constexpr int64_t kPart = 2 * kPairsDepth;
  const int64_t in_features = linear.in_features;
  const int64_t steps = ceil_div(in_features, kPairsDepth);
  for (int64_t row = row_begin; row < round_up(row_end, 2); ++row) {
    auto* out = (uint16_t*)prepared + (row / 2 * steps * kParts * 2 + row % 2) * kPairsDepth;
    const bool exists = row < row_end;
    const float* source = hidden + (exists ? row * in_features : 0);
    for (int64_t step = 0; step < steps; ++step, out += kParts * kPart)
      split_step<kParts, kPart>(out, source + step * kPairsDepth,
                                exists ? in_features - step * kPairsDepth : 0);
  }
}

template <int kParts>
void pairs_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                   int64_t row_end, int64_t panel_begin, int64_t panel_end, void*) {
  const int64_t steps = ceil_div(linear.in_features, kPairsDepth);
  const int64_t pair_bytes = pair_bytes_of<kParts>(linear.in_features);
  const int64_t panel_bytes = kColPairs * pair_bytes;
  alignas(64) float sums[2 * kRowPairs * kPairsCols];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t col = panel * kPairsCols;
    const char* cols = (const char*)linear.packed + panel * panel_bytes;
    PanelPrefetch prefetch(cols + panel_bytes, panel + 1 < call.prefetch_end ? panel_bytes : 0,
                           ceil_div(row_end - row_begin, 2 * kRowPairs));
    for_each_pairs_tile(row_begin, row_end, [&](int64_t row, int64_t rows, int64_t pairs) {
      prefetch_tile(linear, call, row, rows, col);
      pairs_tile<BFloat16Product, kParts>(
          pairs, sums, (const char*)call.prepared + row / 2 * pair_bytes, pair_bytes, cols, steps,
          kChain / kPairsDepth, prefetch.spread(steps * kParts));
      finish_tile(linear, call, {row, rows, col, min_of(kPairsCols, linear.out_features - col)},
                  FloatSums{sums, kPairsCols, nullptr, 0});
    });
  }
}

template <int kParts>
constexpr minibert::LinearKernel pairs_kernel(const char* format) {
  return {format,
          kPairsCols,
          kPairsBlockRows,
          0,
          pairs_weight_bytes<kParts>,
          pairs_pack<kParts>,
          2,
          pairs_prepared_bytes<kParts>,
          pairs_prepare<kParts>,
          pairs_scratch_bytes,
          pairs_compute<kParts>};
}

}  // namespace
