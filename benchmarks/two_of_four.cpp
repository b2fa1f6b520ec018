// two_of_four.cpp: whether AVX2 can profit from two weights kept of each four inputs (2:4).
//
//   g++ -O3 -mavx2 -mfma -ffp-contract=off benchmarks/two_of_four.cpp -o build/two_of_four
//   build/two_of_four
//
// Eight outputs lie in the lanes of a register. Four inputs are broadcast to both halves, and
// vpermilps gives each lane the input that its output keeps: two permutes and two multiply-adds in
// the place of four multiply-adds. Both kernels work on a panel in the first-level cache; 384 inputs.
#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int64_t kInputs = 384;

template <int kRows>
__attribute__((noinline)) void dense(float* out, const float* a, const float* weight) {
  __m256 acc[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int64_t k = 0; k < kInputs; ++k, weight += 16) {
    const __m256 b0 = _mm256_loadu_ps(weight), b1 = _mm256_loadu_ps(weight + 8);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = _mm256_set1_ps(a[r * kInputs + k]);
      acc[r][0] = _mm256_fmadd_ps(x, b0, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(x, b1, acc[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm256_storeu_ps(out + r * 16, acc[r][0]);
    _mm256_storeu_ps(out + r * 16 + 8, acc[r][1]);
  }
}

// weight: per group of four inputs and vector of eight outputs the first kept weights, then the
// second; places: the first kept input in bits 0-1, the second in bits 2-3.
template <int kRows, int kVecs>
__attribute__((noinline)) void sparse(float* out, const float* a, const float* weight,
                                      const int32_t* places) {
  __m256 acc[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[r][v] = _mm256_setzero_ps();
  for (int64_t k = 0; k < kInputs; k += 4, places += 16, weight += 32)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      const __m256i first = _mm256_loadu_si256((const __m256i*)(places + 8 * v));
      const __m256i second = _mm256_srli_epi32(first, 2);
      const __m256 b0 = _mm256_loadu_ps(weight + 16 * v), b1 = _mm256_loadu_ps(weight + 16 * v + 8);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const __m256 x = _mm256_broadcast_ps((const __m128*)(a + r * kInputs + k));
        acc[r][v] = _mm256_fmadd_ps(_mm256_permutevar_ps(x, first), b0, acc[r][v]);
        acc[r][v] = _mm256_fmadd_ps(_mm256_permutevar_ps(x, second), b1, acc[r][v]);
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) _mm256_storeu_ps(out + r * 16 + 8 * v, acc[r][v]);
}

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Nanoseconds of one call, the best of 40 times 300.
template <typename Function>
double best_ns(Function function) {
  double best = 1e9;
  for (int round = 0; round < 40; ++round) {
    const double begin = now();
    for (int i = 0; i < 300; ++i) function();
    best = std::min(best, (now() - begin) / 300);
  }
  return 1e9 * best;
}

float random_value() { return (float)rand() / (float)RAND_MAX - 0.5f; }

}  // namespace

int main() {
  std::vector<float> a(16 * kInputs), whole(16 * kInputs), kept(8 * kInputs), out(256), other(256);
  std::vector<int32_t> places(4 * kInputs);
  for (float& x : a) x = random_value();
  for (int64_t group = 0; group < kInputs / 4; ++group)
    for (int64_t j = 0; j < 16; ++j) {
      int32_t p = rand() % 4, q = (p + 1 + rand() % 3) % 4;
      if (p > q) std::swap(p, q);
      const int64_t v = j / 8, lane = j % 8;
      places[group * 16 + v * 8 + lane] = p | q << 2;
      whole[(group * 4 + p) * 16 + j] = kept[group * 32 + v * 16 + lane] = random_value();
      whole[(group * 4 + q) * 16 + j] = kept[group * 32 + v * 16 + 8 + lane] = random_value();
    }
  dense<4>(out.data(), a.data(), whole.data());
  sparse<4, 2>(other.data(), a.data(), kept.data(), places.data());
  for (int i = 0; i < 64; ++i)
    if (std::fabs(out[i] - other[i]) > 1e-5f) return std::puts("the kernels disagree"), 1;
  const double per_row = best_ns([&] { dense<6>(out.data(), a.data(), whole.data()); }) / 6;
  std::printf("dense, 6 rows x 16 outputs: %.1f ns a row, %.0f GFLOP/s\n", per_row,
              2 * 16 * kInputs / per_row);
  const auto show = [&](int rows, double ns) {
    std::printf("2:4, %d rows x 16 outputs: %.1f ns a row, %.2fx\n", rows, ns / rows,
                per_row * rows / ns);
  };
  show(3, best_ns([&] { sparse<3, 2>(out.data(), a.data(), kept.data(), places.data()); }));
  show(4, best_ns([&] { sparse<4, 2>(out.data(), a.data(), kept.data(), places.data()); }));
  show(5, best_ns([&] { sparse<5, 2>(out.data(), a.data(), kept.data(), places.data()); }));
  show(6, best_ns([&] { sparse<6, 2>(out.data(), a.data(), kept.data(), places.data()); }));
}
