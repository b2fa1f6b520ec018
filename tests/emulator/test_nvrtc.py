"""The binding of NVRTC: products, resources, errors."""

from __future__ import annotations

import pytest

from minibert.errors import DeviceError
from minibert.kernels.cuda import nvrtc
from minibert.kernels.cuda.nvrtc_log import parse_resources

SOURCE = """
#include <cuda_fp16.h>
template <int kSize>
__global__ void k(half* out, const half* in) {
  __shared__ float s[kSize];
  s[threadIdx.x] = __half2float(in[threadIdx.x]);
  __syncthreads();
  out[threadIdx.x] = __float2half(s[threadIdx.x ^ 1]);
}
"""


def test_ptx_has_lines_and_names() -> None:
    ptx = nvrtc.compile_ptx(SOURCE, name="half.cu", arch="sm_75", name_expressions=["k<64>"])
    assert ".target sm_75" in ptx.text
    assert f".entry {ptx.names['k<64>']}" in ptx.text
    assert "half.cu" in ptx.text and ".loc" in ptx.text


def test_cubin_says_what_a_kernel_takes() -> None:
    cubin = nvrtc.compile_cubin(SOURCE, name="half.cu", name_expressions=["k<64>", "k<128>"])
    assert cubin.image.startswith(b"\x7fELF")
    for name, smem_bytes in (("k<64>", 256), ("k<128>", 512)):
        resources = cubin.resources[cubin.names[name]]
        assert resources.smem_bytes == smem_bytes
        assert 0 < resources.registers < 64
        assert resources.spill_store_bytes == resources.spill_load_bytes == 0
        assert resources.barriers == 1


def test_spills_are_reported() -> None:
    source = """
extern "C" __global__ void __launch_bounds__(1024, 2) k(float* out, const float* in) {
  float x[64];
  for (int i = 0; i < 64; i++) x[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int j = 0; j < 64; j++) {
    float sum = 0;
    for (int i = 0; i < 64; i++) sum += x[i] * in[j * 64 + i];
    out[j * 1024 + threadIdx.x] = sum;
  }
}"""
    resources = nvrtc.compile_cubin(source, name="k.cu").resources["k"]
    assert resources.spill_store_bytes > 0 and resources.spill_load_bytes > 0


def test_headers_and_options() -> None:
    source = '#include "two.cuh"\nextern "C" __global__ void k(int* out) { *out = two() + THREE; }'
    headers = {"two.cuh": "__device__ int two() { return 2; }"}
    ptx = nvrtc.compile_ptx(source, name="k.cu", headers=headers, options=["-DTHREE=3"])
    assert ", 5;" in ptx.text


def test_errors_show_numbered_source() -> None:
    source = (
        '#line 10 "part.cuh"\nint a = 1;\n#line 1 "k.cu"\n__global__ void k() {\n  int x = y;\n}\n'
    )
    with pytest.raises(DeviceError) as caught:
        nvrtc.compile_ptx(source, name="k.cu")
    message = str(caught.value)
    assert 'k.cu(2): error: identifier "y" is undefined' in message
    assert ">     2 |   int x = y;" in message
    assert "      1 | __global__ void k() {" in message
    broken = source.replace("int a = 1;", "int a = b;").replace("= y", "= 1")
    with pytest.raises(DeviceError, match=r">    10 \| int a = b;"):
        nvrtc.compile_ptx(broken, name="k.cu")


def test_ptxas_refuses_what_the_architecture_lacks() -> None:
    source = """
extern "C" __global__ void k() { asm volatile("cp.async.wait_all;"); }"""
    assert "cp.async" in nvrtc.compile_ptx(source, name="k.cu", arch="sm_75").text
    with pytest.raises(DeviceError, match=r"requires \.target sm_80 or higher"):
        nvrtc.compile_cubin(source, name="k.cu", arch="sm_75")


def test_missing_headers_of_cuda_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "include_folders", tuple)
    with pytest.raises(DeviceError, match="come with the wheel nvidia-cuda-runtime"):
        nvrtc.compile_ptx("#include <cuda_fp16.h>", name="k.cu")


def test_library_is_described() -> None:
    assert nvrtc.version() >= (12, 0)
    assert 80 in nvrtc.supported_architectures()
    assert "nvrtc" in nvrtc.library_path()


def test_resources_of_a_log_without_kernels_are_empty() -> None:
    assert parse_resources("ptxas info    : 0 bytes gmem\n") == {}
