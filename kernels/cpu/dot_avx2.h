// dot_avx2.h: int8 products on AVX2, exactly.
//
// vpmaddubsw, the instruction for bytes, adds two products into a saturating int16: 2 * 255 * 127
// does not fit. Both operands are therefore widened to int16 and multiplied with vpmaddwd, which
// adds pairs of products in int32. On cores with two multipliers beside two more adders the rate is
// that of vpmaddubsw + vpmaddwd + vpaddd, and twice that of float32.
#pragma once

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

namespace {

struct Dot {
  using type = __m256i;
  using Activation = int16_t;  // 0..255, wide enough to multiply
  static constexpr int kLanes = 8;
  static constexpr int kGroup = 2;   // inputs that one 32-bit lane holds
  static constexpr int kTileRows = 6;
  static constexpr int kTileVecs = 2;
  static constexpr int kActivationShift = 0;  // what the instruction's operand is less than q
  static constexpr size_t kWidenedBytes = 2;  // a packed int8 weight becomes int16 before use

  static type zero() { return _mm256_setzero_si256(); }
  static type broadcast(const Activation* group) {
    int32_t bits;
    __builtin_memcpy(&bits, group, sizeof bits);
    return _mm256_set1_epi32(bits);
  }
  static type load(const int16_t* weights) {
    return _mm256_load_si256((const __m256i*)weights);
  }
  static type multiply_add(type sum, type activations, type weights) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(activations, weights));
  }
  static void store(int32_t* p, type x) { _mm256_store_si256((__m256i*)p, x); }
  static const int16_t* widen(void* scratch, const int8_t* in, int64_t count) {
    auto* out = (int16_t*)scratch;
    for (int64_t i = 0; i < count; i += 16)
      _mm256_store_si256((__m256i*)(out + i),
                         _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)(in + i))));
    return out;
  }
  static void store_activations(Activation* p, Vec::type x) { Vec::store_int16(p, x); }
};

}  // namespace
