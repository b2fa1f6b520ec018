"""Features of CUDA C++ as NVRTC compiles them, on every architecture, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import Module

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")

SOURCE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>

extern "C" __global__ void float_functions(float* out, const float* in, int n) {
  const int i = threadIdx.x;
  const float x = in[i];
  float* o = out + i;
  o[0 * n] = sinf(x);
  o[1 * n] = cosf(x * 1e5f);
  o[2 * n] = expf(x);
  o[3 * n] = erff(x);
  o[4 * n] = tanhf(x);
  o[5 * n] = logf(fabsf(x));
  o[6 * n] = powf(fabsf(x), 1.7f);
  o[7 * n] = x / 3.1f;
  o[8 * n] = sqrtf(fabsf(x));
  o[9 * n] = rsqrtf(fabsf(x));
  o[10 * n] = fmodf(x, 0.7f);
  o[11 * n] = roundf(x * 10.0f);
  o[12 * n] = atan2f(x, 2.0f);
  o[13 * n] = log1pf(fabsf(x));
  o[14 * n] = cbrtf(x);
}

extern "C" __global__ void double_functions(double* out, const double* in, int n) {
  const int i = threadIdx.x;
  const double x = in[i];
  out[i] = exp(x);
  out[n + i] = sin(x);
  out[2 * n + i] = log(fabs(x));
  out[3 * n + i] = pow(fabs(x), 1.7);
  out[4 * n + i] = x / 3.1 + sqrt(fabs(x));
  out[5 * n + i] = fma(x, x, -x * x);
  out[6 * n + i] = erf(x);
}

extern "C" __global__ void integer_functions(long long* out, const int* in, int n) {
  const int i = threadIdx.x;
  const int x = in[i];
  const long long w = (long long)x * 1234567891ll + i;
  long long* o = out + i;
  o[0 * n] = __popc(x);
  o[1 * n] = __clz(x);
  o[2 * n] = (long long)__brev(x);
  o[3 * n] = __ffs(x);
  o[4 * n] = w / 1000003ll;
  o[5 * n] = w % 97ll;
  o[6 * n] = x / 7;
  o[7 * n] = x % 7;
  o[8 * n] = (long long)((unsigned long long)w >> 3);
  o[9 * n] = __mulhi(x, 0x12345678);
  o[10 * n] = __umulhi((unsigned)x, 0xdeadbeefu);
  o[11 * n] = __mul64hi(w, 0x123456789abcdefll);
  o[12 * n] = __byte_perm(x, x >> 7, 0x3715);
  o[13 * n] = __funnelshift_l(x, i, 9);
  o[14 * n] = (unsigned char)x + (signed char)(x >> 8) + (short)(x >> 4);
}

extern "C" __global__ void halves(float* out, const float* in, int n) {
  const int i = threadIdx.x;
  const half2 h = __floats2half2_rn(in[i], in[i] * 0.5f);
  const half2 r = __hfma2(h, h, __hmul2(h, __float2half2_rn(0.25f)));
  const half2 m = __hmax2(h, __float2half2_rn(0.1f));
  out[i] = __low2float(r);
  out[n + i] = __high2float(m);
  out[2 * n + i] = __half2float(__hadd(__low2half(h), __high2half(h)));
  const __nv_bfloat16 b = __float2bfloat16(in[i]);
  out[3 * n + i] = __bfloat162float(__hmul(b, b));
  out[4 * n + i] = __hlt(__low2half(h), __high2half(h)) ? 1.0f : 0.0f;
}

extern "C" __global__ void block_functions(int* out, const int* in, double* sums) {
  const int i = threadIdx.x;
  int* o = out + i * 8;
  o[0] = __syncthreads_count(in[i] & 1);
  o[1] = __syncthreads_and(in[i] != 12345);
  o[2] = __syncthreads_or(in[i] == 12345);
  o[3] = __popc(__ballot_sync(~0u, in[i] > 0));
  o[4] = (int)(__shfl_down_sync(~0u, (long long)in[i] << 8, 1) >> 8);
  o[5] = __popc(__match_any_sync(~0u, in[i] & 3));
  o[6] = clock64() >= 0 && __activemask() != 0;
  unsigned long long* word = reinterpret_cast<unsigned long long*>(sums + 1);
  unsigned long long old = *word, seen;
  do {
    seen = old;
    old = atomicCAS(word, seen, (unsigned long long)__double_as_longlong(
                                    __longlong_as_double((long long)seen) + 1.0));
  } while (old != seen);
  atomicAdd(sums, (double)in[i]);
}

struct Matrix { float v[4][4]; };
__device__ __noinline__ Matrix multiply(const Matrix& a, const Matrix& b) {
  Matrix c;
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) {
      float s = 0;
      for (int k = 0; k < 4; k++) s += a.v[i][k] * b.v[k][j];
      c.v[i][j] = s;
    }
  return c;
}
extern "C" __global__ void calls(float* out, Matrix a, int power, int column) {
  Matrix m = a;
  for (int p = 1; p < power; p++) m = multiply(m, a);
  out[threadIdx.x] = m.v[threadIdx.x & 3][(threadIdx.x + column) & 3];
}

extern "C" __global__ void choose(int* out, const int* in) {
  int x = in[threadIdx.x], r;
  switch (x) {
    case 0: r = 11; break;
    case 1: r = x * 3 + 5; break;
    case 2: r = out[threadIdx.x] - 4; break;
    case 3: r = -7; break;
    case 4: r = x << 9; break;
    case 5: r = threadIdx.x; break;
    case 9: r = 1000; break;
    default: r = 99;
  }
  for (int i = 0; i < x; i++) {
    if (i == 7) break;
    if (i % 3 == 1) continue;
    r += i;
  }
  out[threadIdx.x] = r;
}
"""


