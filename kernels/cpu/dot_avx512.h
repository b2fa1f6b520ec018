// dot_avx512.h: int8 products on AVX-512 without VNNI: dot_avx2.h at twice the width.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace {

struct Dot {
  using type = __m512i;
  using Activation = int16_t;
  static constexpr int kLanes = 16;
  static constexpr int kGroup = 2;
  static constexpr int kTileRows = 12;
  static constexpr int kTileVecs = 2;
  static constexpr int kActivationShift = 0;  // what the instruction's operand is less than q
  static constexpr size_t kWidenedBytes = 2;

  static type zero() { return _mm512_setzero_si512(); }
  static type broadcast(const Activation* group) {
    int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return _mm512_set1_epi32(bits);
  }
  static type load(const int16_t* weights) { return _mm512_load_si512(weights); }
  static type multiply_add(type sum, type activations, type weights) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(activations, weights));
  }
  static void store(int32_t* p, type x) { _mm512_store_si512(p, x); }
  static const int16_t* widen(void* scratch, const int8_t* in, int64_t count) {
    auto* out = (int16_t*)scratch;
    for (int64_t i = 0; i < count; i += 32)
      _mm512_store_si512(out + i,
                         _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(in + i))));
    return out;
  }
  static void store_activations(Activation* p, Vec::type x) { Vec::store_int16(p, x); }
};

}  // namespace
