// find_a_race: the sum of each block of an array, by halves, in shared memory.
//
// The barrier at the end of the loop is missing: a warp may read what another has not added yet.
// On most runs of most devices the result is right all the same.

extern "C" __global__ void block_sum(float* out, const float* in, int n) {
  __shared__ float sums[256];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  sums[threadIdx.x] = i < n ? in[i] : 0.0f;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
    }
#ifdef REPAIRED
    __syncthreads();
#endif
  }
  if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}
