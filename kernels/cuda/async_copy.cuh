// async_copy.cuh: 16-byte copies from global to shared memory, and where they land.
//
// From sm_80 on the copy is cp.async: it bypasses registers and runs while the tensor cores work.
// Before, it is a load and a store; the waits are then empty, because the __syncthreads() that
// follows every wait orders the stores as well.
//
// Tiles in shared memory have rows of kChunks chunks of 16 bytes without padding. Chunk c of row r
// lies at place swizzle(r, c): any eight consecutive rows of one chunk, which is what ldmatrix
// reads, touch all 32 banks once, and so do eight consecutive chunks of a row, which is what a copy
// writes.

#pragma once

#include "types.cuh"

// kChunks is even. Its largest power of two (at most 8) says how many places the exclusive-or may
// permute; 8 / that many rows share one pass over the banks, so r changes the pattern that slowly.
template <int kChunks>
__device__ __forceinline__ int swizzle(int row, int chunk) {
  static_assert(kChunks % 2 == 0, "rows are multiples of 32 bytes");
  constexpr int kPlaces = kChunks % 8 == 0 ? 8 : (kChunks % 4 == 0 ? 4 : 2);
  return chunk ^ ((row / (8 / kPlaces)) % kPlaces);
}

__device__ __forceinline__ uint32 shared_address(const void* pointer) {
  return static_cast<uint32>(__cvta_generic_to_shared(pointer));
}

// Copy 16 bytes, or write 16 zero bytes where `valid` is false; `from` must be a readable address
// either way. Both are 16-byte aligned.
__device__ __forceinline__ void copy16(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
#else
  *static_cast<uint4*>(to) =
      valid ? *static_cast<const uint4*>(from) : make_uint4(0u, 0u, 0u, 0u);
#endif
}

// Close the group of copies issued so far. A group may be empty and still counts.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most kPending groups of this thread are unfinished.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}
