"""Launches: arguments, limits, chunks, threads that wait for each other, memory of the device."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from minibert.errors import InputError
from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import (
    KernelFault,
    LaunchError,
    Module,
    device_address,
    device_array,
)

ADD = """
extern "C" __global__ void __launch_bounds__(256) k(float* out, const float* in, float x, int n) {
  __shared__ float s[256];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i] + x;
}"""


def module(source: str, **options: object) -> Module:
    return Module(compile_ptx(source, name="k.cu").text, **options)  # type: ignore[arg-type]


def test_grid_and_block_of_three_dimensions() -> None:
    source = """
extern "C" __global__ void k(int* out) {
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}"""
    out = np.zeros((24, 30), np.int32)
    module(source).get_function("k")((2, 3, 4), (5, 3, 2), (out,))
    np.testing.assert_array_equal(out, np.arange(24)[:, None] * 1000 + np.arange(30))


@pytest.mark.parametrize("blocks", [1, 31, 32, 33, 100])
def test_chunks_of_the_grid_agree(blocks: int) -> None:
    source = np.random.default_rng(1).standard_normal(blocks * 256).astype(np.float32)
    out = device_array(blocks * 256, np.float32)
    kernel = module(ADD).get_function("k")
    n = blocks * 256 - 3
    kernel(blocks, 256, (out, source, np.float32(2), np.int32(n)))
    np.testing.assert_array_equal(out[:n], source[:n] + np.float32(2))
    kernel(blocks, 256, (out, source, np.float32(3), np.int32(n)))  # the steps are kept
    np.testing.assert_array_equal(out[:n], source[:n] + np.float32(3))


def test_views_have_bounds_of_their_own() -> None:
    base = np.zeros(144, np.float32)
    kernel = module(ADD).get_function("k")
    kernel(1, 32, (base[16:48], base[48:80], np.float32(1), np.int32(32)))
    with pytest.raises(KernelFault, match="offset 128 of argument 0 of k, which has 128 bytes"):
        kernel(1, 64, (base[16:48], base[80:], np.float32(1), np.int32(33)))
    # Views that overlap: what one thread writes is what another reads.
    with pytest.raises(KernelFault, match="write after read of global memory"):
        kernel(1, 32, (base[16:48], base[:32], np.float32(1), np.int32(32)))


def test_alignment_is_that_of_the_base() -> None:
    source = """
extern "C" __global__ void k(float4* out, const float4* in) { out[0] = in[0]; }"""
    base, out = np.arange(8, dtype=np.float32), np.zeros(4, np.float32)
    kernel = module(source).get_function("k")
    kernel(1, 1, (out, base[4:]))
    np.testing.assert_array_equal(out, [4, 5, 6, 7])
    with pytest.raises(KernelFault) as caught:
        kernel(1, 1, (out, base[1:5]))
    assert caught.value.kind == "misaligned"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((1,), "takes 4 arguments, got 1"),
        (("in", "in", np.float64(1), np.int32(1)), "argument 2 of k must be 4 bytes"),
        (("in", "in", np.int32(1), np.int32(1)), "argument 2 of k must be 4 bytes"),
        (("in", "in", 1.0, np.int32(1)), "pass a NumPy scalar"),
        (("in", "in", np.float32(1), np.int64(1)), "argument 3 of k must be 4 bytes"),
        (("in", "in", np.float32(1), 1 << 40), "argument 3 of k must be from"),
        (("in", "in", np.float32(1), "in"), "argument 3 of k must be 4 bytes by value"),
        (("in", object(), np.float32(1), 1), "must be an array, a NumPy scalar or an integer"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(args: tuple[object, ...], message: str) -> None:
    array = np.zeros(32, np.float32)
    values = [array if value == "in" else value for value in args]
    with pytest.raises(LaunchError, match=message):
        module(ADD).get_function("k")(1, 32, values)


def test_strided_array_is_refused() -> None:
    array = np.zeros((8, 8), np.float32)
    with pytest.raises(InputError, match="C-contiguous"):
        module(ADD).get_function("k")(1, 8, (array[:, 0], array, np.float32(1), 8))


def test_structures_go_by_value() -> None:
    source = """