@pytest.fixture(scope="module", params=ARCHITECTURES)
def module(request: pytest.FixtureRequest) -> Module:
    text = compile_ptx(SOURCE, name="features.cu", arch=request.param).text
    return Module(text, arch=request.param)


N = 64


def test_float_functions(module: Module) -> None:
    x = np.random.default_rng(1).uniform(-4, 4, N).astype(np.float32)
    out = np.zeros((15, N), np.float32)
    module.get_function("float_functions")(1, N, (out, x, np.int32(N)))
    w = x.astype(np.float64)
    a = np.abs(w)
    far = (x * np.float32(1e5)).astype(np.float64)
    want = [np.sin(w), np.cos(far), np.exp(w), [math.erf(v) for v in w], np.tanh(w), np.log(a)]
    want += [a ** float(np.float32(1.7)), w / float(np.float32(3.1)), np.sqrt(a), a**-0.5]
    want += [np.fmod(w, float(np.float32(0.7))), np.trunc(w * 10 + np.copysign(0.5, w))]
    want += [np.arctan2(w, 2.0), np.log1p(a), np.cbrt(w)]
    for got, expected in zip(out, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=2e-7)


def test_double_functions(module: Module) -> None:
    x = np.random.default_rng(2).uniform(-4, 4, N)
    out = np.zeros((7, N))
    module.get_function("double_functions")(1, N, (out, x, np.int32(N)))
    a = np.abs(x)
    want = [np.exp(x), np.sin(x), np.log(a), a**1.7, x / 3.1 + np.sqrt(a)]
    want += [np.zeros(N), [math.erf(v) for v in x]]
    for got, expected in zip(out, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-14, atol=4e-15)


