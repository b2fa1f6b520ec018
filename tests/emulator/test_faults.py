"""Each planted bug is reported, with its kind and its source line; the repaired kernel is clean."""

from __future__ import annotations

import numpy as np
import pytest

from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import KernelFault, Module, device_array
from minibert.kernels.emulator.faults import KINDS
from tests.emulator import planted_global, planted_memory, planted_order
from tests.emulator.planted_memory import Planted

PLANTED = [*planted_memory.PLANTED, *planted_order.PLANTED, *planted_global.PLANTED]


def launch(planted: Planted, *, bad: bool) -> None:
    ptx = compile_ptx(planted.source, name="k.cu", options=(f"-DBAD={int(bad)}",))
    module = Module(ptx.text, step_limit=planted.step_limit)
    source = np.random.default_rng(1).standard_normal(planted.size).astype(np.float32)
    out = device_array(planted.size, np.float32)
    module.get_function("k")(
        planted.grid,
        planted.block,
        (out, source, np.int32(planted.size)),
        shared_mem=planted.shared_mem,
    )


def line_of(source: str, mark: str) -> int:
    return next(i for i, line in enumerate(source.splitlines(), 1) if mark in line)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: p.name)
def test_planted_bug_is_reported(planted: Planted) -> None:
    with pytest.raises(KernelFault) as caught:
        launch(planted, bad=True)
    fault = caught.value
    assert fault.kind == planted.kind, fault
    assert fault.location.outermost.line == line_of(planted.source, "// BUG"), fault
    assert fault.location.outermost.file.endswith("k.cu")
    assert "k.cu:" in str(fault) and fault.kernel == "k" and fault.thread is not None
    if planted.other:
        assert fault.other is not None
        assert fault.other.outermost.line == line_of(planted.source, "// OTHER"), fault


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: p.name)
def test_repaired_kernel_raises_no_alarm(planted: Planted) -> None:
    launch(planted, bad=False)


def test_inlined_code_names_both_lines() -> None:
    planted = next(p for p in PLANTED if p.name == "inside an inlined function")
    with pytest.raises(KernelFault, match=r"at k\.cu:3 inlined at k\.cu:6, block \(0, 0, 0\)"):
        launch(planted, bad=True)


def test_assertion_shows_its_condition() -> None:
    planted = next(p for p in PLANTED if p.name == "assertion")
    with pytest.raises(KernelFault, match=r"assertion failed: .*in\[threadIdx\.x\] < -1000"):
        launch(planted, bad=True)


def test_without_checks_races_pass() -> None:
    planted = next(p for p in PLANTED if p.name == "no barrier between write and read")
    ptx = compile_ptx(planted.source, name="k.cu", options=("-DBAD=1",))
    out = np.zeros(256, np.float32)
    source = np.ones(256, np.float32)
    Module(ptx.text, checks=False).get_function("k")(1, 64, (out, source, np.int32(256)))
    np.testing.assert_array_equal(out[:64], 1.0)


def run(body: str, *, grid: int = 1, block: int = 64) -> np.ndarray:
    """Run `k(float* out, const float* in, int n)` over 256 floats."""
    source = f'extern "C" __global__ void k(float* out, const float* in, int n) {{\n{body}\n}}'
    out = device_array(256, np.float32)
    values = np.arange(256, dtype=np.float32)
    module = Module(compile_ptx(source, name="k.cu").text)
    module.get_function("k")(grid, block, (out, values, np.int32(256)))
    return out


@pytest.mark.parametrize(
    "body",
    [
        # Volatile accesses are ordered by other means, as in a loop that waits for a flag.
        """volatile float* v = out;
        if (threadIdx.x >= 32) v[threadIdx.x - 32] = in[threadIdx.x];
        if (threadIdx.x < 32) while (v[threadIdx.x] == 0.0f) {}
        """,
        # A thread may do what it likes with its own places.
        """float* mine = out + threadIdx.x;
        for (int i = 0; i < 4; i++) { *mine = i; *mine += in[threadIdx.x]; }
        """,
        # The same value written by all.
        "out[0] = 3.0f; out[1] = 4.0f;",
        # Atomics of all threads.
        """if (threadIdx.x == 0) out[0] = 0.0f;
        __syncthreads();
        for (int i = 0; i < 3; i++) atomicAdd(out, 1.0f);
        """,
        # A loop of compare and swap begins with a plain read.
        """if (threadIdx.x == 0) out[0] = 0.0f;
        __syncthreads();
        int* sum = reinterpret_cast<int*>(out);
        for (int i = 0; i < 2; i++) {
          int seen = *sum, assumed;
          do {
            assumed = seen;
            seen = atomicCAS(sum, assumed, assumed + n);
          } while (seen != assumed);
        }
        """,
        # What another block wrote is not ordered by barriers, and not looked at.
        """int i = blockIdx.x * 64 + threadIdx.x;
        out[i] = in[i];
        __syncthreads();
        float x = out[blockIdx.x * 64 + 63 - threadIdx.x];
        __syncthreads();
        out[i] = x;
        """,
    ],
    ids=["volatile", "own place", "same value", "atomics", "compare and swap", "blocks"],
)
def test_ordered_accesses_of_global_memory_raise_no_alarm(body: str) -> None:
    grid = 4 if "blockIdx" in body else 1
    out = np.zeros(256, np.float32) if "volatile" in body else None
    if out is None:
        run(body, grid=grid)
        return
    source = f'extern "C" __global__ void k(float* out, const float* in, int n) {{\n{body}\n}}'
    module = Module(compile_ptx(source, name="k.cu").text)
    values = np.ones(256, np.float32)
    module.get_function("k")(1, 64, (out, values, np.int32(256)))
    assert out[:32].all()


def test_many_reads_are_remembered_within_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from minibert.kernels.emulator import global_shadow

    monkeypatch.setattr(global_shadow, "_MOST_NOTED", 1024)
    body = """out[threadIdx.x] = in[threadIdx.x];
    __syncthreads();
    float x = 0.0f;
    for (int i = 0; i < 64; i++) x += out[(threadIdx.x + i) % 64];
    out[threadIdx.x] = x;"""
    with pytest.raises(KernelFault, match="write after read of global memory") as caught:
        run(body)
    assert caught.value.kind == "race"
    run(body.replace("    out[threadIdx.x] = x;", "__syncthreads(); out[threadIdx.x] = x;"))


def test_every_kind_of_fault_is_planted() -> None:
    read_only = {"write to read-only memory"}  # planted in test_launch
    assert {planted.kind for planted in PLANTED} | read_only == set(KINDS)
