// dot_vnni.h: int8 products by vpdpbusd, four uint8 x int8 products added to each int32 without
// saturation: 512 bits with AVX512-VNNI, 256 bits with AVX-VNNI.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace {

struct Dot {
  static constexpr int kTileRows = Vec::kTileRows;
  static constexpr int kLanes = Vec::kLanes;
  static constexpr int kSteps = 255;          // largest quantised activation
  static constexpr int kActivationShift = 0;  // what the instruction's operand is less than q

  static int32_t group_bits(const uint8_t* group) {
    int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return bits;
  }
#if defined(__AVX512VNNI__)
  using type = __m512i;
  static type multiple(const int32_t* values, int32_t factor) {
    return _mm512_mullo_epi32(_mm512_loadu_si512(values), _mm512_set1_epi32(factor));
  }
  static type broadcast(const uint8_t* group) { return _mm512_set1_epi32(group_bits(group)); }
  static type load(const int8_t* weights) { return _mm512_loadu_si512(weights); }
  static void multiply_add(type& sum, type activations, type weights) {
    sum = _mm512_dpbusd_epi32(sum, activations, weights);
  }
  static void store(int32_t* p, type x) { _mm512_store_si512(p, x); }
  static type load_sums(const int32_t* acc) { return _mm512_load_si512(acc); }
  static type add_picked(type sums, type weights, uint32_t one, int32_t steps) {
    const type picked = _mm512_maddubs_epi16(_mm512_set1_epi32((int32_t)one), weights);
    return _mm512_dpwssd_epi32(sums, picked, _mm512_set1_epi32(steps));
  }
#else
  using type = __m256i;
  static type multiple(const int32_t* values, int32_t factor) {
    return _mm256_mullo_epi32(_mm256_loadu_si256((const __m256i*)values),
                              _mm256_set1_epi32(factor));
  }
  static type broadcast(const uint8_t* group) { return _mm256_set1_epi32(group_bits(group)); }
  static type load(const int8_t* weights) { return _mm256_loadu_si256((const __m256i*)weights); }
  static void multiply_add(type& sum, type activations, type weights) {
    sum = _mm256_dpbusd_avx_epi32(sum, activations, weights);
  }
  static void store(int32_t* p, type x) { _mm256_store_si256((__m256i*)p, x); }
  static type load_sums(const int32_t* acc) { return _mm256_load_si256((const __m256i*)acc); }
  static type add_picked(type sums, type weights, uint32_t one, int32_t steps) {
    const type picked = _mm256_maddubs_epi16(_mm256_set1_epi32((int32_t)one), weights);
    return _mm256_dpwssd_avx_epi32(sums, picked, _mm256_set1_epi32(steps));
  }
#endif
  // acc (2 * kLanes) += steps times the weights of one input; TileExcess says what the last two are.
  static void add_excess(int32_t* acc, const int8_t* group, uint32_t one, int32_t steps) {
    for (int vec = 0; vec < 2; ++vec, acc += kLanes)
      store(acc, add_picked(load_sums(acc), load(group + vec * kLanes * 4), one, steps));
  }
};

}  // namespace
