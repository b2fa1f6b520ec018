// costs: kernels that do nothing, to time launches, and one that only reads, to time the L2 cache.

#include "types.cuh"

constexpr int kBlockSize = 256;

__global__ void __launch_bounds__(32) nothing_1_kernel(const int*) {}

__global__ void __launch_bounds__(32) nothing_8_kernel(
    const int*, const int*, const int*, const int*, int, int, int, int) {}

__global__ void __launch_bounds__(32) nothing_16_kernel(
    const int*, const int*, const int*, const int*, const int*, const int*, const int*, const int*,
    int, int, int, int, int, int, int, int) {}

// out (grid, kBlockSize): sum of the words that a thread read, num_passes times all of
// in (num_vectors, 4). Past the first-level cache (ld.global.cg), which a block's share would fit.
__global__ void __launch_bounds__(kBlockSize) read_kernel(
    uint32* __restrict__ out, const uint4* __restrict__ in, int num_vectors, int num_passes) {
  const int stride = static_cast<int>(gridDim.x) * kBlockSize;
  const int first = static_cast<int>(blockIdx.x) * kBlockSize + static_cast<int>(threadIdx.x);
  uint32 sum = 0;
  for (int pass = 0; pass < num_passes; ++pass) {
    for (int i = first; i < num_vectors; i += stride) {
      const uint4 v = __ldcg(in + i);
      sum += v.x + v.y + v.z + v.w;
    }
  }
  out[first] = sum;
}
