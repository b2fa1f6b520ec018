// words_software.h: the meaning of words_avx.h in loops, for any number of lanes.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

struct Words {
  struct type {
    int32_t lane[Vec::kLanes];
  };
  struct Pairs {
    int16_t word[2 * Vec::kLanes];
  };
  static type zero() { return {}; }
  static Pairs load(const int16_t* p) {
    Pairs out;
    memcpy(&out, p, sizeof out);
    return out;
  }
  static Pairs broadcast(const int16_t* pair) {
    Pairs out;
    for (int i = 0; i < 2 * Vec::kLanes; ++i) out.word[i] = pair[i % 2];
    return out;
  }
  static void multiply_add(type& sum, const Pairs& a, const Pairs& b) {
    for (int i = 0; i < Vec::kLanes; ++i)
      sum.lane[i] += a.word[2 * i] * b.word[2 * i] + a.word[2 * i + 1] * b.word[2 * i + 1];
  }
  static void store(int32_t* p, const type& x) { memcpy(p, &x, sizeof x); }
  // The low half of each lane's bits.
  static void store_low(int16_t* p, const Vec::type& x) {
    for (int i = 0; i < Vec::kLanes; ++i) p[i] = (int16_t)bits_of(x.lane[i]);
  }
  static Pairs low_pairs(const Vec::type& even, const Vec::type& odd) {
    Pairs out;
    for (int i = 0; i < Vec::kLanes; ++i) {
      out.word[2 * i] = (int16_t)bits_of(even.lane[i]);
      out.word[2 * i + 1] = (int16_t)bits_of(odd.lane[i]);
    }
    return out;
  }
  static void store_pairs(int16_t* p, const Pairs& x) { memcpy(p, &x, sizeof x); }
  static Pairs ones() {
    Pairs out;
    for (int16_t& word : out.word) word = 1;
    return out;
  }
  static Vec::type to_float(const type& x) {
    return Vec::each([&](int i) { return (float)x.lane[i]; });
  }
  // x times 2 to the power that the low bits of n hold.
  static Vec::type add_exponent(const Vec::type& x, const Vec::type& n) {
    return Vec::each([&](int i) {
      const uint32_t bits = bits_of(x.lane[i]) + (bits_of(n.lane[i]) << 23);
      float out;
      memcpy(&out, &bits, sizeof out);
      return out;
    });
  }
  // out[c][r] = in[r][c], pairs of words of 8 x 8; strides in pairs.
  static void transpose_pairs(int16_t* out, int64_t out_stride, const int16_t* in,
                              int64_t in_stride) {
    for (int c = 0; c < 8; ++c)
      for (int r = 0; r < 8; ++r)
        memcpy(out + 2 * (c * out_stride + r), in + 2 * (r * in_stride + c), 4);
  }

 private:
  static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
  }
};

}  // namespace
