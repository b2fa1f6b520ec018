// tile.h: the one float32 inner loop, shared by the linear layers and by attention.
//
// out[r][c] = sum over k of a[r][k] * panel[k][c], for up to kTileRows rows and one packed panel of
// kPanelCols columns. Every output has its own accumulator and adds k = 0, 1, 2 ... in that order,
// whatever the number of rows: this is why a row's bytes do not depend on its neighbours.
// Per k: kTileVecs loads of weights, kTileRows broadcasts, kTileRows * kTileVecs multiply-adds, one
// prefetch.
#pragma once

#include "kernels.h"

namespace {

constexpr int64_t kPanelCols = Vec::kTileVecs * Vec::kLanes;

// A sum in one accumulator loses about a rounding per term. It is therefore broken after kChain
// terms and the pieces are added: half the error, for one addition in kChain, which runs
// beside the multiply-adds.
constexpr int64_t kChain = 128;

// What to bring into the second-level cache meanwhile: one address per k. The panel after this one
// comes from the third-level cache or from memory; asked for in one burst, it would be waited for.
// Passed by reference: a copy on the stack, written in parts, is waited for when read as a whole.
struct Ahead {
  const char* address;
  int64_t step;                    // bytes
  const char* out = nullptr;       // what the epilogue will write and read of the tile's first row
  const char* residual = nullptr;
  int64_t row_bytes = 0;
};

constexpr int64_t kLineBytes = 64;
#define MINIBERT_INLINE __attribute__((always_inline))

// Calls step(k) for k = begin, begin + kStep .. end - 1, and asks for the lines of one row after
// another meanwhile.
template <int kRows, int kStep, int64_t kCols = kPanelCols, typename Step>
inline __attribute__((always_inline)) void steps_with_lines(int64_t begin, int64_t end,
                                                            const Ahead& ahead, Step step) {
  int64_t k = begin;
  if (ahead.out) {
    const int64_t share = (end - begin) / kStep / (kRows + 1) * kStep;
    const int64_t residual = ahead.residual ? ahead.residual - ahead.out : 0;
    const char* out = ahead.out;
    for (int r = 0; r < kRows; ++r, out += ahead.row_bytes) {
#pragma GCC unroll 4
      for (int64_t at = 0; at < kCols * (int64_t)sizeof(float); at += kLineBytes) {
        __builtin_prefetch(out + at, 1, 3);
        if (residual) __builtin_prefetch(out + residual + at, 0, 3);
      }
      for (const int64_t row_end = k + share; k < row_end; k += kStep) step(k);
    }
  }
  for (; k < end; k += kStep) step(k);
}

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// A function compiled for a number of rows, 1 to kRows, that is known at run time:
// pick(Count<rows>()) names it.
template <int kRows, typename Pick>
inline auto for_rows(int64_t rows, Pick pick) -> decltype(pick(Count<kRows>())) {
  if (rows == kRows) return pick(Count<kRows>());
  if constexpr (kRows > 1) return for_rows<kRows - 1>(rows, pick);
  return nullptr;
}

// A panel's elements: how a vector of them is loaded as float32.
struct FloatPanel {
  using Element = float;
  static Vec::type load(const Element* p) { return Vec::load(p); }
};

template <int kRows, typename Panel>
inline __attribute__((always_inline)) void multiply_tile(
    float* __restrict__ out, int64_t out_stride, const float* __restrict__ a, int64_t a_stride,
    const typename Panel::Element* __restrict__ panel, int64_t depth, const Ahead& asked) {
  Ahead ahead = asked;
  for (int64_t begin = 0; begin == 0 || begin < depth; begin += kChain) {
    Vec::type acc[kRows][Vec::kTileVecs];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < Vec::kTileVecs; ++c) acc[r][c] = Vec::zero();
    const int64_t end = begin + kChain < depth ? begin + kChain : depth;
    steps_with_lines<kRows, 1>(begin, end, ahead, [&](int64_t k) MINIBERT_INLINE {
      Vec::type b[Vec::kTileVecs];
#pragma GCC unroll 4
      for (int c = 0; c < Vec::kTileVecs; ++c) b[c] = Panel::load(panel + c * Vec::kLanes);
      panel += kPanelCols;
      __builtin_prefetch(ahead.address, 0, 2);
      ahead.address += ahead.step;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec::type x = Vec::broadcast(a[r * a_stride + k]);
#pragma GCC unroll 4
        for (int c = 0; c < Vec::kTileVecs; ++c) acc[r][c] = Vec::fma(x, b[c], acc[r][c]);
      }
    });
    ahead.out = nullptr;  // asked for, in the first piece
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < Vec::kTileVecs; ++c) {
        float* sum = out + r * out_stride + c * Vec::kLanes;
        Vec::store(sum, begin == 0 ? acc[r][c] : Vec::add(Vec::load(sum), acc[r][c]));
      }
  }
}

// The template above for a number of rows known at run time. Not inlined: one copy per path.
template <typename Panel>
using MultiplyTile = void (*)(float*, int64_t, const float*, int64_t,
                              const typename Panel::Element*, int64_t, const Ahead&);

template <int kRows, typename Panel>
void multiply_rows(float* out, int64_t out_stride, const float* a, int64_t a_stride,
                   const typename Panel::Element* panel, int64_t depth, const Ahead& ahead) {
  multiply_tile<kRows, Panel>(out, out_stride, a, a_stride, panel, depth, ahead);
}

template <typename Panel = FloatPanel>
inline MultiplyTile<Panel> multiply_for(int64_t rows) {
  return for_rows<Vec::kTileRows>(rows, [](auto count) -> MultiplyTile<Panel> {
    return &multiply_rows<decltype(count)::value, Panel>;
  });
}

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline Vec::type load_up_to(const float* p, int64_t lanes) {
  return lanes == Vec::kLanes ? Vec::load(p) : Vec::load_partial(p, lanes);
}

// A vector of a row that ends after `size` values; zeros behind.
inline Vec::type load_within(const float* row, int64_t at, int64_t size) {
  const int64_t n = size - at;
  if (n >= Vec::kLanes) return Vec::load(row + at);
  return n > 0 ? Vec::load_partial(row + at, n) : Vec::zero();
}

inline void store_up_to(float* p, Vec::type x, int64_t lanes) {
  if (lanes == Vec::kLanes)
    Vec::store(p, x);
  else
    Vec::store_partial(p, x, lanes);
}

// Rows begin..end in tiles of at most kTileRows, as equal as possible: 19 rows are 5 + 5 + 5 + 4,
// not 6 + 6 + 6 + 1, because a tile of one row waits for the latency of its two chains.
template <typename Function>
inline void for_each_tile(int64_t begin, int64_t end, int64_t tile_rows, Function function) {
  int64_t tiles = ceil_div(end - begin, tile_rows);
  for (int64_t row = begin; row < end; --tiles) {
    const int64_t rows = ceil_div(end - row, tiles);
    function(row, rows);
    row += rows;
  }
}

}  // namespace
