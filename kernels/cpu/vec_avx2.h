// vec_avx2.h: eight float32 lanes with AVX2 and FMA, as the struct `Vec` that all kernels are
// written against. vec_avx512.h, vec_neon.h and vec_software.h offer the same names.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "transpose_avx.h"

namespace {

struct Vec {
  using type = __m256;
  static constexpr int kLanes = 8;
  // 6 x 2 accumulators, 2 weights and 1 activation use 15 of the 16 registers; 12 independent
  // chains are more than the 8 that two units of latency 4 need.
  static constexpr int kTileRows = 6;
  static constexpr int kTileVecs = 2;

  static type zero() { return _mm256_setzero_ps(); }
  static type broadcast(float x) { return _mm256_set1_ps(x); }
  static type load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, type x) { _mm256_storeu_ps(p, x); }
  static type load_partial(const float* p, int64_t n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store_partial(float* p, type x, int64_t n) { _mm256_maskstore_ps(p, mask(n), x); }
  // Lanes n and above become `fill`.
  static type keep_first(type x, int64_t n, type fill) {
    return _mm256_blendv_ps(fill, x, _mm256_castsi256_ps(mask(n)));
  }
  static type add(type a, type b) { return _mm256_add_ps(a, b); }
  static type sub(type a, type b) { return _mm256_sub_ps(a, b); }
  static type mul(type a, type b) { return _mm256_mul_ps(a, b); }
  static type div(type a, type b) { return _mm256_div_ps(a, b); }
  static type fma(type a, type b, type c) { return _mm256_fmadd_ps(a, b, c); }
  // The second operand where either is not a number: the data, where that must stay seen.
  static type max(type a, type b) { return _mm256_max_ps(a, b); }
  static type min(type a, type b) { return _mm256_min_ps(a, b); }
  static type abs(type x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static type copy_sign(type magnitude, type sign) {
    return _mm256_or_ps(magnitude, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
  }
  static type round(type x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // x * 2^n, n a whole number for which x * 2^n is normal.
  static type scale_by_power(type x, type n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x),
                                                _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
  }
  // x where a >= b or either is not a number, else 0.
  static type zero_where_less(type x, type a, type b) {
    return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_NLT_UQ));
  }
  // a where x < y, else b.
  static type select_less(type x, type y, type a, type b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
  }
  // Bit i: the magnitude of x exceeds that of a positive limit in lane i.
  static uint32_t exceed(type x, type limit) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(abs(x), limit, _CMP_GT_OQ));
  }
  static float reduce_add(type x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float reduce_max(type x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float reduce_min(type x) {
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static type load_bfloat16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static type load_float16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
  // The lowest eight of each lane's bits.
  static void store_lowest_byte(uint8_t* p, type x) {
    const __m256i lowest = _mm256_setr_epi8(
        0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
        -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_castps_si256(x), lowest);
    _mm_storel_epi64((__m128i*)p, _mm_or_si128(_mm256_castsi256_si128(bytes),
                                               _mm256_extracti128_si256(bytes, 1)));
  }
  static type load_int32(const int32_t* p) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)p));
  }
  static void transpose(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
    transpose_8x8(out, out_stride, in, in_stride);
  }

 private:
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace
