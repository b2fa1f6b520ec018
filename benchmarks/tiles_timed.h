// tiles_timed.h: the matrix registers of kernels/cpu/tiles_amx.h in time only, for processors without
// AMX. benchmarks/amx_estimate.py builds the `amx` path with it; its results are worthless.
//
// What is real: every load and store of a tile, line by line, and everything around the tiles. What
// stands for something else: four products take 64 cycles of one unit that runs beside the others,
// as on the hardware (16 cycles each: Intel, Optimization Reference Manual), here a chain of
// multiplications of 3 cycles each; all sums are zeros, 52 cycles after the last product.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "tiles_vectors.h"

namespace {

struct Tiles : TileVectors {
  static constexpr int64_t kTileBytes = 1024;

  static void configure() { __asm__ volatile("" ::: "memory"); }
  static void release() {}
  static void clear() {}
  static void load_rows(const void* p) { load((const char*)p); }
  static void load_cols(const void* p) { load((const char*)p); }
  static void multiply_bfloat16() { chain() = wait<20>(chain()); }  // and 5 cycles through memory
  static void multiply_int8() { chain() = wait<20>(chain()); }
  static void store(void* out, int64_t stride) {
    // Zeros that wait for the products, which the compiler must not find out.
    const __m512i late = _mm512_set1_epi64((int64_t)wait<16>(chain()));
    __m512i zeros = _mm512_setzero_si512();
    __asm__ volatile("vpandd %1, %0, %0" : "+v"(zeros) : "v"(late));
    char* p = (char*)out;
#pragma GCC unroll 64
    for (int i = 0; i < 64; ++i)
      __asm__ volatile("vmovups %1, %0"
                       : "=m"(*(__m512i*)(p + i / 2 * stride + i % 2 * 64))
                       : "v"(zeros));
    __asm__ volatile("" ::: "memory");
  }

 private:
  // A thread's own, found by where its stack is: thread-local memory of a library takes a call.
  struct alignas(64) Chain {
    uint64_t value;
  };
  static uint64_t& chain() {
    static Chain chains[64];
    return chains[(uintptr_t)__builtin_frame_address(0) >> 23 & 63].value;
  }

  template <int kCount>
  static uint64_t wait(uint64_t x) {
#pragma GCC unroll 32
    for (int i = 0; i < kCount; ++i) __asm__ volatile("imul %0, %0" : "+r"(x));
    return x;
  }
  static void load(const char* p) {
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i)
      __asm__ volatile("vmovups %0, %%zmm31" ::"m"(*(const __m512i*)(p + 64 * i)) : "xmm31");
  }
};

}  // namespace
