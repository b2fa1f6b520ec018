// What this processor can do at most: loops of nothing but multiply-adds, and of nothing but loads.
//
// Each function runs `count` steps on the calling thread and returns a value that depends on all of
// them. Operations of one step (a multiply-add counts 2): fma_avx2 160, fma_avx512 384,
// int8_avx2 768, int8_avxvnni 640, int8_avx512vnni 1536, bf16_amx 65536, int8_amx 131072. Several
// independent sums hide the latency; they are named variables because arrays may be spilled.
// ceilings.py calls only what the processor and the system support.

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TEN(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9)
#define TWELVE(DO) TEN(DO) DO(10) DO(11)

__attribute__((target("avx2,fma"))) double fma_avx2(int64_t count) {
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
#define START(i) __m256 s##i = _mm256_set1_ps((float)i);
#define STEP(i) s##i = _mm256_fmadd_ps(s##i, a, b);
#define ADD(i) total = _mm256_add_ps(total, s##i);
  TEN(START)
  for (int64_t step = 0; step < count; ++step) {
    TEN(STEP)
  }
  __m256 total = _mm256_setzero_ps();
  TEN(ADD)
#undef START
#undef STEP
#undef ADD
  return _mm256_cvtss_f32(total);
}

__attribute__((target("avx512f"))) double fma_avx512(int64_t count) {
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
#define START(i) __m512 s##i = _mm512_set1_ps((float)i);
#define STEP(i) s##i = _mm512_fmadd_ps(s##i, a, b);
#define ADD(i) total = _mm512_add_ps(total, s##i);
  TWELVE(START)
  for (int64_t step = 0; step < count; ++step) {
    TWELVE(STEP)
  }
  __m512 total = _mm512_setzero_ps();
  TWELVE(ADD)
#undef START
#undef STEP
#undef ADD
  return _mm512_cvtss_f32(total);
}

// Without VNNI, bytes by bytes give 16-bit sums of two products, which have to be widened to 32 bits
// and added. A 16-bit sum holds six products of weights as networks have them
// (kernels/cpu/products_int8_chunks.h), so three multiplications share one widening. The compiler is
// told that the operands change, or it would take the products out of the loop.
__attribute__((target("avx2"))) double int8_avx2(int64_t count) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2), c = _mm256_set1_epi8(3);
#define FOUR(DO) DO(0) DO(1) DO(2) DO(3)
#define START(i) __m256i s##i = _mm256_set1_epi32(i), w##i = _mm256_set1_epi8(i + 1);
#define PAIRS(x, i) _mm256_maddubs_epi16(x, w##i)
#define STEP(i)                                                                              \
  s##i = _mm256_add_epi32(                                                                   \
      s##i, _mm256_madd_epi16(                                                               \
                _mm256_add_epi16(_mm256_add_epi16(PAIRS(a, i), PAIRS(b, i)), PAIRS(c, i)), ones));
#define ADD(i) total = _mm256_add_epi32(total, s##i);
  FOUR(START)
  for (int64_t step = 0; step < count; ++step) {
    FOUR(STEP)
    __asm__ volatile("" : "+x"(a), "+x"(b), "+x"(c));
  }
  __m256i total = _mm256_setzero_si256();
  FOUR(ADD)
#undef START
#undef STEP
#undef ADD
  return _mm256_extract_epi32(total, 0);
}

__attribute__((target("avx2,avxvnni"))) double int8_avxvnni(int64_t count) {
  const __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(3);
#define START(i) __m256i s##i = _mm256_set1_epi32(i);
// In place: GCC copies all sums at the start of each turn otherwise, a third of the time.
#define STEP(i)                                 \
  s##i = _mm256_dpbusd_avx_epi32(s##i, a, b); \
  __asm__ volatile("" : "+x"(s##i));
#define ADD(i) total = _mm256_add_epi32(total, s##i);
  TEN(START)
  for (int64_t step = 0; step < count; ++step) {
    TEN(STEP)
  }
  __m256i total = _mm256_setzero_si256();
  TEN(ADD)
#undef START
#undef STEP
#undef ADD
  return _mm256_extract_epi32(total, 0);
}

__attribute__((target("avx512f,avx512vnni"))) double int8_avx512vnni(int64_t count) {
  const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(3);
#define START(i) __m512i s##i = _mm512_set1_epi32(i);
#define STEP(i)                             \
  s##i = _mm512_dpbusd_epi32(s##i, a, b); \
  __asm__ volatile("" : "+v"(s##i));
#define ADD(i) total = _mm512_add_epi32(total, s##i);
  TWELVE(START)
  for (int64_t step = 0; step < count; ++step) {
    TWELVE(STEP)
  }
  __m512i total = _mm512_setzero_si512();
  TWELVE(ADD)
#undef START
#undef STEP
#undef ADD
  return _mm512_reduce_add_epi32(total);
}

// Tiles 0 to 3 are sums, 4 and 5 rows of A, 6 and 7 columns of B: four products for four operands.
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
};

// Linux hands out tile registers on request, once per process. 0 where it does.
int ask_for_tiles(void) { return (int)syscall(SYS_arch_prctl, 0x1023, 18); }

__attribute__((target("amx-tile"))) static void configure_tiles(void) {
  struct TileConfig config = {1, 0, {0}, {0}, {0}};
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes_per_row[tile] = 64;
    config.rows[tile] = 16;
  }
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

__attribute__((target("amx-tile,amx-bf16"))) double bf16_amx(int64_t count) {
  configure_tiles();
  for (int64_t step = 0; step < count; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float out[256];
  _tile_stored(0, out, 64);
  _tile_release();
  return out[0];
}

__attribute__((target("amx-tile,amx-int8"))) double int8_amx(int64_t count) {
  configure_tiles();
  for (int64_t step = 0; step < count; ++step) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  int32_t out[256];
  _tile_stored(0, out, 64);
  _tile_release();
  return out[0];
}

__attribute__((target("avx2"))) double read_avx2(const char* data, int64_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (int64_t i = 0; i + 128 <= bytes; i += 128) {
    a = _mm256_xor_si256(a, _mm256_loadu_si256((const __m256i*)(data + i)));
    b = _mm256_xor_si256(b, _mm256_loadu_si256((const __m256i*)(data + i + 32)));
    c = _mm256_xor_si256(c, _mm256_loadu_si256((const __m256i*)(data + i + 64)));
    d = _mm256_xor_si256(d, _mm256_loadu_si256((const __m256i*)(data + i + 96)));
  }
  a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  return _mm256_extract_epi32(a, 0);
}
#endif
