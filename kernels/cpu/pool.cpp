// pool.cpp: one vector per sequence, such vectors side by side, and rows to unit length. Sums are float64 in the order of the
// tokens: a long text loses nothing to its length, and the bytes are the same on every path.
//
// hidden (num_tokens, hidden_size) -> out (num_seqs, hidden_size). Bound: reading hidden once.
#include <algorithm>
#include <cmath>
#include <vector>

#include "operators.h"

namespace minibert {
namespace {

constexpr int64_t kStrip = 64;  // columns summed at once: their float64 sums stay in registers/L1

void sum_rows(float* out, const float* rows, int64_t num_rows, int64_t size, PoolMode mode,
              int64_t first_weight) {
  double divisor = static_cast<double>(num_rows);
  if (mode == kMeanSqrtLen) divisor = std::sqrt(divisor);
  if (mode == kWeightedMean) {  // weights first_weight, first_weight + 1, ...
    const double last = static_cast<double>(first_weight + num_rows - 1);
    divisor *= (static_cast<double>(first_weight) + last) / 2.0;
  }
  for (int64_t begin = 0; begin < size; begin += kStrip) {
    const int64_t cols = std::min(kStrip, size - begin);
    double sums[kStrip] = {};
    for (int64_t row = 0; row < num_rows; ++row) {
      const float* values = rows + row * size + begin;
      const double weight =
          mode == kWeightedMean ? static_cast<double>(first_weight + row) : 1.0;
      for (int64_t c = 0; c < cols; ++c) sums[c] += weight * static_cast<double>(values[c]);
    }
    for (int64_t c = 0; c < cols; ++c) out[begin + c] = static_cast<float>(sums[c] / divisor);
  }
}

void largest_of_rows(float* out, const float* rows, int64_t num_rows, int64_t size) {
  std::copy(rows, rows + size, out);
  for (int64_t row = 1; row < num_rows; ++row) {
    const float* values = rows + row * size;
    // A NaN, once met, stays: comparisons with it are false.
    for (int64_t c = 0; c < size; ++c) {
      out[c] = values[c] > out[c] || values[c] != values[c] ? values[c] : out[c];
    }
  }
}

}  // namespace

void pool(float* out, const float* hidden, const int32_t* cu_seqlens, const int32_t* skip,
          int64_t num_seqs, int64_t hidden_size, PoolMode mode) {
  for (int64_t i = 0; i < num_seqs; ++i, out += hidden_size) {
    const float* kept = hidden + (cu_seqlens[i] + skip[i]) * hidden_size;
    const int64_t num_kept = cu_seqlens[i + 1] - cu_seqlens[i] - skip[i];
    const float* last = kept + (num_kept - 1) * hidden_size;
    switch (mode) {
      case kCls:
        std::copy(kept, kept + hidden_size, out);
        break;
      case kLastToken:
        std::copy(last, last + hidden_size, out);
        break;
      case kMax:
        largest_of_rows(out, kept, num_kept, hidden_size);
        break;
      default:
        sum_rows(out, kept, num_kept, hidden_size, mode, skip[i] + 1);
    }
  }
}

void copy_columns(float* out, int64_t out_cols, int64_t first_col, const float* in,
                  int64_t in_cols, int64_t num_rows) {
  for (int64_t row = 0; row < num_rows; ++row)
    std::copy(in + row * in_cols, in + (row + 1) * in_cols, out + row * out_cols + first_col);
}

void normalize(float* out, const float* rows, int64_t num_rows, int64_t size) {
  for (int64_t row = 0; row < num_rows; ++row, rows += size, out += size) {
    double squares = 0.0;
    for (int64_t c = 0; c < size; ++c) {
      squares += static_cast<double>(rows[c]) * static_cast<double>(rows[c]);
    }
    const double norm = std::max(std::sqrt(squares), 1e-12);
    for (int64_t c = 0; c < size; ++c) {
      out[c] = static_cast<float>(static_cast<double>(rows[c]) / norm);
    }
  }
}

}  // namespace minibert
