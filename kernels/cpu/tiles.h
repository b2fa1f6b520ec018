// tiles.h: the loops of a linear layer on a matrix unit, whatever the format of its tiles.
//
// Outputs and rows are taken 32 by 32, two tiles each way. The matrix unit works by itself: while it
// multiplies one block of tiles, the vector units finish the rows of the block before (bias,
// activation, residual), and the lines that are needed next are asked for, some at each step.
// Bound: the epilogue more than the products (docs/cpu.md, "AMX: an estimate").
#pragma once

#include "epilogue.h"

namespace {

constexpr int64_t kTileCols = 32;    // outputs of a panel: two tiles
constexpr int64_t kTileBlock = 32;   // rows at once: two tiles
static_assert(kPanelCols == kTileCols, "the epilogue's panels are the tiles' panels");

// Lines of the next panel of weights, an equal share at each step of a job.
class PanelLines {
 public:
  PanelLines(const char* panel, int64_t bytes, int64_t steps)
      : address_(panel), end_(panel + bytes), lines_(ceil_div(bytes, 64 * steps)) {}
  void prefetch() {
    for (int64_t i = 0; i < lines_ && address_ < end_; ++i, address_ += 64)
      __builtin_prefetch(address_, 0, 2);
  }

 private:
  const char* address_;
  const char* end_;
  int64_t lines_;
};

// The rows of a tile of which the sums are there, finished some at a time.
template <typename Sums>
class Finishing {
 public:
  Finishing(const Linear& linear, const LinearCall& call) : linear_(linear), call_(call) {
    some_ = function_for(call.activation);
  }
  void begin(const Tile& tile, const Sums& sums) {
    tile_ = tile;
    sums_ = sums;
    row_ = 0;
    const int64_t first = tile.row * linear_.out_features + tile.col;
    out_ = call_.out + first;
    residual_ = call_.residual ? call_.residual + first : nullptr;
  }
  void some(int64_t rows) {
    if (row_ < tile_.rows) some_(*this, min_of(tile_.rows, row_ + rows));
  }
  void rest() { some(kTileBlock); }

 private:
  using Some = void (*)(Finishing&, int64_t until);

  template <Activation kActivation>
  static void finish(Finishing& f, int64_t until) {
    if (f.tile_.cols < kTileCols) {  // the last panel: all at once
      for (; f.row_ < f.tile_.rows; ++f.row_) f.sums_.begin_row(f.row_);
      finish_rows<kActivation>(f.linear_, f.call_, f.tile_, f.sums_);
      return;
    }
    // Copied, since for all that the compiler knows each store could change them.
    const Sums sums = f.sums_;
    const int64_t stride = f.linear_.out_features;
    const float* bias = f.linear_.bias + f.tile_.col;
    float* out = f.out_;
    const float* residual = f.residual_;
    for (int64_t r = f.row_; r < until; ++r, out += stride) {
      sums.begin_row(r);
      finish_vectors<kActivation, 2>(out, bias, residual, sums, r, 0, kTileCols);
      if (residual) residual += stride;
    }
    f.row_ = until;
    f.out_ = out;
    f.residual_ = residual;
  }
  static Some function_for(Activation activation) {
    switch (activation) {
      case minibert::kNoActivation: return finish<minibert::kNoActivation>;
      case minibert::kGelu: return finish<minibert::kGelu>;
      case minibert::kGeluTanh: return finish<minibert::kGeluTanh>;
      case minibert::kRelu: return finish<minibert::kRelu>;
      case minibert::kSilu: return finish<minibert::kSilu>;
      case minibert::kTanh: return finish<minibert::kTanh>;
    }
    return nullptr;
  }

  const Linear& linear_;
  const LinearCall& call_;
  Some some_;
  Tile tile_ = {};
  Sums sums_ = {};
  int64_t row_ = 0;
  float* out_ = nullptr;
  const float* residual_ = nullptr;
};

// The lines of a tile that will be written, and read as residual: some rows at a time, for in one
// burst they fill the core's line buffers.
class OutputLines {
 public:
  OutputLines(const Linear& linear, const LinearCall& call, const Tile& tile)
      : stride_(linear.out_features), rows_(tile.rows) {
    const int64_t first = tile.row * stride_ + tile.col;
    out_ = call.out + first;
    residual_ = call.residual ? call.residual + first : nullptr;
  }
  void prefetch(int64_t rows) {
    for (int64_t end = rows_ - min_of(rows, rows_); rows_ > end; --rows_, out_ += stride_) {
      __builtin_prefetch(out_, 1, 3);
      __builtin_prefetch(out_ + 16, 1, 3);
      if (!residual_) continue;
      __builtin_prefetch(residual_, 0, 3);
      __builtin_prefetch(residual_ + 16, 0, 3);
      residual_ += stride_;
    }
  }

 private:
  int64_t stride_, rows_;
  const float* out_;
  const float* residual_;
};

// All tiles of a job. A format knows:
//   steps, kStepBytes               of the inputs of a block of rows, and of a panel
//   cols(panel), rows(row)          where they lie
//   multiply(rows, cols)            one step
//   sums(tile, values)              how stored sums become vectors, after begin_row(r)
template <typename Format>
inline void compute_tiles(const Format& format, const Linear& linear, const LinearCall& call,
                          int64_t row_begin, int64_t row_end, int64_t panel_begin,
                          int64_t panel_end) {
  const int64_t steps = format.steps, panel_bytes = steps * Format::kStepBytes;
  const int64_t tiles = ceil_div(row_end - row_begin, kTileBlock);
  const int64_t share = ceil_div(kTileBlock, steps);
  alignas(64) uint32_t sums[2][kTileBlock * kTileCols];
  int current = 0;
  Finishing<typename Format::Sums> before(linear, call);
  Tiles::configure();
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* cols = format.cols(panel);
    PanelLines next(cols + panel_bytes, panel + 1 < call.prefetch_end ? panel_bytes : 0,
                    steps * tiles);
    for (int64_t row = row_begin; row < row_end; row += kTileBlock) {
      const char* rows = format.rows(row);
      const Tile tile = {row, min_of(kTileBlock, row_end - row), panel * kTileCols,
                         min_of(kTileCols, linear.out_features - panel * kTileCols)};
      OutputLines lines(linear, call, tile);
      Tiles::clear();
      for (int64_t step = 0; step < steps; ++step) {
        Format::multiply(rows + step * Format::kStepBytes, cols + step * Format::kStepBytes);
        next.prefetch();
        lines.prefetch(share);
        before.some(share);
      }
      before.rest();
      Tiles::store(sums[current], kTileCols * (int64_t)sizeof(uint32_t));
      before.begin(tile, format.sums(tile, sums[current]));
      current = 1 - current;
    }
  }
  before.rest();
  Tiles::release();
}

}  // namespace
