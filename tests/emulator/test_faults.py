"""Each planted bug is reported, with its kind and its source line; the repaired kernel is clean."""

from __future__ import annotations

import numpy as np
import pytest

from minibert.kernels.cuda.nvrtc import compile_ptx
from minibert.kernels.emulator import KernelFault, Module, device_array
from minibert.kernels.emulator.faults import KINDS
from tests.emulator import planted_memory, planted_order
from tests.emulator.planted_memory import Planted

PLANTED = [*planted_memory.PLANTED, *planted_order.PLANTED]


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


def test_every_kind_of_fault_is_planted() -> None:
    read_only = {"write to read-only memory"}  # planted in test_launch
    assert {planted.kind for planted in PLANTED} | read_only == set(KINDS)