struct Shape { int rows; float scale; const float* data; };
extern "C" __global__ void k(float* out, Shape s) {
  if (threadIdx.x < s.rows) out[threadIdx.x] = s.data[threadIdx.x] * s.scale;
}"""
    data = device_array(8, np.float32)
    data[:] = np.arange(8)
    shape = np.zeros(1, np.dtype([("rows", "i4"), ("scale", "f4"), ("data", "u8")]))
    shape[0] = (8, 3.0, device_address(data))
    out = np.zeros(8, np.float32)
    module(source).get_function("k")(1, 32, (out, shape))
    np.testing.assert_array_equal(out, 3 * np.arange(8))


def test_a_pointer_into_a_pointer_table() -> None:
    source = """
extern "C" __global__ void k(float* out, const float* const* table) {
  out[threadIdx.x] = table[threadIdx.x & 1][threadIdx.x];
}"""
    first, second = device_array(32, np.float32), device_array(32, np.float32)
    first[:], second[:] = 1, 2
    table = np.array([device_address(first), device_address(second)], np.uint64)
    out = np.zeros(32, np.float32)
    module(source).get_function("k")(1, 32, (out, table))
    np.testing.assert_array_equal(out, np.where(np.arange(32) % 2, 2, 1))


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        (1, 1025, 0, "block.x of k must be from 1 to 1024"),
        (1, (32, 64), 0, "threads of a block of k must be at most 1024"),
        (1, (1, 1, 65), 0, "block.z of k must be from 1 to 64"),
        (1, 512, 0, r"at most 256 \(__launch_bounds__\)"),
        (0, 32, 0, "grid.x of k must be from 1"),
        ((1, 65536), 32, 0, "grid.y of k must be from 1 to 65535"),
        (1, 32, 48 * 1024 + 16, "unless max_dynamic_shared_size_bytes is set higher"),
        (1, 32, 200_000, "at most 166912 bytes on sm_80"),
        (1, 32, -1, "shared_mem of k must be at least 0"),
    ],
)
def test_limits_of_the_architecture(grid: object, block: object, shared: int, message: str) -> None:
    array = np.zeros(32, np.float32)
    kernel = module(ADD).get_function("k")
    with pytest.raises(LaunchError, match=message):
        kernel(grid, block, (array, array, np.float32(1), 0), shared_mem=shared)  # type: ignore[arg-type]


def test_more_shared_memory_after_opting_in() -> None:
    array = np.zeros(32, np.float32)
    kernel = module(ADD).get_function("k")
    assert kernel.attributes["shared_size_bytes"] == 0  # the compiler dropped the unused array
    assert kernel.attributes["max_threads_per_block"] == 256
    assert kernel.attributes["max_dynamic_shared_size_bytes"] == 48 * 1024
    kernel.max_dynamic_shared_size_bytes = 100_000
    kernel(1, 32, (array, array, np.float32(1), 32), shared_mem=100_000)
    with pytest.raises(LaunchError, match="at most 65536 bytes on sm_75"):
        module(ADD, arch="sm_75").get_function("k")(
            1, 32, (array, array, np.float32(1), 32), shared_mem=100_000
        )


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"kernel must be one of \['k'\], got 'other'"):
        module(ADD).get_function("other")
    with pytest.raises(LaunchError, match="arch must be one of sm_70"):
        module(ADD, arch="sm_12")


def test_module_variables_live_between_launches() -> None:
    source = """
__device__ int calls = 5;
__constant__ float table[4] = {1, 2, 3, 4};
extern "C" __global__ void k(float* out) {
  if (threadIdx.x == 0) calls += 1;
  out[threadIdx.x] = table[threadIdx.x & 3];
}"""
    loaded = module(source)
    out = np.zeros(32, np.float32)
    for _ in range(2):
        loaded.get_function("k")(1, 32, (out,))
    assert loaded.get_global("calls").view(np.int32)[0] == 7
    loaded.get_global("table").view(np.float32)[0] = 9
    loaded.get_function("k")(1, 32, (out,))
    np.testing.assert_array_equal(out[:4], [9, 2, 3, 4])


def test_a_lock_makes_progress() -> None:
    source = """
extern "C" __global__ void k(int* lock, int* count) {
  bool done = false;
  while (!done) {
    if (atomicCAS(lock, 0, 1) == 0) {
      *(volatile int*)count += 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    }
  }
}"""
    lock, count = np.zeros(1, np.int32), np.zeros(1, np.int32)
    module(source, checks=False).get_function("k")(2, 32, (lock, count))
    assert count[0] == 64


def test_a_block_may_wait_for_another() -> None:
    source = """
