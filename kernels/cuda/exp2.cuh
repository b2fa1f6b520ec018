// exp2.cuh: the exponential of the special function unit, one instruction.
//
// Relative error about 2^-22 (PTX ISA, ex2.approx.ftz.f32); exp2(-inf) is 0. The attention kernels
// for 16-bit types use it, whose probabilities are rounded to 16 bits anyway.

#pragma once

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
