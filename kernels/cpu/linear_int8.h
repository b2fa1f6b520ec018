// linear_int8.h: linear layers in 8 bits: int8 weights with a scale per output feature, activations
// with a scale and zero point per row, found when they arrive.
//
// out = (acc - zero_point * weight_sum) * (act_scale * weight_scale), acc an exact int32; then bias,
// activation and residual as for float32. No sum rounds or saturates: equal on every path.
// Weights: [panel][in_features / kGroup][kPanelCols][kGroup] int8, after a header with weight_scale
// and weight_sum. Activations: [row][in_features rounded up to kGroup], after a header with the
// RowScale of each row. Loops: panel -> tile of rows.
// Requires: in_features * 255 * 127 < 2^31.
#pragma once

#include "epilogue.h"
#include "quantize.h"

namespace {

constexpr int64_t kInt8PanelCols = Dot::kTileVecs * Dot::kLanes;
constexpr int64_t kInt8BlockRows = 96;
constexpr int64_t kInt8MaxInFeatures = 65536;
static_assert(kInt8MaxInFeatures * 255 * 127 < (int64_t{1} << 31), "int32 sums must be exact");
static_assert(kInt8PanelCols % Vec::kLanes == 0, "the epilogue takes whole vectors");

struct Int8Layout {
  int64_t padded_cols, depth;   // depth: in_features rounded up to kGroup
  size_t header_bytes;

  Int8Layout(int64_t out_features, int64_t in_features)
      : padded_cols(round_up(out_features, kInt8PanelCols)),
        depth(round_up(in_features, Dot::kGroup)),
        header_bytes((size_t)round_up(padded_cols * 8, 64)) {}
  float* weight_scale(void* packed) const { return (float*)packed; }
  int32_t* weight_sum(void* packed) const { return (int32_t*)packed + padded_cols; }
  int8_t* panel(void* packed, int64_t index) const {
    return (int8_t*)packed + header_bytes + index * kInt8PanelCols * depth;
  }
};

size_t int8_weight_bytes(int64_t out_features, int64_t in_features) {
  const Int8Layout layout(out_features, in_features);
  return layout.header_bytes + (size_t)(layout.padded_cols * layout.depth);
}

void int8_pack(void* packed, const float* weight, int64_t out_features, int64_t in_features) {
  const Int8Layout layout(out_features, in_features);
  __builtin_memset(packed, 0, int8_weight_bytes(out_features, in_features));
  for (int64_t col = 0; col < out_features; ++col) {
    int8_t* panel = layout.panel(packed, col / kInt8PanelCols);
    const int64_t column = col % kInt8PanelCols;
    layout.weight_scale(packed)[col] = quantize_weight_row(
        weight + col * in_features, in_features, layout.weight_sum(packed) + col,
        [&](int64_t k, int8_t q) {
          panel[(k / Dot::kGroup * kInt8PanelCols + column) * Dot::kGroup + k % Dot::kGroup] = q;
        });
  }
}

inline size_t int8_rows_header(int64_t num_rows) {
  return (size_t)round_up(num_rows * (int64_t)sizeof(RowScale), 64);
}

size_t int8_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return int8_rows_header(num_rows) +
         sizeof(Dot::Activation) * (size_t)(num_rows * round_up(in_features, Dot::kGroup));
}

void int8_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                  int64_t num_rows, int64_t in_features) {
  const int64_t depth = round_up(in_features, Dot::kGroup);
  auto* scales = (RowScale*)prepared;
  auto* values = (Dot::Activation*)((char*)prepared + int8_rows_header(num_rows));
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* source = hidden + row * in_features;
    Dot::Activation* q = values + row * depth;
    const RowQuantizer quantizer = row_quantizer(source, in_features);
    scales[row] = quantizer.scale;
    int64_t c = 0;
    for (; c + Vec::kLanes <= in_features; c += Vec::kLanes)
      Dot::store_activations(q + c, quantize(Vec::load(source + c), quantizer));
    if (c < in_features) {
      Dot::Activation last[Vec::kLanes];
      Dot::store_activations(
          last, quantize(Vec::load_partial(source + c, in_features - c), quantizer));
      for (int64_t i = 0; c + i < in_features; ++i) q[c + i] = last[i];
    }
    for (c = in_features; c < depth; ++c) q[c] = 0;  // meets zero weights; must be defined
  }
}

