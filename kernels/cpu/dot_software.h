// dot_software.h: int8 products of any width as plain integers: the portable path, and the meaning
// of vpdpbusd (four products of uint8 and int8 added to an int32, without saturation) where the
// machine lacks it.
#pragma once

#include <stdint.h>
#include <string.h>

#include "quantize.h"

namespace {

template <int kWidth, int kRows>
struct SoftwareDot {
  struct type {
    int32_t lane[kWidth];
  };
  struct Quads {  // four bytes for each lane
    uint8_t byte[kWidth][4];
  };
  static constexpr int kLanes = kWidth;
  static constexpr int kTileRows = kRows;
  static constexpr int kSteps = 255;          // largest quantised activation
  static constexpr int kActivationShift = 0;  // what the instruction's operand is less than q

  static type multiple(const int32_t* values, int32_t factor) {
    type out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = values[i] * factor;
    return out;
  }
  static Quads broadcast(const uint8_t* group) {
    Quads out;
    for (int i = 0; i < kWidth; ++i) memcpy(out.byte[i], group, 4);
    return out;
  }
  static Quads load(const int8_t* weights) {
    Quads out;
    memcpy(&out, weights, sizeof out);
    return out;
  }
  static void multiply_add(type& sum, const Quads& activations, const Quads& weights) {
    for (int i = 0; i < kWidth; ++i)
      for (int g = 0; g < 4; ++g)
        sum.lane[i] += (int32_t)activations.byte[i][g] * (int32_t)(int8_t)weights.byte[i][g];
  }
  static void store(int32_t* p, const type& x) { memcpy(p, &x, sizeof x); }
  // acc (2 * kLanes) += steps times the weights of one input; TileExcess says what the last two are.
  static void add_excess(int32_t* acc, const int8_t* group, uint32_t one, int32_t steps) {
    ::add_excess<2 * kLanes>(acc, group, __builtin_ctz(one) / 8, (int16_t)steps);
  }
};

}  // namespace
