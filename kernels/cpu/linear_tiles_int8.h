// linear_tiles_int8.h: the int8 linear layers of linear_int8.h on matrix units: the same integers,
// hence the same results, in tiles of 64 inputs.
//
//   weights      header as in linear_int8.h, then [panel of 32 outputs][64 inputs]
//                [2 tiles of 16 groups of 4 inputs x 16 outputs]
//   activations  RowScale of each row, then [32 rows][64 inputs][2 tiles of 16 rows x 64 inputs]
#pragma once

#include "linear_tiles.h"
#include "quantize.h"

namespace {

constexpr int64_t kInt8TileDepth = 64;
constexpr int64_t kInt8TilesMaxInFeatures = 65536;

inline int64_t int8_tile_steps(int64_t in_features) {
  return ceil_div(in_features, kInt8TileDepth);
}

struct Int8TilesLayout {
  int64_t padded_cols, steps;
  size_t header_bytes;

  Int8TilesLayout(int64_t out_features, int64_t in_features)
      : padded_cols(round_up(out_features, kTileCols)),
        steps(int8_tile_steps(in_features)),
        header_bytes((size_t)round_up(padded_cols * 8, 64)) {}
  float* weight_scale(void* packed) const { return (float*)packed; }
  int32_t* weight_sum(void* packed) const { return (int32_t*)packed + padded_cols; }
  char* panel(void* packed, int64_t index) const {
    return (char*)packed + header_bytes + index * steps * 2 * Tiles::kTileBytes;
  }
};

size_t int8_tiles_weight_bytes(int64_t out_features, int64_t in_features) {
  const Int8TilesLayout layout(out_features, in_features);
  return layout.header_bytes +
         (size_t)(layout.padded_cols / kTileCols * layout.steps * 2 * Tiles::kTileBytes);
}

void int8_tiles_pack(void* packed, const float* weight, int64_t out_features,
                     int64_t in_features) {
  const Int8TilesLayout layout(out_features, in_features);
  __builtin_memset(packed, 0, int8_tiles_weight_bytes(out_features, in_features));
  for (int64_t col = 0; col < out_features; ++col) {
    auto* panel = (int8_t*)layout.panel(packed, col / kTileCols);
    const int64_t tile = col % kTileCols / 16;
    layout.weight_scale(packed)[col] = quantize_weight_row(
        weight + col * in_features, in_features, layout.weight_sum(packed) + col,
        [&](int64_t k, int8_t q) {
          panel[(k / kInt8TileDepth * 2 + tile) * Tiles::kTileBytes +
                k % kInt8TileDepth / 4 * 64 + col % 16 * 4 + k % 4] = q;
        });
  }
}

inline size_t int8_tiles_header(int64_t num_rows) {
  return (size_t)round_up(round_up(num_rows, kTileBlock) * (int64_t)sizeof(RowScale), 64);
}

size_t int8_tiles_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return int8_tiles_header(num_rows) +
         (size_t)(ceil_div(num_rows, kTileBlock) * int8_tile_steps(in_features) * 2 *
                  Tiles::kTileBytes);
}

void int8_tiles_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                        int64_t num_rows, int64_t in_features) {
  const int64_t steps = int8_tile_steps(in_features);
  auto* scales = (RowScale*)prepared;
  auto* blocks = (uint8_t*)prepared + int8_tiles_header(num_rows);
  for (int64_t row = row_begin; row < round_up(row_end, kTileBlock); ++row) {
    const float* source = hidden + row * in_features;
    RowQuantizer quantizer = {};
    if (row < row_end) {
      quantizer = row_quantizer(source, in_features);
      scales[row] = quantizer.scale;
    }
    for (int64_t step = 0; step < steps; ++step) {
      uint8_t* out = blocks +
                     ((row / kTileBlock * steps + step) * 2 + row % kTileBlock / 16) *
                         Tiles::kTileBytes +
                     row % 16 * kInt8TileDepth;
      const int64_t k = step * kInt8TileDepth;
      const int64_t count = row < row_end ? min_of(kInt8TileDepth, in_features - k) : 0;
      for (int64_t i = 0; i < kInt8TileDepth; i += Vec::kLanes) {
        const int64_t lanes = count - i;
        if (lanes <= 0) {
          __builtin_memset(out + i, 0, Vec::kLanes);
          continue;
        }
        // Lanes past the last input meet zero weights.
        const Vec::type x = load_up_to(source + k + i, min_of(Vec::kLanes, lanes));
        Vec::store_uint8(out + i, quantize(x, quantizer));
      }
    }
  }
}

void int8_tiles_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                        int64_t row_end, int64_t panel_begin, int64_t panel_end, void*) {
  constexpr int64_t kStepBytes = 2 * Tiles::kTileBytes;
  const Int8TilesLayout layout(linear.out_features, linear.in_features);
  const auto* scales = (const RowScale*)call.prepared;
  const char* blocks = (const char*)call.prepared + int8_tiles_header(call.num_rows);
  alignas(64) int32_t acc[kTileBlock * kTileCols];
  alignas(64) float sums[kTileBlock * kTileCols];
  Tiles::configure();
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* cols = layout.panel(linear.packed, panel);
    const int64_t col = panel * kTileCols;
    PanelPrefetch prefetch(cols + layout.steps * kStepBytes,
                           panel + 1 < panel_end ? layout.steps * kStepBytes : 0,
                           ceil_div(row_end - row_begin, kTileBlock));
    for (int64_t row = row_begin; row < row_end; row += kTileBlock) {
      const char* rows = blocks + row / kTileBlock * layout.steps * kStepBytes;
      const int64_t num_rows = min_of(kTileBlock, row_end - row);
      Ahead ahead = prefetch.spread(layout.steps * kStepBytes / 64);
      prefetch_tile(linear, call, row, num_rows, col);
      Tiles::clear();
      for (int64_t step = 0; step < layout.steps; ++step) {
        prefetch_step(ahead, kStepBytes / 64);
        Tiles::load_rows(rows + step * kStepBytes);
        Tiles::load_cols(cols + step * kStepBytes);
        Tiles::multiply_int8();
      }
      Tiles::store(acc);
      dequantize_tile<kTileCols, 0>(sums, acc, num_rows, scales + row,
                                 layout.weight_scale(linear.packed) + col,
                                 layout.weight_sum(linear.packed) + col);
      finish_tile(linear, call,
                  {sums, kTileCols, row, num_rows, col,
                   min_of(kTileCols, linear.out_features - col)},
                  false);
    }
  }
  Tiles::release();
}

constexpr minibert::LinearKernel kInt8TilesKernel = {"int8",
                                                     kTileCols,
                                                     kTilesBlockRows,
                                                     kInt8TilesMaxInFeatures,
                                                     int8_tiles_weight_bytes,
                                                     int8_tiles_pack,
                                                     int8_tiles_prepared_bytes,
                                                     int8_tiles_prepare,
                                                     tiles_scratch_bytes,
                                                     int8_tiles_compute};

}  // namespace
