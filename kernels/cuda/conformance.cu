// conformance: one kernel per device function that is inline PTX; registers in, registers out.
//
// What an instruction means is written down twice: in the PTX that a GPU runs, and in the emulator.
// These kernels ask both the same question. conformance.py holds operands and the answer that the
// PTX ISA gives.
// All arrays are indexed by lane; a value of several registers is (32, registers).
// Mapping: one warp.
// Traffic: none worth mentioning.
// Requires: one block of 32 threads.

#include "async_copy.cuh"
#include "exp2.cuh"
#include "mma.cuh"
#include "reduce.cuh"
#include "types.cuh"

constexpr int kBlockSize = 32;

template <typename T>
__global__ void __launch_bounds__(kBlockSize)
    mma_conformance_kernel(typename Accumulator<T>::type* __restrict__ out,
                           const uint32* __restrict__ a, const uint32* __restrict__ b,
                           const typename Accumulator<T>::type* __restrict__ c) {
  const int lane_id = threadIdx.x;
  typename Accumulator<T>::type d[4];
  uint32 operand[4];
  for (int i = 0; i < 4; ++i) {
    d[i] = c[4 * lane_id + i];
    operand[i] = a[4 * lane_id + i];
  }
  mma<T>(d, operand, b[2 * lane_id], b[2 * lane_id + 1]);
  for (int i = 0; i < 4; ++i) out[4 * lane_id + i] = d[i];
}

#if __CUDA_ARCH__ >= 800
template <typename T, int kSelector>
__global__ void __launch_bounds__(kBlockSize)
    mma_sparse_conformance_kernel(float* __restrict__ out, const uint32* __restrict__ a,
                                  const uint32* __restrict__ b, const float* __restrict__ c,
                                  const uint32* __restrict__ kept) {
  const int lane_id = threadIdx.x;
  float d[4];
  uint32 left[4], right[4];
  for (int i = 0; i < 4; ++i) {
    d[i] = c[4 * lane_id + i];
    left[i] = a[4 * lane_id + i];
    right[i] = b[4 * lane_id + i];
  }
  mma_sparse<T, kSelector>(d, left, right, kept[lane_id]);
  for (int i = 0; i < 4; ++i) out[4 * lane_id + i] = d[i];
}
#endif

template <bool kTransposed>
__global__ void __launch_bounds__(kBlockSize)
    ldmatrix_conformance_kernel(uint32* __restrict__ out, const uint4* __restrict__ rows) {
  __shared__ __align__(128) uint4 tile[kBlockSize];
  const int lane_id = threadIdx.x;
  tile[lane_id] = rows[lane_id];
  // Lanes read what other lanes wrote.
  __syncthreads();
  uint32 r[4];
  if (kTransposed) {
    ldmatrix_x4_trans(r, tile + lane_id);
  } else {
    ldmatrix_x4(r, tile + lane_id);
  }
  for (int i = 0; i < 4; ++i) out[4 * lane_id + i] = r[i];
}

// Two groups of copies: the wait for the first must not need the second.
__global__ void __launch_bounds__(kBlockSize)
    copy_conformance_kernel(uint4* __restrict__ out, const uint4* __restrict__ from,
                            const int* __restrict__ valid) {
  __shared__ __align__(128) uint4 tile[2][kBlockSize];
  const int lane_id = threadIdx.x;
  copy16(&tile[0][lane_id], from + lane_id, valid[lane_id] != 0);
  commit_copies();
  copy16(&tile[1][lane_id], from + lane_id, valid[lane_id] == 0);
  commit_copies();
  wait_copies<1>();
  __syncthreads();
  out[lane_id] = tile[0][lane_id ^ 1];
  wait_copies<0>();
  __syncthreads();
  out[kBlockSize + lane_id] = tile[1][lane_id ^ 1];
}

template <typename T>
__global__ void __launch_bounds__(kBlockSize)
    convert_conformance_kernel(uint32* __restrict__ packed, float* __restrict__ back,
                               const float* __restrict__ in) {
  const int lane_id = threadIdx.x;
  const float low = in[2 * lane_id], high = in[2 * lane_id + 1];
  packed[2 * lane_id] = pack2<T>(low, high);
  packed[2 * lane_id + 1] = from_float<T>(low).bits;
  back[2 * lane_id] = unpack_low<T>(pack2<T>(low, high));
  back[2 * lane_id + 1] = unpack_high<T>(pack2<T>(low, high));
}

__global__ void __launch_bounds__(kBlockSize)
    warp_conformance_kernel(float* __restrict__ out, const float* __restrict__ in) {
  const int lane_id = threadIdx.x;
  out[3 * lane_id] = warp_sum(in[lane_id]);
  out[3 * lane_id + 1] = warp_max(in[lane_id]);
  out[3 * lane_id + 2] = exp2_approx(in[lane_id]);
}
