// mma.cuh: the tensor-core instructions, one device function per instruction.
//
// Fragments of lane l, with g = l / 4 and t = l % 4 (row-major A, column-major B):
//   16-bit, m16n8k16: a0 (g; 2t, 2t+1)  a1 (g+8; same)  a2 (g; 2t+8, 2t+9)  a3 (g+8; same)
//                     b0 (k 2t, 2t+1; n g)  b1 (k 2t+8, 2t+9; n g)
//   int8, m16n8k32:   a0 (g; 4t .. 4t+3)  a1 (g+8)  a2 (g; 16+4t ..)  a3 (g+8);  b0 b1 likewise
//   16-bit, 2:4 sparse A, m16n8k32: see mma_sparse
//   result:           d0 d1 (row g; columns 2t, 2t+1)  d2 d3 (row g+8)
// One register holds the same bytes in both: a tile of 32 bytes by 16 rows is one A operand, and
// ldmatrix brings it without knowing the type.
//
// sm_75 lacks these sizes: two m16n8k8, or four m8n8k16, work on the same registers. It has no
// bfloat16.

#pragma once

#include "async_copy.cuh"
#include "types.cuh"

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<int8> {
  using type = int;
};

// d += A B over one k step of 32 bytes.
template <typename T>
__device__ __forceinline__ void mma(typename Accumulator<T>::type (&d)[4], const uint32 (&a)[4],
                                    uint32 b0, uint32 b1);

template <>
__device__ __forceinline__ void mma<half>(float (&d)[4], const uint32 (&a)[4], uint32 b0,
                                          uint32 b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ void mma<bfloat16>(float (&d)[4], const uint32 (&a)[4], uint32 b0,
                                              uint32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

template <>
__device__ __forceinline__ void mma<int8>(int (&d)[4], const uint32 (&a)[4], uint32 b0,
                                          uint32 b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(a[0]), "r"(b0));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(d[0]), "+r"(d[1])
      : "r"(a[2]), "r"(b1));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(d[2]), "+r"(d[3])
      : "r"(a[1]), "r"(b0));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(d[2]), "+r"(d[3])
      : "r"(a[3]), "r"(b1));
#endif
}

#if __CUDA_ARCH__ >= 800
// d += A B over 32 columns of K, of which A holds 16: two of every four neighbours, in order. a is the
// A operand of m16n8k16 over what is held; b[i] has k 8i + 2t, 8i + 2t + 1. Lanes 2 kSelector (k 0-15)
// and 2 kSelector + 1 (k 16-31) of each quad say in `kept` where a row's values belong: two bits a
// value, row g in the lower half, row g + 8 in the upper; the other two lanes are not asked.
// Compilers before CUDA 12.5 do not know the name that promises the order.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define MMA_SPARSE "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32."
#else
#define MMA_SPARSE "mma.sp.sync.aligned.m16n8k32.row.col.f32."
#endif

template <typename T, int kSelector>
__device__ __forceinline__ void mma_sparse(float (&d)[4], const uint32 (&a)[4],
                                           const uint32 (&b)[4], uint32 kept) {
  static_assert(sizeof(T) == 2, "16-bit operands");
  static_assert(kSelector == 0 || kSelector == 1, "two of the four lanes of a quad");
  if constexpr (T::kIsBfloat16) {
    asm(MMA_SPARSE "bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
        "{%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
          "r"(kept), "n"(kSelector));
  } else {
    asm(MMA_SPARSE "f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
        "{%0, %1, %2, %3}, %12, %13;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
          "r"(kept), "n"(kSelector));
  }
}
#endif

// Four 8x8 matrices of 16-bit elements; lanes 8i .. 8i+7 give the row addresses of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// A operand: 16 rows from `row` on, 32 bytes from `chunk` on, of a swizzled tile.
template <int kChunks>
__device__ __forceinline__ void load_a(uint32 (&a)[4], const uint4* tile, int row, int chunk) {
  const int lane_id = threadIdx.x & 31;
  const int r = row + (lane_id & 15), c = chunk + lane_id / 16;
  ldmatrix_x4(a, tile + r * kChunks + swizzle<kChunks>(r, c));
}

// B operands of two neighbouring n-tiles of 8: b[0], b[1] of the first, b[2], b[3] of the second.
// The tile holds B transposed, 16 rows n from `row` on.
template <int kChunks>
__device__ __forceinline__ void load_b(uint32 (&b)[4], const uint4* tile, int row, int chunk) {
  const int lane_id = threadIdx.x & 31;
  const int r = row + (lane_id & 7) + (lane_id / 16) * 8, c = chunk + ((lane_id / 8) & 1);
  ldmatrix_x4(b, tile + r * kChunks + swizzle<kChunks>(r, c));
}

// B operand of mma_sparse for one n-tile of 8: the four registers of 64 bytes from `chunk` on. The
// tile holds B transposed, 8 rows n from `row` on.
template <int kChunks>
__device__ __forceinline__ void load_b_wide(uint32 (&b)[4], const uint4* tile, int row,
                                            int chunk) {
  const int lane_id = threadIdx.x & 31;
  const int r = row + (lane_id & 7), c = chunk + lane_id / 8;
  ldmatrix_x4(b, tile + r * kChunks + swizzle<kChunks>(r, c));
}

// B operands of two neighbouring n-tiles from a tile that holds B as it is: 16 rows k from `row`
// on, n from `chunk` on (8 columns a chunk).
template <int kChunks>
__device__ __forceinline__ void load_b_trans(uint32 (&b)[4], const uint4* tile, int row,
                                             int chunk) {
  const int lane_id = threadIdx.x & 31;
  const int r = row + (lane_id & 15), c = chunk + lane_id / 16;
  ldmatrix_x4_trans(b, tile + r * kChunks + swizzle<kChunks>(r, c));
}
