// epilogue.h: what follows the sum of products, while the tile is still in the first-level cache.
//
// out = activation(partial + tile + bias) + residual, each step only where it applies. A linear
// layer deeper than one depth block leaves its partial sums in `out`; only the last block goes
// through bias, activation and residual.
#pragma once

#include "elementary.h"
#include "tile.h"

namespace {

using minibert::Linear;
using minibert::LinearCall;

struct Tile {
  int64_t row;   // first row of the call
  int64_t rows;
  int64_t col;   // first output feature
  int64_t cols;  // at most a panel; fewer in a last panel
};

// Float32 sums of a tile, and what earlier depth blocks left in `out`.
struct FloatSums {
  const float* sums;     // (rows, stride)
  int64_t stride;
  const float* partial;  // (rows, partial_stride), or null
  int64_t partial_stride;
  Vec::type operator()(int64_t r, int64_t c, int64_t lanes) const {
    const Vec::type x = Vec::load(sums + r * stride + c);
    if (!partial) return x;
    const float* earlier = partial + r * partial_stride + c;
    return Vec::add(x, lanes >= Vec::kLanes ? Vec::load(earlier)
                                            : Vec::load_partial(earlier, lanes));
  }
};

// Asks for the lines that the epilogue will read and write, before the products, which take longer.
inline void prefetch_tile(const Linear& linear, const LinearCall& call, int64_t row, int64_t rows,
                          int64_t col) {
  constexpr int64_t kLineFloats = 16;
  for (int64_t r = row; r < row + rows; ++r)
    for (int64_t c = col; c < min_of(col + kPanelCols, linear.out_features); c += kLineFloats) {
      const int64_t offset = r * linear.out_features + c;
      __builtin_prefetch(call.out + offset, 1, 3);
      if (call.residual) __builtin_prefetch(call.residual + offset, 0, 3);
    }
}

// Walks over the next panel of weights in as many equal parts as there are tiles of rows.
class PanelPrefetch {
 public:
  PanelPrefetch(const void* panel, int64_t bytes, int64_t tiles)
      : address_((const char*)panel), share_(round_up(ceil_div(bytes, tiles), 64)) {}
  // One part, spread over the `steps` of a tile's inner loop.
  Ahead spread(int64_t steps) {
    const Ahead ahead = {address_, ceil_div(share_, steps)};
    address_ += share_;
    return ahead;
  }
  // The same, with the lines that the epilogue of the tile at (row, col) reads and writes.
  Ahead spread(int64_t steps, const Linear& linear, const LinearCall& call, int64_t row,
               int64_t col) {
    Ahead ahead = spread(steps);
    const int64_t offset = row * linear.out_features + col;
    ahead.out = (const char*)(call.out + offset);
    if (call.residual) ahead.residual = (const char*)(call.residual + offset);
    ahead.row_bytes = linear.out_features * (int64_t)sizeof(float);
    return ahead;
  }

 private:
  const char* address_;
  int64_t share_;
};

// `sums(row, col, lanes)` is the vector of sums at a place of the tile; a template, so that it is
// formed in registers. kCount neighbouring vectors from column c on, `lanes` of them real; bias, out
// and residual (or null) begin with the tile's column of that row.
template <Activation kActivation, int kCount, typename Sums>
inline __attribute__((always_inline)) void finish_vectors(float* out, const float* bias,
                                                          const float* residual, const Sums& sums,
                                                          int64_t r, int64_t c, int64_t lanes) {
  const bool whole = lanes >= kCount * Vec::kLanes;
  Vec::type x[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i)
    x[i] = Vec::add(sums(r, c + i * Vec::kLanes, lanes), Vec::load(bias + c + i * Vec::kLanes));
  activate<kActivation>(x);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    const int64_t at = c + i * Vec::kLanes;
    if (residual)
      x[i] = Vec::add(x[i], whole ? Vec::load(residual + at)
                                  : Vec::load_partial(residual + at, lanes));
    if (whole)
      Vec::store(out + at, x[i]);
    else
      Vec::store_partial(out + at, x[i], lanes);
  }
}

// What `linear` and `call` say is copied first: for all that the compiler knows, each store of a
// vector could change it.
template <Activation kActivation, typename Sums>
inline void finish_rows(const Linear& linear, const LinearCall& call, const Tile& tile, Sums sums) {
  constexpr int kTogether = 2;
  constexpr int64_t kStep = kTogether * Vec::kLanes;
  const int64_t stride = linear.out_features, rows = tile.rows, cols = tile.cols;
  const float* bias = linear.bias + tile.col;
  const int64_t first = tile.row * stride + tile.col;
  float* out = call.out + first;
  const float* residual = call.residual ? call.residual + first : nullptr;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t c = 0;
    for (; c + kStep <= cols; c += kStep)
      finish_vectors<kActivation, kTogether>(out, bias, residual, sums, r, c, kStep);
    for (; c < cols; c += Vec::kLanes)
      finish_vectors<kActivation, 1>(out, bias, residual, sums, r, c, cols - c);
    out += stride;
    if (residual) residual += stride;
  }
}

template <typename Sums>
inline void finish_tile(const Linear& linear, const LinearCall& call, const Tile& tile, Sums sums) {
  switch (call.activation) {
    case minibert::kNoActivation:
      return finish_rows<minibert::kNoActivation>(linear, call, tile, sums);
    case minibert::kGelu:
      return finish_rows<minibert::kGelu>(linear, call, tile, sums);
    case minibert::kGeluTanh:
      return finish_rows<minibert::kGeluTanh>(linear, call, tile, sums);
    case minibert::kRelu:
      return finish_rows<minibert::kRelu>(linear, call, tile, sums);
    case minibert::kSilu:
      return finish_rows<minibert::kSilu>(linear, call, tile, sums);
    case minibert::kTanh:
      return finish_rows<minibert::kTanh>(linear, call, tile, sums);
  }
}

// Sums of a depth block that is not the last: kept in `out`, without bias.
inline void keep_partial(const Linear& linear, const LinearCall& call, const Tile& tile,
                         FloatSums sums) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* out = call.out + (tile.row + r) * linear.out_features + tile.col;
    for (int64_t c = 0; c < tile.cols; c += Vec::kLanes)
      store_up_to(out + c, sums(r, c, tile.cols - c), min_of(Vec::kLanes, tile.cols - c));
  }
}

}  // namespace
