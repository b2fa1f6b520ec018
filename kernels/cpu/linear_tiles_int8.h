// linear_tiles_int8.h: the int8 linear layers of linear_int8.h on matrix units: the same integers,
// hence the same results, in tiles of 64 inputs.
//
//   weights      header as in linear_int8.h, then [panel of 32 outputs][64 inputs]
//                [2 tiles of 16 groups of 4 inputs x 16 outputs]
//   activations  RowScale of each row, then [32 rows][64 inputs][2 tiles of 16 rows x 64 inputs],
//                then the excess of each row
#pragma once

#include "linear_tiles.h"
#include "quantize.h"

namespace {

constexpr int64_t kInt8TileDepth = 64;
constexpr int64_t kInt8TilesMaxInFeatures = 32768;  // as kInt8MaxInFeatures
constexpr int kInt8TilesSteps = 255;

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
        [&](int64_t group, const int8_t* q) {
          constexpr int64_t kGroups = kInt8TileDepth / kGroup;
          __builtin_memcpy(panel + (group / kGroups * 2 + tile) * Tiles::kTileBytes +
                               (group % kGroups * 16 + col % 16) * kGroup,
                           q, kGroup);
        });
  }
}

struct Int8TilesRows {
  RowScale* scales;  // (num_rows rounded up to kTileBlock,)
  uint8_t* blocks;
  Excess* excess;    // (num_rows, capacity)
  int64_t capacity;
  size_t bytes;

  Int8TilesRows(const void* prepared, int64_t num_rows, int64_t in_features)
      : capacity(max_excess(in_features)) {
    const size_t header =
        (size_t)round_up(round_up(num_rows, kTileBlock) * (int64_t)sizeof(RowScale), 64);
    const size_t tiles = (size_t)(ceil_div(num_rows, kTileBlock) * int8_tile_steps(in_features) *
                                  2 * Tiles::kTileBytes);
    scales = (RowScale*)prepared;
    blocks = (uint8_t*)prepared + header;
    excess = (Excess*)(blocks + tiles);
    bytes = header + tiles + sizeof(Excess) * (size_t)(num_rows * capacity);
  }
};

size_t int8_tiles_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return Int8TilesRows(nullptr, num_rows, in_features).bytes;
}

void int8_tiles_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                        int64_t num_rows, const Linear& linear) {
  const int64_t in_features = linear.in_features, steps = int8_tile_steps(in_features);
  const Int8TilesRows rows(prepared, num_rows, in_features);
  for (int64_t row = row_begin; row < round_up(row_end, kTileBlock); ++row) {
    const float* source = hidden + row * in_features;
    const bool exists = row < row_end;
    RowQuantizer quantizer = {};
    if (exists) quantizer = row_quantizer<kInt8TilesSteps>(source, linear);
    for (int64_t step = 0; step < steps; ++step) {
      uint8_t* out = rows.blocks +
                     ((row / kTileBlock * steps + step) * 2 + row % kTileBlock / 16) *
                         Tiles::kTileBytes +
                     row % 16 * kInt8TileDepth;
      const int64_t begin = step * kInt8TileDepth;
      for (int64_t i = 0; i < kInt8TileDepth; i += Vec::kLanes) {
        const int64_t lanes = exists ? min_of(Vec::kLanes, in_features - begin - i) : 0;
        if (lanes <= 0) {
          __builtin_memset(out + i, 0, Vec::kLanes);
          continue;
        }
        // Lanes past the last input meet zero weights.
        Vec::store_lowest_byte(
            out + i, quantize<kInt8TilesSteps>(source, begin + i, lanes, quantizer,
                                               rows.excess + row * rows.capacity));
      }
    }
    if (exists) rows.scales[row] = quantizer.scale;
  }
}

void int8_tiles_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                        int64_t row_end, int64_t panel_begin, int64_t panel_end, void*) {
  constexpr int64_t kStepBytes = 2 * Tiles::kTileBytes;
  const Int8TilesLayout layout(linear.out_features, linear.in_features);
  const Int8TilesRows rows_in(call.prepared, call.num_rows, linear.in_features);
  alignas(64) int32_t acc[kTileBlock * kTileCols];
  Tiles::configure();
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* cols = layout.panel(linear.packed, panel);
    const int64_t col = panel * kTileCols;
    const int32_t* weight_sum = layout.weight_sum(linear.packed) + col;
    PanelPrefetch prefetch(cols + layout.steps * kStepBytes,
                           panel + 1 < call.prefetch_end ? layout.steps * kStepBytes : 0,
                           ceil_div(row_end - row_begin, kTileBlock));
    for (int64_t row = row_begin; row < row_end; row += kTileBlock) {
      const char* rows = (const char*)rows_in.blocks + row / kTileBlock * layout.steps * kStepBytes;
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
      for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t half = 0; half < 2; ++half)
          correct_sums<16>(
              acc + r * kTileCols + half * 16, rows_in.scales[row + r], weight_sum + half * 16,
              rows_in.excess + (row + r) * rows_in.capacity, [&](int64_t group) {
                constexpr int64_t kGroups = kInt8TileDepth / kGroup;
                return (const int8_t*)cols + group / kGroups * kStepBytes +
                       half * Tiles::kTileBytes + group % kGroups * 16 * kGroup;
              });
      finish_tile(linear, call,
                  {row, num_rows, col, min_of(kTileCols, linear.out_features - col)},
                  Int8Sums<kTileCols>{acc, rows_in.scales + row,
                                      layout.weight_scale(linear.packed) + col});
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
                                                     kTileBlock,
                                                     int8_tiles_prepared_bytes,
                                                     int8_tiles_prepare,
                                                     tiles_scratch_bytes,
                                                     int8_tiles_compute,
                                                     nullptr,
                                                     kTilesRowsAlone};

}  // namespace
