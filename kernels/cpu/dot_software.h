// dot_software.h: int8 products of any width as plain integers: the portable path, and the meaning
// of vpdpbusd (four products of uint8 and int8 added to an int32, without saturation) where the
// machine lacks it.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

template <int kWidth, int kRows, int kVecs>
struct SoftwareDot {
  struct type {
    int32_t lane[kWidth];
  };
  struct Quads {  // four bytes for each lane
    uint8_t byte[kWidth][4];
  };
  using Activation = uint8_t;
  static constexpr int kLanes = kWidth;
  static constexpr int kGroup = 4;
  static constexpr int kTileRows = kRows;
  static constexpr int kTileVecs = kVecs;
  static constexpr int kActivationShift = 0;  // what the instruction's operand is less than q
  static constexpr size_t kWidenedBytes = 0;

  static type zero() {
    type out;
    memset(&out, 0, sizeof out);
    return out;
  }
  static Quads broadcast(const Activation* group) {
    Quads out;
    for (int i = 0; i < kWidth; ++i) memcpy(out.byte[i], group, 4);
    return out;
  }
  static const int8_t* widen(void*, const int8_t* packed, int64_t) { return packed; }
  static Quads load(const int8_t* weights) {
    Quads out;
    memcpy(&out, weights, sizeof out);
    return out;
  }
  static type multiply_add(type sum, const Quads& activations, const Quads& weights) {
    for (int i = 0; i < kWidth; ++i)
      for (int g = 0; g < 4; ++g)
        sum.lane[i] += (int32_t)activations.byte[i][g] * (int32_t)(int8_t)weights.byte[i][g];
    return sum;
  }
  static void store(int32_t* p, const type& x) { memcpy(p, &x, sizeof x); }
  static void store_activations(Activation* p, const Vec::type& x) { Vec::store_uint8(p, x); }
};

}  // namespace
