// dot_avx2.h: int8 products on AVX2, exactly.
//
// vpmaddubsw adds two uint8 x int8 products into a saturating int16: 2 * 255 * 127 does not fit,
// 2 * 127 * 127 does. Activations on this path therefore have 127 steps and not 255; what is finer
// or larger than that is the row's excess (quantize.h). products_int8_chunks.h says how the int16
// sums are then added and widened.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace {

struct Dot {
  using type = __m256i;
  static constexpr int kLanes = 8;
  // 14 accumulators are more than the registers hold beside the rest: a few live in memory, for a
  // store and a load in 42 products. Fewer rows cost more, in loads of weights; measured.
  static constexpr int kTileRows = 7;
  static constexpr int kChunk = 3;  // groups whose int16 sums are added before they are widened
  static constexpr int kSteps = 127;          // largest quantised activation
  static constexpr int kActivationShift = 0;  // what the instruction's operand is less than q

  static type zero() { return _mm256_setzero_si256(); }
  static type multiple(const int32_t* values, int32_t factor) {
    return _mm256_mullo_epi32(_mm256_loadu_si256((const __m256i*)values),
                              _mm256_set1_epi32(factor));
  }
  static type broadcast(const uint8_t* group) {
    int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return _mm256_set1_epi32(bits);
  }
  static type load(const int8_t* weights) { return _mm256_loadu_si256((const __m256i*)weights); }
  static type pairs(type activations, type weights) {
    return _mm256_maddubs_epi16(activations, weights);
  }
  static type add_pairs(type a, type b) { return _mm256_add_epi16(a, b); }
  static void widen_add(type& sum, type pairs) {
    const type fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    // In place: left to itself, GCC 12 schedules the products far ahead of the sums and spills.
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(fours));
  }
  static void store(int32_t* p, type x) { _mm256_store_si256((__m256i*)p, x); }
  // acc (2 * kLanes) += steps times the weights of one input; TileExcess says what the last two are.
  static void add_excess(int32_t* acc, const int8_t* group, uint32_t one, int32_t steps) {
    for (int vec = 0; vec < 2; ++vec, acc += kLanes) {
      const type picked = pairs(_mm256_set1_epi32((int32_t)one), load(group + vec * kLanes * 4));
      const type product = _mm256_madd_epi16(picked, _mm256_set1_epi32(steps));
      store(acc, _mm256_add_epi32(_mm256_load_si256((const __m256i*)acc), product));
    }
  }

  // Sums of the two weights of each int16 that are positive; that are negative, without the sign.
  static type positive_pairs(type weights) {
    return pairs(_mm256_set1_epi8(1), _mm256_max_epi8(weights, zero()));
  }
  static type negative_pairs(type weights) {
    return positive_pairs(_mm256_sub_epi8(zero(), weights));
  }
  static bool none_above(type sums, int most) {
    return !_mm256_movemask_epi8(_mm256_cmpgt_epi16(sums, _mm256_set1_epi16((short)most)));
  }
};

}  // namespace
