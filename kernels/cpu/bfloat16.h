// bfloat16.h: rounding float32 to 16-bit formats, and splitting it into bfloat16 parts.
#pragma once

#include <stdint.h>

namespace {

// To nearest, ties to even; NaN stays NaN.
inline uint16_t to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (x != x) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_bfloat16(uint16_t value) {
  const uint32_t bits = (uint32_t)value << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// x = part[0] + part[1] + ..., each the rest rounded to bfloat16. The differences are exact; three
// parts hold all 24 bits. Infinity has no such sum: its rest is NaN.
template <int kParts>
inline void split_bfloat16(float x, uint16_t* parts) {
  for (int part = 0; part < kParts; ++part) {
    parts[part] = to_bfloat16(x);
    x -= from_bfloat16(parts[part]);
  }
}

inline uint16_t to_float16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // rounds past 65504: infinity
  if (bits < 0x38800000u) {  // below 2^-14: subnormal, in units of 2^-24
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, sizeof bits);
    const float shifted = magnitude + 0.5f;  // the last place of 0.5 is 2^-24: the addition rounds
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    return (uint16_t)(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}

}  // namespace
