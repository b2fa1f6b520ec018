// dot_neon.h: int8 products on aarch64: sdot (dotprod), on activations less 128, or widening
// multiplies without it. mmla_neon.h has the matrix instruction.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "quantize.h"

namespace {

struct Dot {
  using type = int32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 8;
  static constexpr int kSteps = 255;  // largest quantised activation

  static type multiple(const int32_t* values, int32_t factor) {
    return vmulq_n_s32(vld1q_s32(values), factor);
  }
#if defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kActivationShift = 128;
#else
  static constexpr int kActivationShift = 0;
#endif
  static uint8x16_t broadcast(const uint8_t* group) {
    uint32_t bits;
    memcpy(&bits, group, sizeof bits);
    const uint8x16_t four_times = vreinterpretq_u8_u32(vdupq_n_u32(bits));
    // Flipping the top bit of a uint8 gives, read as int8, the number less 128.
    return kActivationShift ? veorq_u8(four_times, vdupq_n_u8(128)) : four_times;
  }
  static int8x16_t load(const int8_t* weights) { return vld1q_s8(weights); }
  static void multiply_add(type& sum, uint8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_DOTPROD)
    sum = vdotq_s32(sum, vreinterpretq_s8_u8(a), b);
#else
    const int16x8_t a_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(a)));
    const int16x8_t a_high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(a)));
    const int16x8_t b_low = vmovl_s8(vget_low_s8(b)), b_high = vmovl_s8(vget_high_s8(b));
    const int32x4_t first = vpaddq_s32(vmull_s16(vget_low_s16(a_low), vget_low_s16(b_low)),
                                       vmull_high_s16(a_low, b_low));
    const int32x4_t second = vpaddq_s32(vmull_s16(vget_low_s16(a_high), vget_low_s16(b_high)),
                                        vmull_high_s16(a_high, b_high));
    sum = vaddq_s32(sum, vpaddq_s32(first, second));
#endif
  }
  static void store(int32_t* p, type x) { vst1q_s32(p, x); }
  // acc (2 * kLanes) += steps times the weights of one input; TileExcess says what the last two are.
  static void add_excess(int32_t* acc, const int8_t* group, uint32_t one, int32_t steps) {
    ::add_excess<2 * kLanes>(acc, group, __builtin_ctz(one) / 8, (int16_t)steps);
  }
};

}  // namespace
