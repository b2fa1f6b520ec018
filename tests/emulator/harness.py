"""Runs PTX snippets: one instruction between loads and stores, or a body of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from minibert.kernels.emulator import Module

_REGISTER = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}
EXECUTED: set[str] = set()
_results: dict[int, list[np.ndarray]] = {}


@dataclass(frozen=True, eq=False)
class Case:
    """An instruction over arrays, one element per thread.

    `text` has `{0}`, `{1}`, ... for destinations and `{a}`, `{b}`, ... for inputs; `{p}` and
    `{q}` are predicates. `memory` holds arrays before and after; their addresses are in `%m0`,
    `%m1`, ... `%t` is the thread's number.
    """

    text: str
    inputs: tuple[np.ndarray, ...]
    expected: tuple[np.ndarray, ...]
    relative: float = 0.0
    arch: str = "sm_90"
    registers: str = ""
    module: str = ""
    memory: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    name: str = field(default="")

    def __str__(self) -> str:
        return self.name or " ".join(self.text.split())[:60]


HEADER = ".version 9.0\n.target sm_90\n.address_size 64\n"


def run_case(case: Case) -> list[np.ndarray]:
    """Run a case once; the results, in the types of what is expected."""
    if id(case) not in _results:
        _results[id(case)] = _run(case)
    return _results[id(case)]


def _run(case: Case) -> list[np.ndarray]:
    outs = [np.zeros_like(e) for e in case.expected]
    threads = len(case.expected[0])
    names = {chr(ord("a") + i): f"%i{i}" for i in range(len(case.inputs))}
    params = [f".param .u64 p{i}" for i in range(len(outs) + len(case.inputs))]
    lines, declared = [], []
    for i, array in enumerate((*outs, *case.inputs)):
        register = f"%o{i}" if i < len(outs) else f"%i{i - len(outs)}"
        size = array.dtype.itemsize
        kind = "pred" if array.dtype == np.bool_ else _REGISTER[size]
        declared.append(f".reg .{kind} {register};")
        lines.append(f"ld.param.u64 %rd{i}, [p{i}]; mad.wide.u32 %rd{i}, %t, {size}, %rd{i};")
        if i >= len(outs):
            lines.append(_load(register, f"%rd{i}", size, kind))
    outputs = [f"%o{i}" for i in range(len(outs))]
    lines.append(case.text.format(*outputs, **names, p="%p0", q="%p1"))
    for i, array in enumerate(outs):
        lines.append(_store(f"%o{i}", f"%rd{i}", array.dtype))
    memory = [before.copy() for before, _ in case.memory]
    for i in range(len(memory)):
        params.append(f".param .u64 p{len(outs) + len(case.inputs) + i}")
        lines.insert(0, f"ld.param.u64 %m{i}, [p{len(outs) + len(case.inputs) + i}];")
    text = f"""{HEADER}{case.module}
    .visible .entry k({", ".join(params)}) {{
      .reg .b64 %rd<32>; .reg .b32 %t; .reg .b16 %h<4>; .reg .b32 %w<16>; .reg .pred %p<4>;
      .reg .f32 %f<16>; .reg .b64 %m<4>; {" ".join(declared)} {case.registers}
      mov.u32 %t, %tid.x;
      {chr(10).join(lines)}
      ret;
    }}"""
    run_text(text, "k", 1, threads, [*outs, *case.inputs, *memory], arch=case.arch)
    for got, (_, want) in zip(memory, case.memory, strict=True):
        np.testing.assert_array_equal(got, want)
    return outs


def _load(register: str, address: str, size: int, kind: str) -> str:
    if kind == "pred":
        return f"ld.global.u8 %h0, [{address}]; setp.ne.u16 {register}, %h0, 0;"
    return f"ld.global.{'u8' if size == 1 else f'b{8 * size}'} {register}, [{address}];"


def _store(register: str, address: str, dtype: np.dtype) -> str:
    if dtype == np.bool_:
        return f"selp.u16 %h1, 1, 0, {register}; st.global.u8 [{address}], %h1;"
    size = dtype.itemsize
    return f"st.global.{'u8' if size == 1 else f'b{8 * size}'} [{address}], {register};"


def run_text(text, name, grid, block, args, *, arch="sm_90", shared_mem=0, **options):
    """Compile nothing: run PTX as it stands."""
    kernel = Module(text, arch=arch, **options).get_function(name)
    if shared_mem > 48 * 1024:
        kernel.max_dynamic_shared_size_bytes = shared_mem
    try:
        return kernel(grid, block, args, shared_mem=shared_mem)
    finally:
        EXECUTED.update(kernel.executed)


def check_case(case: Case) -> None:
    """Run a case and compare: bits, or within a relative error."""
    for got, want in zip(run_case(case), case.expected, strict=True):
        if case.relative:
            np.testing.assert_allclose(got, want, rtol=case.relative, atol=1e-37, equal_nan=True)
        elif got.dtype.kind == "f":
            np.testing.assert_array_equal(got, want)  # NaN equals NaN
            solid = ~np.isnan(want)
            np.testing.assert_array_equal(np.signbit(got)[solid], np.signbit(want)[solid])
        else:
            np.testing.assert_array_equal(got, want)
