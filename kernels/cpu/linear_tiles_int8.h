// linear_tiles_int8.h: the int8 linear layers of linear_int8.h on matrix units: the same integers,
// hence the same results, in tiles of 64 inputs.
//
//   weights      QuantizedWeights with [panel of 32 outputs][64 inputs]
//                [2 tiles of 16 groups of 4 inputs x 16 outputs]
//   activations  QuantizedRows with [32 rows][64 inputs][2 tiles of 16 rows x 64 inputs]; whole
//                blocks of rows
#pragma once

#include "linear_tiles.h"
#include "quantize.h"

namespace {

constexpr int64_t kInt8TileDepth = 64;
constexpr int kInt8TilesSteps = 255;

inline int64_t int8_tile_steps(int64_t in_features) {
  return ceil_div(in_features, kInt8TileDepth);
}

struct Int8TilesLayout : QuantizedWeights {
  int64_t steps;

  Int8TilesLayout(int64_t out_features, int64_t in_features)
      : QuantizedWeights(out_features, kTileCols,
                         int8_tile_steps(in_features) * 2 * Tiles::kTileBytes),
        steps(int8_tile_steps(in_features)) {}
};

size_t int8_tiles_weight_bytes(const float*, int64_t out_features, int64_t in_features) {
  return Int8TilesLayout(out_features, in_features).bytes;
}

void int8_tiles_pack(void* packed, const float* weight, int64_t out_features,
                     int64_t in_features) {
  const Int8TilesLayout layout(out_features, in_features);
  __builtin_memset(packed, 0, layout.bytes);
  for (int64_t col = 0; col < out_features; ++col) {
    auto* panel = layout.panel(packed, col / kTileCols);
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

struct Int8TilesRows : QuantizedRows {
  Int8TilesRows(const void* prepared, int64_t num_rows, int64_t in_features)
      : QuantizedRows(prepared, round_up(num_rows, kTileBlock), in_features,
                      ceil_div(num_rows, kTileBlock) * int8_tile_steps(in_features) * 2 *
                          Tiles::kTileBytes) {}
};

size_t int8_tiles_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return Int8TilesRows(nullptr, num_rows, in_features).bytes;
}

void int8_tiles_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                        int64_t num_rows, const Linear& linear) {
  constexpr int64_t kStepBytes = 2 * Tiles::kTileBytes;
  const int64_t in_features = linear.in_features, steps = int8_tile_steps(in_features);
  const Int8TilesRows rows(prepared, num_rows, in_features);
  for (int64_t row = row_begin; row < round_up(row_end, kTileBlock); ++row) {
    uint8_t* out = rows.values + row / kTileBlock * steps * kStepBytes +
                   row % kTileBlock / 16 * Tiles::kTileBytes + row % 16 * kInt8TileDepth;
    if (row >= row_end) {
      for (int64_t step = 0; step < steps; ++step, out += kStepBytes)
        __builtin_memset(out, 0, kInt8TileDepth);
      continue;
    }
    const float* source = hidden + row * in_features;
    Excess* excess = rows.excess + row * rows.capacity;
    RowQuantizer quantizer = row_quantizer<kInt8TilesSteps>(source, linear);
    for (int64_t begin = 0; begin < in_features; begin += kInt8TileDepth, out += kStepBytes)
      for (int64_t i = 0; i < kInt8TileDepth; i += Vec::kLanes) {
        const int64_t lanes = min_of(Vec::kLanes, in_features - begin - i);
        if (lanes <= 0) {
          __builtin_memset(out + i, 0, Vec::kLanes);
          continue;
        }
        __builtin_prefetch(source + in_features + begin + i, 0, 3);  // the next row
        // Lanes past the last input meet zero weights.
        Vec::store_lowest_byte(
            out + i, quantize<kInt8TilesSteps>(source, begin + i, lanes, quantizer, excess));
      }
    rows.scales[row] = quantizer.scale;
  }
}

// Of a tile, as Int8Sums; the excess of a row is added when its turn comes.
struct TileInt8Sums {
  int32_t* acc;  // (rows, kTileCols)
  const RowScale* scales;
  const int32_t* weight_sum;
  const float* weight_scale;
  const Excess* excess;  // (rows, capacity)
  int64_t capacity;
  const int8_t* panel;

  void begin_row(int64_t r) const {
    const Excess* first = excess + r * capacity;
    int32_t* row = acc + r * kTileCols;
    for (const Excess* e = first; e < first + scales[r].num_excess; ++e) {
      const int64_t group = e->input / kGroup;
      constexpr int64_t kGroups = kInt8TileDepth / kGroup;
      const int8_t* weights =
          panel + group / kGroups * 2 * Tiles::kTileBytes + group % kGroups * 16 * kGroup;
      const uint32_t one = 1u << 8 * (e->input % kGroup);
      Tiles::add_excess(row, weights, one, e->steps);
      Tiles::add_excess(row + 16, weights + Tiles::kTileBytes, one, e->steps);
    }
  }
  Vec::type operator()(int64_t r, int64_t c, int64_t) const {
    const Vec::type scale =
        Vec::mul(Vec::broadcast(scales[r].act_scale), Vec::load(weight_scale + c));
    return Vec::mul(
        Tiles::less_multiple(acc + r * kTileCols + c, weight_sum + c, scales[r].zero_point), scale);
  }
};

struct Int8Tiles {
  using Sums = TileInt8Sums;
  static constexpr int64_t kStepBytes = 2 * Tiles::kTileBytes;
  const Linear& linear;
  Int8TilesLayout layout;
  Int8TilesRows prepared;
  int64_t steps;

  const char* cols(int64_t panel) const {
    return (const char*)layout.panel(linear.packed, panel);
  }
  const char* rows(int64_t row) const {
    return (const char*)prepared.values + row / kTileBlock * steps * kStepBytes;
  }
  static void multiply(const char* rows, const char* cols) {
    Tiles::load_rows(rows);
    Tiles::load_cols(cols);
    Tiles::multiply_int8();
  }
  Sums sums(const Tile& tile, uint32_t* values) const {
    return {(int32_t*)values,
            prepared.scales + tile.row,
            layout.weight_sum(linear.packed) + tile.col,
            layout.weight_scale(linear.packed) + tile.col,
            prepared.excess + tile.row * prepared.capacity,
            prepared.capacity,
            (const int8_t*)cols(tile.col / kTileCols)};
  }
};

void int8_tiles_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                        int64_t row_end, int64_t panel_begin, int64_t panel_end, void*) {
  const Int8TilesLayout layout(linear.out_features, linear.in_features);
  const Int8Tiles format = {linear, layout,
                            Int8TilesRows(call.prepared, call.num_rows, linear.in_features),
                            layout.steps};
  compute_tiles(format, linear, call, row_begin, row_end, panel_begin, panel_end);
}

constexpr minibert::LinearKernel kInt8TilesKernel = {"int8",
                                                     kTileCols,
                                                     kTilesBlockRows,
                                                     kInt8MaxInFeatures,
                                                     int8_tiles_weight_bytes,
                                                     int8_tiles_pack,
                                                     kTileBlock,
                                                     int8_tiles_prepared_bytes,
                                                     int8_tiles_prepare,
                                                     tiles_scratch_bytes,
                                                     int8_tiles_compute,
                                                     kTilesRowsAlone};

}  // namespace
