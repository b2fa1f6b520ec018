// linear_tiles.h: linear layers on matrix units: bfloat16 products summed in float32.
//
// kParts and kProducts say how exactly float32 operands are represented: one part each and one
// product ("bfloat16x1"); two parts and three products ("bfloat16x3"); three parts, which hold all
// 24 bits, and the six products above 2^-24 ("bfloat16x6", no further from float64 than float32
// multiply-adds are).
// Weights and activations lie in blocks of two tiles (2 x 1024 bytes) in the order of use:
//   weights      [panel of 32 outputs][32 inputs][part][2 tiles of 16 pairs of inputs x 16 outputs]
//   activations  [32 rows][32 inputs][part][2 tiles of 16 rows x 32 inputs]
// both padded with zeros; always whole tiles, so a row's sum never depends on how many rows there
// are. Loops: panel -> 32 rows -> 32 inputs. Sums stay in tile registers over all inputs.
#pragma once

#include "bfloat16.h"
#include "tiles.h"

namespace {

constexpr int64_t kTileDepth = 32;   // inputs of a bfloat16 tile
constexpr int64_t kTilesBlockRows = 256;
// Not measured: at half of the matrix unit's peak, 48 rows take as long as their weights take from
// the third-level cache (28 GB/s).
constexpr int64_t kTilesRowsAlone = 48;
constexpr int64_t kTileElements = 512;

inline int64_t tile_steps(int64_t in_features) { return ceil_div(in_features, kTileDepth); }

template <int kParts>
size_t tiles_weight_bytes(const float*, int64_t out_features, int64_t in_features) {
  return (size_t)(ceil_div(out_features, kTileCols) * tile_steps(in_features)) * kParts * 2 *
         Tiles::kTileBytes;
}

template <int kParts>
void tiles_pack(void* packed, const float* weight, int64_t out_features, int64_t in_features) {
  __builtin_memset(packed, 0, tiles_weight_bytes<kParts>(weight, out_features, in_features));
  const int64_t steps = tile_steps(in_features);
  for (int64_t col = 0; col < out_features; ++col)
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t count = min_of(kTileDepth, in_features - step * kTileDepth);
      const float* source = weight + col * in_features + step * kTileDepth;
      uint16_t parts[kParts][kTileDepth] = {};
      for (int64_t k = 0; k < count; ++k) {
        uint16_t split[kParts];
        split_bfloat16<kParts>(source[k], split);
        for (int part = 0; part < kParts; ++part) parts[part][k] = split[part];
      }
      for (int part = 0; part < kParts; ++part) {
        auto* tile = (char*)packed +
                     (((col / kTileCols * steps + step) * kParts + part) * 2 + col % kTileCols / 16) *
                         Tiles::kTileBytes +
                     col % 16 * 4;
        for (int64_t k = 0; k < kTileDepth; k += 2)
          __builtin_memcpy(tile + k * 32, &parts[part][k], 4);
      }
    }
}

template <int kParts>
size_t tiles_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return (size_t)(ceil_div(num_rows, kTileBlock) * tile_steps(in_features)) * kParts * 2 *
         Tiles::kTileBytes;
}

// Rows past the last one are zeros.
template <int kParts>
void tiles_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                   int64_t, const Linear& linear) {
  constexpr int64_t kPart = 2 * kTileElements, kHalf = kTileDepth / 2;
  static_assert(Vec::kLanes == kHalf, "two vectors are a row of a tile");
  const int64_t in_features = linear.in_features, steps = tile_steps(in_features);
  const int64_t whole = in_features / kTileDepth;
  for (int64_t row = row_begin; row < round_up(row_end, kTileBlock); ++row) {
    auto* out = (uint16_t*)prepared + row / kTileBlock * steps * kParts * kPart +
                row % kTileBlock / 16 * kTileElements + row % 16 * kTileDepth;
    const float* source = hidden + row * in_features;
    int64_t step = 0;
    for (; row < row_end && step < whole; ++step, out += kParts * kPart, source += kTileDepth) {
      __builtin_prefetch(source + in_features, 0, 3);  // the next row, read from far otherwise
      __builtin_prefetch(source + in_features + kHalf, 0, 3);
      Tiles::split<kParts>(out, kPart, Vec::load(source), Vec::load(source + kHalf));
    }
    for (; step < steps; ++step, out += kParts * kPart, source += kTileDepth) {
      const int64_t count = row < row_end ? in_features - step * kTileDepth : 0;
      Tiles::split<kParts>(out, kPart, load_within(source, 0, count),
                           load_within(source, kHalf, count));
    }
  }
}

