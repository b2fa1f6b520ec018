// elementary.h: exp and the activations, vectorised over `Vec`, by polynomials fitted for this file.
//
// Errors over the whole range, in units of 2^-24 relative (half a unit in the last place), measured
// by tests/kernels/cpu/test_elementary.py against 40 digits: see docs/cpu.md.
#pragma once

#include "kernels.h"

namespace {

using minibert::Activation;

// 1.5 * 2^23: added to |x| < 2^22, it rounds to a whole number, which the sum's lowest bits are.
constexpr float kWhole = 12582912.0f;

// Functions take kCount vectors and do each step on all of them: one chain of twenty dependent
// operations waits most of the time, and a scheduler of 64 entries sees only three chains ahead.
#define MINIBERT_EACH _Pragma("GCC unroll 8") for (int i = 0; i < kCount; ++i)

// p = terms[0], then p * x + each term after it.
template <int kCount, int kTerms>
inline __attribute__((always_inline)) void polynomial(Vec::type (&p)[kCount],
                                                      const Vec::type (&x)[kCount],
                                                      const float (&terms)[kTerms]) {
  MINIBERT_EACH p[i] = Vec::broadcast(terms[0]);
#pragma GCC unroll 16
  for (int term = 1; term < kTerms; ++term)
    MINIBERT_EACH p[i] = Vec::fma(p[i], x[i], Vec::broadcast(terms[term]));
}

constexpr float kLn2 = 0.693147181f, kLog2E = 1.44269504f;

// exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln(2) / 2. The polynomial of degree 6 is off by
// 0.03 units; what remains is the rounding of its last two steps. ln 2 is subtracted in two parts,
// the first short enough for n * part to be exact. Below -86.9, just before results become
// subnormal, it is 0; above 88 it stays exp(88) = 1.65e38, which the callers below divide by.
template <int kCount>
inline __attribute__((always_inline)) void exponential(Vec::type (&x)[kCount]) {
  const Vec::type lowest = Vec::broadcast(-86.9f);
  Vec::type n[kCount], r[kCount], p[kCount];
  MINIBERT_EACH r[i] = Vec::min(Vec::broadcast(88.0f), Vec::max(lowest, x[i]));
  MINIBERT_EACH n[i] = Vec::round(Vec::mul(r[i], Vec::broadcast(kLog2E)));
  MINIBERT_EACH r[i] = Vec::fma(n[i], Vec::broadcast(-0.693359375f), r[i]);
  MINIBERT_EACH r[i] = Vec::fma(n[i], Vec::broadcast(2.12194440e-4f), r[i]);
  polynomial(p, r, {0.001383674153f, 0.00837489836f, 0.04166823181f, 0.1666641919f, 0.4999999203f,
                    1.0f, 1.0f});
  MINIBERT_EACH x[i] = Vec::zero_where_less(Vec::scale_by_power(p[i], n[i]), x[i], lowest);
}

// 2^f, |f| <= 1/2, off by 2.6e-6, for exponentials that are rounded to 16 bits.
constexpr float kPowerOfTwo[] = {0.009570102f, 0.055917859f, 0.24024744f, 0.69312179f,
                                 0.99999928f};

inline Vec::type exponential(Vec::type x) {
  Vec::type one[1] = {x};
  exponential(one);
  return one[0];
}

// gelu(x) = max(x, 0) - t * Q(t), t = |x|, where Q is the upper tail of the normal distribution. No
// digits cancel on either side of zero.
//
// Vectors of 16 lanes look their coefficients up: around each multiple of 0.5 a polynomial of degree
// 6 of its own, fitted at Chebyshev's points; from 7.25 on, where t * Q(t) is below 2e-12, zero. Half
// the instructions of the polynomial below, and no division.
alignas(64) constexpr float kTailTerms[7][16] = {  // [degree 6 to 0][multiple of 0.5]
    {0.00101664453f, 0.00303344871f, 0.00200331118f, -0.000638725585f, -0.00133720296f,
      -0.000516428147f, 0.000106052408f, 0.000179456765f, 8.2951512e-05f, 2.25679305e-05f,
      4.12835061e-06f, 5.35034189e-07f, 5.04757516e-08f, 3.52340401e-09f, 1.83946011e-10f, 0.0f},
    {-0.0103193289f, -0.00454859482f, 0.00394957559f, 0.00580797903f, 0.00226219767f,
      -0.000637857476f, -0.00109867589f, -0.000580896274f, -0.000184570657f, -3.98981247e-05f,
      -6.16215539e-06f, -6.97428334e-07f, -5.87261617e-08f, -3.71569908e-09f, -1.77883472e-10f,
      0.0f},
    {5.85809721e-05f, -0.0201692265f, -0.0201638173f, -0.00607172912f, 0.00449885475f,
      0.00593415042f, 0.00332403439f, 0.00117724715f, 0.000289952324f, 5.16869659e-05f,
      6.81094389e-06f, 6.71961345e-07f, 5.00530355e-08f, 2.83139379e-09f, 1.22150998e-10f, 0.0f},
    {0.0664852709f, 0.0440070555f, 2.59518879e-06f, -0.0269809347f, -0.0269958731f,
      -0.0153381545f, -0.00590942195f, -0.00163620897f, -0.000334488606f, -5.12479164e-05f,
      -5.93935192e-06f, -5.23883159e-07f, -3.53201877e-08f, -1.82580073e-09f, -7.25321192e-11f,
      0.0f},
    {2.12318938e-07f, 0.0880163237f, 0.120985359f, 0.0971382037f, 0.0539909713f, 0.021910375f,
      0.00664777169f, 0.0015271944f, 0.000267660565f, 3.59634978e-05f, 3.71682381e-06f,
      2.96172999e-07f, 1.82282189e-08f, 8.67656003e-10f, 3.19747076e-11f, 0.0f},
    {-0.398942292f, -0.352065325f, -0.241970748f, -0.129517615f, -0.0539909638f, -0.0175282937f,
      -0.00443184609f, -0.000872683246f, -0.000133830908f, -1.59840001e-05f, -1.48677839e-06f,
      -1.07706541e-07f, -6.0768417e-09f, -2.67030259e-10f, -9.13899945e-12f, 0.0f},
    {0.5f, 0.308537543f, 0.158655256f, 0.066807203f, 0.0227501318f, 0.00620966544f,
      0.00134989806f, 0.000232629085f, 3.16712431e-05f, 3.39767303e-06f, 2.86651584e-07f,
      1.89895619e-08f, 9.865877e-10f, 4.01600073e-11f, 1.27981252e-12f, 0.0f},
};

template <int kCount, typename Wide = Vec>  // a parameter, since other vectors have no lookup
inline __attribute__((always_inline)) void gelu_by_table(Vec::type (&x)[kCount]) {
  const Vec::type nearest = Vec::broadcast(4194304.0f);  // 2^22: sums are rounded to halves
  Vec::type t[kCount], place[kCount], r[kCount], q[kCount];
  MINIBERT_EACH t[i] = Vec::min(Vec::broadcast(7.5f), Vec::abs(x[i]));
  MINIBERT_EACH place[i] = Vec::add(t[i], nearest);
  MINIBERT_EACH r[i] = Vec::sub(t[i], Vec::sub(place[i], nearest));
  MINIBERT_EACH q[i] = Wide::lookup(kTailTerms[0], place[i]);
#pragma GCC unroll 8
  for (int term = 1; term < 7; ++term)
    MINIBERT_EACH q[i] = Vec::fma(q[i], r[i], Wide::lookup(kTailTerms[term], place[i]));
  MINIBERT_EACH x[i] = Vec::sub(Vec::max(Vec::zero(), x[i]), Vec::mul(q[i], t[i]));
}

// Q(t) * exp(t^2 / 2) is smooth: a polynomial of degree 9 in s = (t - 3) / (t + 3) is off by 0.13
// units on 0 <= t <= 14, where t * Q(t) is below 1e-42.
template <int kCount>
inline __attribute__((always_inline)) void gelu(Vec::type (&x)[kCount]) {
  if constexpr (Vec::kLanes == 16) return gelu_by_table(x);
  const Vec::type three = Vec::broadcast(3.0f);
  Vec::type t[kCount], s[kCount], q[kCount], e[kCount];
  MINIBERT_EACH t[i] = Vec::min(Vec::broadcast(14.0f), Vec::abs(x[i]));
  MINIBERT_EACH s[i] = Vec::div(Vec::sub(t[i], three), Vec::add(t[i], three));
  MINIBERT_EACH e[i] = Vec::mul(Vec::mul(Vec::broadcast(-0.5f), t[i]), t[i]);
  exponential(e);
  polynomial(q, s, {5.367189879e-5f, 0.0001155437964f, -0.0003394849265f, -0.0009837584745f,
                    0.002904556187f, 0.006132070671f, -0.04621329096f, 0.1232250307f,
                    -0.206402619f, 0.1215139476f});
  MINIBERT_EACH x[i] = Vec::sub(Vec::max(Vec::zero(), x[i]),
                                Vec::mul(Vec::mul(q[i], t[i]), e[i]));
}

// x / (1 + exp(-y)), for y of the sign of x. Below -200 x no longer matters: the quotient is as good
// as 0 (-200 / 1.65e38).
inline Vec::type times_sigmoid(Vec::type x, Vec::type y) {
  const Vec::type one = Vec::broadcast(1.0f);
  return Vec::div(Vec::max(Vec::broadcast(-200.0f), x),
                  Vec::add(one, exponential(Vec::sub(Vec::zero(), y))));
}

// 0.5 * x * (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) * (x + 0.044715 x^3).
inline Vec::type gelu_tanh(Vec::type x) {
  const Vec::type cubic = Vec::fma(Vec::mul(x, x), Vec::broadcast(0.0713548163f),
                                   Vec::broadcast(1.5957691216f));
  return times_sigmoid(x, Vec::mul(x, cubic));
}

// Below 0.625 an odd polynomial (0.07 units), above 1 - 2 / (exp(2 |x|) + 1).
inline Vec::type tanh(Vec::type x) {
  const Vec::type t = Vec::abs(x);
  const Vec::type square = Vec::mul(x, x);
  Vec::type p = Vec::broadcast(-0.00571704451f);
  p = Vec::fma(p, square, Vec::broadcast(0.02065058678f));
  p = Vec::fma(p, square, Vec::broadcast(-0.05374349792f));
  p = Vec::fma(p, square, Vec::broadcast(0.1333149128f));
  p = Vec::fma(p, square, Vec::broadcast(-0.3333328393f));
  const Vec::type small = Vec::fma(Vec::mul(p, square), x, x);
  const Vec::type one = Vec::broadcast(1.0f);
  const Vec::type e = exponential(Vec::add(t, t));
  const Vec::type large = Vec::sub(one, Vec::div(Vec::broadcast(2.0f), Vec::add(e, one)));
  return Vec::select_less(t, Vec::broadcast(0.625f), small, Vec::copy_sign(large, x));
}

template <Activation kActivation, int kCount>
inline __attribute__((always_inline)) void activate(Vec::type (&x)[kCount]) {
  if constexpr (kActivation == minibert::kGelu) gelu(x);
  if constexpr (kActivation == minibert::kGeluTanh) MINIBERT_EACH x[i] = gelu_tanh(x[i]);
  if constexpr (kActivation == minibert::kRelu) MINIBERT_EACH x[i] = Vec::max(Vec::zero(), x[i]);
  if constexpr (kActivation == minibert::kSilu) MINIBERT_EACH x[i] = times_sigmoid(x[i], x[i]);
  if constexpr (kActivation == minibert::kTanh) MINIBERT_EACH x[i] = tanh(x[i]);
}

template <Activation kActivation>
inline Vec::type activated(Vec::type x) {
  Vec::type one[1] = {x};
  activate<kActivation>(one);
  return one[0];
}

// Calls function(vector of up to kLanes values) on each vector of values, in place.
template <typename Function>
inline void map_values(float* values, int64_t count, Function function) {
  int64_t i = 0;
  for (; i + Vec::kLanes <= count; i += Vec::kLanes)
    Vec::store(values + i, function(Vec::load(values + i)));
  if (i < count)
    Vec::store_partial(values + i, function(Vec::load_partial(values + i, count - i)), count - i);
}

void exponential_values(float* values, int64_t count) {
  map_values(values, count, [](Vec::type x) { return exponential(x); });
}

void activate_values(float* values, int64_t count, Activation activation) {
  switch (activation) {
    case minibert::kGelu:
      return map_values(values, count, [](Vec::type x) { return activated<minibert::kGelu>(x); });
    case minibert::kGeluTanh:
      return map_values(values, count, [](Vec::type x) { return activated<minibert::kGeluTanh>(x); });
    case minibert::kRelu:
      return map_values(values, count, [](Vec::type x) { return activated<minibert::kRelu>(x); });
    case minibert::kSilu:
      return map_values(values, count, [](Vec::type x) { return activated<minibert::kSilu>(x); });
    case minibert::kTanh:
      return map_values(values, count, [](Vec::type x) { return activated<minibert::kTanh>(x); });
    case minibert::kNoActivation:
      return;
  }
}

}  // namespace
