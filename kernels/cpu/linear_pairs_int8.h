// linear_pairs_int8.h: the int8 linear layers of linear_int8.h on matrix instructions: the same
// integers, hence the same results, in pairs of rows and columns with 8 inputs to a step.
//
//   weights      QuantizedWeights with [panel of 8 outputs][8 inputs][8 outputs][inputs]
//   activations  QuantizedRows with [pair of rows][8 inputs][2 rows][inputs]
// usmmla multiplies uint8 by int8 as they are, and wraps where int32 would overflow: it cannot, by
// kInt8MaxInFeatures.
#pragma once

#include "pairs.h"
#include "quantize.h"

namespace {

constexpr int64_t kInt8PairsDepth = 8;                // inputs of a step
constexpr int kInt8PairsSteps = 255;                  // largest quantised activation
static_assert(kInt8PairsDepth % Vec::kLanes == 0, "a vector of activations lies in one step");

inline QuantizedWeights int8_pairs_layout(int64_t out_features, int64_t in_features) {
  return {out_features, kPairsCols, kPairsCols * round_up(in_features, kInt8PairsDepth)};
}

size_t int8_pairs_weight_bytes(const float*, int64_t out_features, int64_t in_features) {
  return int8_pairs_layout(out_features, in_features).bytes;
}

void int8_pairs_pack(void* packed, const float* weight, int64_t out_features,
                     int64_t in_features) {
  const QuantizedWeights layout = int8_pairs_layout(out_features, in_features);
  __builtin_memset(packed, 0, layout.bytes);
  for (int64_t col = 0; col < out_features; ++col) {
    int8_t* panel = layout.panel(packed, col / kPairsCols) + col % kPairsCols * kInt8PairsDepth;
    layout.weight_scale(packed)[col] = quantize_weight_row(
        weight + col * in_features, in_features, layout.weight_sum(packed) + col,
        [&](int64_t group, const int8_t* q) {
          constexpr int64_t kGroups = kInt8PairsDepth / kGroup;
          __builtin_memcpy(panel + group / kGroups * kPairsCols * kInt8PairsDepth +
                               group % kGroups * kGroup,
                           q, kGroup);
        });
  }
}

struct Int8PairsRows : QuantizedRows {
  int64_t pair_bytes;

  Int8PairsRows(const void* prepared, int64_t num_rows, int64_t in_features)
      : QuantizedRows(prepared, num_rows, in_features,
                      ceil_div(num_rows, 2) * 2 * round_up(in_features, kInt8PairsDepth)),
        pair_bytes(2 * round_up(in_features, kInt8PairsDepth)) {}
};

size_t int8_pairs_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return Int8PairsRows(nullptr, num_rows, in_features).bytes;
}

void int8_pairs_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                        int64_t num_rows, const Linear& linear) {
  const int64_t in_features = linear.in_features;
  const Int8PairsRows rows(prepared, num_rows, in_features);
  const int64_t depth = round_up(in_features, kInt8PairsDepth);
  for (int64_t row = row_begin; row < round_up(row_end, 2); ++row) {
    const float* source = hidden + row * in_features;
    const bool exists = row < row_end;
    RowQuantizer quantizer = {};
    if (exists) quantizer = row_quantizer<kInt8PairsSteps>(source, linear);
    uint8_t* values = rows.values + row / 2 * rows.pair_bytes + row % 2 * kInt8PairsDepth;
    for (int64_t c = 0; c < depth; c += Vec::kLanes) {
      uint8_t* out = values + c / kInt8PairsDepth * 2 * kInt8PairsDepth + c % kInt8PairsDepth;
      const int64_t lanes = exists ? min_of(Vec::kLanes, in_features - c) : 0;
      if (lanes <= 0) {
        __builtin_memset(out, 0, Vec::kLanes);
        continue;
      }
      // Lanes past the last input meet zero weights.
      Vec::store_lowest_byte(out, quantize<kInt8PairsSteps>(source, c, lanes, quantizer,
                                                            rows.excess + row * rows.capacity));
    }
    if (exists) rows.scales[row] = quantizer.scale;
  }
}

void int8_pairs_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                        int64_t row_end, int64_t panel_begin, int64_t panel_end, void*) {
  const QuantizedWeights layout = int8_pairs_layout(linear.out_features, linear.in_features);
  const Int8PairsRows rows_in(call.prepared, call.num_rows, linear.in_features);
  const int64_t steps = ceil_div(linear.in_features, kInt8PairsDepth);
  alignas(64) int32_t acc[2 * kRowPairs * kPairsCols];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t col = panel * kPairsCols;
    const auto* cols = (const char*)layout.panel(linear.packed, panel);
    const int32_t* weight_sum = layout.weight_sum(linear.packed) + col;
    PanelPrefetch prefetch(cols + layout.panel_bytes,
                           panel + 1 < call.prefetch_end ? layout.panel_bytes : 0,
                           ceil_div(row_end - row_begin, 2 * kRowPairs));
    for_each_pairs_tile(row_begin, row_end, [&](int64_t row, int64_t rows, int64_t pairs) {
      prefetch_tile(linear, call, row, rows, col);
      pairs_tile<Int8Product, 1>(pairs, acc,
                                 (const char*)rows_in.values + row / 2 * rows_in.pair_bytes,
                                 rows_in.pair_bytes, cols, steps, steps, prefetch.spread(steps));
      for (int64_t r = 0; r < rows; ++r)
        correct_sums<kPairsCols, kInt8PairsDepth>(
            acc + r * kPairsCols, rows_in.scales[row + r], weight_sum,
            rows_in.excess + (row + r) * rows_in.capacity, [&](int64_t group) {
              constexpr int64_t kGroups = kInt8PairsDepth / kGroup;
              return (const int8_t*)cols + group / kGroups * kPairsCols * kInt8PairsDepth +
                     group % kGroups * kGroup;
            });
      finish_tile(linear, call, {row, rows, col, min_of(kPairsCols, linear.out_features - col)},
                  Int8Sums<kPairsCols>{acc, rows_in.scales + row,
                                       layout.weight_scale(linear.packed) + col});
    });
  }
}

constexpr minibert::LinearKernel kInt8PairsKernel = {"int8",
                                                     kPairsCols,
                                                     kPairsBlockRows,
                                                     kInt8MaxInFeatures,
                                                     int8_pairs_weight_bytes,
                                                     int8_pairs_pack,
                                                     2,
                                                     int8_pairs_prepared_bytes,
                                                     int8_pairs_prepare,
                                                     pairs_scratch_bytes,
                                                     int8_pairs_compute};

}  // namespace