def test_integer_functions(module: Module) -> None:
    x = np.random.default_rng(3).integers(-(1 << 31), 1 << 31, N).astype(np.int32)
    x[:4] = [0, 1, -1, 96]
    out = np.zeros((15, N), np.int64)
    module.get_function("integer_functions")(1, N, (out, x, np.int32(N)))

    def signed(value: int, bits: int) -> int:
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> bits - 1 else value

    for i, v in enumerate(map(int, x)):
        u, w = v & 0xFFFFFFFF, v * 1234567891 + i
        both = ((v >> 7) & 0xFFFFFFFF) << 32 | u
        octets = [both >> 8 * s & 255 for s in (5, 1, 7, 3)]
        want = [
            u.bit_count(),
            32 - u.bit_length(),
            int(f"{u:032b}"[::-1], 2),
            (u & -u).bit_length(),
            int(math.copysign(abs(w) // 1000003, w)),
            int(math.copysign(abs(w) % 97, w)),
            int(math.copysign(abs(v) // 7, v)),
            int(math.copysign(abs(v) % 7, v)),
            (w & (1 << 64) - 1) >> 3,
            signed(v * 0x12345678 >> 32, 32),
            u * 0xDEADBEEF >> 32,
            signed(w * 0x123456789ABCDEF >> 64, 64),
            sum(octet << 8 * place for place, octet in enumerate(octets)),
            (i << 32 | u) << 9 >> 32 & 0xFFFFFFFF,
            (v & 255) + signed(v >> 8, 8) + signed(v >> 4, 16),
        ]
        assert out[:, i].tolist() == want


def test_halves(module: Module) -> None:
    x = np.random.default_rng(4).uniform(-2, 2, N).astype(np.float32)
    out = np.zeros((5, N), np.float32)
    module.get_function("halves")(1, N, (out, x, np.int32(N)))
    low, high = x.astype(np.float16), (x * np.float32(0.5)).astype(np.float16)
    product = (low * np.float16(0.25)).astype(np.float64)
    fused = (low.astype(np.float64) ** 2 + product).astype(np.float16)
    np.testing.assert_array_equal(out[0], fused)
    np.testing.assert_array_equal(out[1], np.maximum(high, np.float16(0.1)))
    np.testing.assert_array_equal(out[2], low + high)
    np.testing.assert_allclose(out[3], x.astype(np.float64) ** 2, rtol=1.3e-2)
    assert not np.any(out[3].view(np.uint32) & 0xFFFF)  # a bfloat16 indeed
    np.testing.assert_array_equal(out[4], low < high)


def test_block_functions(module: Module) -> None:
    x = np.random.default_rng(5).integers(-50, 50, N).astype(np.int32)
    out, sums = np.zeros((N, 8), np.int32), np.zeros(2)
    module.get_function("block_functions")(1, N, (out, x, sums))
    warps = x.reshape(-1, 32)
    assert (out[:, 0] == np.count_nonzero(x & 1)).all()
    assert (out[:, 1] == 1).all() and (out[:, 2] == 0).all()
    np.testing.assert_array_equal(out[:, 3], np.repeat((warps > 0).sum(axis=1), 32))
    np.testing.assert_array_equal(
        out[:, 4].reshape(-1, 32), np.concatenate([warps[:, 1:], warps[:, 31:]], axis=1)
    )
    same = (warps[:, :, None] & 3) == (warps[:, None, :] & 3)
    np.testing.assert_array_equal(out[:, 5], same.sum(axis=2).reshape(-1))
    assert (out[:, 6] == 1).all()
    assert sums.tolist() == [float(x.sum()), N]


def test_calls_and_structures(module: Module) -> None:
    a = np.random.default_rng(6).standard_normal((4, 4)).astype(np.float32)
    out = np.zeros(32, np.float32)
    for column in (0, 1):
        module.get_function("calls")(1, 32, (out, a, np.int32(3), np.int32(column)))
        cube = np.linalg.matrix_power(a.astype(np.float64), 3)
        thread = np.arange(32)
        np.testing.assert_allclose(out, cube[thread & 3, (thread + column) & 3], rtol=1e-4)


def test_switches_and_loops(module: Module) -> None:
    x = (np.arange(N) % 11).astype(np.int32)
    out = np.arange(N, dtype=np.int32) * 2
    module.get_function("choose")(1, N, (out, x))
    for i, v in enumerate(map(int, x)):
        table = {0: 11, 1: v * 3 + 5, 2: 2 * i - 4, 3: -7, 4: v << 9, 5: i, 9: 1000}
        tail = sum(k for k in range(min(v, 7)) if k % 3 != 1)
        assert out[i] == table.get(v, 99) + tail
