// dot_avx2.h: int8 products on AVX2, exactly.
//
// vpmaddubsw adds two uint8 x int8 products into a saturating int16: 2 * 255 * 127 does not fit,
// 2 * 127 * 127 does. Activations on this path therefore have 127 steps and not 255; what is finer
// or larger than that is the row's excess (quantize.h). Three instructions then multiply and add 32
// pairs. Both operands widened to int16 (vpmaddwd) keep 255 steps, at 0.8 of the rate, with twice
// the bytes to load.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace {

struct Dot {
  using type = __m256i;
  static constexpr int kLanes = 8;
  // 5 x 2 accumulators, 2 weights, 1 activation, the ones and 2 products: all 16 registers.
  static constexpr int kTileRows = 5;
  static constexpr int kTileVecs = 2;
  static constexpr int kSteps = 127;          // largest quantised activation
  static constexpr int kActivationShift = 0;  // what the instruction's operand is less than q

  static type zero() { return _mm256_setzero_si256(); }
  static type broadcast(const uint8_t* group) {
    int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return _mm256_set1_epi32(bits);
  }
  static type load(const int8_t* weights) { return _mm256_loadu_si256((const __m256i*)weights); }
  static void multiply_add(type& sum, type activations, type weights) {
    const type pairs = _mm256_maddubs_epi16(activations, weights);
    const type fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    // In place: left to itself, GCC 12 schedules the products far ahead of the sums and spills.
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(fours));
  }
  static void store(int32_t* p, type x) { _mm256_store_si256((__m256i*)p, x); }
};

}  // namespace
