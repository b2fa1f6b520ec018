// mmla_neon.h: the matrix instructions of aarch64, as `Mmla`, `Int8Product` and `BFloat16Product`,
// which pairs.h is written against. mmla_software.h offers the same names.
//
// An operand is 16 bytes: two rows, or two columns, with their next inputs (8 in int8, 4 in
// bfloat16) side by side. A product adds 2 x 2 sums of them to [row 0 x column 0, row 0 x column 1,
// row 1 x column 0, row 1 x column 1].
#pragma once

#include <arm_neon.h>
#include <stdint.h>

namespace {

struct Mmla {
  using Operand = uint8x16_t;
  static Operand load(const char* p) { return vld1q_u8((const uint8_t*)p); }
};

// usmmla (i8mm): uint8 rows, int8 columns, int32 sums.
struct Int8Product {
  using Value = int32_t;
  using type = int32x4_t;
  static type zero() { return vdupq_n_s32(0); }
  static type multiply(type sum, Mmla::Operand rows, Mmla::Operand cols) {
    return vusmmlaq_s32(sum, rows, vreinterpretq_s8_u8(cols));
  }
  // Four columns of both rows of two neighbouring sums.
  static type upper(type left, type right) {
    return vreinterpretq_s32_s64(
        vzip1q_s64(vreinterpretq_s64_s32(left), vreinterpretq_s64_s32(right)));
  }
  static type lower(type left, type right) {
    return vreinterpretq_s32_s64(
        vzip2q_s64(vreinterpretq_s64_s32(left), vreinterpretq_s64_s32(right)));
  }
  static void store(Value* p, type x) { vst1q_s32(p, x); }
  static void add_to(Value* p, type x) { vst1q_s32(p, vaddq_s32(vld1q_s32(p), x)); }
};

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// bfmmla (bf16): bfloat16 rows and columns, float32 sums.
struct BFloat16Product {
  using Value = float;
  using type = float32x4_t;
  static type zero() { return vdupq_n_f32(0.0f); }
  static type multiply(type sum, Mmla::Operand rows, Mmla::Operand cols) {
    return vbfmmlaq_f32(sum, vreinterpretq_bf16_u8(rows), vreinterpretq_bf16_u8(cols));
  }
  static type upper(type left, type right) {
    return vreinterpretq_f32_f64(
        vzip1q_f64(vreinterpretq_f64_f32(left), vreinterpretq_f64_f32(right)));
  }
  static type lower(type left, type right) {
    return vreinterpretq_f32_f64(
        vzip2q_f64(vreinterpretq_f64_f32(left), vreinterpretq_f64_f32(right)));
  }
  static void store(Value* p, type x) { vst1q_f32(p, x); }
  static void add_to(Value* p, type x) { vst1q_f32(p, vaddq_f32(vld1q_f32(p), x)); }
};
#endif

}  // namespace
