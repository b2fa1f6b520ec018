// vec_software.h: a vector of any width as a plain array, each operation what the instruction does
// in one lane. With it a machine runs, and tests, the indexing and the rounding of paths whose
// instructions it lacks; with 4 lanes it is also the portable path.
//
// kFusedMultiply: fma rounds once, like the instruction sets that have it. Without it the product
// is rounded first; the choice is part of a path's meaning and never left to the compiler
// (-ffp-contract=off).
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

template <int kWidth, int kRows, int kVecs, bool kFusedMultiply>
struct SoftwareVec {
  struct type {
    float lane[kWidth];
  };
  static constexpr int kLanes = kWidth;
  static constexpr int kTileRows = kRows;
  static constexpr int kTileVecs = kVecs;

  template <typename Function>
  static type each(Function function) {
    type out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = function(i);
    return out;
  }
  static type zero() { return broadcast(0.0f); }
  static type broadcast(float x) {
    return each([&](int) { return x; });
  }
  static type load(const float* p) {
    type out;
    memcpy(&out, p, sizeof out);
    return out;
  }
  static void store(float* p, const type& x) { memcpy(p, &x, sizeof x); }
  static type load_partial(const float* p, int64_t n) {
    return each([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static void store_partial(float* p, const type& x, int64_t n) {
    for (int i = 0; i < n; ++i) p[i] = x.lane[i];
  }
  static type keep_first(const type& x, int64_t n, const type& fill) {
    return each([&](int i) { return i < n ? x.lane[i] : fill.lane[i]; });
  }
  static type add(const type& a, const type& b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static type sub(const type& a, const type& b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static type mul(const type& a, const type& b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static type div(const type& a, const type& b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static type fma(const type& a, const type& b, const type& c) {
    return each([&](int i) {
      return kFusedMultiply ? __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i])
                            : a.lane[i] * b.lane[i] + c.lane[i];
    });
  }
  // The second operand where either is not a number, as on x86.
  static type max(const type& a, const type& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static type min(const type& a, const type& b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static type abs(const type& x) {
    return each([&](int i) { return __builtin_fabsf(x.lane[i]); });
  }
  static type copy_sign(const type& magnitude, const type& sign) {
    return each([&](int i) { return __builtin_copysignf(magnitude.lane[i], sign.lane[i]); });
  }
  // To nearest, ties to even, by the unit in the last place of 1.5 * 2^23: |x| < 2^22.
  static type round(const type& x) {
    const float shift = 12582912.0f;
    return each([&](int i) { return (x.lane[i] + shift) - shift; });
  }
  static type scale_by_power(const type& x, const type& n) {
    return each([&](int i) {
      uint32_t bits;
      memcpy(&bits, &x.lane[i], sizeof bits);
      // A NaN has no integer value; it must stay a NaN without undefined behaviour.
      const bool number = n.lane[i] == n.lane[i];
      bits += number ? (uint32_t)(int32_t)n.lane[i] << 23 : 0u;
      float out;
      memcpy(&out, &bits, sizeof out);
      return out;
    });
  }
  static type zero_where_less(const type& x, const type& a, const type& b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? 0.0f : x.lane[i]; });
  }
  static type select_less(const type& x, const type& y, const type& a, const type& b) {
    return each([&](int i) { return x.lane[i] < y.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static type lookup(const float (&table)[16], const type& places) {
    return each([&](int i) {
      uint32_t bits;
      memcpy(&bits, &places.lane[i], sizeof bits);
      return table[bits & 15];
    });
  }
  static uint32_t exceed(const type& x, const type& limit) {
    uint32_t bits = 0;
    for (int i = 0; i < kWidth; ++i)
      bits |= (uint32_t)(__builtin_fabsf(x.lane[i]) > limit.lane[i]) << i;
    return bits;
  }
  // Halves are folded onto each other, the order of the vector instruction sets.
  static float reduce_add(type x) {
    for (int half = kWidth / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) x.lane[i] += x.lane[i + half];
    return x.lane[0];
  }
  static float reduce_max(type x) {
    for (int half = kWidth / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i)
        x.lane[i] = x.lane[i] > x.lane[i + half] ? x.lane[i] : x.lane[i + half];
    return x.lane[0];
  }
  static float reduce_min(type x) {
    for (int half = kWidth / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i)
        x.lane[i] = x.lane[i] < x.lane[i + half] ? x.lane[i] : x.lane[i + half];
    return x.lane[0];
  }
  static type load_bfloat16(const uint16_t* p) {
    return each([&](int i) {
      const uint32_t bits = (uint32_t)p[i] << 16;
      float out;
      memcpy(&out, &bits, sizeof out);
      return out;
    });
  }
  static type load_float16(const uint16_t* p) {
    return each([&](int i) { return widen_float16(p[i]); });
  }
  static void store_lowest_byte(uint8_t* p, const type& x) {
    for (int i = 0; i < kWidth; ++i) {
      uint32_t bits;
      __builtin_memcpy(&bits, &x.lane[i], sizeof bits);
      p[i] = (uint8_t)bits;
    }
  }
  static type load_int32(const int32_t* p) {
    return each([&](int i) { return (float)p[i]; });
  }
  static void transpose(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
    for (int c = 0; c < 8; ++c)
      for (int r = 0; r < 8; ++r) out[c * out_stride + r] = in[r * in_stride + c];
  }

 private:
  static float widen_float16(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t rest = half & 0x7fffu;
    float out;
    if (rest >= 0x7c00u) {  // infinity or NaN: the exponent becomes all ones
      const uint32_t bits = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);
      memcpy(&out, &bits, sizeof out);
      return out;
    }
    // Exponent and mantissa, read as float32, are 2^112 too small; the product is exact, and also
    // right for subnormal halves.
    const uint32_t bits = rest << 13;
    memcpy(&out, &bits, sizeof out);
    out *= 0x1p112f;
    return sign ? -out : out;
  }
};

}  // namespace