// All products of one block of inputs; rows and cols point at the block's first part. The order
// keeps whichever operand the next product needs in its tiles.
template <int kProducts>
inline void multiply_parts(const char* rows, const char* cols) {
  constexpr int64_t kPart = 2 * Tiles::kTileBytes;
  Tiles::load_rows(rows);
  if constexpr (kProducts == 1) {
    Tiles::load_cols(cols);
    Tiles::multiply_bfloat16();
  } else if constexpr (kProducts == 3) {
    Tiles::load_cols(cols + kPart);
    Tiles::multiply_bfloat16();  // 0 x 1
    Tiles::load_cols(cols);
    Tiles::multiply_bfloat16();  // 0 x 0
    Tiles::load_rows(rows + kPart);
    Tiles::multiply_bfloat16();  // 1 x 0
  } else {
    static_assert(kProducts == 6, "one, three or six products");
    Tiles::load_cols(cols + 2 * kPart);
    Tiles::multiply_bfloat16();  // 0 x 2
    Tiles::load_cols(cols + kPart);
    Tiles::multiply_bfloat16();  // 0 x 1
    Tiles::load_rows(rows + kPart);
    Tiles::multiply_bfloat16();  // 1 x 1
    Tiles::load_cols(cols);
    Tiles::multiply_bfloat16();  // 1 x 0
    Tiles::load_rows(rows + 2 * kPart);
    Tiles::multiply_bfloat16();  // 2 x 0
    Tiles::load_rows(rows);
    Tiles::multiply_bfloat16();  // 0 x 0
  }
}

size_t tiles_scratch_bytes(int64_t) { return 0; }

struct TileFloatSums : FloatSums {
  void begin_row(int64_t) const {}
};

template <int kParts, int kProducts>
struct BFloat16Tiles {
  using Sums = TileFloatSums;
  static constexpr int64_t kStepBytes = kParts * 2 * Tiles::kTileBytes;
  const Linear& linear;
  const void* prepared;
  int64_t steps;

  const char* cols(int64_t panel) const {
    return (const char*)linear.packed + panel * steps * kStepBytes;
  }
  const char* rows(int64_t row) const {
    return (const char*)prepared + row / kTileBlock * steps * kStepBytes;
  }
  static void multiply(const char* rows, const char* cols) {
    multiply_parts<kProducts>(rows, cols);
  }
  TileFloatSums sums(const Tile&, const uint32_t* values) const {
    return {{(const float*)values, kTileCols, nullptr, 0}};
  }
};

template <int kParts, int kProducts>
void tiles_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                   int64_t row_end, int64_t panel_begin, int64_t panel_end, void*) {
  const BFloat16Tiles<kParts, kProducts> format = {linear, call.prepared,
                                                   tile_steps(linear.in_features)};
  // All panels read a block's activations, which therefore must fit the second-level cache.
  constexpr int64_t kMostBytes = 3 << 18;
  const int64_t bytes = format.steps * BFloat16Tiles<kParts, kProducts>::kStepBytes;
  const int64_t rows = kTileBlock * (bytes < kMostBytes ? kMostBytes / bytes : 1);
  for (int64_t row = row_begin; row < row_end; row += rows)
    compute_tiles(format, linear, call, row, min_of(row_end, row + rows), panel_begin, panel_end);
}

template <int kParts, int kProducts>
constexpr minibert::LinearKernel tiles_kernel(const char* format) {
  return {format,
          kTileCols,
          kTilesBlockRows,
          0,
          tiles_weight_bytes<kParts>,
          tiles_pack<kParts>,
          kTileBlock,
          tiles_prepared_bytes<kParts>,
          tiles_prepare<kParts>,
          tiles_scratch_bytes,
          tiles_compute<kParts, kProducts>,
          kTilesRowsAlone};
}

}  // namespace
