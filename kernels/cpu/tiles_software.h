// tiles_software.h: what the tile instructions of AMX compute, as loops, for machines without them.
//
// From the operation sections of TDPBF16PS and TDPBUSD in Intel's Software Developer's Manual,
// volume 2. bfloat16: the even and the odd products of a row are summed apart, each step one fused
// multiply-add, then added together, then to the destination; inputs and results below the normal
// range count as 0; rounding is to nearest, ties to even. int8: exact.
#pragma once

#include <stdint.h>
#include <string.h>

#include "bfloat16.h"

namespace {

struct Tiles {
  static constexpr int64_t kTileBytes = 1024;

  static void configure() { memset(&state(), 0, sizeof(State)); }
  static void release() {}
  static void clear() { memset(state().sums, 0, sizeof state().sums); }
  static void load_rows(const void* p) { memcpy(state().rows, p, 2 * kTileBytes); }
  static void load_cols(const void* p) { memcpy(state().cols, p, 2 * kTileBytes); }

  static void multiply_bfloat16() {
    State& s = state();
    for (int tile = 0; tile < 4; ++tile) {
      const uint16_t* rows = s.rows + tile / 2 * 512;
      const uint16_t* cols = s.cols + tile % 2 * 512;
      for (int m = 0; m < 16; ++m) {
        float even[16] = {}, odd[16] = {};
        for (int k = 0; k < 16; ++k) {
          const float first = widen(rows[m * 32 + 2 * k]), second = widen(rows[m * 32 + 2 * k + 1]);
          for (int n = 0; n < 16; ++n) {
            even[n] = flush(__builtin_fmaf(first, widen(cols[k * 32 + 2 * n]), even[n]));
            odd[n] = flush(__builtin_fmaf(second, widen(cols[k * 32 + 2 * n + 1]), odd[n]));
          }
        }
        for (int n = 0; n < 16; ++n) {
          float sum;
          uint32_t* bits = s.sums[tile] + m * 16 + n;
          memcpy(&sum, bits, sizeof sum);
          sum = flush(flush(sum) + flush(even[n] + odd[n]));
          memcpy(bits, &sum, sizeof sum);
        }
      }
    }
  }

  static void multiply_int8() {
    State& s = state();
    for (int tile = 0; tile < 4; ++tile) {
      const auto* rows = (const uint8_t*)(s.rows + tile / 2 * 512);
      const auto* cols = (const int8_t*)(s.cols + tile % 2 * 512);
      for (int m = 0; m < 16; ++m)
        for (int k = 0; k < 16; ++k)
          for (int n = 0; n < 16; ++n)
            for (int i = 0; i < 4; ++i)
              s.sums[tile][m * 16 + n] += (uint32_t)((int32_t)rows[m * 64 + 4 * k + i] *
                                                     (int32_t)cols[k * 64 + 4 * n + i]);
    }
  }

  static void store(void* out, int64_t stride) {
    for (int tile = 0; tile < 4; ++tile)
      for (int m = 0; m < 16; ++m)
        memcpy((char*)out + (tile / 2 * 16 + m) * stride + tile % 2 * 64,
               state().sums[tile] + m * 16, 64);
  }

  template <int kParts>
  static void split(uint16_t* out, int64_t stride, const Vec::type& first,
                    const Vec::type& second) {
    for (int i = 0; i < 2 * Vec::kLanes; ++i) {
      float rest = i < Vec::kLanes ? first.lane[i] : second.lane[i - Vec::kLanes];
      for (int part = 0; part < kParts; ++part) {
        out[part * stride + i] = to_bfloat16(flush(rest));
        rest -= from_bfloat16(out[part * stride + i]);
      }
    }
  }
  template <int kParts>
  static void split_pairs(uint16_t* out, int64_t stride, const Vec::type& first,
                          const Vec::type& second) {
    uint16_t beside[kParts * 2 * Vec::kLanes];
    split<kParts>(beside, 2 * Vec::kLanes, first, second);
    for (int part = 0; part < kParts; ++part)
      for (int i = 0; i < 2 * Vec::kLanes; ++i)
        out[part * stride + i] =
            beside[part * 2 * Vec::kLanes + i % 2 * Vec::kLanes + i / 2];
  }
  static Vec::type less_multiple(const int32_t* values, const int32_t* multiples, int32_t factor) {
    Vec::type out;
    for (int i = 0; i < Vec::kLanes; ++i) out.lane[i] = (float)(values[i] - factor * multiples[i]);
    return out;
  }
  static void add_excess(int32_t* sums, const int8_t* groups, uint32_t one, int16_t steps) {
    const int position = __builtin_ctz(one) / 8;
    for (int i = 0; i < 16; ++i) sums[i] += steps * groups[4 * i + position];
  }

 private:
  struct State {
    uint32_t sums[4][256];
    uint16_t rows[1024];
    uint16_t cols[1024];
  };
  static State& state() {
    static thread_local State s;
    return s;
  }
  static float flush(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
  }
  static float widen(uint16_t value) {
    const uint32_t bits = (uint32_t)value << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return flush(x);
  }
};

}  // namespace
