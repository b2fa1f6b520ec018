// linear_block.h: linear layers of the block pattern: panels of 16 outputs that read a part of the
// inputs, each panel its own part. Products are float32 multiply-adds, as in linear_float.h.
//
// An input belongs to a panel where one of the panel's 16 weights is not zero; what `pack` is given
// is the whole matrix, so any matrix is multiplied exactly, and one without zeros like a dense one.
//   weights  [depth block][panel] int32 first entry of each (and one past the last), then
//            uint16 input of each entry, then [entry][16 outputs] float32, 64-byte aligned
// Depth blocks are those of the dense layer. Per entry: one index, kBlockVecs loads of weights and
// a broadcast and kBlockVecs multiply-adds for each row. The index makes the broadcast's address:
// nothing is gathered. Each output has an accumulator of its own and adds its entries in their
// order, so a row's bytes do not depend on its neighbours.
// Bound: multiply-adds, of the kept weights only. Inputs that a panel leaves out are not read.
#pragma once

#include "linear_float.h"

namespace {

constexpr int64_t kBlockCols = 16;  // BLOCK_ROWS of weights/masks.py: rows of the matrix
constexpr int kBlockVecs = kBlockCols / Vec::kLanes;
static_assert(kBlockVecs * Vec::kLanes == kBlockCols, "a panel is whole vectors");
// As many accumulators as the dense tile has, in no more rows.
constexpr int kBlockRowsFit = Vec::kTileRows * Vec::kTileVecs / kBlockVecs;
constexpr int kBlockTileRows = kBlockRowsFit < Vec::kTileRows ? kBlockRowsFit : Vec::kTileRows;
constexpr int64_t kBlockMaxInFeatures = 65536;  // an index has 16 bits
// Sums are broken after so many entries. The dense kChain counts zeros, too: to be as exact at half
// of the weights, sums of what is kept have to be shorter.
constexpr int64_t kBlockChain = 96;

inline int64_t num_depth_blocks(int64_t in_features) {
  return ceil_div(in_features, block_depth(in_features));
}

// Where the parts of a packed layer lie, from the number of entries.
struct BlockLayout {
  int64_t lists, index_offset, value_offset, bytes;

  BlockLayout(int64_t out_features, int64_t in_features, int64_t entries)
      : lists(num_depth_blocks(in_features) * ceil_div(out_features, kBlockCols)),
        index_offset(round_up((lists + 1) * (int64_t)sizeof(int32_t), 64)),
        value_offset(round_up(index_offset + entries * (int64_t)sizeof(uint16_t), 64)),
        bytes(value_offset + entries * kBlockCols * (int64_t)sizeof(float)) {}
};

// Calls visit(list, input) for each entry, in the order of the layout.
template <typename Visit>
void for_each_entry(const float* weight, int64_t out_features, int64_t in_features, Visit visit) {
  const int64_t depth = block_depth(in_features);
  int64_t list = 0;
  for (int64_t k = 0; k < in_features; k += depth)
    for (int64_t col = 0; col < out_features; col += kBlockCols, ++list) {
      const int64_t cols = min_of(kBlockCols, out_features - col);
      bool used[kBlockDepth] = {};
      const int64_t block = min_of(depth, in_features - k);
      for (int64_t c = 0; c < cols; ++c)
        for (int64_t i = 0; i < block; ++i) used[i] |= weight[(col + c) * in_features + k + i] != 0;
      for (int64_t i = 0; i < block; ++i)
        if (used[i]) visit(list, k + i);
    }
}

size_t block_weight_bytes(const float* weight, int64_t out_features, int64_t in_features) {
  int64_t entries = 0;
  for_each_entry(weight, out_features, in_features, [&](int64_t, int64_t) { ++entries; });
  return (size_t)BlockLayout(out_features, in_features, entries).bytes;
}

void block_pack(void* packed, const float* weight, int64_t out_features, int64_t in_features) {
  auto* begin = (int32_t*)packed;
  const BlockLayout empty(out_features, in_features, 0);
  __builtin_memset(begin, 0, (size_t)empty.index_offset);
  for_each_entry(weight, out_features, in_features,
                 [&](int64_t list, int64_t) { ++begin[list + 1]; });
  for (int64_t list = 0; list < empty.lists; ++list) begin[list + 1] += begin[list];
  const BlockLayout layout(out_features, in_features, begin[empty.lists]);
  auto* index = (uint16_t*)((char*)packed + layout.index_offset);
  auto* values = (float*)((char*)packed + layout.value_offset);
  // What stood in this memory before must not go along into files.
  __builtin_memset(index, 0, (size_t)(layout.value_offset - layout.index_offset));
  const int64_t panels = ceil_div(out_features, kBlockCols);
  int64_t entry = 0;
  for_each_entry(weight, out_features, in_features, [&](int64_t list, int64_t input) {
    const int64_t col = list % panels * kBlockCols;
    index[entry] = (uint16_t)input;
    for (int64_t c = 0; c < kBlockCols; ++c)
      values[entry * kBlockCols + c] =
          col + c < out_features ? weight[(col + c) * in_features + input] : 0.0f;
    ++entry;
  });
}

// multiply_tile of tile.h with a list of inputs in the place of consecutive ones.
template <int kRows>
void multiply_block_rows(float* __restrict__ out, const float* __restrict__ a, int64_t a_stride,
                         const uint16_t* __restrict__ index, const float* __restrict__ values,
                         int64_t count, const Ahead& asked) {
  Ahead ahead = asked;
  for (int64_t begin = 0; begin == 0 || begin < count; begin += kBlockChain) {
    Vec::type acc[kRows][kBlockVecs];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < kBlockVecs; ++c) acc[r][c] = Vec::zero();
    const int64_t end = min_of(begin + kBlockChain, count);
    steps_with_lines<kRows, 1, kBlockCols>(begin, end, ahead, [&](int64_t i) MINIBERT_INLINE {
      const float* input = a + index[i];
      Vec::type b[kBlockVecs];
#pragma GCC unroll 4
      for (int c = 0; c < kBlockVecs; ++c) b[c] = Vec::load(values + c * Vec::kLanes);
      values += kBlockCols;
      __builtin_prefetch(ahead.address, 0, 2);
      ahead.address += ahead.step;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec::type x = Vec::broadcast(input[r * a_stride]);
#pragma GCC unroll 4
        for (int c = 0; c < kBlockVecs; ++c) acc[r][c] = Vec::fma(x, b[c], acc[r][c]);
      }
    });
    ahead.out = nullptr;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < kBlockVecs; ++c) {
        float* sum = out + r * kBlockCols + c * Vec::kLanes;
        Vec::store(sum, begin == 0 ? acc[r][c] : Vec::add(Vec::load(sum), acc[r][c]));
      }
  }
}

