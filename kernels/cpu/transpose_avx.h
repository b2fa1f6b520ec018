// transpose_avx.h: 8 x 8 float32 values across the diagonal in registers, for the x86 vectors.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

// out[c * out_stride + r] = in[r * in_stride + c].
inline void transpose_8x8(float* out, int64_t out_stride, const float* in, int64_t in_stride) {
  __m256 row[8], pair[8], quad[8];
  for (int r = 0; r < 8; ++r) row[r] = _mm256_loadu_ps(in + r * in_stride);
  for (int r = 0; r < 8; r += 2) {
    pair[r] = _mm256_unpacklo_ps(row[r], row[r + 1]);
    pair[r + 1] = _mm256_unpackhi_ps(row[r], row[r + 1]);
  }
  for (int r = 0; r < 8; r += 4) {
    quad[r] = _mm256_shuffle_ps(pair[r], pair[r + 2], 0x44);
    quad[r + 1] = _mm256_shuffle_ps(pair[r], pair[r + 2], 0xee);
    quad[r + 2] = _mm256_shuffle_ps(pair[r + 1], pair[r + 3], 0x44);
    quad[r + 3] = _mm256_shuffle_ps(pair[r + 1], pair[r + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    _mm256_storeu_ps(out + c * out_stride, _mm256_permute2f128_ps(quad[c], quad[c + 4], 0x20));
    _mm256_storeu_ps(out + (c + 4) * out_stride,
                     _mm256_permute2f128_ps(quad[c], quad[c + 4], 0x31));
  }
}

}  // namespace
