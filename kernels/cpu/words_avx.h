// words_avx.h: 16-bit integers and their products in pairs, as `Words`: 512 bits with AVX-512 BW,
// else 256 bits. vpmaddwd adds two products to an int32; VNNI adds them to the sum as well.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Words {
#if defined(__AVX512BW__)
  using type = __m512i;
  using Pairs = __m512i;
  static type zero() { return _mm512_setzero_si512(); }
  static type load(const int16_t* p) { return _mm512_loadu_si512(p); }
  static type broadcast(const int16_t* pair) { return _mm512_set1_epi32(bits_of(pair)); }
  static void multiply_add(type& sum, type a, type b) {
#if defined(__AVX512VNNI__)
    sum = _mm512_dpwssd_epi32(sum, a, b);
#else
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
  }
  static void store(int32_t* p, type x) { _mm512_storeu_si512(p, x); }
  static void store_low(int16_t* p, Vec::type x) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_castps_si512(x)));
  }
  static Pairs low_pairs(Vec::type even, Vec::type odd) {
    const __m512i upper = _mm512_slli_epi32(_mm512_castps_si512(odd), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_castps_si512(even), upper);
  }
  static void store_pairs(int16_t* p, Pairs x) { _mm512_storeu_si512(p, x); }
  static Pairs ones() { return _mm512_set1_epi16(1); }
  static Vec::type to_float(type x) { return _mm512_cvtepi32_ps(x); }
  static Vec::type add_exponent(Vec::type x, Vec::type n) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
  }
#else
  using type = __m256i;
  using Pairs = __m256i;
  static type zero() { return _mm256_setzero_si256(); }
  static type load(const int16_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static type broadcast(const int16_t* pair) { return _mm256_set1_epi32(bits_of(pair)); }
  static void multiply_add(type& sum, type a, type b) {
#if defined(__AVXVNNI__)
    sum = _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
  }
  static void store(int32_t* p, type x) { _mm256_storeu_si256((__m256i*)p, x); }
  static void store_low(int16_t* p, Vec::type x) {
    // Sign-extended first: packing saturates.
    const __m256i low = _mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(x), 16), 16);
    const __m256i packed = _mm256_packs_epi32(low, low);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
  }
  static Pairs low_pairs(Vec::type even, Vec::type odd) {
    const __m256i upper = _mm256_slli_epi32(_mm256_castps_si256(odd), 16);
    return _mm256_blend_epi16(_mm256_castps_si256(even), upper, 0xaa);
  }
  static void store_pairs(int16_t* p, Pairs x) { _mm256_storeu_si256((__m256i*)p, x); }
  static Pairs ones() { return _mm256_set1_epi16(1); }
  static Vec::type to_float(type x) { return _mm256_cvtepi32_ps(x); }
  static Vec::type add_exponent(Vec::type x, Vec::type n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
  }
#endif
  static void transpose_pairs(int16_t* out, int64_t out_stride, const int16_t* in,
                              int64_t in_stride) {
    transpose_8x8((float*)out, out_stride, (const float*)in, in_stride);
  }

 private:
  static int32_t bits_of(const int16_t* pair) {
    int32_t bits;
    __builtin_memcpy(&bits, pair, sizeof bits);
    return bits;
  }
};

}  // namespace