extern "C" __global__ void k(int* flag, int* out) {
  if (blockIdx.x == 0) {
    while (*(volatile int*)flag == 0) {}
    out[0] = *(volatile int*)flag + 1;
  } else {
    *(volatile int*)flag = 41;
  }
}"""
    flag, out = np.zeros(1, np.int32), np.zeros(1, np.int32)
    module(source).get_function("k")(2, 1, (flag, out))
    assert out[0] == 42


def test_last_block_adds_up_the_others() -> None:
    source = """
extern "C" __global__ void k(float* out, float* parts, unsigned* count) {
  __shared__ bool last;
  parts[blockIdx.x * 32 + threadIdx.x] = blockIdx.x + 1.0f;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(count, 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  float sum = 0;
  for (int b = 0; b < gridDim.x; b++) sum += __ldcg(parts + b * 32 + threadIdx.x);
  out[threadIdx.x] = sum;
}"""
    out, count = device_array(32, np.float32), np.zeros(1, np.uint32)
    parts = device_array(8 * 32, np.float32)
    module(source).get_function("k")(8, 32, (out, parts, count))
    np.testing.assert_array_equal(out, 36.0)


def test_partial_warps_and_early_exits_are_no_fault() -> None:
    source = """
extern "C" __global__ void k(float* out, const float* in, int n) {
  __shared__ float s[2];
  int i = threadIdx.x;
  float x = i < n ? in[i] : 0.0f;
  for (int o = 16; o; o >>= 1) x += __shfl_down_sync(0xffffffff, x, o);
  if ((i & 31) == 0) s[i >> 5] = x;
  __syncthreads();
  if (i >= 1) return;
  out[0] = s[0] + s[1];
}"""
    values = np.arange(50, dtype=np.float32)
    out = device_array(1, np.float32)
    module(source).get_function("k")(1, 64, (out, values, 50))
    assert out[0] == values.sum()
    early = """
extern "C" __global__ void k(float* out, int n) {
  __shared__ float s[64];
  if (threadIdx.x >= n) return;
  s[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = s[n - 1 - threadIdx.x];
}"""
    out = device_array(41, np.float32)
    module(early).get_function("k")(1, 48, (out, 41))
    np.testing.assert_array_equal(out, np.arange(41)[::-1])


def test_host_writes_count_as_written() -> None:
    source = """
extern "C" __global__ void k(float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x]; }"""
    kernel = module(source).get_function("k")
    out, data = device_array(32, np.float32), device_array(32, np.float32)
    data[:16] = 0
    with pytest.raises(KernelFault, match="offset 64 of argument 1 of k were never written"):
        kernel(1, 32, (out, data))
    data[16:] = 1
    kernel(1, 32, (out, data))
    kernel(1, 32, (data, out))  # what a kernel wrote counts as well


def test_device_arrays_are_forgotten_with_their_last_view() -> None:
    array = device_array((4, 4), np.float16)
    view = array[1:]
    address = device_address(view)
    assert address == device_address(array) + 8
    del array
    gc.collect()
    assert device_address(view) == address
    with pytest.raises(InputError, match="must come from device_array"):
        device_address(np.zeros(4))


def test_read_only_array_is_not_written() -> None:
    array = np.zeros(32, np.float32)
    frozen = array.copy()
    frozen.flags.writeable = False
    kernel = module(ADD).get_function("k")
    kernel(1, 32, (array, frozen, np.float32(1), 32))
    with pytest.raises(KernelFault) as caught:
        kernel(1, 32, (frozen, array, np.float32(1), 32))
    assert caught.value.kind == "write to read-only memory"


@pytest.mark.parametrize("word", ["short", "float", "float2", "float4"])
def test_stores_of_every_size_count_as_written(word: str) -> None:
    source = f"""
extern "C" __global__ void k({word}* out, const {word}* in) {{
  out[threadIdx.x] = in[threadIdx.x];
}}"""
    size = {"short": 2, "float": 4, "float2": 8, "float4": 16}[word]
    data = np.random.default_rng(1).integers(0, 256, 32 * size).astype(np.uint8)
    first, second = device_array(32 * size, np.uint8), device_array(32 * size, np.uint8)
    kernel = module(source).get_function("k")
    kernel(1, 32, (first, data))
    kernel(1, 32, (second, first))
    np.testing.assert_array_equal(second, data)
