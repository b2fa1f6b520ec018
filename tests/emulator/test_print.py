"""`printf` in kernels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import Module, UnsupportedError
from tests.emulator.harness import EXECUTED

SOURCE = r"""
extern "C" __global__ void k(const float* in, long long big) {
  int i = threadIdx.x;
  if (i >= 2) return;
  int n = printf("thread %d of %u: %8.3f %+d 0x%04x %lld %s%c 100%% %g\n", i, blockDim.x, in[i], -i,
                 i + 255, big, "text", 'x', 0.5);
  if (i == 1) printf("said %d things, %p, %-5d|\n", n, (void*)16, 7);
  printf("plain\n");
}"""


def print_from_a_kernel() -> list[str]:
    kernel = Module(compile_ptx(SOURCE, name="k.cu").text).get_function("k")
    kernel(1, 32, (np.array([1.5, -2.25], np.float32), np.int64(-(1 << 40))))
    EXECUTED.update(kernel.executed)
    return kernel.printed


def test_printf_formats_as_c_does() -> None:
    printed = print_from_a_kernel()
    assert "thread 0 of 32:    1.500 +0 0x00ff -1099511627776 textx 100% 0.5\n" in printed
    assert "thread 1 of 32:   -2.250 -1 0x0100 -1099511627776 textx 100% 0.5\n" in printed
    assert printed.count("plain\n") == 2
    assert any(re.fullmatch(r"said \d+ things, 0x10, 7    \|\n", text) for text in printed)


def test_an_unknown_call_is_refused_by_name() -> None:
    source = """
extern "C" __device__ int elsewhere(int);
extern "C" __global__ void k(int* out) { *out = elsewhere(*out); }"""
    module = Module(
        compile_ptx(source, name="k.cu", options=["--relocatable-device-code=true"]).text
    )
    with pytest.raises(UnsupportedError, match="call of elsewhere, which is not in the module"):
        module.get_function("k")
