// tiles_amx.h: the matrix registers of AMX, as the struct `Tiles` that linear_tiles.h is written
// against. tiles_software.h offers the same names.
//
// A tile is 16 rows of 64 bytes. Tiles 0-3 hold 2 x 2 blocks of sums, 4-5 two blocks of
// activations, 6-7 two of weights: four products for four loads, so that no product waits for the
// one before it.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Tiles {
  static constexpr int64_t kTileBytes = 1024;

  // The shape of all eight tiles, for this thread. Released after each job: live tiles add 8 KB to
  // every context switch.
  static void configure() {
    alignas(64) struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    static_assert(sizeof shape == 64, "the format of ldtilecfg");
    // GCC's intrinsic says that 8 of the 64 bytes are read; the stores of the others must stay.
    __asm__ volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
  }
  static void release() { _tile_release(); }
  static void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // Two tiles that lie one after the other. The barrier: GCC's tile loads do not say that they
  // read memory.
  static void load_rows(const void* p) {
    __asm__ volatile("" ::: "memory");
    _tile_loadd(4, p, 64);
    _tile_loadd(5, (const char*)p + kTileBytes, 64);
  }
  static void load_cols(const void* p) {
    __asm__ volatile("" ::: "memory");
    _tile_loadd(6, p, 64);
    _tile_loadd(7, (const char*)p + kTileBytes, 64);
  }
  static void multiply_bfloat16() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  static void multiply_int8() {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  // The sums, (32, 32) values of 4 bytes; `stride`: bytes from row to row.
  static void store(void* out, int64_t stride) {
    char* p = (char*)out;
    _tile_stored(0, p, stride);
    _tile_stored(1, p + 64, stride);
    _tile_stored(2, p + 16 * stride, stride);
    _tile_stored(3, p + 16 * stride + 64, stride);
  }
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
