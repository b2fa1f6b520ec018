// attention_tiles.h: attention.h with its products on matrix units, in bfloat16 summed in float32.
//
// kParts and kProducts as in linear_tiles.h: one part each of queries, keys, exponentials and values
// for models of bfloat16 and int8, two parts and three products for float32 of precision "high".
// A bfloat16 keeps its relative precision however small it is, which exponentials need (docs/cpu.md).
// Groups are of 32 queries; blocks of keys are those of attention.h. Operands lie as in
// linear_tiles.h, padded with zeros:
//   queries, exponentials   [32 inputs][part][2 tiles of 16 rows x 32 inputs]
//   keys, values            [panel of 32 outputs][32 inputs][part][2 tiles of 16 pairs x 16 outputs]
// where the outputs of the first product are keys and those of the second are head_dim.
// Requires: as attention.h. Scratch is bounded by head_dim, whatever the length of the sequence.
#pragma once

#include "attention.h"
#include "linear_tiles.h"

namespace {

static_assert(kBlockKeys % kTileDepth == 0, "steps of keys must fill a block");

template <int kParts, int kProducts>
struct TileAttention {
  static constexpr int64_t kQueries = kTileBlock;
  static constexpr int64_t kPart = 2 * kTileElements;  // of two tiles
  static constexpr int64_t kStep = kParts * kPart;     // of 32 inputs
  static constexpr int64_t kHalf = kTileDepth / 2;
  static_assert(Vec::kLanes == kHalf, "two vectors are a row of a tile");
  // Of the base of the exponentials. One part takes powers of 2 by a polynomial off by 2.6e-6; two
  // parts need those of e.
  static constexpr float kLogBase = kParts == 1 ? kLn2 : 1.0f;

  int64_t head_dim, wide, depth_steps, key_steps = 0;
  float scale;     // of scores, to exponents
  float* scores;   // (kQueries, kBlockKeys)
  float* product;  // (kQueries, wide)
  uint16_t* keys_packed;
  uint16_t* values_packed;
  uint16_t* queries_packed;
  uint16_t* probs;  // times their sum
  size_t bytes;

  TileAttention(void* memory, int64_t dim, float softmax_scale)
      : head_dim(dim), wide(round_up(dim, kTileDepth)), depth_steps(wide / kTileDepth) {
    scale = softmax_scale / kLogBase;
    scores = (float*)memory;
    product = scores + kQueries * kBlockKeys;
    keys_packed = (uint16_t*)(product + kQueries * wide);
    values_packed = keys_packed + kParts * kBlockKeys * wide;
    queries_packed = values_packed + kParts * kBlockKeys * wide;
    probs = queries_packed + kParts * kQueries * wide;
    bytes = (size_t)((char*)(probs + kParts * kQueries * kBlockKeys) - (char*)memory);
  }

  void pack(const float* key, const float* value, int64_t stride, int64_t keys) {
    key_steps = ceil_div(keys, kTileDepth);
    for (int64_t j = 0; j < key_steps * kTileDepth; j += kHalf)
      for (int64_t step = 0; step < depth_steps; ++step) pack_keys(key, stride, keys, j, step);
    for (int64_t j = 0; j < key_steps * kTileDepth; j += 2)
      for (int64_t d = 0; d < wide; d += kHalf) {
        uint16_t* out = values_packed + (d / kTileDepth * key_steps + j / kTileDepth) * kStep +
                        d % kTileDepth / kHalf * kTileElements + j % kTileDepth / 2 * kTileDepth;
        Tiles::split_pairs<kParts>(out, kPart, half_row(value, stride, keys, j, d),
                                   half_row(value, stride, keys, j + 1, d));
      }
  }
  void score(const float* query, int64_t stride, int64_t queries, int64_t keys) {
    // What stands in the rows behind is multiplied as well, and not looked at.
    for (int64_t r = 0; r < queries; ++r)
      for (int64_t step = 0; step < depth_steps; ++step) {
        const int64_t d = step * kTileDepth;
        Tiles::split<kParts>(place(queries_packed, r, step), kPart,
                             half_row(query, stride, queries, r, d),
                             half_row(query, stride, queries, r, d + kHalf));
      }
    for (int64_t j = 0; j < keys; j += kTileCols)
      multiply(scores + j, kBlockKeys, queries_packed,
               keys_packed + j / kTileCols * depth_steps * kStep, depth_steps);
  }
  // scores -> powers of scale * score - maximum, in parts; maxima are exponents.
  float exponentiate(int64_t r, int64_t keys, Softmax& state) {
    float* row = scores + r * kBlockKeys;
    const int64_t padded = key_steps * kTileDepth;
    const Vec::type lowest = Vec::broadcast(-__builtin_inff());
    for (int64_t j = keys / Vec::kLanes * Vec::kLanes; j < padded; j += Vec::kLanes)
      Vec::store(row + j, keys > j ? Vec::keep_first(Vec::load(row + j), keys - j, lowest) : lowest);
    Vec::type most[2] = {lowest, lowest};
    for (int64_t j = 0; j < padded; j += 2 * Vec::kLanes)
      for (int i = 0; i < 2; ++i) most[i] = Vec::max(most[i], Vec::load(row + j + i * Vec::kLanes));
    const float largest = Vec::reduce_max(Vec::max(most[0], most[1])) * scale;
    const float before = state.maximum;
    if (largest > before) state.maximum = largest;
    const Vec::type factor = Vec::broadcast(scale), offset = Vec::broadcast(-state.maximum);
    Vec::type sum = Vec::zero();
    int64_t j = 0;
    for (; j + 2 * kTileDepth <= padded; j += 2 * kTileDepth)
      exponentiate_step<4>(r, row, j, factor, offset, sum);
    if (j < padded) exponentiate_step<2>(r, row, j, factor, offset, sum);
    return state.add(before, kLogBase, Vec::reduce_add(sum));
  }
  void weigh(int64_t, int64_t) {
    for (int64_t d = 0; d < wide; d += kTileCols)
      multiply(product + d, wide, probs, values_packed + d / kTileCols * key_steps * kStep,
               key_steps);
  }
  Vec::type context(int64_t r, int64_t d) const { return Vec::load(product + r * wide + d); }

