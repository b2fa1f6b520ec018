// peaks: loops that keep one unit of the device busy and nothing else. Their results are checked.
//
// Mapping: every warp works alone, on kChains independent values, so that the latency of one
// instruction hides behind the others; no memory is touched but for the result.
// Requires: what each kernel says; bounded by the unit it is named after.

#include "exp2.cuh"
#include "mma.cuh"
#include "types.cuh"

constexpr int kBlockSize = 256;
constexpr int kChains = 8;

// Ones of a type, as many as a register holds.
template <typename T>
__device__ __forceinline__ uint32 ones();
template <>
__device__ __forceinline__ uint32 ones<half>() { return 0x3c003c00u; }
template <>
__device__ __forceinline__ uint32 ones<bfloat16>() { return 0x3f803f80u; }
template <>
__device__ __forceinline__ uint32 ones<int8>() { return 0x01010101u; }

// Products of ones: every sum is num_steps * K. out (grid, kBlockSize) sums of all chains.
template <typename T>
__global__ void __launch_bounds__(kBlockSize, 2)
    mma_peak_kernel(float* __restrict__ out, int num_steps) {
  typename Accumulator<T>::type acc[kChains][4] = {};
  const uint32 one = ones<T>();
  const uint32 a[4] = {one, one, one, one};
  for (int step = 0; step < num_steps; ++step) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) mma<T>(acc[i], a, one, one);
  }
  float sum = 0.0f;
  for (int i = 0; i < kChains; ++i) {
    for (int j = 0; j < 4; ++j) sum += static_cast<float>(acc[i][j]);
  }
  out[static_cast<int64>(blockIdx.x) * kBlockSize + threadIdx.x] = sum;
}

#if __CUDA_ARCH__ >= 800
// The same with half of A kept: every sum is num_steps * 16.
template <typename T>
__global__ void __launch_bounds__(kBlockSize, 2)
    mma_sparse_peak_kernel(float* __restrict__ out, int num_steps) {
  float acc[kChains][4] = {};
  const uint32 one = ones<T>();
  const uint32 a[4] = {one, one, one, one}, b[4] = {one, one, one, one};
  for (int step = 0; step < num_steps; ++step) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) mma_sparse<T, 0>(acc[i], a, b, 0x44444444u);
  }
  float sum = 0.0f;
  for (int i = 0; i < kChains; ++i) {
    for (int j = 0; j < 4; ++j) sum += acc[i][j];
  }
  out[static_cast<int64>(blockIdx.x) * kBlockSize + threadIdx.x] = sum;
}
#endif

enum Function { kExp2, kExp2Half2, kTanh, kErf };

// x = f(x) - 1 (exponentials) or x = f(x): both stay in [-1, 1]. The subtraction runs in another,
// wider unit. kExp2Half2 has two numbers in a register.
template <Function kFunction>
__device__ __forceinline__ uint32 apply(uint32 x) {
  if (kFunction == kExp2) return __float_as_uint(exp2_approx(__uint_as_float(x)) - 1.0f);
  if (kFunction == kErf) return __float_as_uint(erff(__uint_as_float(x)));
  uint32 y;
  if (kFunction == kExp2Half2) {
    asm("ex2.approx.f16x2 %0, %1;" : "=r"(y) : "r"(x));
    asm("add.f16x2 %0, %1, %2;" : "=r"(y) : "r"(y), "r"(0xbc00bc00u));
  } else {
    float f;
    asm("tanh.approx.f32 %0, %1;" : "=f"(f) : "f"(__uint_as_float(x)));
    y = __float_as_uint(f);
  }
  return y;
}

// out (grid, kBlockSize): the first chain's value, as bits. All chains start at `start`.
template <Function kFunction>
__global__ void __launch_bounds__(kBlockSize)
    function_peak_kernel(uint32* __restrict__ out, int num_steps, uint32 start) {
  uint32 x[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) x[i] = start + static_cast<uint32>(i);
  for (int step = 0; step < num_steps; ++step) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) x[i] = apply<kFunction>(x[i]);
  }
  uint32 all = 0;
#pragma unroll
  for (int i = 1; i < kChains; ++i) all |= x[i];
  // Never true, and the compiler cannot know.
  if (all == 0xffffffffu) x[0] = all;
  out[static_cast<int64>(blockIdx.x) * kBlockSize + threadIdx.x] = x[0];
}

// Barriers of the whole grid: every block adds one to the counter and waits until all have. All
// blocks must be resident: at most one for each multiprocessor. counter starts at 0.
__global__ void __launch_bounds__(32) grid_barrier_kernel(int* counter, int num_barriers) {
  for (int i = 1; i <= num_barriers; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counter, 1);
      const volatile int* seen = counter;
      while (*seen < i * static_cast<int>(gridDim.x)) {
      }
      __threadfence();
    }
    __syncthreads();
  }
}

#if __CUDA_ARCH__ >= 900
// Barriers of clusters of 8 blocks, by the hardware. done (grid,) counts them.
__global__ void __launch_bounds__(32) __cluster_dims__(8, 1, 1)
    cluster_barrier_kernel(int* __restrict__ done, int num_barriers) {
  int count = 0;
  for (int i = 0; i < num_barriers; ++i) {
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    ++count;
  }
  if (threadIdx.x == 0) done[blockIdx.x] = count;
}
#endif
