// vec_avx512.h: sixteen float32 lanes with AVX-512 F, BW, VL and DQ, as `Vec`.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "transpose_avx.h"

namespace {

struct Vec {
  using type = __m512;
  static constexpr int kLanes = 16;
  // 12 x 2 accumulators, 2 weights and 1 activation use 27 of the 32 registers; 14 loads for 24
  // multiply-adds leave both load ports time to spare.
  static constexpr int kTileRows = 12;
  static constexpr int kTileVecs = 2;

  static type zero() { return _mm512_setzero_ps(); }
  static type broadcast(float x) { return _mm512_set1_ps(x); }
  static type load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, type x) { _mm512_storeu_ps(p, x); }
  static type load_partial(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store_partial(float* p, type x, int64_t n) { _mm512_mask_storeu_ps(p, mask(n), x); }
  static type keep_first(type x, int64_t n, type fill) {
    return _mm512_mask_blend_ps(mask(n), fill, x);
  }
  static type add(type a, type b) { return _mm512_add_ps(a, b); }
  static type sub(type a, type b) { return _mm512_sub_ps(a, b); }
  static type mul(type a, type b) { return _mm512_mul_ps(a, b); }
  static type div(type a, type b) { return _mm512_div_ps(a, b); }
  static type fma(type a, type b, type c) { return _mm512_fmadd_ps(a, b, c); }
  static type max(type a, type b) { return _mm512_max_ps(a, b); }
  static type min(type a, type b) { return _mm512_min_ps(a, b); }
  static type abs(type x) { return _mm512_abs_ps(x); }
  static type copy_sign(type magnitude, type sign) {
    const type bit = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign));
  }
  static type round(type x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static type scale_by_power(type x, type n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x),
                                                _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
  }
  static type zero_where_less(type x, type a, type b) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x);
  }
  static type select_less(type x, type y, type a, type b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
  }
  // table[the last four bits of each lane].
  static type lookup(const float (&table)[16], type places) {
    return _mm512_permutexvar_ps(_mm512_castps_si512(places), _mm512_loadu_ps(table));
  }
  static uint32_t exceed(type x, type limit) {
    return _mm512_cmp_ps_mask(abs(x), limit, _CMP_GT_OQ);
  }
  static float reduce_add(type x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float reduce_max(type x) { return _mm512_reduce_max_ps(x); }
  static float reduce_min(type x) { return _mm512_reduce_min_ps(x); }
  static type load_bfloat16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static type load_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  }
  static void store_lowest_byte(uint8_t* p, type x) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_castps_si512(x)));
  }
  static type load_int32(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
  static void transpose(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
    transpose_8x8(out, out_stride, in, in_stride);
  }

 private:
  static __mmask16 mask(int64_t n) { return (__mmask16)((1u << n) - 1u); }
};

}  // namespace
