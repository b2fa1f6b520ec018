// tiles_vectors.h: what AVX-512 does with the operands and the sums of tiles. Needs AVX512_BF16,
// which every processor with AMX has; tiles_software.h offers the same names.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct TileVectors {
  // 32 activations to bfloat16: kParts rows of a tile, `stride` apart, each the rest of the one
  // before it rounded to nearest. Values below the normal range count as 0, as in the products.
  template <int kParts>
  static void split(uint16_t* out, int64_t stride, __m512 first, __m512 second) {
    for (int part = 0;; ++part, out += stride) {
      const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(second, first);
      _mm512_storeu_si512(out, rounded);
      if (part + 1 == kParts) return;
      first = _mm512_sub_ps(first, widened(_mm512_castsi512_si256(rounded)));
      second = _mm512_sub_ps(second, widened(_mm512_extracti64x4_epi64(rounded, 1)));
    }
  }
  // The same for pairs: (first[i], second[i]) beside one another.
  template <int kParts>
  static void split_pairs(uint16_t* out, int64_t stride, __m512 first, __m512 second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                           8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int part = 0;; ++part, out += stride) {
      const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(second, first);
      _mm512_storeu_si512(out, _mm512_permutexvar_epi16(order, rounded));
      if (part + 1 == kParts) return;
      first = _mm512_sub_ps(first, widened(_mm512_castsi512_si256(rounded)));
      second = _mm512_sub_ps(second, widened(_mm512_extracti64x4_epi64(rounded, 1)));
    }
  }
  // values - factor * multiples, 16 of them.
  static __m512 less_multiple(const int32_t* values, const int32_t* multiples, int32_t factor) {
    const __m512i product =
        _mm512_mullo_epi32(_mm512_loadu_si512(multiples), _mm512_set1_epi32(factor));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_load_si512(values), product));
  }
  // 16 sums += steps times the weights of one input, whose byte of a group holds the one of `one`.
  static void add_excess(int32_t* sums, const int8_t* groups, uint32_t one, int16_t steps) {
    const __m512i picked =
        _mm512_maddubs_epi16(_mm512_set1_epi32((int32_t)one), _mm512_loadu_si512(groups));
    const __m512i product = _mm512_madd_epi16(picked, _mm512_set1_epi16(steps));
    _mm512_store_si512(sums, _mm512_add_epi32(_mm512_load_si512(sums), product));
  }

 private:
  static __m512 widened(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
  }
};

}  // namespace
