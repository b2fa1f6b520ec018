// mmla_software.h: what the matrix instructions of aarch64 compute, as loops, for other machines.
//
// From the operation sections of USMMLA and BFMMLA in the Arm Architecture Reference Manual. int8:
// exact. bfloat16, as processors compute it unless a program asks for FEAT_EBF16's other rounding
// (FPCR.EBF): the two products of a pair of inputs are added, then the pair to the sum, each
// addition rounded to odd; inputs and results below the normal range count as 0.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

struct Mmla {
  struct Operand {
    uint8_t byte[16];
  };
  static Operand load(const char* p) {
    Operand out;
    memcpy(&out, p, sizeof out);
    return out;
  }
};

// What both products do with their 2 x 2 sums.
template <typename T>
struct SoftwareSums {
  using Value = T;
  struct type {
    T sum[4];
  };
  static type zero() { return {}; }
  static type upper(const type& left, const type& right) {
    return {{left.sum[0], left.sum[1], right.sum[0], right.sum[1]}};
  }
  static type lower(const type& left, const type& right) {
    return {{left.sum[2], left.sum[3], right.sum[2], right.sum[3]}};
  }
  static void store(T* p, const type& x) { memcpy(p, &x, sizeof x); }
  static void add_to(T* p, const type& x) {
    for (int i = 0; i < 4; ++i) p[i] += x.sum[i];
  }
};

struct Int8Product : SoftwareSums<int32_t> {
  static type multiply(type acc, const Mmla::Operand& rows, const Mmla::Operand& cols) {
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 8; ++k)
        acc.sum[i] += (int32_t)rows.byte[i / 2 * 8 + k] * (int32_t)(int8_t)cols.byte[i % 2 * 8 + k];
    return acc;
  }
};

struct BFloat16Product : SoftwareSums<float> {
  static type multiply(type acc, const Mmla::Operand& rows, const Mmla::Operand& cols) {
    float a[8], b[8];
    for (int i = 0; i < 8; ++i) {
      a[i] = widen(rows.byte + 2 * i);
      b[i] = widen(cols.byte + 2 * i);
    }
    for (int k = 0; k < 4; k += 2)
      for (int i = 0; i < 4; ++i) {
        const float* x = a + i / 2 * 4 + k;
        const float* y = b + i % 2 * 4 + k;
        // A product of two bfloat16 numbers is exact in float32.
        acc.sum[i] = add(acc.sum[i], add(flush(x[0] * y[0]), flush(x[1] * y[1])));
      }
    return acc;
  }

 private:
  // Rounded to odd: of the two neighbours of a sum that is no float32, the one with an odd last
  // bit. `rest` is what rounding to nearest left over, exactly (Knuth).
  static float add(float a, float b) {
    const float sum = a + b, second = sum - a;
    const float rest = (a - (sum - second)) + (b - second);
    uint32_t bits, left;
    memcpy(&bits, &sum, sizeof bits);
    memcpy(&left, &rest, sizeof left);
    const bool even = (bits & 1u) == 0, towards_zero = (bits ^ left) >> 31;
    // Where the sum is not finite, rest is NaN or 0.
    if (even && __builtin_fabsf(rest) > 0.0f) bits += towards_zero ? -1u : 1u;
    float out;
    memcpy(&out, &bits, sizeof out);
    return flush(out);
  }
  static float flush(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
  }
  static float widen(const uint8_t* p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    const uint32_t bits = (uint32_t)value << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return flush(x);
  }
};

}  // namespace
