// types.cuh: the number formats of the kernels and their conversions, without any CUDA header.
//
// NVRTC ships no headers, so half and bfloat16 are their 16 bits and a handful of PTX conversions.
// Kernels compute in float32: a value is widened when it is read and rounded once, to nearest even,
// when it is written. load4 and store4 move four neighbours as one 8- or 16-byte access, so that a
// warp reads or writes 256 or 512 contiguous bytes.

#pragma once

using int8 = signed char;
using int64 = long long;
using uint32 = unsigned int;
using uint64 = unsigned long long;

struct half {
  unsigned short bits;
  static constexpr bool kIsBfloat16 = false;
};
struct bfloat16 {
  unsigned short bits;
  static constexpr bool kIsBfloat16 = true;
};

static_assert(sizeof(half) == 2 && sizeof(bfloat16) == 2, "16-bit formats hold 16 bits");
static_assert(sizeof(uint32) == 4 && sizeof(int64) == 8, "fixed widths");

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// A bfloat16 is the upper half of a float32: no conversion instruction, on any architecture.
__device__ __forceinline__ float to_float(bfloat16 x) {
  return __uint_as_float(static_cast<uint32>(x.bits) << 16);
}

template <typename T>
__device__ __forceinline__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}

template <>
__device__ __forceinline__ half from_float<half>(float x) {
  half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
  bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
#endif

// Two floats as one register of two T, `low` in the lower 16 bits.
template <typename T>
__device__ __forceinline__ uint32 pack2(float low, float high);

template <>
__device__ __forceinline__ uint32 pack2<half>(float low, float high) {
  uint32 packed;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else
  packed = static_cast<uint32>(from_float<half>(low).bits) |
           static_cast<uint32>(from_float<half>(high).bits) << 16;
#endif
  return packed;
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ uint32 pack2<bfloat16>(float low, float high) {
  uint32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
#endif

template <typename T>
__device__ __forceinline__ float unpack_low(uint32 packed) {
  return to_float(T{static_cast<unsigned short>(packed & 0xffffu)});
}

template <typename T>
__device__ __forceinline__ float unpack_high(uint32 packed) {
  return to_float(T{static_cast<unsigned short>(packed >> 16)});
}

// Four neighbours; `from` is aligned to 4 * sizeof(T).
template <typename T>
__device__ __forceinline__ float4 load4(const T* from) {
  static_assert(sizeof(T) == 2, "16-bit format");
  const uint2 packed = *reinterpret_cast<const uint2*>(from);
  return make_float4(unpack_low<T>(packed.x), unpack_high<T>(packed.x), unpack_low<T>(packed.y),
                     unpack_high<T>(packed.y));
}

template <>
__device__ __forceinline__ float4 load4<float>(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

template <typename T>
__device__ __forceinline__ void store4(T* to, float4 x) {
  static_assert(sizeof(T) == 2, "16-bit format");
  *reinterpret_cast<uint2*>(to) = make_uint2(pack2<T>(x.x, x.y), pack2<T>(x.z, x.w));
}

template <>
__device__ __forceinline__ void store4<float>(float* to, float4 x) {
  *reinterpret_cast<float4*>(to) = x;
}

// The value that a store and a load would give.
template <typename T>
__device__ __forceinline__ float4 rounded4(float4 x) {
  return make_float4(to_float(from_float<T>(x.x)), to_float(from_float<T>(x.y)),
                     to_float(from_float<T>(x.z)), to_float(from_float<T>(x.w)));
}
