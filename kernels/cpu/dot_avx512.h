// dot_avx512.h: int8 products on AVX-512 without VNNI: dot_avx2.h at twice the width.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace {

struct Dot {
  using type = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 12;
  static constexpr int kChunk = 3;
  static constexpr int kSteps = 127;          // largest quantised activation
  static constexpr int kActivationShift = 0;  // what the instruction's operand is less than q

  static type zero() { return _mm512_setzero_si512(); }
  static type multiple(const int32_t* values, int32_t factor) {
    return _mm512_mullo_epi32(_mm512_loadu_si512(values), _mm512_set1_epi32(factor));
  }
  static type broadcast(const uint8_t* group) {
    int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return _mm512_set1_epi32(bits);
  }
  static type load(const int8_t* weights) { return _mm512_loadu_si512(weights); }
  static type pairs(type activations, type weights) {
    return _mm512_maddubs_epi16(activations, weights);
  }
  static type add_pairs(type a, type b) { return _mm512_add_epi16(a, b); }
  static void widen_add(type& sum, type pairs) {
    const type fours = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
    __asm__("vpaddd %1, %0, %0" : "+v"(sum) : "v"(fours));  // in place, as in dot_avx2.h
  }
  static void store(int32_t* p, type x) { _mm512_store_si512(p, x); }
  // acc (2 * kLanes) += steps times the weights of one input; TileExcess says what the last two are.
  static void add_excess(int32_t* acc, const int8_t* group, uint32_t one, int32_t steps) {
    for (int vec = 0; vec < 2; ++vec, acc += kLanes) {
      const type picked = pairs(_mm512_set1_epi32((int32_t)one), load(group + vec * kLanes * 4));
      const type product = _mm512_madd_epi16(picked, _mm512_set1_epi32(steps));
      store(acc, _mm512_add_epi32(_mm512_load_si512(acc), product));
    }
  }

  static type positive_pairs(type weights) {
    return pairs(_mm512_set1_epi8(1), _mm512_max_epi8(weights, zero()));
  }
  static type negative_pairs(type weights) {
    return positive_pairs(_mm512_sub_epi8(zero(), weights));
  }
  static bool none_above(type sums, int most) {
    return !_mm512_cmpgt_epi16_mask(sums, _mm512_set1_epi16((short)most));
  }
};

}  // namespace