using MultiplyBlock = void (*)(float*, const float*, int64_t, const uint16_t*, const float*,
                               int64_t, const Ahead&);

inline MultiplyBlock multiply_block_for(int64_t rows) {
  return for_rows<kBlockTileRows>(
      rows, [](auto count) { return &multiply_block_rows<decltype(count)::value>; });
}

size_t block_scratch_bytes(int64_t) { return 0; }

void block_compute(const Linear& linear, const LinearCall& call, int64_t row_begin,
                   int64_t row_end, int64_t panel_begin, int64_t panel_end, void*) {
  const int64_t in_features = linear.in_features;
  const int64_t panels = ceil_div(linear.out_features, kBlockCols);
  const int64_t blocks = num_depth_blocks(in_features);
  const auto* begin = (const int32_t*)linear.packed;
  const BlockLayout layout(linear.out_features, in_features, begin[blocks * panels]);
  const auto* index = (const uint16_t*)((const char*)linear.packed + layout.index_offset);
  const auto* values = (const float*)((const char*)linear.packed + layout.value_offset);
  alignas(64) float sums[kBlockTileRows * kBlockCols];
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int32_t* list = begin + block * panels + panel;
      const int64_t first = list[0], count = list[1] - first;
      const int64_t next = panel + 1 < call.prefetch_end ? list[2] - list[1] : 0;
      PanelPrefetch prefetch(values + list[1] * kBlockCols,
                             next * kBlockCols * (int64_t)sizeof(float),
                             ceil_div(row_end - row_begin, kBlockTileRows));
      const int64_t col = panel * kBlockCols;
      for_each_tile(row_begin, row_end, kBlockTileRows, [&](int64_t row, int64_t rows) {
        multiply_block_for(rows)(
            sums, call.hidden + row * in_features, in_features, index + first,
            values + first * kBlockCols, count,
            prefetch.spread(count > 0 ? count : 1, linear, call, row, col));
        const Tile tile = {row, rows, col, min_of(kBlockCols, linear.out_features - col)};
        const float* partial = block > 0 ? call.out + row * linear.out_features + col : nullptr;
        const FloatSums tile_sums = {sums, kBlockCols, partial, linear.out_features};
        if (block + 1 == blocks)
          finish_tile(linear, call, tile, tile_sums);
        else
          keep_partial(linear, call, tile, tile_sums);
      });
    }
}

constexpr minibert::LinearKernel kBlockKernel = {"float32-block",
                                                 kBlockCols,
                                                 96,
                                                 kBlockMaxInFeatures,
                                                 block_weight_bytes,
                                                 block_pack,
                                                 1,
                                                 nullptr,
                                                 nullptr,
                                                 block_scratch_bytes,
                                                 block_compute};

}  // namespace
