"""Every operation of the table, one by one, against values that other code computed."""

from __future__ import annotations

import pytest

from minibert.kernels.emulator.faults import KernelFault, UnsupportedError
from minibert.kernels.emulator.launch import Module
from minibert.kernels.emulator.table import operations
from tests.emulator import (
    cases_carry,
    cases_compare,
    cases_convert,
    cases_copy,
    cases_float,
    cases_half,
    cases_integer,
    cases_memory,
    cases_tensor,
    cases_warp,
)
from tests.emulator.harness import EXECUTED, HEADER, Case, check_case, run_case, run_text
from tests.emulator.test_print import print_from_a_kernel

MODULES = (
    cases_carry,
    cases_compare,
    cases_convert,
    cases_copy,
    cases_float,
    cases_half,
    cases_integer,
    cases_memory,
    cases_tensor,
    cases_warp,
)
CASES = [case for module in MODULES for case in module.cases()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("name", ["trap", "brkpt"])
def test_a_stop_is_reported(name: str) -> None:
    with pytest.raises(KernelFault, match="stopped itself") as caught:
        run_text(f"{HEADER} .visible .entry k() {{ {name}; ret; }}", "k", 1, 32, [])
    assert caught.value.kind == "trap"


def test_every_entry_of_the_table_was_executed() -> None:
    for case in CASES:
        run_case(case)
    for name in ("trap", "brkpt"):
        test_a_stop_is_reported(name)
    print_from_a_kernel()
    assert {entry.name for entry in operations()} - EXECUTED == set()


def test_unknown_opcode_is_refused_by_name() -> None:
    text = f"{HEADER} .visible .entry k() {{ .reg .b32 %r<2>; frobnicate.s32 %r0, %r1; ret; }}"
    with pytest.raises(UnsupportedError, match=r"frobnicate\.s32"):
        Module(text).get_function("k")


def test_unknown_modifier_is_refused_by_name() -> None:
    text = f"{HEADER} .visible .entry k() {{ .reg .f32 %f<2>; add.rx.f32 %f0, %f1, %f1; ret; }}"
    with pytest.raises(UnsupportedError, match=r"add\.rx\.f32"):
        Module(text).get_function("k")


def test_instruction_of_a_later_architecture_is_refused() -> None:
    text = f"{HEADER} .visible .entry k() {{ cp.async.wait_all; ret; }}"
    assert Module(text, arch="sm_80").get_function("k")
    with pytest.raises(UnsupportedError, match="needs sm_80 or later, got sm_75"):
        Module(text, arch="sm_75").get_function("k")
