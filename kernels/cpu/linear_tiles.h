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
#include "epilogue.h"

namespace {

constexpr int64_t kTileCols = 32;    // outputs of a panel: two tiles
constexpr int64_t kTileBlock = 32;   // rows at once: two tiles
constexpr int64_t kTileDepth = 32;   // inputs of a bfloat16 tile
constexpr int64_t kTilesBlockRows = 128;
// Not measured: at half of the matrix unit's peak, 48 rows take as long as their weights take from
// the third-level cache (28 GB/s).
constexpr int64_t kTilesRowsAlone = 48;
constexpr int64_t kTileElements = 512;
static_assert(kPanelCols == kTileCols, "the epilogue's panels are the tiles' panels");

inline int64_t tile_steps(int64_t in_features) { return ceil_div(in_features, kTileDepth); }

template <int kParts>
size_t tiles_weight_bytes(int64_t out_features, int64_t in_features) {
  return (size_t)(ceil_div(out_features, kTileCols) * tile_steps(in_features)) * kParts * 2 *
         Tiles::kTileBytes;
}

template <int kParts>
void tiles_pack(void* packed, const float* weight, int64_t out_features, int64_t in_features) {
  __builtin_memset(packed, 0, tiles_weight_bytes<kParts>(out_features, in_features));
  const int64_t steps = tile_steps(in_features);
  for (int64_t col = 0; col < out_features; ++col)
    for (int64_t k = 0; k < in_features; ++k) {
      uint16_t parts[kParts];
      split_bfloat16<kParts>(weight[col * in_features + k], parts);
      const int64_t block = (col / kTileCols * steps + k / kTileDepth) * kParts;
      const int64_t tile = col % kTileCols / 16, pair = k % kTileDepth / 2;
      for (int part = 0; part < kParts; ++part)
        ((uint16_t*)packed)[((block + part) * 2 + tile) * kTileElements + pair * 32 +
                            col % 16 * 2 + k % 2] = parts[part];
    }
}

template <int kParts>
size_t tiles_prepared_bytes(int64_t num_rows, int64_t in_features) {
  return (size_t)(ceil_div(num_rows, kTileBlock) * tile_steps(in_features)) * kParts * 2 *
         Tiles::kTileBytes;
}

// Parts of 16 activations of one row: a tile's row half.
template <int kParts>
inline void split_row(uint16_t* out, const float* row, int64_t count) {
  for (int64_t i = 0; i < 32; ++i) {
    uint16_t parts[kParts] = {};
    if (i < count) split_bfloat16<kParts>(row[i], parts);
    for (int part = 0; part < kParts; ++part) out[part * 2 * kTileElements + i] = parts[part];
  }
}

template <int kParts>
void tiles_prepare(void* prepared, const float* hidden, int64_t row_begin, int64_t row_end,
                   int64_t, const Linear& linear) {
  const int64_t in_features = linear.in_features, steps = tile_steps(in_features);
  for (int64_t row = row_begin; row < round_up(row_end, kTileBlock); ++row)
    for (int64_t step = 0; step < steps; ++step) {
      auto* out = (uint16_t*)prepared +
                  ((row / kTileBlock * steps + step) * kParts * 2 + row % kTileBlock / 16) *
                      kTileElements +
                  row % 16 * 32;
      const int64_t k = step * kTileDepth;
      const int64_t count = row < row_end ? min_of(kTileDepth, in_features - k) : 0;
      split_row<kParts>(out, hidden + (count ? row * in_features + k : 0), count);
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

inline void prefetch_step(Ahead& ahead, int64_t lines) {
  for (int64_t i = 0; i < lines; ++i, ahead.address += ahead.step)
    __builtin_prefetch(ahead.address, 0, 2);
}

size_t tiles_scratch_bytes(int64_t) { return 0; }

template <int kParts, int kProducts>
void tiles_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                   int64_t row_end, int64_t panel_begin, int64_t panel_end, void*) {
  constexpr int64_t kStepBytes = kParts * 2 * Tiles::kTileBytes;
  const int64_t steps = tile_steps(linear.in_features);
  alignas(64) float sums[kTileBlock * kTileCols];
  Tiles::configure();
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* cols = (const char*)linear.packed + panel * steps * kStepBytes;
    PanelPrefetch prefetch(cols + steps * kStepBytes,
                           panel + 1 < call.prefetch_end ? steps * kStepBytes : 0,
                           ceil_div(row_end - row_begin, kTileBlock));
    for (int64_t row = row_begin; row < row_end; row += kTileBlock) {
      const char* rows = (const char*)call.prepared + row / kTileBlock * steps * kStepBytes;
      const int64_t num_rows = min_of(kTileBlock, row_end - row);
      Ahead ahead = prefetch.spread(steps * kStepBytes / 64);
      prefetch_tile(linear, call, row, num_rows, panel * kTileCols);
      Tiles::clear();
      for (int64_t step = 0; step < steps; ++step) {
        prefetch_step(ahead, kStepBytes / 64);
        multiply_parts<kProducts>(rows + step * kStepBytes, cols + step * kStepBytes);
      }
      Tiles::store(sums);
      finish_tile(linear, call,
                  {row, num_rows, panel * kTileCols,
                   min_of(kTileCols, linear.out_features - panel * kTileCols)},
                  FloatSums{sums, kTileCols, nullptr, 0});
    }
  }
  Tiles::release();
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
          nullptr,
          kTilesRowsAlone};
}

}  // namespace
