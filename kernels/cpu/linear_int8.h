// linear_int8.h: linear layers in 8 bits: int8 weights with a scale per output feature, activations
// with a scale and zero point per row, found when they arrive.
//
// out = (acc - zero_point * weight_sum + excess) * (act_scale * weight_scale), the sums exact int32
// (quantize.h); then bias, activation and residual as for float32. No sum rounds or saturates.
// Weights: QuantizedWeights with panels as `Products` takes them. Activations: QuantizedRows with
// [row][in_features rounded up to kGroup] uint8. Loops: panel -> tile of rows.
#pragma once

#include "epilogue.h"

namespace {

constexpr int64_t kInt8PanelCols = Products::kCols;
constexpr int64_t kInt8BlockRows = 96;
constexpr int64_t kInt8RowsAlone = 7;  // measured on AVX-512 VNNI, as the 16 of float32
static_assert(kInt8PanelCols % Vec::kLanes == 0, "the epilogue takes whole vectors");

struct Int8Layout : QuantizedWeights {
  int64_t depth;  // in_features rounded up to kGroup

  Int8Layout(int64_t out_features, int64_t in_features)
      : QuantizedWeights(out_features, kInt8PanelCols, bytes_of(round_up(in_features, kGroup))),
        depth(round_up(in_features, kGroup)) {}
  static int64_t bytes_of(int64_t depth) {
    return kInt8PanelCols * depth + (int64_t)Products::order_bytes(depth);
  }
};

size_t int8_weight_bytes(const float*, int64_t out_features, int64_t in_features) {
  return Int8Layout(out_features, in_features).bytes;
}

void int8_pack(void* packed, const float* weight, int64_t out_features, int64_t in_features) {
  const Int8Layout layout(out_features, in_features);
  __builtin_memset(packed, 0, layout.bytes);
  for (int64_t col = 0; col < out_features; col += kInt8PanelCols) {
    int8_t* panel = layout.panel(packed, col / kInt8PanelCols);
    for (int64_t c = 0; c < min_of(kInt8PanelCols, out_features - col); ++c)
      layout.weight_scale(packed)[col + c] = quantize_weight_row(
          weight + (col + c) * in_features, in_features, layout.weight_sum(packed) + col + c,
          [&](int64_t group, const int8_t* q) {
            __builtin_memcpy(panel + (group * kInt8PanelCols + c) * kGroup, q, kGroup);
          });
    Products::find_order(panel, layout.depth);
  }
}

struct Int8Rows : QuantizedRows {
  int64_t depth;

  Int8Rows(const void* prepared, int64_t num_rows, int64_t in_features)
      : QuantizedRows(prepared, num_rows, in_features, num_rows * round_up(in_features, kGroup)),
        depth(round_up(in_features, kGroup)) {}
};

size_t int8_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return Int8Rows(nullptr, num_rows, in_features).bytes;
}

void int8_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                  int64_t num_rows, const Linear& linear) {
  const int64_t in_features = linear.in_features;
  const Int8Rows rows(prepared, num_rows, in_features);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* source = hidden + row * in_features;
    uint8_t* q = rows.values + row * rows.depth;
    Excess* excess = rows.excess + row * rows.capacity;
    RowQuantizer quantizer = row_quantizer<Dot::kSteps>(source, linear);
    int64_t c = 0;
    for (; c + Vec::kLanes <= in_features; c += Vec::kLanes) {
      __builtin_prefetch(source + in_features + c, 0, 3);  // the next row, read from far otherwise
      Vec::store_lowest_byte(
          q + c, quantize<Dot::kSteps>(source, c, Vec::kLanes, quantizer, excess));
    }
    if (c < in_features) {
      uint8_t last[Vec::kLanes];
      Vec::store_lowest_byte(
          last, quantize<Dot::kSteps>(source, c, in_features - c, quantizer, excess));
      for (int64_t i = 0; c + i < in_features; ++i) q[c + i] = last[i];
    }
    for (c = in_features; c < rows.depth; ++c) q[c] = 0;  // meets zero weights; must be defined
    rows.scales[row] = quantizer.scale;
  }
}

// Scratch of a job: where each tile's excess begins in the list, and the list.
constexpr size_t kInt8BeginBytes = (kInt8BlockRows + 1) * sizeof(int64_t);

size_t int8_scratch_bytes(int64_t in_features) {
  return kInt8BeginBytes + sizeof(TileExcess) * (size_t)(kInt8BlockRows * max_excess(in_features));
}

void int8_compute(const Linear& linear, const LinearCall& call, int64_t row_begin, int64_t row_end,
                  int64_t panel_begin, int64_t panel_end, void* scratch) {
  const Int8Layout layout(linear.out_features, linear.in_features);
  const Int8Rows rows_in(call.prepared, call.num_rows, linear.in_features);
  auto* begin = (int64_t*)scratch;
  auto* excess = (TileExcess*)((char*)scratch + kInt8BeginBytes);
  int64_t num_tiles = 0;
  begin[0] = 0;
  for_each_tile(row_begin, row_end, Dot::kTileRows, [&](int64_t row, int64_t rows) {
    const TileExcess* end =
        gather_excess<kInt8PanelCols>(
            excess + begin[num_tiles], rows_in.scales + row,
                      rows_in.excess + row * rows_in.capacity, rows_in.capacity, rows);
    begin[++num_tiles] = end - excess;
  });
  alignas(64) int32_t acc[Dot::kTileRows * kInt8PanelCols];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t col = panel * kInt8PanelCols;
    const int8_t* weights = layout.panel(linear.packed, panel);
    const int32_t* weight_sum = layout.weight_sum(linear.packed) + col;
    PanelPrefetch prefetch(weights + layout.panel_bytes,
                           panel + 1 < call.prefetch_end ? layout.panel_bytes : 0, num_tiles);
    const int64_t* tile_begin = begin;
    for_each_tile(row_begin, row_end, Dot::kTileRows, [&](int64_t row, int64_t rows) {
      Products::multiply(rows, acc, rows_in.values + row * layout.depth, weights, layout.depth,
                         {rows_in.scales + row, weight_sum},
                         prefetch.spread(Products::steps(layout.depth), linear, call, row, col));
      for (const TileExcess* e = excess + tile_begin[0]; e < excess + tile_begin[1]; ++e)
        Dot::add_excess(acc + e->acc_at, weights + e->weights_at, e->one, e->steps);
      ++tile_begin;
      finish_tile(linear, call,
                  {row, rows, col, min_of(kInt8PanelCols, linear.out_features - col)},
                  Int8Sums<kInt8PanelCols>{acc, rows_in.scales + row,
                                           layout.weight_scale(linear.packed) + col});
    });
  }
}

constexpr minibert::LinearKernel kInt8Kernel = {
    "int8",       kInt8PanelCols, kInt8BlockRows,      kInt8MaxInFeatures, int8_weight_bytes,
    int8_pack,    1,              int8_prepared_bytes, int8_prepare,       int8_scratch_bytes,
    int8_compute, kInt8RowsAlone};

}  // namespace
