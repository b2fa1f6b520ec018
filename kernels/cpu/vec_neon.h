// vec_neon.h: four float32 lanes of NEON on aarch64, as `Vec`. There, fused multiply-add is part of
// the base instruction set.
#pragma once

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

namespace {

struct Vec {
  using type = float32x4_t;
  static constexpr int kLanes = 4;
  // 6 x 4 accumulators, 4 weights and 1 activation use 29 of the 32 registers.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVecs = 4;

  static type zero() { return vdupq_n_f32(0.0f); }
  static type broadcast(float x) { return vdupq_n_f32(x); }
  static type load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, type x) { vst1q_f32(p, x); }
  static type load_partial(const float* p, int64_t n) {
    float lanes[4] = {};
    memcpy(lanes, p, (size_t)n * sizeof(float));
    return vld1q_f32(lanes);
  }
  static void store_partial(float* p, type x, int64_t n) {
    float lanes[4];
    vst1q_f32(lanes, x);
    memcpy(p, lanes, (size_t)n * sizeof(float));
  }
  static type keep_first(type x, int64_t n, type fill) {
    const int32_t index[4] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_s32(vld1q_s32(index), vdupq_n_s32((int32_t)n)), x, fill);
  }
  static type add(type a, type b) { return vaddq_f32(a, b); }
  static type sub(type a, type b) { return vsubq_f32(a, b); }
  static type mul(type a, type b) { return vmulq_f32(a, b); }
  static type div(type a, type b) { return vdivq_f32(a, b); }
  static type fma(type a, type b, type c) { return vfmaq_f32(c, a, b); }
  // By comparison, to treat a NaN as x86 does: the second operand is the result.
  static type max(type a, type b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static type min(type a, type b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static type abs(type x) { return vabsq_f32(x); }
  static type copy_sign(type magnitude, type sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
  }
  static type round(type x) { return vrndnq_f32(x); }
  static type scale_by_power(type x, type n) {
    return vreinterpretq_f32_s32(
        vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
  }
  static type zero_where_less(type x, type a, type b) {
    return vbslq_f32(vcltq_f32(a, b), zero(), x);
  }
  static type select_less(type x, type y, type a, type b) {
    return vbslq_f32(vcltq_f32(x, y), a, b);
  }
  static uint32_t exceed(type x, type limit) {
    const uint32_t bit[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vcgtq_f32(vabsq_f32(x), limit), vld1q_u32(bit)));
  }
  // Halves are folded onto each other, as on x86.
  static float reduce_add(type x) {
    const float32x2_t two = vadd_f32(vget_low_f32(x), vget_high_f32(x));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static float reduce_max(type x) { return vmaxvq_f32(x); }
  static float reduce_min(type x) { return vminvq_f32(x); }
  static type load_bfloat16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  static type load_float16(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
  }
  static void store_lowest_byte(uint8_t* p, type x) {
    const uint16x4_t wide = vmovn_u32(vreinterpretq_u32_f32(x));
    const uint8x8_t narrow = vmovn_u16(vcombine_u16(wide, wide));
    vst1_lane_u32((uint32_t*)p, vreinterpret_u32_u8(narrow), 0);
  }
  static type load_int32(const int32_t* p) { return vcvtq_f32_s32(vld1q_s32(p)); }
  static void transpose(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
    for (int r = 0; r < 8; r += 4)
      for (int c = 0; c < 8; c += 4)
        transpose_4x4(out + c * out_stride + r, out_stride, in + r * in_stride + c, in_stride);
  }

 private:
  static void transpose_4x4(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
    const type a = vld1q_f32(in), b = vld1q_f32(in + in_stride);
    const type c = vld1q_f32(in + 2 * in_stride), d = vld1q_f32(in + 3 * in_stride);
    const float64x2_t ab_low = vreinterpretq_f64_f32(vzip1q_f32(a, b));
    const float64x2_t ab_high = vreinterpretq_f64_f32(vzip2q_f32(a, b));
    const float64x2_t cd_low = vreinterpretq_f64_f32(vzip1q_f32(c, d));
    const float64x2_t cd_high = vreinterpretq_f64_f32(vzip2q_f32(c, d));
    vst1q_f32(out, vreinterpretq_f32_f64(vzip1q_f64(ab_low, cd_low)));
    vst1q_f32(out + out_stride, vreinterpretq_f32_f64(vzip2q_f64(ab_low, cd_low)));
    vst1q_f32(out + 2 * out_stride, vreinterpretq_f32_f64(vzip1q_f64(ab_high, cd_high)));
    vst1q_f32(out + 3 * out_stride, vreinterpretq_f32_f64(vzip2q_f64(ab_high, cd_high)));
  }
};

}  // namespace