template <int kRows, typename Weight>
void int8_tile(int32_t* out, const Dot::Activation* a, int64_t a_stride, const Weight* panel,
               int64_t depth, Ahead ahead) {
  Dot::type acc[kRows][Dot::kTileVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < Dot::kTileVecs; ++c) acc[r][c] = Dot::zero();
  for (int64_t k = 0; k < depth; k += Dot::kGroup) {
    const auto first = Dot::load(panel);
    const auto second = Dot::load(panel + Dot::kLanes * Dot::kGroup);
    panel += kInt8PanelCols * Dot::kGroup;
    __builtin_prefetch(ahead.address, 0, 2);
    ahead.address += ahead.step;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const auto x = Dot::broadcast(a + r * a_stride + k);
      acc[r][0] = Dot::multiply_add(acc[r][0], x, first);
      acc[r][1] = Dot::multiply_add(acc[r][1], x, second);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < Dot::kTileVecs; ++c)
      Dot::store(out + r * kInt8PanelCols + c * Dot::kLanes, acc[r][c]);
}

static_assert(Dot::kTileVecs == 2, "int8_tile names its two vectors of weights");

template <int kRows, typename Weight>
inline void int8_rows(int64_t rows, int32_t* out, const Dot::Activation* a, int64_t a_stride,
                      const Weight* panel, int64_t depth, Ahead ahead) {
  if (rows == kRows) return int8_tile<kRows>(out, a, a_stride, panel, depth, ahead);
  if constexpr (kRows > 1) int8_rows<kRows - 1>(rows, out, a, a_stride, panel, depth, ahead);
}

size_t int8_scratch_bytes(int64_t in_features) {
  return Dot::kWidenedBytes * (size_t)(kInt8PanelCols * round_up(in_features, Dot::kGroup));
}

void int8_compute(const Linear& linear, const LinearCall& call, int64_t row_begin, int64_t row_end,
                  int64_t panel_begin, int64_t panel_end, void* scratch) {
  const Int8Layout layout(linear.out_features, linear.in_features);
  const auto* scales = (const RowScale*)call.prepared;
  const auto* values = (const Dot::Activation*)((const char*)call.prepared +
                                                int8_rows_header(call.num_rows));
  alignas(64) int32_t acc[Dot::kTileRows * kInt8PanelCols];
  alignas(64) float sums[Dot::kTileRows * kInt8PanelCols];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t col = panel * kInt8PanelCols;
    const auto* weights = Dot::widen(scratch, layout.panel(linear.packed, panel),
                                     kInt8PanelCols * layout.depth);
    const int64_t panel_bytes = kInt8PanelCols * layout.depth;
    PanelPrefetch prefetch(layout.panel(linear.packed, panel + 1),
                           panel + 1 < panel_end ? panel_bytes : 0,
                           ceil_div(row_end - row_begin, Dot::kTileRows));
    for_each_tile(row_begin, row_end, Dot::kTileRows, [&](int64_t row, int64_t rows) {
      prefetch_tile(linear, call, row, rows, col);
      int8_rows<Dot::kTileRows>(rows, acc, values + row * layout.depth, layout.depth, weights,
                                layout.depth, prefetch.spread(layout.depth / Dot::kGroup));
      dequantize_tile<kInt8PanelCols, Dot::kActivationShift>(sums, acc, rows, scales + row, layout.weight_scale(linear.packed) + col,
                      layout.weight_sum(linear.packed) + col);
      finish_tile(linear, call,
                  {sums, kInt8PanelCols, row, rows, col,
                   min_of(kInt8PanelCols, linear.out_features - col)},
                  false);
    });
  }
}

constexpr minibert::LinearKernel kInt8Kernel = {
    "int8",      kInt8PanelCols,      kInt8BlockRows, kInt8MaxInFeatures, int8_weight_bytes,
    int8_pack,   int8_prepared_bytes, int8_prepare,   int8_scratch_bytes, int8_compute};

}  // namespace
