// quantize.h: rows of activations to 8 bits, each with its own scale and zero point, and rows of
// weights to int8 with a scale per output feature.
//
// activation = act_scale * (q - zero_point), q in 0..255, zero_point a whole number in 0..255, so
// that 0 stays 0 and the correction for the zero point is an exact integer. All 256 steps cover the
// row's own range, which after GELU is far from symmetric.
// Every step is one float32 operation with a fixed order: equal bytes on every path.
#pragma once

#include "layer_norm.h"

namespace {

struct RowScale {
  float act_scale;
  int32_t zero_point;
};

struct RowQuantizer {
  float steps_per_unit;
  float zero_point;
  RowScale scale;
};

inline RowQuantizer row_quantizer(const float* row, int64_t size) {
  Vec::type low = Vec::zero(), high = Vec::zero(), poison = Vec::zero();
  for (int64_t c = 0; c < size; c += Vec::kLanes) {
    const Vec::type x = load_up_to(row + c, min_of(Vec::kLanes, size - c));
    low = Vec::min(low, x);
    high = Vec::max(high, x);
    poison = Vec::fma(x, Vec::zero(), poison);  // becomes NaN where x is NaN or infinite
  }
  const float lowest = Vec::reduce_min(low), range = Vec::reduce_max(high) - lowest;
  const float bad = Vec::reduce_add(poison);
  if (bad != 0.0f || !(range < 3.0e38f)) return {0.0f, 0.0f, {__builtin_nanf(""), 0}};
  if (range < 1e-30f) return {0.0f, 0.0f, {0.0f, 0}};  // all but zeros
  const float steps_per_unit = 255.0f / range;
  const float zero_point = __builtin_rintf(-lowest * steps_per_unit);
  return {steps_per_unit, zero_point, {range / 255.0f, (int32_t)zero_point}};
}

// q of one vector, as whole numbers in float.
inline Vec::type quantize(Vec::type x, const RowQuantizer& row) {
  const Vec::type steps = Vec::round(Vec::mul(x, Vec::broadcast(row.steps_per_unit)));
  const Vec::type shifted = Vec::add(steps, Vec::broadcast(row.zero_point));
  return Vec::max(Vec::zero(), Vec::min(Vec::broadcast(255.0f), shifted));
}

// weight = weight_scale * q, q in -127..127: calls store(k, q), returns weight_scale; `sum` gets the
// sum of q.
template <typename Store>
inline float quantize_weight_row(const float* weight, int64_t size, int32_t* sum, Store store) {
  float largest = 0.0f;
  for (int64_t k = 0; k < size; ++k) {
    const float magnitude = __builtin_fabsf(weight[k]);
    largest = magnitude > largest ? magnitude : largest;
  }
  const float steps_per_unit = largest > 1e-30f ? 127.0f / largest : 0.0f;
  int32_t total = 0;
  for (int64_t k = 0; k < size; ++k) {
    const int32_t step = (int32_t)__builtin_rintf(weight[k] * steps_per_unit);
    store(k, (int8_t)step);
    total += step;
  }
  *sum = total;
  return largest / 127.0f;
}

// Exact sums of a tile of kCols outputs, of activations less kShift, to float32.
template <int64_t kCols, int kShift>
inline void dequantize_tile(float* out, const int32_t* acc, int64_t rows, const RowScale* scales,
                            const float* weight_scale, const int32_t* weight_sum) {
  for (int64_t r = 0; r < rows; ++r) {
    int32_t exact[kCols];
    for (int64_t c = 0; c < kCols; ++c)
      exact[c] = acc[r * kCols + c] - (scales[r].zero_point - kShift) * weight_sum[c];
    const Vec::type act_scale = Vec::broadcast(scales[r].act_scale);
    for (int64_t c = 0; c < kCols; c += Vec::kLanes)
      Vec::store(out + r * kCols + c, Vec::mul(Vec::load_int32(exact + c),
                                               Vec::mul(act_scale, Vec::load(weight_scale + c))));
  }
}

}  // namespace