 private:
  // Half a row of a tile, zeros where there is no row or column.
  Vec::type half_row(const float* rows, int64_t stride, int64_t count, int64_t r, int64_t d) const {
    return load_within(rows + r * stride, d, r < count ? head_dim : 0);
  }
  static uint16_t* place(uint16_t* rows, int64_t r, int64_t step) {
    return rows + step * kStep + r / 16 * kTileElements + r % 16 * kTileDepth;
  }
  // Keys j..j+15 of one step of head_dim: a tile, by transposing pairs.
  void pack_keys(const float* key, int64_t stride, int64_t keys, int64_t j, int64_t step) {
    alignas(64) uint16_t rows[kParts * kTileElements];
    for (int64_t i = 0; i < kHalf; ++i)
      Tiles::split<kParts>(rows + i * kTileDepth, kTileElements,
                           half_row(key, stride, keys, j + i, step * kTileDepth),
                           half_row(key, stride, keys, j + i, step * kTileDepth + kHalf));
    uint16_t* out = keys_packed + (j / kTileCols * depth_steps + step) * kStep +
                    j % kTileCols / kHalf * kTileElements;
    for (int part = 0; part < kParts; ++part)
      for (int64_t a = 0; a < 16; a += 8)
        for (int64_t b = 0; b < 16; b += 8)
          Words::transpose_pairs((int16_t*)out + part * kPart + (b * 16 + a) * 2, 16,
                                 (const int16_t*)rows + part * kTileElements + (a * 16 + b) * 2,
                                 16);
  }
  static void multiply(float* out, int64_t out_stride, const uint16_t* rows, const uint16_t* cols,
                       int64_t steps) {
    Tiles::clear();
    for (int64_t step = 0; step < steps; ++step)
      multiply_parts<kProducts>((const char*)(rows + step * kStep),
                                (const char*)(cols + step * kStep));
    Tiles::store(out, out_stride * (int64_t)sizeof(float));
  }
  // 2^x = 2^n * 2^f, |f| <= 1/2; below 2^-126 it is 0.
  template <int kCount>
  static void power_of_two(Vec::type (&x)[kCount]) {
    const Vec::type bits = Vec::broadcast(kWhole), lowest = Vec::broadcast(-126.0f);
    Vec::type f[kCount], n[kCount], p[kCount];
    MINIBERT_EACH f[i] = Vec::max(lowest, x[i]);
    MINIBERT_EACH n[i] = Vec::add(f[i], bits);
    MINIBERT_EACH f[i] = Vec::sub(f[i], Vec::sub(n[i], bits));
    polynomial(p, f, kPowerOfTwo);
    MINIBERT_EACH x[i] = Vec::zero_where_less(Words::add_exponent(p[i], n[i]), x[i], lowest);
  }
  template <int kCount>
  void exponentiate_step(int64_t r, const float* row, int64_t j, Vec::type factor,
                         Vec::type offset, Vec::type& sum) {
    Vec::type p[kCount];
    MINIBERT_EACH p[i] = Vec::fma(Vec::load(row + j + i * Vec::kLanes), factor, offset);
    if constexpr (kParts == 1)
      power_of_two(p);
    else
      exponential(p);
    MINIBERT_EACH sum = Vec::add(sum, p[i]);
#pragma GCC unroll 4
    for (int i = 0; i < kCount; i += 2)
      Tiles::split<kParts>(place(probs, r, j / kTileDepth + i / 2), kPart, p[i], p[i + 1]);
  }
};

template <int kParts, int kProducts>
size_t attention_tiles_scratch_bytes(int64_t head_dim) {
  return TileAttention<kParts, kProducts>(nullptr, head_dim, 1.0f).bytes;
}

template <int kParts, int kProducts>
void attention_head_tiles(const AttentionCall& call, int64_t begin, int64_t end, int64_t head,
                          void* memory) {
  TileAttention<kParts, kProducts> format(memory, call.head_dim, call.softmax_scale);
  const bool uses_tiles = !is_short(end - begin, call.head_dim);
  if (uses_tiles) Tiles::configure();
  attend(call, begin, end, head, format);
  if (uses_tiles) Tiles::release();
}

template <int kParts, int kProducts>
constexpr minibert::AttentionKernel kAttentionTiles = {
    attention_tiles_scratch_bytes<kParts, kProducts>, attention_head_tiles<kParts, kProducts>};

}  // namespace
